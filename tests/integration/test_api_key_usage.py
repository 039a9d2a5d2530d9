"""Tests of `BackgroundUsage`: the time of each API key's last use is recorded in the background."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import attrs
import pytest

from mlapi import ApiKey, Command, Guard, Outcome, RepositoryUnavailableError, Users
from mlapi.adapters.memory import InMemoryTokens, InMemoryUsage, InMemoryUserRepository, PlainCipher
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.repository import SqlUserRepository
from mlapi.application import usage
from mlapi.application.usage import BackgroundUsage
from mlapi.domain.commands import RecordApiKeyUse, RemoveApiKey
from mlapi.testing.samples import MINUTE, NOON, SECOND, registered, with_api_key

SOON, MUCH_LATER = 0.01, 1000.0


class RecordingRepository(InMemoryUserRepository):
    """A repository that records batches and can simulate an outage."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Command]] = []
        self.unavailable = False

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        if self.unavailable:
            raise RepositoryUnavailableError("simulated outage")
        outcomes = super().apply(commands, commit_by=commit_by)
        self.batches.append(list(commands))
        return outcomes

    @property
    def uses(self) -> list[list[RecordApiKeyUse]]:
        """The recorded batches of key uses, each sorted by key."""
        batches = [[command for command in batch if isinstance(command, RecordApiKeyUse)] for batch in self.batches]
        return [sorted(batch, key=lambda command: command.key_id) for batch in batches if batch]


@pytest.fixture
def repository() -> RecordingRepository:
    return RecordingRepository()


@pytest.fixture
def keys(repository: RecordingRepository) -> list[ApiKey]:
    ada = registered(repository)
    return [with_api_key(repository, ada, number) for number in range(3)]


@contextmanager
def recording(repository: InMemoryUserRepository, interval_seconds: float = MUCH_LATER) -> Iterator[BackgroundUsage]:
    uses = BackgroundUsage(InMemoryUsage(), repository, interval_seconds=interval_seconds)
    try:
        yield uses
    finally:
        uses.close()


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def test_key_use_is_recorded_in_the_background(repository: RecordingRepository, keys: list[ApiKey]) -> None:
    with recording(repository, SOON) as uses:
        uses.record_key_use(keys[0], NOON)

        assert eventually(lambda: repository.uses != [])

    assert repository.uses == [[RecordApiKeyUse(key_id=keys[0].id, at=NOON)]]
    assert repository.list_api_keys(keys[0].user_id)[0] == attrs.evolve(keys[0], last_used_datetime=NOON)


def test_key_uses_within_an_interval_are_written_together(repository: RecordingRepository, keys: list[ApiKey]) -> None:
    with recording(repository) as uses:
        for key in [*keys, *keys]:
            uses.record_key_use(key, NOON)
        before = repository.uses

    assert before == []
    assert repository.uses == [[RecordApiKeyUse(key_id=key.id, at=NOON) for key in keys]]


def test_last_key_use_within_an_interval_is_written(repository: RecordingRepository, keys: list[ApiKey]) -> None:
    with recording(repository) as uses:
        uses.record_key_use(keys[0], NOON)
        uses.record_key_use(keys[0], NOON + SECOND)

    assert repository.uses == [[RecordApiKeyUse(key_id=keys[0].id, at=NOON + SECOND)]]


def test_key_use_is_written_at_most_once_a_minute(repository: RecordingRepository, keys: list[ApiKey]) -> None:
    with recording(repository, SOON) as uses:
        uses.record_key_use(keys[0], NOON)
        assert eventually(lambda: repository.uses != [])
        for _ in range(100):
            uses.record_key_use(keys[0], NOON + MINUTE)  # a guard repeats this until it has read the new time
        uses.record_key_use(keys[1], NOON + MINUTE)

    assert repository.uses == [
        [RecordApiKeyUse(key_id=keys[0].id, at=NOON)],
        [RecordApiKeyUse(key_id=keys[1].id, at=NOON + MINUTE)],
    ]


