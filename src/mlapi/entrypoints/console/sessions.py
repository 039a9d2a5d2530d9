"""What the console's cookies hold: who has logged in and since when, and one sentence for the next page.

A session is not kept anywhere. Its cookie is signed, so every process knows it again; to log out deletes the cookie in
the browser, and whoever has copied it before may use it until its time is over or there is another admin token.
Its time is over eight hours after the log-in, and an hour after the last page that was asked for.
"""

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable

import attrs

LIFETIME = 8 * 3600
"""Seconds from the log-in to the end of a session."""
IDLE = 3600
"""Seconds after which a session ends that is not used: NIST SP 800-63B-4, 2.2.3."""
_PROLONGED_EVERY = 60
"""Seconds: more often would be a cookie with each page."""
SAID_FOR = 60
"""Seconds for which a sentence waits for its page."""
_SKEW = 60  # seconds by which the clock of another process may be ahead
_SESSION = re.compile(r"([0-9]{1,12})\.([0-9]{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})")


@attrs.frozen
class Session:
    """A session by its random id; ``csrf_token`` is what shows that a form was made for it."""

    id: str = attrs.field(repr=False)
    csrf_token: str = attrs.field(repr=False)
    issued: int = attrs.field(repr=False)
    used: int = attrs.field(repr=False)
    """Seconds since 1970, as its cookie has them."""


@attrs.frozen
class Sessions:
    """Makes sessions and knows its own again.

    Args:
        key: what is signed with. Where it is no secret (`AdminPolicy.session_key`) the cookie only has to agree with
            the form: a double submit.
        clock: seconds since 1970.
    """

    _key: bytes = attrs.field(repr=False)
    _clock: Callable[[], float] = time.time

    def begin(self) -> tuple[Session, str]:
        """Return a new session, and what its cookie holds."""
        now = int(self._clock())
        session = self._session(secrets.token_hex(16), issued=now, used=now)
        return session, self._cookie(session)

    def prolonged(self, session: Session) -> str | None:
        """Return what the cookie of a session in use holds from now on; None if that can wait."""
        now = int(self._clock())
        return None if now - session.used < _PROLONGED_EVERY else self._cookie(attrs.evolve(session, used=now))

    def find(self, cookie: str) -> Session | None:
        """Return the session of a cookie, or None if it is not ours or its time is over."""
        match = _SESSION.fullmatch(cookie)
        if match is None:
            return None
        issued, used, session_id, _signature = match.groups()
        session = self._session(session_id, issued=int(issued), used=int(used))
        if not hmac.compare_digest(self._cookie(session), cookie):
            return None
        now = self._clock()
        is_current = -_SKEW <= now - session.issued < LIFETIME and -_SKEW <= now - session.used < IDLE
        return session if is_current else None

    def sealed(self, text: str) -> str:
        """Return a text as a cookie may hold it, so that `opened` takes it from nobody else."""
        encoded = base64.urlsafe_b64encode(text.encode("utf-8")).decode("ascii")
        return f"{encoded}.{self._signature('text', encoded)}"

    def opened(self, sealed: str) -> str:
        """Return the text that was sealed; nothing if it was not by us."""
        encoded, _, signature = sealed.partition(".")
        if not sealed.isascii() or not hmac.compare_digest(self._signature("text", encoded), signature):
            return ""
        return base64.urlsafe_b64decode(encoded).decode("utf-8")

    def _session(self, session_id: str, *, issued: int, used: int) -> Session:
        return Session(session_id, self._signature("csrf", session_id), issued, used)

    def _cookie(self, session: Session) -> str:
        signed = f"{session.issued}.{session.used}.{session.id}"
        return f"{signed}.{self._signature('session', signed)}"

    def _signature(self, *parts: str) -> str:
        return hmac.new(self._key, ".".join(parts).encode("ascii"), hashlib.sha256).hexdigest()
