"""The page at ``/``: it leads browsers to the console, and other clients to the documentation."""

from http import HTTPStatus

from starlette.requests import Request
from starlette.routing import Route

from mlapi.entrypoints.http.middleware import Endpoint
from mlapi.entrypoints.wire.client import Client
from mlapi.entrypoints.wire.paths import ACCOUNT_PATH, CONSOLE_PATH, DOCS_PATH, OPENAPI_PATH, START_PATH, base_path
from mlapi.entrypoints.wire.responses import Response, start_page

_HTML = "text/html"


def start_routes() -> list[Route]:
    """Return the route for the start page. The OpenAPI description does not include it."""
    return [Route(START_PATH, Endpoint(show_start_page, "show_start_page"), methods=["GET"])]


async def show_start_page(request: Request) -> Response:
    """Redirect browsers to the console, which checks access itself. Other clients need access to the documentation.

    The Location header contains no host name, because the Host header of the request may be forged.
    """
    base = base_path(request.scope)
    if _HTML in request.headers.get("accept", ""):
        return Response(HTTPStatus.SEE_OTHER, b"", headers=(("Location", base + CONSOLE_PATH),))
    request.app.state.admin_policy.check(Client.from_asgi(request.scope))
    account = base + ACCOUNT_PATH if request.app.state.runtime.has_account_pages else None
    return start_page(console=base + CONSOLE_PATH, docs=base + DOCS_PATH, openapi=base + OPENAPI_PATH, account=account)
