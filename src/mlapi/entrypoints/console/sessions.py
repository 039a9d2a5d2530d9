"""Console sessions and flash messages, stored in signed cookies.

The server stores no sessions, so any process can verify a cookie. Logging out deletes the cookie from the browser; a
copy of it stays valid until the session expires or the admin token changes. A session expires eight hours after login,
or one hour after the last page view.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Any

import attrs
from itsdangerous import BadData, Signer, TimestampSigner, URLSafeTimedSerializer

LIFETIME_SECONDS = 8 * 3600
"""The maximum age of a session, even if it is in use."""
IDLE_SECONDS = 3600
"""An unused session expires after this time (NIST SP 800-63B-4, 2.2.3)."""
FLASH_SECONDS = 60
"""A flash message expires after this time if no page has shown it."""
_RENEWAL_SECONDS = 60  # the minimum interval between renewals, so that most responses set no cookie
_CLOCK_SKEW_SECONDS = 60  # another machine's clock may be ahead by this much


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
        self._sessions = _serializer(key, "mlapi console session", clock)
        self._flashes = _serializer(key, "mlapi console flash", clock)
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
        signed = self._loads(self._sessions, cookie, IDLE_SECONDS)
        if signed is None:
            return None
        (session_id, started_at), last_used_at = signed
        if not self._is_current(started_at, LIFETIME_SECONDS):
            return None
        return self._session(session_id, started_at=started_at, last_used_at=last_used_at)

    def sign(self, text: str) -> str:
        """Return a flash message as a signed cookie value, which `unsign` reads."""
        return str(self._flashes.dumps(text))

    def unsign(self, cookie: str) -> str:
        """Return the flash message in a cookie value, or an empty string if it is invalid or has expired."""
        signed = self._loads(self._flashes, cookie, FLASH_SECONDS)
        return "" if signed is None else str(signed[0])

    def _session(self, session_id: str, *, started_at: int, last_used_at: int) -> Session:
        csrf_token = self._csrf.get_signature(session_id).decode("ascii")
        return Session(session_id, csrf_token, started_at, last_used_at)

    def _cookie(self, session: Session) -> str:
        return str(self._sessions.dumps((session.id, session.started_at)))

    def _loads(self, serializer: URLSafeTimedSerializer, value: str, max_age_seconds: int) -> tuple[Any, int] | None:
        """Return the signed object and when it was signed, or None if the value is invalid or has expired."""
        try:
            signed, signed_at = serializer.loads(value, return_timestamp=True)
        except BadData:
            return None
        timestamp = int(signed_at.timestamp())
        return (signed, timestamp) if self._is_current(timestamp, max_age_seconds) else None

    def _is_current(self, timestamp: int, max_age_seconds: int) -> bool:
        """Check the age of a timestamp. itsdangerous's own ``max_age`` does not tolerate clock skew."""
        return -_CLOCK_SKEW_SECONDS <= self._clock() - timestamp < max_age_seconds


class _StrictSigner(TimestampSigner):
    """A `TimestampSigner` with a replaceable clock, which accepts only one encoding of each signature."""

    def __init__(self, secret_key: list[bytes], salt: bytes, clock: Callable[[], float]) -> None:
        super().__init__(secret_key, salt=salt, key_derivation="hmac", digest_method=hashlib.sha256)
        self._clock = clock

    def get_timestamp(self) -> int:
        return int(self._clock())

    def verify_signature(self, value: str | bytes, sig: str | bytes) -> bool:
        """Compare signatures before decoding: base64 decoding ignores unknown characters and unused trailing bits."""
        given = sig if isinstance(sig, bytes) else sig.encode("utf-8")
        return hmac.compare_digest(self.get_signature(value), given)


def _serializer(key: bytes, salt: str, clock: Callable[[], float]) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(key, salt.encode("ascii"), signer=_StrictSigner, signer_kwargs={"clock": clock})
