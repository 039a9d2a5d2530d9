"""The access rule of the account pages: users sign in with their name and password."""

from collections.abc import Sequence

from mlapi.entrypoints.account.sessions import open_session
from mlapi.entrypoints.http.runtime import Runtime
from mlapi.entrypoints.pages import PageRequest, PageSession, Site
from mlapi.entrypoints.wire.paths import ACCOUNT_PATH

SIGN_IN_PATH = "/sign-in"
FORGOTTEN_PATH = "/forgotten-password"
_PUBLIC_PATHS = frozenset({SIGN_IN_PATH, FORGOTTEN_PATH})


class AccountAccess:
    """An `AccessRule`: all pages except those before the sign-in need the session of a user.

    Disabled and pending users have no session. Users whose access has expired may have one.
    """

    def is_public(self, path: str) -> bool:
        return path in _PUBLIC_PATHS

    async def open_session(self, request: PageRequest) -> tuple[PageSession | None, Sequence[str]]:
        return await open_session(request), ()

    def check(self, request: PageRequest) -> None:
        """Allow every page and form: they concern only the user who is signed in."""


def _is_enabled(runtime: Runtime) -> bool:
    return runtime.has_account_pages


ACCOUNT = Site(
    name="account",
    path=ACCOUNT_PATH,
    package="mlapi.entrypoints.account",
    access=AccountAccess(),
    home="your account",
    login_path=SIGN_IN_PATH,
    cookie="account",
    is_enabled=_is_enabled,
)
