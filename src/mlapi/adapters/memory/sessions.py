"""Sessions in memory."""

from collections.abc import Callable
from datetime import datetime

import attrs

from mlapi.domain.sessions import Session, SessionId
from mlapi.forks import new_lock


class InMemorySessions:
    """`Sessions` for one process."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._sessions: dict[SessionId, Session] = {}

    def add(self, session: Session) -> None:
        with self._lock:
            self._sessions[session.id] = session

    def find(self, session_id: SessionId) -> Session | None:
        return self._sessions.get(session_id)

    def touch(self, session_id: SessionId, at: datetime) -> None:
        with self._lock:
            session = self._sessions.get(session_id)
            if session is not None and session.seen_datetime < at:
                self._sessions[session_id] = attrs.evolve(session, seen_datetime=at)

    def remove(self, session_id: SessionId) -> bool:
        with self._lock:
            return self._sessions.pop(session_id, None) is not None

    def remove_others(self, session: Session) -> int:
        owner = (session.manager, session.user_id)
        with self._lock:
            others = [
                other.id
                for other in self._sessions.values()
                if (other.manager, other.user_id) == owner and other.id != session.id
            ]
            for session_id in others:
                del self._sessions[session_id]
            return len(others)

    def list_by_manager(self, name: str | None, *, limit: int) -> list[Session]:
        if name is None:
            return self._list(lambda session: session.manager is not None, limit)
        return self._list(lambda session: session.manager == name, limit)

    def purge(self, *, before: datetime, limit: int) -> int:
        with self._lock:
            old = [session.id for session in self._sessions.values() if session.expires_datetime < before][:limit]
            for session_id in old:
                del self._sessions[session_id]
            return len(old)

    def _list(self, matches: Callable[[Session], bool], limit: int) -> list[Session]:
        with self._lock:
            found = sorted(filter(matches, self._sessions.values()), key=lambda session: session.id)
        return sorted(found, key=lambda session: session.seen_datetime, reverse=True)[:limit]
