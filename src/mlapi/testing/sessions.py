"""The contract of `Sessions`. The suite is a part of `StorageContract`."""

from datetime import datetime, timedelta

import attrs

from mlapi.domain.sessions import LIFETIME_SECONDS, Session, SessionId, find_session_id, generate_session_secret
from mlapi.domain.storage import Storage
from mlapi.domain.users import UserId
from mlapi.testing.samples import LATER, NOON, SECOND

_UNKNOWN = [SessionId("0" * 64), SessionId(""), SessionId("\0"), SessionId("\ud800")]


def new_session(*, manager: str | None = None, user_id: UserId | None = None, seen: datetime = NOON) -> Session:
    session_id = find_session_id(generate_session_secret())
    assert session_id is not None
    return Session(
        id=session_id,
        manager=manager,
        user_id=user_id,
        epoch="an epoch",
        created_datetime=NOON,
        seen_datetime=seen,
        expires_datetime=NOON + timedelta(seconds=LIFETIME_SECONDS),
        address="2001:db8::1",
        browser="Firefox on Linux",
    )


class SessionsContract:
    def test_session_is_stored_unchanged(self, storage: Storage) -> None:
        alice = new_session(manager="alice", seen=NOON + timedelta(microseconds=7))
        ada = new_session(user_id=UserId(2**53 + 1))

        storage.sessions.add(alice)
        storage.sessions.add(ada)

        assert [storage.sessions.find(session.id) for session in (alice, ada)] == [alice, ada]

    def test_unknown_sessions_are_not_found(self, storage: Storage) -> None:
        sessions = storage.sessions

        for session_id in _UNKNOWN:
            sessions.touch(session_id, LATER)

        assert [(sessions.find(session_id), sessions.remove(session_id)) for session_id in _UNKNOWN] == [
            (None, False)
        ] * len(_UNKNOWN)

    def test_use_of_a_session_is_recorded(self, storage: Storage) -> None:
        session = new_session(manager="alice")
        storage.sessions.add(session)

        storage.sessions.touch(session.id, LATER)
        storage.sessions.touch(session.id, NOON + SECOND)

        assert storage.sessions.find(session.id) == attrs.evolve(session, seen_datetime=LATER)

    def test_removed_session_is_gone(self, storage: Storage) -> None:
        session, kept = new_session(manager="alice"), new_session(manager="alice")
        storage.sessions.add(session)
        storage.sessions.add(kept)

        removed = [storage.sessions.remove(session.id) for _ in range(2)]

        assert removed == [True, False]
        assert [storage.sessions.find(each.id) for each in (session, kept)] == [None, kept]

    def test_sessions_are_listed_by_owner_last_seen_first(self, storage: Storage) -> None:
        old, new = new_session(manager="alice"), new_session(manager="alice", seen=LATER)
        bob, ada = new_session(manager="bob", seen=NOON + SECOND), new_session(user_id=UserId(7))
        for session in (old, new, bob, ada):
            storage.sessions.add(session)

        sessions = storage.sessions
        assert sessions.list_by_manager("alice", limit=9) == [new, old]
        assert sessions.list_by_manager("alice", limit=1) == [new]
        assert sessions.list_by_manager(None, limit=9) == [new, bob, old]
        assert [sessions.list_by_manager(name, limit=9) for name in ("eve", "\0", "\ud800")] == [[]] * 3

    def test_other_sessions_of_the_same_owner_are_removed(self, storage: Storage) -> None:
        alice, ada = new_session(manager="alice"), new_session(user_id=UserId(7))
        bob, eve = new_session(manager="bob"), new_session(user_id=UserId(8))
        others = [new_session(manager="alice"), new_session(manager="alice"), new_session(user_id=UserId(7))]
        for session in (alice, ada, bob, eve, *others):
            storage.sessions.add(session)

        removed = [storage.sessions.remove_others(session) for session in (alice, alice, ada)]

        assert removed == [2, 0, 1]
        assert storage.sessions.list_by_manager(None, limit=9) == sorted((alice, bob), key=lambda each: each.id)
        assert [storage.sessions.find(session.id) for session in (ada, eve)] == [ada, eve]

    def test_expired_sessions_are_purged(self, storage: Storage) -> None:
        kept = attrs.evolve(new_session(manager="alice"), expires_datetime=LATER)
        old = [attrs.evolve(new_session(user_id=UserId(7)), expires_datetime=NOON) for _ in range(3)]
        for session in (kept, *old):
            storage.sessions.add(session)

        purged = [storage.sessions.purge(before=before, limit=2) for before in (NOON, LATER, LATER, LATER)]

        assert purged == [0, 2, 1, 0]
        assert storage.sessions.find(kept.id) == kept
