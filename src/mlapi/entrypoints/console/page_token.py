"""Give the documentation page a token that authenticates its next request to the API."""

import msgspec
from starlette.responses import Response

from mlapi.entrypoints.http.sessions import PageTokens
from mlapi.entrypoints.pages import PageRequest
from mlapi.entrypoints.wire.errors import AdminAccessDeniedError


async def show_page_token(request: PageRequest) -> Response:
    """Return a token as JSON, or null if no manager is signed in.

    Raises:
        AdminAccessDeniedError: if the request comes from a page of another origin. That page could not read the
            response.
    """
    client = request.client
    if client.reveals_origin and not client.is_same_origin:
        raise AdminAccessDeniedError("Only this service's own pages may request a page token")
    session, signer = request.session, PageTokens(request.admin_policy.session_key)
    token = None if session is None else signer.page_token(session.id)
    return Response(msgspec.json.encode({"token": token}), media_type="application/json")
