"""What the console's cookies hold: who has logged in and since when, and one sentence for the next page.

A session is not kept anywhere. Its cookie is signed, so every process knows it again; to log out deletes the cookie in
the browser, and whoever has copied it before may use it until its time is over or there is another admin token.
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
SAID_FOR = 60
"""Seconds for which a sentence waits for its page."""
_SKEW = 60  # seconds by which the clock of another process may be ahead
_SESSION = re.compile(r"([0-9]{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})")


@attrs.frozen
class Session:
    """A session by its random id; ``csrf_token`` is what shows that a form was made for it."""

    id: str = attrs.field(repr=False)
    csrf_token: str = attrs.field(repr=False)


@attrs.frozen
class Sessions:
    """Makes sessions and knows its own again.

    Args:
        key: what is signed with. Where it is no secret (`Management.session_key`) the cookie only has to agree with
            the form: a double submit.
        clock: seconds since 1970.
    """

    _key: bytes = attrs.field(repr=False)
    _clock: Callable[[], float] = time.time

    def begin(self) -> tuple[Session, str]:
        """Return a new session, and what its cookie holds."""
        session_id, issued = secrets.token_hex(16), str(int(self._clock()))
        return self._session(session_id), f"{issued}.{session_id}.{self._signature('session', issued, session_id)}"

    def find(self, cookie: str) -> Session | None:
        """Return the session of a cookie, or None if it is not ours or its time is over."""
        match = _SESSION.fullmatch(cookie)
        if match is None:
            return None
        issued, session_id, signature = match.groups()
        if not hmac.compare_digest(self._signature("session", issued, session_id), signature):
            return None
        is_current = -_SKEW <= self._clock() - int(issued) < LIFETIME
        return self._session(session_id) if is_current else None

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

    def _session(self, session_id: str) -> Session:
        return Session(session_id, self._signature("csrf", session_id))

    def _signature(self, *parts: str) -> str:
        return hmac.new(self._key, ".".join(parts).encode("ascii"), hashlib.sha256).hexdigest()
