"""Console sessions, stored in signed cookies.

The server stores no sessions, so any process can verify a cookie. Logging out deletes the cookie from the browser; a
copy of it stays valid until the session expires or the admin token changes. A session expires eight hours after login,
or one hour after the last page view.

In local mode the signing key is not secret, so a valid signature proves nothing. Therefore, the type and length of
every cookie are checked before it is used.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Annotated

import attrs
import msgspec
from itsdangerous import Signer

from mlapi.entrypoints.http.signatures import SignedValue, is_current

LIFETIME_SECONDS = 8 * 3600
"""The maximum age of a session, even if it is in use."""
IDLE_SECONDS = 3600
"""An unused session expires after this time (NIST SP 800-63B-4, 2.2.3)."""
PAGE_TOKEN_SECONDS = 60
"""How long a page token is valid. The page asks for one before each of its requests."""
_RENEWAL_SECONDS = 60  # the minimum interval between renewals, so that most responses set no cookie


@attrs.frozen
class Session:
    """A console session. Times are Unix timestamps in seconds."""

    id: str = attrs.field(repr=False)
    csrf_token: str = attrs.field(repr=False)
    """Every form contains this token, which proves that the form belongs to this session."""
    started_at: int = attrs.field(repr=False)
    last_used_at: int = attrs.field(repr=False)


class Sessions:
    """Creates, renews and verifies session cookies.

    Args:
        key: the signing key. In local mode, it is not secret (see `AdminPolicy.session_key`). The cookie then only has
            to match the form (double-submit cookie), which prevents CSRF.
        clock: returns the current Unix timestamp.
    """

    def __init__(self, key: bytes, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._sessions: SignedValue[tuple[str, int]] = SignedValue(
            _SessionContent, key, b"mlapi console session", clock
        )
        self._page_tokens: SignedValue[str] = SignedValue(_SessionId, key, b"mlapi page token", clock)
        self._docs_cookies: SignedValue[str] = SignedValue(_SessionId, key, b"mlapi docs cookie", clock)
        self._csrf = Signer(key, b"mlapi console csrf", key_derivation="hmac", digest_method=hashlib.sha256)

    def create(self) -> tuple[Session, str]:
        """Return a new session and the value of its cookie."""
        now = int(self._clock())
        session = self._session(secrets.token_hex(16), started_at=now, last_used_at=now)
        return session, self._cookie(session)

    def renew(self, session: Session) -> str | None:
        """Return a new cookie value that restarts the idle timeout, or None if the last renewal was recent."""
        return None if self._clock() - session.last_used_at < _RENEWAL_SECONDS else self._cookie(session)

    def load(self, cookie: str) -> Session | None:
        """Return the session in a cookie, or None if it is invalid or has expired."""
        signed = self._sessions.load(cookie, IDLE_SECONDS)
        if signed is None:
            return None
        (session_id, started_at), last_used_at = signed
        if not is_current(started_at, self._clock(), LIFETIME_SECONDS):
            return None
        return self._session(session_id, started_at=started_at, last_used_at=last_used_at)

    def load_first(self, cookies: Iterable[str]) -> Session | None:
        """Return the session in the first valid cookie, or None."""
        return next((session for session in map(self.load, cookies) if session is not None), None)

    def page_token(self, session: Session) -> str:
        """Return a token that authenticates a request of this service's page to the API."""
        return self._page_tokens.dump(session.id)

    def is_page_token(self, text: str) -> bool:
        """Return whether a text is a page token that has not expired."""
        return self._page_tokens.load(text, PAGE_TOKEN_SECONDS) is not None

    def docs_cookie(self, session: Session) -> str:
        """Return the value of a cookie that grants access to the documentation, even after the session has expired."""
        return self._docs_cookies.dump(session.id)

    def is_docs_cookie(self, cookie: str) -> bool:
        """Return whether a cookie grants access to the documentation."""
        return self._docs_cookies.load(cookie, LIFETIME_SECONDS) is not None

    def _session(self, session_id: str, *, started_at: int, last_used_at: int) -> Session:
        csrf_token = self._csrf.get_signature(session_id).decode("ascii")
        return Session(session_id, csrf_token, started_at, last_used_at)

    def _cookie(self, session: Session) -> str:
        return self._sessions.dump((session.id, session.started_at))


_SessionId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
_SessionContent = tuple[_SessionId, Annotated[int, msgspec.Meta(ge=0, le=2**40)]]
"""The id of a session, and when it started."""
