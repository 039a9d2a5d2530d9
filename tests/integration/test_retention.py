"""A background thread deletes old audit entries and old usage, and nothing else."""

import logging
import threading
from datetime import UTC, date, datetime, time, timedelta

import pytest

from mlapi import AuditTrail, RepositoryUnavailableError
from mlapi.adapters.memory import InMemoryAuditTrail, InMemoryUsage, InMemoryUserRepository
from mlapi.application import retention as retention_module
from mlapi.application.retention import Retention, RetentionRule
from mlapi.bootstrap import retention
from mlapi.config import AuditSettings, Settings, UsageSettings
from mlapi.domain.users import utc_now
from mlapi.testing.fakes import UnavailableRepository
from mlapi.testing.samples import LATER, NOON, registration
from mlapi.testing.usage import MONDAY, TUESDAY, WEDNESDAY, row

DAY = timedelta(days=1)
LONG_AGO = date(2020, 1, 1)


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


class WatchedUsage(InMemoryUsage):
    """Usage in memory that sets ``purged`` after a purge."""

    def __init__(self) -> None:
        super().__init__()
        self.purged = threading.Event()

    def purge(self, *, before: date, limit: int) -> int:
        count = super().purge(before=before, limit=limit)
        self.purged.set()
        return count


def repository_with_entries() -> InMemoryUserRepository:
    repository = InMemoryUserRepository()
    repository.apply([registration(f"old {number}", at=NOON - DAY) for number in range(5)])
    repository.apply([registration("new", at=NOON)])
    return repository


def test_old_entries_are_deleted_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_module, "BATCH_ROWS", 2)
    monkeypatch.setattr(retention_module, "PAUSE_SECONDS", 0.001)
    repository = repository_with_entries()
    trail = WatchedTrail(repository.audit, purges=3)

    background = Retention([RetentionRule.for_audit(trail, DAY)], interval_seconds=0.01, clock=lambda: LATER)  # type: ignore[arg-type]  # a proxy
    assert trail.done.wait(10)
    background.close()

    assert trail.purged[:3] == [2, 2, 1]
    assert [entry.at for entry in repository.audit.list_page(limit=10)] == [NOON]
    assert repository.count() == 6


def test_close_interrupts_a_purge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_module, "BATCH_ROWS", 1)
    monkeypatch.setattr(retention_module, "PAUSE_SECONDS", 60.0)
    trail = WatchedTrail(repository_with_entries().audit, purges=1)

    background = Retention([RetentionRule.for_audit(trail, DAY)], interval_seconds=0.001, clock=lambda: LATER)  # type: ignore[arg-type]  # a proxy
    assert trail.done.wait(10)
    background.close()

    assert trail.purged == [1]


def test_failed_purge_is_logged_and_retried(caplog: pytest.LogCaptureFixture) -> None:
    trail = WatchedTrail(UnavailableRepository().audit, purges=2)

    with caplog.at_level(logging.WARNING, "mlapi"):
        background = Retention([RetentionRule.for_audit(trail, DAY)], interval_seconds=0.001)  # type: ignore[arg-type]  # a proxy
        assert trail.done.wait(10)
        background.close()

    line = f"cannot delete old audit entries: {RepositoryUnavailableError('simulated outage')}"
    assert {record.getMessage() for record in caplog.records} == {line}


@pytest.mark.parametrize("days", [1, 0], ids=["one day", "unlimited"])
def test_setting_determines_the_maximum_age(days: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_module, "INTERVAL_SECONDS", 0.001)
    repository, usage = InMemoryUserRepository(), WatchedUsage()
    repository.apply([registration(at=datetime.combine(LONG_AGO, time(), UTC))])
    usage.add([row(LONG_AGO), row(utc_now().date())])
    settings = Settings(audit=AuditSettings(days=days), usage=UsageSettings(days=days))

    with retention(repository, usage, settings):
        assert usage.purged.wait(10 if days else 0.1) == bool(days)

    assert len(repository.audit.list_page(limit=10)) == (0 if days else 1)
    assert len(usage.list_page(limit=10)) == (1 if days else 2)


def test_audit_trail_and_usage_are_kept_independently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_module, "INTERVAL_SECONDS", 0.001)
    usage = WatchedUsage()
    usage.add([row(LONG_AGO)])

    with retention(UnavailableRepository(), usage, Settings()):
        assert usage.purged.wait(10)

    assert usage.list_page(limit=10) == []


def test_current_day_of_usage_is_kept_in_addition() -> None:
    usage = InMemoryUsage()
    usage.add([row(MONDAY), row(TUESDAY), row(WEDNESDAY)])
    noon = datetime.combine(WEDNESDAY, time(12), UTC)

    purged = RetentionRule.for_usage(usage, DAY).purge(noon - DAY, 10)

    assert purged == 1
    assert usage.list_page(limit=10) == [row(TUESDAY), row(WEDNESDAY)]


def test_in_memory_audit_trail_implements_the_port() -> None:
    trail: AuditTrail = InMemoryAuditTrail()

    assert trail.list_page(limit=1) == []
