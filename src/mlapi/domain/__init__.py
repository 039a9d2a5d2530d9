"""The domain model: users, the commands that change them, and the rules that reject commands and credentials.

Uses only the standard library and attrs. Read the modules in this order: ``users``, ``rules``, ``commands``,
``credentials``, ``audit``, ``errors``, ``ports``, ``storage``.
"""
