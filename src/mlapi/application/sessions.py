"""Sessions in a database that may be unavailable at startup."""

from datetime import datetime

from mlapi.application.preparation import Preparation
from mlapi.domain.sessions import Session, SessionId, Sessions
from mlapi.domain.users import UserId


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

    def list_by_user(self, user_id: UserId, *, limit: int) -> list[Session]:
        return self._prepared().list_by_user(user_id, limit=limit)

    def purge(self, *, before: datetime, limit: int) -> int:
        return self._prepared().purge(before=before, limit=limit)

    def _prepared(self) -> Sessions:
        self._preparation.ensure()
        return self._sessions
