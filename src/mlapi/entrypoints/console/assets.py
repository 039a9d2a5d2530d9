"""The static files of the console.

Their URLs contain a digest of the content, so browsers can cache them indefinitely.
"""

from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from importlib.resources import files

from starlette.responses import Response

from mlapi.entrypoints.console.request import ConsoleRequest
from mlapi.entrypoints.http.docs import Document

ASSETS_PATH = "/static/"
_SOURCES = {
    "console.css": ("console/static/console.css", "text/css"),
    "icon.svg": ("console/static/icon.svg", "image/svg+xml; charset=utf-8"),
    "htmx.min.js": ("static/htmx/htmx.min.js", "text/javascript"),
}


def asset_path(name: str) -> str:
    """Return the path of a file, relative to the path of the console."""
    return f"{ASSETS_PATH}{_assets()[name].digest}/{name}"


async def show_asset(request: ConsoleRequest) -> Response:
    asset = _assets().get(request.http_request.path_params["name"])
    if asset is None or asset.digest != request.http_request.path_params["digest"]:
        return Response(status_code=HTTPStatus.NOT_FOUND)
    return asset.response(request.http_request, cache_control="public, max-age=31536000, immutable")


@cache
def _assets() -> Mapping[str, Document]:
    folder = files("mlapi.entrypoints")
    return {name: Document(folder.joinpath(path).read_bytes(), kind) for name, (path, kind) in _SOURCES.items()}
