"""The console at ``/console``: the people's page. It shows the users and changes them, through the same use cases.

It works without JavaScript; where there is some, htmx spares a few page loads.
"""

from mlapi.entrypoints.console.request import PATH
from mlapi.entrypoints.console.routes import console_routes

__all__ = ["PATH", "console_routes"]
