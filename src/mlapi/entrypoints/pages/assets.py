"""The static files of all sites.

Their URLs contain a digest of the content, so browsers can cache them indefinitely.
"""

from starlette.responses import Response

from mlapi.entrypoints.http.static_files import StaticFiles
from mlapi.entrypoints.pages.request import PageRequest

ASSETS_PATH = "/static/"
_FILES = StaticFiles(
    {
        "pages.css": ("text/css", "static/colors.css", "pages/static/pages.css"),
        "copy.js": ("text/javascript", "pages/static/copy.js"),
        "htmx.min.js": ("text/javascript", "static/htmx/htmx.min.js"),
    }
)


def asset_path(name: str) -> str:
    """Return the path of a file, relative to the path of the site."""
    return ASSETS_PATH + _FILES.url(name)


async def show_asset(request: PageRequest) -> Response:
    return _FILES.response(request.http_request)
