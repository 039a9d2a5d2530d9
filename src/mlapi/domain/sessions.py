"""Sessions: the browsers in which managers and users are signed in.

The cookie of a session contains a secret; only its SHA-256 is stored. A session ends when it expires, is unused for
`IDLE_SECONDS`, is removed, or when its manager or user gets a new epoch: see `Session`.
"""

import hashlib
import re
import secrets
from datetime import datetime
from typing import NewType, Protocol

import attrs

from mlapi.domain.rules import shorten_description
from mlapi.domain.users import UserId, to_utc

SessionId = NewType("SessionId", str)
"""The SHA-256 of the secret in the cookie, in hex."""

LIFETIME_SECONDS = 8 * 3600
"""The maximum age of a session, even if it is in use."""
IDLE_SECONDS = 3600
"""An unused session expires after this time (NIST SP 800-63B-4, 2.2.3)."""
TOUCH_SECONDS = 60
"""The minimum interval between two updates of ``seen_datetime``, so that most requests write nothing."""
_SECRET_BYTES = 32
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")


@attrs.frozen(kw_only=True)
class Session:
    """A browser in which a manager or a user is signed in. All times are in UTC.

    Attributes:
        id: see `SessionId`.
        manager: the name of the manager, ``admin`` for the holder of the admin token; None for sessions of users.
        user_id: the id of the user; None for sessions of managers.
        epoch: what the manager or user had at the sign-in: the digest of the manager's token, a value derived from the
            admin token, or the user's ``token_epoch``. The session ends when it changes.
        created_datetime: when the session started.
        seen_datetime: the time of the last request, at most `TOUCH_SECONDS` early.
        expires_datetime: when the session ends, even if it is in use.
        address: the address of the client; see `mlapi.domain.rules.shorten_description`. Empty if it is unknown.
        browser: a description of the browser, in the same form.
    """

    id: SessionId = attrs.field(repr=False)
    manager: str | None = None
    user_id: UserId | None = None
    epoch: str = attrs.field(repr=False)
    created_datetime: datetime = attrs.field(converter=to_utc)
    seen_datetime: datetime = attrs.field(converter=to_utc)
    expires_datetime: datetime = attrs.field(converter=to_utc)
    address: str = attrs.field(converter=shorten_description)
    browser: str = attrs.field(converter=shorten_description)

    def is_open(self, at: datetime) -> bool:
        """Return whether the session has neither expired nor been unused for too long."""
        return at < self.expires_datetime and (at - self.seen_datetime).total_seconds() < IDLE_SECONDS

    def needs_touch(self, at: datetime) -> bool:
        """Return whether ``seen_datetime`` must be updated."""
        return (at - self.seen_datetime).total_seconds() >= TOUCH_SECONDS


class Sessions(Protocol):
    """Stores the sessions.

    Every method raises `RepositoryUnavailableError` while the database is unavailable. Callers may pass ids and names
    with any content: treat those that the database cannot store as unknown. Times are returned in UTC. The results
    reflect every change that any process acknowledged before the call.
    """

    def add(self, session: Session) -> None:
        """Store a new session."""
        ...

    def find(self, session_id: SessionId) -> Session | None:
        """Return the session with this id, or None."""
        ...

    def touch(self, session_id: SessionId, at: datetime) -> None:
        """Set ``seen_datetime``, unless it is later already. Ignore unknown sessions."""
        ...

    def remove(self, session_id: SessionId) -> bool:
        """Remove a session. Return whether it existed."""
        ...

    def remove_others(self, session: Session) -> int:
        """Remove all other sessions of the same manager or user. Return how many were removed."""
        ...

    def list_by_manager(self, name: str | None, *, limit: int) -> list[Session]:
        """Return the sessions of a manager, or of all managers if ``name`` is None, most recently seen first.

        Sessions last seen at the same time are sorted by id. They may have expired.
        """
        ...

    def purge(self, *, before: datetime, limit: int) -> int:
        """Delete at most ``limit`` sessions that expired before a time. Return how many were deleted."""
        ...


def generate_session_secret() -> str:
    """Return a new secret for the cookie of a session: 256 random bits."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def find_session_id(secret: str) -> SessionId | None:
    """Return the id of the session with this secret, or None if the text is not formatted like one."""
    if _SECRET.fullmatch(secret) is None:
        return None
    return SessionId(hashlib.sha256(secret.encode("ascii")).hexdigest())
