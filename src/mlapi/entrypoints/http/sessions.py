"""Console sessions and flash messages, stored in signed cookies.

The server stores no sessions, so any process can verify a cookie. Logging out deletes the cookie from the browser; a
copy of it stays valid until the session expires or the admin token changes. A session expires eight hours after login,
or one hour after the last page view.

In local mode the signing key is not secret, so a valid signature proves nothing. Therefore, the type and length of
every cookie are checked before it is used.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Annotated, Generic, TypeVar

import attrs
import msgspec
from itsdangerous import BadData, Signer, TimestampSigner
from itsdangerous.encoding import base64_decode, base64_encode

LIFETIME_SECONDS = 8 * 3600
"""The maximum age of a session, even if it is in use."""
IDLE_SECONDS = 3600
"""An unused session expires after this time (NIST SP 800-63B-4, 2.2.3)."""
PAGE_TOKEN_SECONDS = 60
"""How long a page token is valid. The page asks for one before each of its requests."""
FLASH_SECONDS = 60
"""A flash message expires after this time if no page has shown it."""
MAX_COOKIE_CHARS = 4096
"""The console never sets a longer cookie, because browsers store at most 4096 bytes (RFC 6265, 6.1)."""
MAX_FLASH_CHARS = 600
"""Longer flash messages are truncated, so that their cookies stay below `MAX_COOKIE_CHARS` in any script."""
_RENEWAL_SECONDS = 60  # the minimum interval between renewals, so that most responses set no cookie
_CLOCK_SKEW_SECONDS = 60  # another machine's clock may be ahead by this much

T = TypeVar("T")


@attrs.frozen
class Session:
    """A console session. Times are Unix timestamps in seconds."""

    id: str = attrs.field(repr=False)
    csrf_token: str = attrs.field(repr=False)
    """Every form contains this token, which proves that the form belongs to this session."""
    started_at: int = attrs.field(repr=False)
    last_used_at: int = attrs.field(repr=False)


class Sessions:
    """Creates, renews and verifies session cookies and signed flash messages.

    Args:
        key: the signing key. In local mode, it is not secret (see `AdminPolicy.session_key`). The cookie then only has
            to match the form (double-submit cookie), which prevents CSRF.
        clock: returns the current Unix timestamp.
    """

    def __init__(self, key: bytes, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._sessions: _SignedValue[tuple[str, int]] = _SignedValue(
            _SessionContent, key, b"mlapi console session", clock
        )
        self._flashes: _SignedValue[str] = _SignedValue(_FlashContent, key, b"mlapi console flash", clock)
        self._page_tokens: _SignedValue[str] = _SignedValue(_SessionId, key, b"mlapi page token", clock)
        self._docs_cookies: _SignedValue[str] = _SignedValue(_SessionId, key, b"mlapi docs cookie", clock)
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
        if not _is_current(started_at, self._clock(), LIFETIME_SECONDS):
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

    def sign(self, text: str) -> str:
        """Return a flash message as a signed cookie value, which `unsign` reads."""
        return self._flashes.dump(text[:MAX_FLASH_CHARS])

    def unsign(self, cookie: str) -> str:
        """Return the flash message in a cookie value, or an empty string if it is invalid or has expired."""
        signed = self._flashes.load(cookie, FLASH_SECONDS)
        return "" if signed is None else signed[0]

    def unsign_first(self, cookies: Iterable[str]) -> str:
        """Return the flash message in the first valid cookie, or an empty string."""
        return next(filter(None, map(self.unsign, cookies)), "")

    def _session(self, session_id: str, *, started_at: int, last_used_at: int) -> Session:
        csrf_token = self._csrf.get_signature(session_id).decode("ascii")
        return Session(session_id, csrf_token, started_at, last_used_at)

    def _cookie(self, session: Session) -> str:
        return self._sessions.dump((session.id, session.started_at))


_SessionId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
_SessionContent = tuple[_SessionId, Annotated[int, msgspec.Meta(ge=0, le=2**40)]]
"""The id of a session, and when it started."""
_FlashContent = Annotated[str, msgspec.Meta(max_length=MAX_FLASH_CHARS)]


class _SignedValue(Generic[T]):
    """Signs values of one type, and reads them back: base64 of JSON, timestamp and signature, separated by dots.

    itsdangerous's own serializers would also decompress a value to any size, and return an object of any type.
    """

    def __init__(self, kind: object, key: bytes, salt: bytes, clock: Callable[[], float]) -> None:
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)
        self._signer = _StrictSigner(key, salt, clock)
        self._clock = clock

    def dump(self, value: T) -> str:
        return self._signer.sign(base64_encode(msgspec.json.encode(value))).decode("ascii")

    def load(self, cookie: str, max_age_seconds: int) -> tuple[T, int] | None:
        """Return the value and when it was signed, or None if the cookie is invalid or has expired."""
        if len(cookie) > MAX_COOKIE_CHARS:
            return None
        try:
            content, signed_at = self._signer.unsign(cookie, return_timestamp=True)
            value = self._decoder.decode(base64_decode(content))
        except (BadData, msgspec.DecodeError, ValueError, OverflowError, OSError):  # the last two: an impossible time
            return None
        timestamp = int(signed_at.timestamp())
        return (value, timestamp) if _is_current(timestamp, self._clock(), max_age_seconds) else None


def _is_current(timestamp: int, now: float, max_age_seconds: int) -> bool:
    """Check the age of a timestamp. itsdangerous's own ``max_age`` does not tolerate clock skew."""
    return -_CLOCK_SKEW_SECONDS <= now - timestamp < max_age_seconds


class _StrictSigner(TimestampSigner):
    """A `TimestampSigner` with a replaceable clock, which accepts only one encoding of each signature."""

    def __init__(self, secret_key: bytes, salt: bytes, clock: Callable[[], float]) -> None:
        super().__init__(secret_key, salt=salt, key_derivation="hmac", digest_method=hashlib.sha256)
        self._clock = clock

    def get_timestamp(self) -> int:
        return int(self._clock())

    def verify_signature(self, value: str | bytes, sig: str | bytes) -> bool:
        """Compare signatures before decoding: base64 decoding ignores unknown characters and unused trailing bits."""
        given = sig if isinstance(sig, bytes) else sig.encode("utf-8")
        return hmac.compare_digest(self.get_signature(value), given)
