"""The pages of users: their account at ``/account``, and the pages of one-time links at ``/links``."""

from mlapi.entrypoints.account.links import link_routes
from mlapi.entrypoints.account.routes import account_routes

__all__ = ["account_routes", "link_routes"]
