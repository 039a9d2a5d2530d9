"""The rules of mlapi: the user, the commands that change users, and the checks that reject commands and credentials.

Uses only the standard library and attrs. Read the modules in this order: ``users``, ``rules``, ``commands``,
``credentials``, ``audit``, ``errors``, ``ports``, ``storage``.
"""
