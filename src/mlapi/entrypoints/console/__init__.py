"""The web console at ``/console``, where admins list, add, disable and remove users.

It works without JavaScript. If JavaScript is enabled, htmx updates parts of a page instead of reloading it.
"""

from mlapi.entrypoints.console.routes import console_routes

__all__ = ["console_routes"]
