"""Access to the console, and the sessions of managers."""

from collections.abc import Sequence

from mlapi.entrypoints.http.sessions import Session
from mlapi.entrypoints.pages import PageRequest, PageSession, Site
from mlapi.entrypoints.wire.paths import CONSOLE_PATH

LOGIN_PATH = "/log-in"
PAGE_TOKEN_PATH = "/page-token"  # noqa: S105 - a path


class ConsoleAccess:
    """The `AccessRule` of the console. Access depends on the admin mode.

    In token mode, only the login page is public. Local mode needs no login; sessions only protect its forms. In locked
    mode, every request is rejected.
    """

    def is_public(self, path: str) -> bool:
        return path in {LOGIN_PATH, PAGE_TOKEN_PATH}

    async def open_session(self, request: PageRequest) -> tuple[PageSession | None, Sequence[str]]:
        request.admin_policy.check_page(request.client)
        sent_cookies = request.session_cookies
        session, cookie = request.sessions.load_first(sent_cookies), None
        if session is None and request.admin_policy.mode != "token":
            session, cookie = request.sessions.create()
        # Only page views renew the session: every form redirects to a page, and logging out must delete the cookie.
        if request.is_safe and cookie is None:
            cookie = request.sessions.renew(session) if session is not None else _clear_cookie(sent_cookies)
        cookies = [] if cookie is None else [request.session_cookie(cookie)]
        return None if session is None else _page_session(session), cookies


def _page_session(session: Session) -> PageSession:
    return PageSession(csrf_token=session.csrf_token, actor="console", cookie_session=session)


def _clear_cookie(sent_cookies: list[str]) -> str | None:
    """Return the cookie value that removes invalid session cookies, or None if the browser sent none."""
    return "" if sent_cookies else None


CONSOLE = Site(
    name="console",
    path=CONSOLE_PATH,
    package="mlapi.entrypoints.console",
    access=ConsoleAccess(),
    home="users",
    login_path=LOGIN_PATH,
    cookie="session",
)
