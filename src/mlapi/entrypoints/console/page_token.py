"""Give the documentation page a token that authenticates its next request to the API."""

import msgspec
from starlette.responses import Response

from mlapi.entrypoints.pages import PageRequest
from mlapi.entrypoints.wire.errors import AdminAccessDeniedError


async def show_page_token(request: PageRequest) -> Response:
    """Return a token as JSON, or null if no manager is logged in.

    Raises:
        AdminAccessDeniedError: if the request comes from a page of another origin. That page could not read the
            response.
    """
    client = request.client
    if client.reveals_origin and not client.is_same_origin:
        raise AdminAccessDeniedError("Only this service's own pages may request a page token")
    session = None if request.session is None else request.session.cookie_session
    token = None if session is None else request.sessions.page_token(session)
    return Response(msgspec.json.encode({"token": token}), media_type="application/json")
