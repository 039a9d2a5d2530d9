"""Authenticate the browser of a manager who is logged in to the console.

Each credential grants as little as possible, because other applications may share the host:

- The session cookie is sent to the console only.
- The docs cookie is sent to the documentation only, and only grants access to read it.
- A page token authenticates requests to the API that the documentation page sends. The page asks the console for a new
  one before each request, and sends it in a header. Other sites can neither read it nor set this header.
"""

from starlette.types import Receive, Scope

from mlapi.domain.errors import MlapiError
from mlapi.domain.managers import ManagerIdentity
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http.peers import connected_client
from mlapi.entrypoints.http.sessions import LIFETIME_SECONDS, Session, Sessions
from mlapi.entrypoints.wire.client import Client
from mlapi.entrypoints.wire.headers import get_cookies, header_values
from mlapi.entrypoints.wire.paths import DOCS_PATH, OPENAPI_PATH, base_path, is_docs_path, relative_path

_DOCS_COOKIE = "docs"
_PAGE_TOKEN_HEADER = b"x-page-token"
_SAFE_METHODS = frozenset({"GET", "HEAD"})


async def find_manager_in_browser(scope: Scope, receive: Receive) -> ManagerIdentity | None:
    """Return the manager whose browser reads the documentation, or whose page sent this request to the API, or None.

    In token mode, the manager has logged in to the console. In local mode, the browser runs on this machine: see
    `AdminPolicy.check_page`.
    """
    is_safe = scope["method"] in _SAFE_METHODS
    tokens = header_values(scope["headers"], _PAGE_TOKEN_HEADER)
    if len(tokens) != 1 and not (is_safe and is_docs_path(relative_path(scope))):
        return None
    state = scope["app"].state
    policy: AdminPolicy = state.admin_policy
    sessions = Sessions(policy.session_key)
    client = connected_client(scope, receive).with_forwarded_scheme(state.runtime.trusted_proxies)
    if len(tokens) != 1:
        cookies = get_cookies(client.headers, cookie_name(client, _DOCS_COOKIE))
        is_manager = policy.mode == "token" and any(map(sessions.is_docs_cookie, cookies))
        return policy.identity if is_manager else None
    # Browsers that do not know Sec-Fetch-Site send no such header with a GET request to the same origin.
    is_same_origin = client.is_same_origin or (is_safe and not client.reveals_origin)
    is_accepted = is_same_origin and sessions.is_page_token(tokens[0].decode("latin-1"))
    return policy.identity if is_accepted and _has_page_access(client, policy) else None


def _has_page_access(client: Client, policy: AdminPolicy) -> bool:
    try:
        policy.check_page(client)
    except MlapiError:
        return False
    return True


def docs_cookies(scope: Scope, client: Client, sessions: Sessions, session: Session | None) -> list[str]:
    """Return Set-Cookie headers that let the browser of a session read the documentation, or revoke this access."""
    value, max_age_seconds = ("", 0) if session is None else (sessions.docs_cookie(session), LIFETIME_SECONDS)
    paths = (base_path(scope) + DOCS_PATH, base_path(scope) + OPENAPI_PATH)
    return [set_cookie(client, _DOCS_COOKIE, value, path, max_age_seconds) for path in paths]


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
