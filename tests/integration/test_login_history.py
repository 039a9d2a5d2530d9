"""Logins are recorded in the background."""

import logging
import os
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from mlapi import UserId
from mlapi.adapters.memory import InMemoryStorage
from mlapi.application import login_history
from mlapi.application.login_history import MAX_PER_MINUTE, BackgroundLogins, UnrecordedLogins
from mlapi.bootstrap import open_service
from mlapi.config import AccountSettings, DatabaseSettings, Settings
from mlapi.domain.errors import MlapiError, ReadOnlyRepositoryError, RepositoryUnavailableError
from mlapi.domain.logins import Login, Logins
from mlapi.testing.samples import NOON, SECOND, registered
from tests.waiting import wait_until

OUTAGE = RepositoryUnavailableError("simulated outage")


class FailingLogins:
    """Raises an error at each `add` until ``error`` is None."""

    def __init__(self, logins: Logins, error: MlapiError | None = OUTAGE) -> None:
        self._logins = logins
        self.error = error
        self.failed = threading.Event()

    def add(self, logins: Sequence[Login]) -> None:
        if self.error is not None:
            self.failed.set()
            raise self.error
        self._logins.add(logins)

    def list_recent(self, user_id: UserId, *, limit: int) -> list[Login]:
        return self._logins.list_recent(user_id, limit=limit)

    def purge(self, *, before: datetime, limit: int) -> int:
        return self._logins.purge(before=before, limit=limit)


@pytest.fixture
def storage() -> InMemoryStorage:
    return InMemoryStorage()


@pytest.fixture
def ada(storage: InMemoryStorage) -> UserId:
    return registered(storage.users, "ada").id


def recent(logins: Logins, user_id: UserId) -> list[Login]:
    return logins.list_recent(user_id, limit=1000)


def test_logins_are_written_in_the_background(storage: InMemoryStorage, ada: UserId) -> None:
    recorder = BackgroundLogins(storage.logins, interval_seconds=0.001)

    recorder.record(ada, NOON, "192.0.2.1")
    wait_until(lambda: bool(recent(storage.logins, ada)))
    recorder.record(ada, NOON + SECOND, "192.0.2.2")
    wait_until(lambda: len(recent(storage.logins, ada)) == 2)

    assert recent(storage.logins, ada) == [Login(ada, NOON + SECOND, "192.0.2.2"), Login(ada, NOON, "192.0.2.1")]
    recorder.close()


def test_graceful_stop_writes_the_remaining_logins(
    storage: InMemoryStorage, ada: UserId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_history, "MAX_BATCH_ROWS", 10)
    recorder = BackgroundLogins(storage.logins, interval_seconds=1000)
    for number in range(45):
        recorder.record(ada, NOON + number * SECOND, "192.0.2.1")

    recorder.close()
    recorder.close()

    assert len(recent(storage.logins, ada)) == 45


def test_logins_are_kept_during_an_outage(
    storage: InMemoryStorage, ada: UserId, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_history, "RETRY_SECONDS", 0.01)
    logins = FailingLogins(storage.logins)
    recorder = BackgroundLogins(logins, interval_seconds=0.001)
    with caplog.at_level(logging.INFO, "mlapi"):
        recorder.record(ada, NOON, "192.0.2.1")
        assert logins.failed.wait(10)
        recorder.record(ada, NOON + SECOND, "192.0.2.1")
        logins.error = None
        wait_until(lambda: len(recent(storage.logins, ada)) == 2)
        recorder.close()

    assert [record.getMessage() for record in caplog.records] == [
        f"cannot record logins, and will retry: {OUTAGE}",
        "logins are recorded again",
    ]


