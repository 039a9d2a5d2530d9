"""Authenticate the browser of a manager who is signed in to the console.

Each credential grants as little as possible, because other applications may share the host:

- The session cookie is sent to the console only.
- The docs cookie is sent to the documentation only, and only grants access to read it.
- A page token authenticates requests to the API that the documentation page sends. The page asks the console for a new
  one before each request, and sends it in a header. Other sites can neither read it nor set this header.

All three end together with the session in the console.
"""

from starlette.types import Receive, Scope

from mlapi.application.sessions import ManagerSession
from mlapi.domain.errors import MlapiError
from mlapi.domain.managers import LOCAL, ManagerIdentity
from mlapi.domain.sessions import LIFETIME_SECONDS, SessionId
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http.peers import connected_client
from mlapi.entrypoints.http.runtime import Runtime
from mlapi.entrypoints.http.sessions import PageTokens
from mlapi.entrypoints.wire.client import Client
from mlapi.entrypoints.wire.headers import get_cookies, header_values
from mlapi.entrypoints.wire.paths import DOCS_PATH, OPENAPI_PATH, base_path, is_docs_path, relative_path

_DOCS_COOKIE = "docs"
_PAGE_TOKEN_HEADER = b"x-page-token"
_SAFE_METHODS = frozenset({"GET", "HEAD"})


async def find_manager_in_browser(scope: Scope, receive: Receive) -> ManagerIdentity | None:
    """Return the manager whose browser reads the documentation, or whose page sent this request to the API, or None.

    The manager has signed in to the console, and the session is still open. In local mode, the browser may also run on
    this machine, without a session: see `AdminPolicy.check_page`.

    Raises:
        ServiceUnavailableError, RepositoryUnavailableError: if the sessions cannot be read.
    """
    is_safe = scope["method"] in _SAFE_METHODS
    tokens = header_values(scope["headers"], _PAGE_TOKEN_HEADER)
    if len(tokens) != 1 and not (is_safe and is_docs_path(relative_path(scope))):
        return None
    state = scope["app"].state
    policy: AdminPolicy = state.admin_policy
    signer = PageTokens(policy.session_key)
    client = connected_client(scope, receive).with_forwarded_scheme(state.runtime.trusted_proxies)
    if len(tokens) != 1:
        session_id = signer.find_by_docs_cookies(get_cookies(client.headers, cookie_name(client, _DOCS_COOKIE)))
        found = None if session_id is None else await find_open_session(state.runtime, policy, session_id)
        return None if found is None else found.manager
    # Browsers that do not know Sec-Fetch-Site send no such header with a GET request to the same origin.
    is_same_origin = client.is_same_origin or (is_safe and not client.reveals_origin)
    session_id = signer.find_by_page_token(tokens[0].decode("latin-1"))
    if session_id is None or not is_same_origin:
        return None
    found = await find_open_session(state.runtime, policy, session_id)
    if found is not None:
        return found.manager
    return LOCAL if policy.mode == "local" and _has_page_access(client, policy) else None


async def find_open_session(runtime: Runtime, policy: AdminPolicy, session_id: SessionId) -> ManagerSession | None:
    """Return the open session of a manager with this id, or None."""
    return await runtime.executor.read_page(runtime.sessions.find_manager, session_id, admin_epoch=policy.session_epoch)


def _has_page_access(client: Client, policy: AdminPolicy) -> bool:
    try:
        policy.check_page(client)
    except MlapiError:
        return False
    return True


def docs_cookies(scope: Scope, client: Client, value: str) -> list[str]:
    """Return Set-Cookie headers that let a browser read the documentation. An empty value revokes this access."""
    paths = (base_path(scope) + DOCS_PATH, base_path(scope) + OPENAPI_PATH)
    return [set_cookie(client, _DOCS_COOKIE, value, path, LIFETIME_SECONDS if value else 0) for path in paths]


def set_cookie(client: Client, name: str, value: str, path: str, max_age_seconds: int) -> str:
    """Return a Set-Cookie header. A maximum age of 0 deletes the cookie."""
    secure = "; Secure" if client.scheme == "https" else ""
    attributes = f"Path={path}; Max-Age={max_age_seconds}; HttpOnly; SameSite=Strict{secure}"
    return f"{cookie_name(client, name)}={value}; {attributes}"


def cookie_name(client: Client, name: str) -> str:
    """Return the full name of a cookie.

    Browsers accept a cookie with the ``__Secure-`` prefix only over HTTPS, so a network attacker cannot plant one.
    """
    return f"__Secure-mlapi_{name}" if client.scheme == "https" else f"mlapi_{name}"
