"""Old audit entries, and only those, are deleted in the background."""

import logging
import threading
from datetime import UTC, datetime, timedelta

import pytest

from mlapi import AuditTrail, RepositoryUnavailableError, Users
from mlapi.adapters.memory import InMemoryAuditTrail, InMemoryUserRepository, PlainCipher
from mlapi.application import audit_retention as retention
from mlapi.application.audit_retention import AuditRetention
from mlapi.bootstrap import audit_retention
from mlapi.config import AuditSettings, Settings
from mlapi.testing.fakes import UnavailableAuditTrail
from mlapi.testing.samples import LATER, NOON, registration

DAY = timedelta(days=1)


class WatchedTrail:
    """An audit trail that sets ``done`` after the given number of purges."""

    def __init__(self, trail: AuditTrail, purges: int) -> None:
        self._trail = trail
        self._remaining = purges
        self.purged: list[int] = []
        self.done = threading.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._trail, name)

    def purge(self, *, before: datetime, limit: int) -> int:
        self.purged.append(0)
        self._remaining -= 1
        if self._remaining <= 0:
            self.done.set()
        self.purged[-1] = self._trail.purge(before=before, limit=limit)
        return self.purged[-1]


def repository_with_entries() -> InMemoryUserRepository:
    repository = InMemoryUserRepository()
    repository.apply([registration(f"old {number}", at=NOON - DAY) for number in range(5)])
    repository.apply([registration("new", at=NOON)])
    return repository


def test_old_entries_are_deleted_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH_ENTRIES", 2)
    monkeypatch.setattr(retention, "PAUSE_SECONDS", 0.001)
    repository = repository_with_entries()
    trail = WatchedTrail(repository.audit, purges=3)

    background = AuditRetention(trail, DAY, interval_seconds=0.01, clock=lambda: LATER)  # type: ignore[arg-type]  # a proxy
    assert trail.done.wait(10)
    background.close()

    assert trail.purged[:3] == [2, 2, 1]
    assert [entry.at for entry in repository.audit.list_page(limit=10)] == [NOON]
    assert repository.count() == 6


def test_close_interrupts_a_purge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH_ENTRIES", 1)
    monkeypatch.setattr(retention, "PAUSE_SECONDS", 60.0)
    trail = WatchedTrail(repository_with_entries().audit, purges=1)

    background = AuditRetention(trail, DAY, interval_seconds=0.001, clock=lambda: LATER)  # type: ignore[arg-type]  # a proxy
    assert trail.done.wait(10)
    background.close()

    assert trail.purged == [1]


def test_failed_purge_is_logged_and_retried(caplog: pytest.LogCaptureFixture) -> None:
    trail = WatchedTrail(UnavailableAuditTrail(), purges=2)

    with caplog.at_level(logging.WARNING, "mlapi"):
        background = AuditRetention(trail, DAY, interval_seconds=0.001)  # type: ignore[arg-type]  # a proxy
        assert trail.done.wait(10)
        background.close()

    line = f"cannot delete old audit entries: {RepositoryUnavailableError('simulated outage')}"
    assert {record.getMessage() for record in caplog.records} == {line}


@pytest.mark.parametrize(("days", "remaining"), [(1, 0), (0, 1)], ids=["one day", "unlimited"])
def test_setting_determines_the_maximum_age(days: int, remaining: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "INTERVAL_SECONDS", 0.001)
    repository = InMemoryUserRepository()
    repository.apply([registration(at=datetime(2020, 1, 1, tzinfo=UTC))])
    trail = WatchedTrail(repository.audit, purges=2)
    repository.audit = trail  # type: ignore[assignment]  # a proxy
    settings = Settings(audit=AuditSettings(days=days))

    with audit_retention(Users(repository, PlainCipher()), settings):
        assert trail.done.wait(10 if days else 0.1) == bool(days)

    assert len(repository.audit.list_page(limit=10)) == remaining


def test_in_memory_audit_trail_implements_the_port() -> None:
    trail: AuditTrail = InMemoryAuditTrail()

    assert trail.list_page(limit=1) == []
