"""The description at ``/openapi.json``, and Swagger UI at ``/docs`` to read it and try it out.

All of it comes from this package, under URLs relative to the page, so it works without another host and below any path.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from importlib.resources import files

import attrs
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlapi.entrypoints.admin import DOCS_PATH, OPENAPI_PATH
from mlapi.entrypoints.wire import openapi as description

# Swagger UI sets styles by script, which needs no permission, and has pictures in its style sheet.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_FOR_GOOD = "public, max-age=31536000, immutable"  # of a URL that holds the digest of what it gives: a year
_ASK_AGAIN = "no-cache"  # may be kept, and is asked for with its ETag: RFC 9111, 5.2.2.4

_ASSETS = {
    "swagger-ui.css": ("static/swagger-ui/swagger-ui.css", "text/css"),
    "swagger-ui-bundle.js": ("static/swagger-ui/swagger-ui-bundle.js", "text/javascript"),
    "docs.js": ("static/docs.js", "text/javascript"),
}


@attrs.frozen
class Document:
    """What is served as it is; its digest is the first half of its SHA-256."""

    content: bytes = attrs.field(repr=False)
    media_type: str
    digest: str = attrs.field(init=False)

    @digest.default
    def _of_content(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:32]

    def response(self, request: Request, **headers: str) -> Response:
        """Return it, or 304 for whoever has it already (RFC 9110, 13.1.2). Names of headers have underscores here."""
        sent = {"etag": f'"{self.digest}"', **{name.replace("_", "-"): value for name, value in headers.items()}}
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if not known.isdisjoint({sent["etag"], "*"}):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=sent)
        return Response(self.content, headers=sent, media_type=self.media_type)


def documentation_routes() -> list[Route]:
    """Return the routes of a service. They describe it, so they are not described themselves."""
    return [
        Route(OPENAPI_PATH, show_description, methods=["GET"]),
        Route(DOCS_PATH, show_page, methods=["GET"]),
        Route(f"{DOCS_PATH}/{{digest}}/{{name}}", show_asset, methods=["GET"]),
    ]


async def show_description(request: Request) -> Response:
    return _description().response(request, cache_control=_ASK_AGAIN)


async def show_page(request: Request) -> Response:
    return _page().response(request, cache_control=_ASK_AGAIN, content_security_policy=PAGE_POLICY)


async def show_asset(request: Request) -> Response:
    asset = _assets().get(request.path_params["name"])
    if asset is None or asset.digest != request.path_params["digest"]:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return asset.response(request, cache_control=_FOR_GOOD)


@cache
def _description() -> Document:
    return Document(description.openapi(), "application/json")


@cache
def _assets() -> Mapping[str, Document]:
    folder = files("mlapi.entrypoints")
    return {name: Document(folder.joinpath(path).read_bytes(), kind) for name, (path, kind) in _ASSETS.items()}


@cache
def _page() -> Document:
    url = {name: f"{DOCS_PATH.removeprefix('/')}/{asset.digest}/{name}" for name, asset in _assets().items()}
    html = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>mlapi</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{url["swagger-ui.css"]}">
<script defer src="{url["swagger-ui-bundle.js"]}"></script>
<script defer src="{url["docs.js"]}"></script>
</head>
<body><div id="swagger-ui"></div></body>
</html>
"""
    return Document(html.encode("utf-8"), "text/html")