def test_key_use_is_written_again_after_a_minute(
    repository: RecordingRepository, keys: list[ApiKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "USE_RECORDING_INTERVAL", timedelta(milliseconds=50))
    with recording(repository) as uses:
        for number in range(3):
            uses.record_key_use(keys[0], NOON + number * MINUTE)
            if number == 0:
                uses.record_key_use(keys[1], NOON)
            uses.close()
            time.sleep(0.06)

        assert list(uses._uses_written_at) == [keys[0].id]

    assert [[command.at for command in batch] for batch in repository.uses] == [
        [NOON, NOON],
        [NOON + MINUTE],
        [NOON + 2 * MINUTE],
    ]


def test_close_writes_pending_key_uses_once(repository: RecordingRepository, keys: list[ApiKey]) -> None:
    uses = BackgroundUsage(InMemoryUsage(), repository, interval_seconds=MUCH_LATER)
    uses.record_key_use(keys[0], NOON)

    uses.close()
    batches = len(repository.batches)
    uses.close()

    assert repository.uses == [[RecordApiKeyUse(key_id=keys[0].id, at=NOON)]]
    assert len(repository.batches) == batches


def test_nothing_is_written_without_key_use(repository: RecordingRepository) -> None:
    BackgroundUsage(InMemoryUsage(), repository).close()

    assert repository.batches == []


def test_failed_write_is_logged_and_the_next_one_works(
    repository: RecordingRepository, keys: list[ApiKey], caplog: pytest.LogCaptureFixture
) -> None:
    repository.unavailable = True
    with recording(repository, SOON) as uses:
        uses.record_key_use(keys[0], NOON)
        uses.record_key_use(keys[1], NOON)
        assert eventually(lambda: caplog.records != [])
        repository.unavailable = False
        uses.record_key_use(keys[2], NOON)

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == (
        "cannot record when API keys were last used, and will retry every minute: the database is unavailable:"
        " simulated outage"
    )
    assert repository.uses == [[RecordApiKeyUse(key_id=keys[2].id, at=NOON)]]


def test_repeated_failure_is_logged_once(
    repository: RecordingRepository, keys: list[ApiKey], caplog: pytest.LogCaptureFixture
) -> None:
    repository.unavailable = True
    with recording(repository, SOON) as uses:
        uses.record_key_use(keys[0], NOON)
        assert eventually(lambda: caplog.records != [])
        uses.record_key_use(keys[1], NOON)

    assert len(caplog.records) == 1
    assert repository.uses == []


def test_removed_key_does_not_affect_others(
    repository: RecordingRepository, keys: list[ApiKey], caplog: pytest.LogCaptureFixture
) -> None:
    with recording(repository) as uses:
        for key in keys:
            uses.record_key_use(key, NOON)
        repository.apply([RemoveApiKey(key_id=keys[1].id)])

    used = [attrs.evolve(key, last_used_datetime=NOON) for key in (keys[0], keys[2])]
    assert repository.list_api_keys(keys[0].user_id) == used
    assert caplog.records == []


def test_threads_can_record_key_use_concurrently(repository: RecordingRepository, keys: list[ApiKey]) -> None:
    with recording(repository, SOON) as uses, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: uses.record_key_use(keys[number % 3], NOON), range(300)))

    written = [command for batch in repository.uses for command in batch]
    assert sorted(written, key=lambda command: command.key_id) == [
        RecordApiKeyUse(key_id=key.id, at=NOON) for key in keys
    ]


def test_key_use_during_a_write_is_written_afterwards(keys: list[ApiKey], repository: RecordingRepository) -> None:
    writing, resume = threading.Event(), threading.Event()

    class Slow(RecordingRepository):
        def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
            writing.set()
            resume.wait(10)
            return repository.apply(commands, commit_by=commit_by)

    with recording(Slow(), SOON) as uses:
        uses.record_key_use(keys[0], NOON)
        assert writing.wait(10)
        uses.record_key_use(keys[1], NOON)
        resume.set()

    assert eventually(lambda: len(repository.uses) == 2)
    assert sorted(command.key_id for batch in repository.uses for command in batch) == [keys[0].id, keys[1].id]


def test_guard_does_not_wait_for_the_write(repository: RecordingRepository) -> None:
    users = Users(repository, PlainCipher())
    ada = registered(repository)
    key, secret = users.add_api_key(user_id=ada.id, name="job")

    with recording(repository) as uses:
        guard = Guard(repository, InMemoryTokens(), usage=uses)
        authenticated = [guard.check(secret) for _ in range(5)]
        before = users.list_api_keys(ada.id)

    (after,) = users.list_api_keys(ada.id)
    assert authenticated == [ada] * 5
    assert before == [key]
    assert after.last_used_datetime is not None
    assert after == attrs.evolve(key, last_used_datetime=after.last_used_datetime)
    assert len(repository.uses) == 1


def test_key_use_is_stored_in_a_database(database: Database) -> None:
    repository = SqlUserRepository(database)
    ada = registered(repository)
    keys = [with_api_key(repository, ada, number) for number in range(3)]
    uses = BackgroundUsage(InMemoryUsage(), repository, interval_seconds=SOON)

    for key in keys:
        uses.record_key_use(key, NOON)

    assert eventually(lambda: None not in [key.last_used_datetime for key in repository.list_api_keys(ada.id)])
    uses.close()
    assert repository.list_api_keys(ada.id) == [attrs.evolve(key, last_used_datetime=NOON) for key in keys]


def test_close_waits_for_the_current_write(keys: list[ApiKey]) -> None:
    class Slow(RecordingRepository):
        def __init__(self) -> None:
            super().__init__()
            self.begun = threading.Event()

        def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
            self.begun.set()
            time.sleep(0.2)
            return super().apply(commands, commit_by=commit_by)

    repository = Slow()
    with recording(repository, SOON) as uses:
        uses.record_key_use(keys[0], NOON)
        repository.begun.wait(10)

    assert repository.uses == [[RecordApiKeyUse(key_id=keys[0].id, at=NOON)]]
