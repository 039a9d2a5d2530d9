"""Tests of `BackgroundUsage`: usage is summed up in memory, and written about once a second in the background."""

import gc
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone

import pytest

from mlapi import RepositoryUnavailableError
from mlapi.adapters.memory import InMemoryUsage, InMemoryUserRepository
from mlapi.application import usage as recording_module
from mlapi.application.usage import BackgroundUsage
from mlapi.domain.errors import ReadOnlyRepositoryError
from mlapi.domain.usage import MAX_COUNT, UsageRow
from mlapi.domain.users import UserId
from mlapi.testing.fakes import UnavailableRepository
from mlapi.testing.samples import api_key
from mlapi.testing.usage import ADA, BOB, FIRST_KEY, MONDAY, row
from tests.waiting import wait_until

SOON, MUCH_LATER = 0.01, 1000.0
SEEN = datetime(2026, 11, 23, 12, tzinfo=UTC)
OUTAGE = RepositoryUnavailableError("simulated outage")
READ_ONLY = ReadOnlyRepositoryError("this account may only read")
UNKNOWN_OUTCOME = RepositoryUnavailableError("the connection was lost while committing", may_be_done=True)


class FailingUsage(InMemoryUsage):
    """Usage in memory whose next calls of `add` raise the given errors, one each."""

    def __init__(self, *errors: BaseException | None) -> None:
        super().__init__()
        self.errors = list(errors)
        self.calls: list[list[UsageRow]] = []

    def add(self, rows: Sequence[UsageRow]) -> None:
        self.calls.append(list(rows))
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        super().add(rows)

    @property
    def rows(self) -> list[UsageRow]:
        return self.list_page(limit=1000)


@contextmanager
def recording(usage: InMemoryUsage, interval_seconds: float = MUCH_LATER) -> Iterator[BackgroundUsage]:
    recorder = BackgroundUsage(usage, InMemoryUserRepository(), interval_seconds=interval_seconds)
    try:
        yield recorder
    finally:
        recorder.close()


@pytest.fixture
def immediate_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RETRY_SECONDS", "READ_ONLY_RETRY_SECONDS", "_CLOSING_RETRY_SECONDS"):
        monkeypatch.setattr(recording_module, name, 0.0)


# --- collecting


def test_requests_are_summed_up_per_day_user_and_key() -> None:
    usage = FailingUsage()
    with recording(usage) as recorder:
        recorder.record(ADA, None, SEEN)
        recorder.record(ADA, None, SEEN + timedelta(hours=1), 2, 30)
        recorder.record(ADA, None, SEEN, units=4)
        recorder.record(ADA, FIRST_KEY, SEEN)
        recorder.record(BOB, None, SEEN, 0, 7)
        recorder.record(ADA, None, SEEN + timedelta(days=1))

    assert usage.rows == [
        row(requests=4, units=34, hour=13),
        row(key_id=FIRST_KEY),
        row(user_id=BOB, requests=0, units=7),
        row(MONDAY + timedelta(days=1)),
    ]
    assert len(usage.calls) == 1


def test_usage_counts_on_the_day_in_utc() -> None:
    usage = FailingUsage()
    with recording(usage) as recorder:
        recorder.record(ADA, None, SEEN.replace(hour=18).astimezone(timezone(timedelta(hours=9))))

    assert usage.rows == [row(hour=18)]


def test_usage_is_written_in_the_background() -> None:
    usage = FailingUsage()
    with recording(usage, SOON) as recorder:
        recorder.record(ADA, None, SEEN)
        wait_until(lambda: usage.rows == [row()])
        recorder.record(ADA, None, SEEN)
        wait_until(lambda: usage.rows == [row(requests=2)])

    assert len(usage.calls) == 2


def test_nothing_is_written_without_usage() -> None:
    usage = FailingUsage()
    with recording(usage):
        pass

    assert usage.calls == []


def test_counts_of_threads_are_all_written() -> None:
    usage = FailingUsage()
    with recording(usage, SOON) as recorder, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: recorder.record(UserId(number % 5 + 1), None, SEEN), range(5_000)))

    assert [(each.user_id, each.requests) for each in usage.rows] == [(UserId(number), 1000) for number in range(1, 6)]


def test_large_counts_stop_at_the_maximum() -> None:
    usage = FailingUsage()
    with recording(usage) as recorder:
        for _ in range(2):
            recorder.record(ADA, None, SEEN, units=MAX_COUNT)

    assert usage.rows == [row(requests=2, units=MAX_COUNT)]


