"""Identify the managers whom the `AdminPolicy` does not know, by their tokens or by the sessions of their browsers."""

from starlette.types import Receive, Scope

from mlapi.domain.errors import InvalidTokenError
from mlapi.domain.managers import ManagerIdentity
from mlapi.entrypoints.admin import find_manager_token
from mlapi.entrypoints.http.browser_sessions import find_manager_in_browser
from mlapi.entrypoints.http.runtime import Runtime
from mlapi.entrypoints.wire.client import Client


async def find_manager(client: Client, scope: Scope, receive: Receive) -> ManagerIdentity | None:
    """Return the manager who sent a request, or None.

    Raises:
        ServiceUnavailableError, RepositoryUnavailableError: if the managers cannot be read.
    """
    token = find_manager_token(client.headers)
    if token is not None:
        return await find_manager_with_token(token, scope["app"].state.runtime)
    return await find_manager_in_browser(scope, receive)


async def find_manager_with_token(token: str, runtime: Runtime) -> ManagerIdentity | None:
    """Return the manager with this token, or None if it is unknown or has expired.

    Raises:
        ServiceUnavailableError, RepositoryUnavailableError: if the managers cannot be read.
    """
    try:
        return (await runtime.managers.identify(token)).identity
    except InvalidTokenError:
        return None
