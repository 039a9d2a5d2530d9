"""The console's static files.

Their URLs contain a digest of the content, so browsers can cache them indefinitely.
"""

from starlette.responses import Response

from mlapi.entrypoints.console.request import ConsoleRequest
from mlapi.entrypoints.http.static_files import StaticFiles

ASSETS_PATH = "/static/"
_FILES = StaticFiles(
    {
        "console.css": ("console/static/console.css", "text/css"),
        "icon.svg": ("console/static/icon.svg", "image/svg+xml; charset=utf-8"),
        "htmx.min.js": ("static/htmx/htmx.min.js", "text/javascript"),
    }
)


def asset_path(name: str) -> str:
    """Return the path of a file, relative to the path of the console."""
    return ASSETS_PATH + _FILES.url(name)


async def show_asset(request: ConsoleRequest) -> Response:
    return _FILES.response(request.http_request)