def test_many_rows_are_written_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_module, "MAX_BATCH_ROWS", 2)
    usage = FailingUsage()
    with recording(usage) as recorder:
        for number in range(1, 6):
            recorder.record(UserId(number), None, SEEN)

    assert [len(call) for call in usage.calls] == [2, 2, 1]
    assert len(usage.rows) == 5


# --- failures


@pytest.mark.usefixtures("immediate_retries")
def test_failed_write_is_repeated_without_counting_twice(caplog: pytest.LogCaptureFixture) -> None:
    usage = FailingUsage(OUTAGE, OUTAGE, None, OUTAGE)
    with caplog.at_level(logging.INFO, "mlapi"), recording(usage, SOON) as recorder:
        recorder.record(ADA, None, SEEN)
        wait_until(lambda: len(usage.calls) >= 2)
        recorder.record(ADA, None, SEEN, 2)
        recorder.record(BOB, None, SEEN)
        wait_until(lambda: len(usage.rows) == 2)
        recorder.record(BOB, None, SEEN)
        wait_until(lambda: usage.rows[-1].requests == 2)

    assert usage.rows == [row(requests=3), row(user_id=BOB, requests=2)]
    assert (
        caplog.messages
        == [
            "cannot record usage, and will retry: the database is unavailable: simulated outage",
            "usage is recorded again",
        ]
        * 2
    )


def test_writes_pause_during_an_outage() -> None:
    usage = FailingUsage(OUTAGE)
    with recording(usage, SOON) as recorder:
        recorder.record(ADA, None, SEEN)
        wait_until(lambda: len(usage.calls) == 1)
        recorder.record(BOB, None, SEEN)
        recorder._write()

        assert len(usage.calls) == 1

    assert usage.rows == [row(), row(user_id=BOB)]


@pytest.mark.usefixtures("immediate_retries")
def test_commit_with_unknown_outcome_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recording_module, "MAX_BATCH_ROWS", 1)
    usage = FailingUsage(UNKNOWN_OUTCOME)
    with recording(usage) as recorder:
        recorder.record(ADA, None, SEEN, 3, 70)
        recorder.record(BOB, None, SEEN)

    assert usage.rows == [row(user_id=BOB)]
    assert caplog.messages == [
        "cannot record usage, and will retry: the database is unavailable: the connection was lost while committing",
        (
            "usage of 3 requests and 70 units may or may not be recorded, and is not written again: it could be counted"
            " twice (the database is unavailable: the connection was lost while committing)"
        ),
    ]


@pytest.mark.usefixtures("immediate_retries")
def test_read_only_account_drops_usage_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    usage = FailingUsage(*[READ_ONLY] * 100)
    with recording(usage, SOON) as recorder:
        recorder.record(ADA, None, SEEN)
        wait_until(lambda: len(usage.calls) >= 2 and not recorder._due)
        recorder.record(ADA, None, SEEN)

    assert usage.rows == []
    assert caplog.messages == [
        (
            "cannot record usage, which is dropped until this account may write: the database is unavailable:"
            " this account may only read"
        )
    ]


def test_rows_are_dropped_while_the_account_may_only_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_module, "READ_ONLY_RETRY_SECONDS", 0.0)
    usage = FailingUsage(READ_ONLY, READ_ONLY)
    with recording(usage) as recorder:
        recorder.record(ADA, None, SEEN)
        recorder._write()
        monkeypatch.setattr(recording_module, "READ_ONLY_RETRY_SECONDS", 60.0)
        recorder._write()
        recorder.record(BOB, None, SEEN)
        recorder._write()

        assert (len(usage.calls), recorder._due) == (2, {})
        recorder.record(ADA, None, SEEN)

    assert usage.rows == [row()]


@pytest.mark.usefixtures("immediate_retries")
def test_usage_survives_a_single_read_only_error() -> None:
    usage = FailingUsage(READ_ONLY)  # as during a failover
    with recording(usage, SOON) as recorder:
        recorder.record(ADA, None, SEEN)
        wait_until(lambda: usage.rows != [])

    assert usage.rows == [row()]


def test_memory_is_bounded_during_an_outage(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(recording_module, "MAX_ROWS", 2)
    usage = FailingUsage(OUTAGE)
    with recording(usage) as recorder:
        recorder.record(ADA, None, SEEN)
        recorder._write()
        for user_id in (BOB, UserId(3), ADA, UserId(4), BOB):
            recorder.record(user_id, None, SEEN)

    assert usage.rows == [row(), row(user_id=BOB, requests=2)]
    assert caplog.messages[1:] == ["usage of 3 requests was dropped: too many rows were waiting for the database"]


def test_unexpected_error_does_not_stop_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    raised = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _args: raised.set())
    usage = FailingUsage(ZeroDivisionError())
    with recording(usage, SOON) as recorder:
        recorder.record(ADA, None, SEEN)
        assert raised.wait(10)
        recorder.record(ADA, None, SEEN)
        wait_until(lambda: usage.rows == [row(requests=2)])


