"""The static files of all sites.

Their URLs contain a digest of the content, so browsers can cache them indefinitely.
"""

from starlette.responses import Response

from mlapi.entrypoints.http.static_files import StaticFiles
from mlapi.entrypoints.pages.request import PageRequest

ASSETS_PATH = "/static/"
_FILES = StaticFiles(
    {
        "pages.css": ("pages/static/pages.css", "text/css"),
        "icon.svg": ("pages/static/icon.svg", "image/svg+xml; charset=utf-8"),
        "copy.js": ("pages/static/copy.js", "text/javascript"),
        "htmx.min.js": ("static/htmx/htmx.min.js", "text/javascript"),
    }
)


def asset_path(name: str) -> str:
    """Return the path of a file, relative to the path of the site."""
    return ASSETS_PATH + _FILES.url(name)


async def show_asset(request: PageRequest) -> Response:
    return _FILES.response(request.http_request)