def test_lost_logins_are_reported_at_the_stop(
    storage: InMemoryStorage, ada: UserId, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_history, "CLOSING_SECONDS", 0.01)
    monkeypatch.setattr(login_history, "_CLOSING_RETRY_SECONDS", 0.001)
    recorder = BackgroundLogins(FailingLogins(storage.logins), interval_seconds=1000)
    recorder.record(ada, NOON, "192.0.2.1")

    recorder.close()

    assert caplog.records[-1].getMessage() == f"1 logins were not recorded: {OUTAGE}"


def test_waiting_logins_are_bounded(
    storage: InMemoryStorage, ada: UserId, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_history, "MAX_WAITING", 3)
    recorder = BackgroundLogins(storage.logins, interval_seconds=1000)
    for number in range(5):
        recorder.record(ada, NOON + number * SECOND, "192.0.2.1")

    recorder.close()

    assert len(recent(storage.logins, ada)) == 3
    assert "2 logins were not recorded: too many were waiting for the database" in caplog.text


def test_read_only_account_drops_logins(
    storage: InMemoryStorage, ada: UserId, caplog: pytest.LogCaptureFixture
) -> None:
    error = ReadOnlyRepositoryError("no permission")
    recorder = BackgroundLogins(FailingLogins(storage.logins, error), interval_seconds=1000)
    recorder.record(ada, NOON, "192.0.2.1")

    recorder.close()

    assert [record.getMessage() for record in caplog.records] == [
        f"cannot record logins, which are dropped until this account may write: {error}"
    ]


def test_logins_of_one_user_are_limited_per_minute(storage: InMemoryStorage, ada: UserId) -> None:
    bob = registered(storage.users, "bob").id
    recorder = BackgroundLogins(storage.logins, interval_seconds=1000)
    for number in range(MAX_PER_MINUTE + 5):
        recorder.record(ada, NOON + timedelta(microseconds=number), "192.0.2.1")
    recorder.record(bob, NOON, "192.0.2.1")
    recorder.record(ada, NOON + 60 * SECOND, "192.0.2.1")

    recorder.close()

    assert [len(recent(storage.logins, user_id)) for user_id in (ada, bob)] == [MAX_PER_MINUTE + 1, 1]


def test_forked_child_does_not_repeat_logins(storage: InMemoryStorage, ada: UserId) -> None:
    recorder = BackgroundLogins(storage.logins, interval_seconds=1000)
    recorder.record(ada, NOON, "192.0.2.1")

    child = os.fork()
    if child == 0:  # pragma: no cover - in the child
        recorder.record(ada, NOON + SECOND, "192.0.2.2")
        recorder.close()
        found = recent(storage.logins, ada)
        os._exit(0 if found == [Login(ada, NOON + SECOND, "192.0.2.2")] else 1)
    _, status = os.waitpid(child, 0)
    recorder.close()

    assert status == 0
    assert recent(storage.logins, ada) == [Login(ada, NOON, "192.0.2.1")]


@pytest.mark.parametrize("address", ["a\0b", "é", "\ud800", "x\n"])
def test_unprintable_addresses_are_not_stored(address: str) -> None:
    assert Login(UserId(1), NOON, address).address == ""
    assert Login(UserId(1), NOON, "1" * 1000).address == "1" * 100


def test_service_records_logins(tmp_path: Path) -> None:
    settings = Settings(
        database=DatabaseSettings(url=f"sqlite:///{tmp_path / 'mlapi.db'}"), account=AccountSettings(), folder=tmp_path
    )
    with open_service(settings) as service:
        ada = service.users.register(username="ada", password="difference engine", email="ada@example.com")
        authenticator = service.access.authenticator
        authenticator.log_in(username="ada", password="difference engine", address="192.0.2.1")
        UnrecordedLogins().record(ada.id, NOON, "192.0.2.9")
    with open_service(settings) as service:
        assert service.access.logins is not None
        (login,) = service.access.logins.list_recent(ada.id, limit=9)

        assert login.address == "192.0.2.1"
        assert service.access.logins.purge(before=login.at + SECOND, limit=9) == 1
