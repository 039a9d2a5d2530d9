"""Identify the managers whom the `AdminPolicy` does not know, by their tokens or by the sessions of their browsers."""

from typing import TYPE_CHECKING

from starlette.types import Receive, Scope

from mlapi.domain.errors import InvalidTokenError
from mlapi.domain.managers import ManagerIdentity
from mlapi.entrypoints.admin import find_manager_token
from mlapi.entrypoints.http.browser_sessions import find_manager_in_browser
from mlapi.entrypoints.wire.client import Client

if TYPE_CHECKING:
    from mlapi.entrypoints.http.runtime import Runtime


async def find_manager(client: Client, scope: Scope, receive: Receive) -> ManagerIdentity | None:
    """Return the manager who sent a request, or None. Tokens that are unknown or have expired belong to no manager.

    Raises:
        ServiceUnavailableError, RepositoryUnavailableError: if the managers cannot be read.
    """
    token = find_manager_token(client.headers)
    if token is None:
        return await find_manager_in_browser(scope, receive)
    runtime: Runtime = scope["app"].state.runtime
    try:
        return (await runtime.managers.identify(token)).identity
    except InvalidTokenError:
        return None
