"""Start, find and end the sessions of managers and users in browsers."""

from contextlib import suppress
from datetime import datetime, timedelta

import attrs

from mlapi.application.preparation import Preparation
from mlapi.domain.errors import RepositoryUnavailableError
from mlapi.domain.managers import ADMIN, Manager, ManagerIdentity, Managers
from mlapi.domain.ports import Clock
from mlapi.domain.sessions import (
    LIFETIME_SECONDS,
    Session,
    SessionId,
    Sessions,
    find_session_id,
    generate_session_secret,
)
from mlapi.domain.users import UserId, utc_now

MAX_LISTED = 500


@attrs.frozen
class NewSession:
    """A session that has just started, and the secret for its cookie."""

    session: Session
    secret: str = attrs.field(repr=False)


@attrs.frozen
class ManagerSession:
    """An open session, and the manager who is signed in."""

    session: Session
    manager: ManagerIdentity


@attrs.frozen
class SessionRegistry:
    """The use cases for sessions. Every method raises `RepositoryUnavailableError` if the database is unavailable.

    Args:
        sessions: stores the sessions.
        managers: the managers to whom sessions may belong.
        clock: returns the current time.
    """

    sessions: Sessions
    managers: Managers
    clock: Clock = utc_now

    def start(
        self,
        *,
        manager: str | None = None,
        user_id: UserId | None = None,
        epoch: str,
        address: str,
        browser: str,
        ends_by: datetime | None = None,
    ) -> NewSession:
        """Start a session of a manager or of a user, who has just signed in. See `Session` for the arguments.

        Args:
            ends_by: when the session ends at the latest; None for `LIFETIME_SECONDS` from now.
        """
        now, secret = self.clock(), generate_session_secret()
        session_id = find_session_id(secret)
        assert session_id is not None  # noqa: S101 - the secret was generated
        end = now + timedelta(seconds=LIFETIME_SECONDS)
        session = Session(
            id=session_id,
            manager=manager,
            user_id=user_id,
            epoch=epoch,
            created_datetime=now,
            seen_datetime=now,
            expires_datetime=end if ends_by is None else min(end, ends_by),
            address=address,
            browser=browser,
        )
        self.sessions.add(session)
        return NewSession(session, secret)

    def find(self, session_id: SessionId) -> Session | None:
        """Return the session with this id unless it has expired. The caller must check its epoch."""
        session = self.sessions.find(session_id)
        return session if session is not None and session.is_open(self.clock()) else None

    def find_manager(self, session_id: SessionId, *, admin_epoch: str | None) -> ManagerSession | None:
        """Return the session of a manager if it is open and the manager's token is unchanged, or None.

        Args:
            session_id: the id of the session.
            admin_epoch: the epoch of the admin token; None if there is no admin token.
        """
        session = self.find(session_id)
        if session is None or session.manager is None:
            return None
        manager = None if session.manager == ADMIN.name else self.managers.find(session.manager)
        return self._find_current(session, manager, admin_epoch)

    def touch(self, session: Session) -> None:
        """Record that a session is in use, at most once per `TOUCH_SECONDS`. Ignore an unavailable database."""
        now = self.clock()
        if session.needs_touch(now):
            with suppress(RepositoryUnavailableError):
                self.sessions.touch(session.id, now)

    def list_by_manager(self, name: str | None, *, admin_epoch: str | None) -> list[ManagerSession]:
        """Return the open sessions of a manager, or of all managers if ``name`` is None, most recently seen first."""
        now = self.clock()
        managers = {manager.name: manager for manager in self.managers.list_all()}
        found = (
            self._find_current(session, managers.get(session.manager or ""), admin_epoch)
            for session in self.sessions.list_by_manager(name, limit=MAX_LISTED)
            if session.is_open(now)
        )
        return [session for session in found if session is not None]

    def end(self, session_id: SessionId) -> bool:
        """End a session. Return whether it existed."""
        return self.sessions.remove(session_id)

    def end_others(self, session: Session) -> int:
        """End all other sessions of the same manager or user. Return how many were ended."""
        return self.sessions.remove_others(session)

    def _find_current(
        self, session: Session, manager: Manager | None, admin_epoch: str | None
    ) -> ManagerSession | None:
        """Return an open session of a manager unless their token has changed since it started, or has expired."""
        if session.manager == ADMIN.name:
            return ManagerSession(session, ADMIN) if session.epoch == admin_epoch else None
        if manager is None or manager.digest != session.epoch or manager.has_expired(self.clock()):
            return None
        return ManagerSession(session, manager.identity)


class PreparedSessions:
    """`Sessions` that run a `Preparation` before each call, until it has succeeded."""

    def __init__(self, sessions: Sessions, preparation: Preparation) -> None:
        self._sessions = sessions
        self._preparation = preparation

    def add(self, session: Session) -> None:
        self._prepared().add(session)

    def find(self, session_id: SessionId) -> Session | None:
        return self._prepared().find(session_id)

    def touch(self, session_id: SessionId, at: datetime) -> None:
        self._prepared().touch(session_id, at)

    def remove(self, session_id: SessionId) -> bool:
        return self._prepared().remove(session_id)

    def remove_others(self, session: Session) -> int:
        return self._prepared().remove_others(session)

    def list_by_manager(self, name: str | None, *, limit: int) -> list[Session]:
        return self._prepared().list_by_manager(name, limit=limit)

    def purge(self, *, before: datetime, limit: int) -> int:
        return self._prepared().purge(before=before, limit=limit)

    def _prepared(self) -> Sessions:
        self._preparation.ensure()
        return self._sessions
