"""Storages with one fault each. The contract suite must detect every one of them.

They keep everything in memory. Reopening a closed storage returns the same object, with all its data.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from mlapi import ConfigurationError, RepositoryUnavailableError
from mlapi.adapters.memory import InMemoryAttemptCounts, InMemoryAttempts, InMemoryStorage, InMemoryUserRepository
from mlapi.domain.attempts import WindowCount
from mlapi.domain.inspection import Inspection

FindPasswordError = Callable[[str], str | None]


class ForgettingWhenClosed(InMemoryStorage):
    def close(self) -> None:
        self.users = InMemoryUserRepository()


class ClosingOnce(InMemoryStorage):
    is_closed = False

    def close(self) -> None:
        if self.is_closed:
            raise ValueError("already closed")
        self.is_closed = True


# --- files


class InAnUnknownFolder(InMemoryStorage):
    files = (Path("/no/such/folder/users"),)


class WithRelativeSecrets(InMemoryStorage):
    secrets_folder = Path()


class CreatingNoFile(InMemoryStorage):
    files = (Path(tempfile.gettempdir(), "no-such-file"),)


class CreatingAFileTooEarly(InMemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        _, name = tempfile.mkstemp()
        self.files = (Path(name),)


# --- the fingerprint


class WithAFingerprint(InMemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        self._fingerprint = "a fingerprint"


class UnknownBeforePreparation(InMemoryStorage):
    is_prepared = False

    def prepare(self, *, may_upgrade: bool) -> None:
        super().prepare(may_upgrade=may_upgrade)
        self.is_prepared = True

    def find_fingerprint(self) -> str | None:
        if not self.is_prepared:
            raise RepositoryUnavailableError("not prepared")
        return super().find_fingerprint()


class OverwritingTheFingerprint(InMemoryStorage):
    def store_fingerprint(self, fingerprint: str) -> str:
        self.replace_fingerprint(fingerprint)
        return fingerprint


class NeverReplacingTheFingerprint(InMemoryStorage):
    def replace_fingerprint(self, fingerprint: str) -> None:
        pass


class RacingForTheFingerprint(InMemoryStorage):
    def store_fingerprint(self, fingerprint: str) -> str:
        found = self.find_fingerprint()
        time.sleep(0.01)
        if found is None:
            self.replace_fingerprint(found := fingerprint)
        return found


# --- preparing, upgrading and inspecting


class ClearingWhenPrepared(InMemoryStorage):
    def prepare(self, *, may_upgrade: bool) -> None:
        super().prepare(may_upgrade=may_upgrade)
        self.users = InMemoryUserRepository()


class UpgradingSecretly(InMemoryStorage):
    """Upgrades an old schema without permission, and only then raises the error."""

    def prepare(self, *, may_upgrade: bool) -> None:
        super().prepare(may_upgrade=may_upgrade)
        if not may_upgrade:
            raise ConfigurationError("the schema is old")


class UpgradingAgain(InMemoryStorage):
    def upgrade(self) -> tuple[str | None, str]:
        return None, "1"


class WithoutARevision(InMemoryStorage):
    def inspect(self, *, find_password_error: FindPasswordError | None) -> Inspection:
        return attrs.evolve(super().inspect(find_password_error=find_password_error), revision=None)


class InspectingNothing(InMemoryStorage):
    def inspect(self, *, find_password_error: FindPasswordError | None) -> Inspection:
        return Inspection(revision="1", newest_revision="1")


class WithNaiveTimes(InMemoryStorage):
    def inspect(self, *, find_password_error: FindPasswordError | None) -> Inspection:
        found = super().inspect(find_password_error=find_password_error)
        return attrs.evolve(found, latest_change=found.latest_change and found.latest_change.replace(tzinfo=None))


# --- counts of login attempts


class FaultyAttempts(InMemoryAttempts):
    """Reads and changes counts through ``counts_class``."""

    counts_class = InMemoryAttemptCounts

    @contextmanager
    def transaction(self) -> Iterator[InMemoryAttemptCounts]:
        with self._writing:
            counts = self.counts_class(self._counts, time.time())
            yield counts
            self._counts.update(counts.changed)

    @contextmanager
    def reading(self) -> Iterator[InMemoryAttemptCounts]:
        yield self.counts_class(self._counts, time.time())


class StorageWithAttempts(InMemoryStorage):
    attempts_class: type[FaultyAttempts]

    def __init__(self) -> None:
        super().__init__()
        self.attempts = self.attempts_class()


class OneCount(InMemoryAttemptCounts):
    def get(self, key: str) -> WindowCount:
        return super().get("any")

    def add(self, key: str, *, window_seconds: float) -> int:
        return super().add("any", window_seconds=window_seconds)


class CountingEverythingTogether(StorageWithAttempts):
    class attempts_class(FaultyAttempts):  # noqa: N801 - overrides an attribute
        counts_class = OneCount


class NegativeCounts(InMemoryAttemptCounts):
    def subtract(self, key: str) -> None:
        found = self.get(key)
        self.changed[key] = WindowCount(found.count - 1, max(found.ends_at_timestamp, self._now + 60))


class CountingBelowZero(StorageWithAttempts):
    class attempts_class(FaultyAttempts):  # noqa: N801 - overrides an attribute
        counts_class = NegativeCounts


class SlidingCounts(InMemoryAttemptCounts):
    def add(self, key: str, *, window_seconds: float) -> int:
        self.changed[key] = WindowCount(self.get(key).count + 1, self._now + window_seconds)
        return self.changed[key].count


class ExtendingWindows(StorageWithAttempts):
    class attempts_class(FaultyAttempts):  # noqa: N801 - overrides an attribute
        counts_class = SlidingCounts


class EndlessCounts(InMemoryAttemptCounts):
    def get(self, key: str) -> WindowCount:
        return self.changed.get(key) or self._counts.get(key) or super().get(key)


class NeverEndingWindows(StorageWithAttempts):
    class attempts_class(FaultyAttempts):  # noqa: N801 - overrides an attribute
        counts_class = EndlessCounts


class KeepingFailedTransactions(StorageWithAttempts):
    class attempts_class(FaultyAttempts):  # noqa: N801 - overrides an attribute
        @contextmanager
        def transaction(self) -> Iterator[InMemoryAttemptCounts]:
            counts = self.counts_class(self._counts, time.time())
            try:
                yield counts
            finally:
                self._counts.update(counts.changed)


class BlockingReaders(StorageWithAttempts):
    class attempts_class(FaultyAttempts):  # noqa: N801 - overrides an attribute
        @contextmanager
        def reading(self) -> Iterator[InMemoryAttemptCounts]:
            if not self._writing.acquire(timeout=0.01):
                raise RepositoryUnavailableError("locked")
            try:
                yield self.counts_class(self._counts, time.time())
            finally:
                self._writing.release()


class LosingConcurrentAttempts(StorageWithAttempts):
    class attempts_class(FaultyAttempts):  # noqa: N801 - overrides an attribute
        @contextmanager
        def transaction(self) -> Iterator[InMemoryAttemptCounts]:
            counts = self.counts_class(dict(self._counts), time.time())
            yield counts
            time.sleep(0.001)
            self._counts.update(counts.changed)