def test_request_succeeds_if_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    usage = FailingUsage()
    with recording(usage, SOON) as recorder:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", fail)
            recorder.record(ADA, None, SEEN)
        recorder.record(BOB, None, SEEN)
        wait_until(lambda: usage.rows == [row(), row(user_id=BOB)])


def test_outage_is_reported_once_for_usage_and_keys(caplog: pytest.LogCaptureFixture) -> None:
    recorder = BackgroundUsage(FailingUsage(OUTAGE), UnavailableRepository(), interval_seconds=MUCH_LATER)
    recorder.record(ADA, FIRST_KEY, SEEN)
    recorder.record_key_use(api_key(ADA), SEEN)

    recorder._write()

    assert len(caplog.messages) == 1
    recorder.close()


# --- closing


@pytest.mark.usefixtures("immediate_retries")
def test_close_retries_after_a_first_failure() -> None:
    usage = FailingUsage(OUTAGE, OUTAGE)
    recorder = BackgroundUsage(usage, InMemoryUserRepository(), interval_seconds=MUCH_LATER)
    recorder.record(ADA, None, SEEN)

    recorder.close()

    assert usage.rows == [row()]


def test_close_during_an_outage_reports_what_is_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recording_module, "CLOSING_SECONDS", 0.0)
    usage = FailingUsage(OUTAGE, OUTAGE)
    recorder = BackgroundUsage(usage, InMemoryUserRepository(), interval_seconds=MUCH_LATER)
    recorder.record(ADA, None, SEEN, 3, 70)

    recorder.close()
    recorder.close()

    assert len(usage.calls) == 1
    assert caplog.messages[1:] == [
        "usage of 3 requests and 70 units was lost: the database is unavailable: simulated outage"
    ]


def test_usage_after_close_is_written_too() -> None:
    usage = FailingUsage()
    recorder = BackgroundUsage(usage, InMemoryUserRepository(), interval_seconds=SOON)
    recorder.close()

    recorder.record(ADA, None, SEEN)

    wait_until(lambda: usage.rows == [row()])
    recorder.close()


def test_close_waits_for_the_current_write() -> None:
    writing, resume = threading.Event(), threading.Event()

    class Slow(FailingUsage):
        def add(self, rows: Sequence[UsageRow]) -> None:
            writing.set()
            resume.wait(10)
            super().add(rows)

    usage = Slow()
    recorder = BackgroundUsage(usage, InMemoryUserRepository(), interval_seconds=SOON)
    recorder.record(ADA, None, SEEN)
    assert writing.wait(10)
    recorder.record(ADA, None, SEEN)  # during the write
    threading.Timer(0.05, resume.set).start()

    recorder.close()

    assert usage.rows == [row(requests=2)]


EXITING_SCRIPT = """
import multiprocessing, sys
from datetime import UTC, datetime
from mlapi.adapters.memory import InMemoryUsage, InMemoryUserRepository
from mlapi.application.usage import BackgroundUsage

class PrintedUsage(InMemoryUsage):
    def add(self, rows):
        print([row.requests for row in rows], flush=True)

def record(requests):
    recorder.record(1, None, datetime(2026, 11, 23, tzinfo=UTC), requests)

recorder = BackgroundUsage(PrintedUsage(), InMemoryUserRepository(), interval_seconds=1000)
record(7)
child = multiprocessing.get_context("fork").Process(target=record, args=(2,))
child.start()
child.join()
"""


def test_usage_is_written_when_a_process_exits() -> None:
    run = subprocess.run([sys.executable, "-c", EXITING_SCRIPT], capture_output=True, text=True, check=True)

    assert run.stdout.splitlines() == ["[2]", "[7]"]
    assert run.stderr == ""


def test_closed_recorder_is_not_kept_until_exit() -> None:
    recorder = BackgroundUsage(InMemoryUsage(), InMemoryUserRepository(), interval_seconds=MUCH_LATER)
    recorder.record(ADA, None, SEEN)
    recorder.close()
    reference = weakref.ref(recorder)
    del recorder
    gc.collect()

    assert reference() is None
