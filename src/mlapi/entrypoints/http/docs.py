"""The OpenAPI description at ``/openapi.json``, and Swagger UI at ``/docs``."""

from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlapi.entrypoints.http.static_files import REVALIDATE, StaticFile, StaticFiles
from mlapi.entrypoints.wire.paths import CONSOLE_PATH, DOCS_PATH, OPENAPI_PATH

if TYPE_CHECKING:
    from mlapi.entrypoints.wire.openapi import DescribedAccess

# Swagger UI sets styles through the DOM, which style-src does not restrict. Its style sheet contains data: images.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_FILES = StaticFiles(
    {
        "swagger-ui.css": ("text/css", "static/swagger-ui/swagger-ui.css"),
        "docs.css": ("text/css", "static/colors.css", "static/docs.css"),
        "swagger-ui-bundle.js": ("text/javascript", "static/swagger-ui/swagger-ui-bundle.js"),
        "docs.js": ("text/javascript", "static/docs.js"),
    }
)


def documentation_routes() -> list[Route]:
    """Return the routes for the documentation. The OpenAPI description does not include them."""
    return [
        Route(OPENAPI_PATH, show_description, methods=["GET"]),
        Route(DOCS_PATH, show_page, methods=["GET"]),
        Route(f"{DOCS_PATH}/{{digest}}/{{name}}", show_asset, methods=["GET"]),
    ]


async def show_description(request: Request) -> Response:
    from mlapi.entrypoints.wire.openapi import DescribedAccess  # noqa: PLC0415 - most processes never describe the API

    policy = request.app.state.admin_policy
    access = DescribedAccess(policy.mode == "local", policy.open_flags)
    return _openapi_file(access).response(request, cache_control=REVALIDATE)


async def show_page(request: Request) -> Response:
    return _page().response(request, cache_control=REVALIDATE, content_security_policy=CONTENT_SECURITY_POLICY)


async def show_asset(request: Request) -> Response:
    response = _FILES.response(request)
    if response.status_code == HTTPStatus.NOT_FOUND:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return response


@cache
def _openapi_file(access: "DescribedAccess") -> StaticFile:
    from mlapi.entrypoints.wire.openapi import openapi  # noqa: PLC0415 - as above

    return StaticFile(openapi(access), "application/json")


@cache
def _page() -> StaticFile:
    folder, console, openapi_json = (path.removeprefix("/") for path in (DOCS_PATH, CONSOLE_PATH, OPENAPI_PATH))
    html = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>API · mlapi</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{folder}/{_FILES.url("swagger-ui.css")}">
<link rel="stylesheet" href="{folder}/{_FILES.url("docs.css")}">
<script defer src="{folder}/{_FILES.url("swagger-ui-bundle.js")}"></script>
<script defer src="{folder}/{_FILES.url("docs.js")}"></script>
</head>
<body>
<a class="skip" href="#operations">Skip to main content</a>
<header class="bar"><nav class="bar-inner" aria-label="Pages">
<a class="brand" href="{console}">mlapi</a>
<a href="{console}">Users</a>
<a href="{folder}" aria-current="page">API</a>
</nav></header>
<div id="swagger-ui"></div>
<noscript><p>Without JavaScript, read <a href="{openapi_json}">openapi.json</a>.</p></noscript>
</body>
</html>
"""
    return StaticFile(html.encode("utf-8"), "text/html")
