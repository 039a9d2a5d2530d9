"""The whole rule of the product: what a user is, what may change, what is refused.

Standard library and attrs only. Read in this order: model, credentials, changes, audit, ports, errors.
"""
