"""Access to the console, and the sessions of managers."""

import hashlib
import hmac
import re
from collections.abc import Sequence

import attrs

from mlapi.application.sessions import ManagerSession
from mlapi.domain.managers import LOCAL
from mlapi.domain.sessions import find_session_id, generate_session_secret
from mlapi.entrypoints.http.browser_sessions import find_open_session
from mlapi.entrypoints.http.sessions import csrf_token, find_secrets
from mlapi.entrypoints.pages import PageRequest, PageSession, Site
from mlapi.entrypoints.wire.errors import AdminAccessDeniedError, ViewerRoleError
from mlapi.entrypoints.wire.paths import CONSOLE_PATH

LOGIN_PATH = "/log-in"
LOGOUT_PATH = "/log-out"
SESSIONS_PATH = "/sessions"
PAGE_TOKEN_PATH = "/page-token"  # noqa: S105 - a path
_OWN_FORMS = re.compile(r"/log-out|/sessions/.*")
"""The forms that viewers may send: they change nothing but their own sessions."""
_FORM_PAGES = re.compile(r".*/(new|remove)")
"""Pages that consist of a form that only admins may send."""


class ConsoleAccess:
    """The `AccessRule` of the console.

    Managers sign in, with a token of their own or with the admin token. In local mode, programs and browsers on this
    machine need no session; a cookie then only protects the forms. Viewers read, and may end their own sessions.
    """

    def is_public(self, path: str) -> bool:
        return path in {LOGIN_PATH, PAGE_TOKEN_PATH}

    async def open_session(self, request: PageRequest) -> tuple[PageSession | None, Sequence[str]]:
        policy, secrets = request.admin_policy, find_secrets(request.session_cookies)
        for session_id, secret in secrets:
            found = await find_open_session(request.runtime, policy, session_id)
            if found is not None:
                await request.runtime.executor.read_page(request.runtime.sessions.touch, found.session)
                return _manager_session(found, secret), ()
        cookies = [request.session_cookie("")] if request.session_cookies else []
        if policy.mode == "token":
            return None, cookies if request.is_safe else ()
        try:
            policy.check_page(request.client)
        except AdminAccessDeniedError:
            if request.path != LOGIN_PATH:  # managers with a token of their own may sign in from anywhere
                raise
            return None, cookies if request.is_safe else ()
        return _local_session(request, secrets[0][1] if secrets else None)

    def check(self, request: PageRequest) -> None:
        manager = None if request.session is None else request.session.manager
        if manager is None or manager.is_admin:
            return
        is_form = _FORM_PAGES.fullmatch(request.path) if request.is_safe else not _OWN_FORMS.fullmatch(request.path)
        if is_form:
            raise ViewerRoleError(manager.name)


def _manager_session(found: ManagerSession, secret: str) -> PageSession:
    return PageSession(
        id=found.session.id,
        csrf_token=csrf_token(secret),
        actor=found.manager.actor,
        manager=found.manager,
        stored=found.session,
        form_key=_form_key(secret),
    )


def _form_key(secret: str) -> bytes:
    return hmac.digest(secret.encode("ascii"), b"mlapi console forms", hashlib.sha256)


def _local_session(request: PageRequest, secret: str | None) -> tuple[PageSession, Sequence[str]]:
    """Return a session that is not stored, with the secret in the cookie, or with a new secret if there is none."""
    new_secret = secret or generate_session_secret()
    session_id = find_session_id(new_secret)
    assert session_id is not None  # noqa: S101 - both have the right form
    session = PageSession(id=session_id, csrf_token=csrf_token(new_secret), actor=LOCAL.actor, manager=LOCAL)
    session = attrs.evolve(session, form_key=_form_key(new_secret))
    return session, [] if secret else [request.session_cookie(new_secret)]


CONSOLE = Site(
    name="console",
    path=CONSOLE_PATH,
    package="mlapi.entrypoints.console",
    access=ConsoleAccess(),
    home="users",
    login_path=LOGIN_PATH,
    cookie="session",
)
