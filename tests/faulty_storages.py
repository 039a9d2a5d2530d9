"""Storages with one fault each. The contract suite must detect every one of them.

They keep everything in memory. Reopening a closed storage returns the same object, with all its data.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import attrs

from mlapi import ConfigurationError, RepositoryUnavailableError
from mlapi.adapters.memory import InMemoryAttempts, InMemoryOutbox, InMemoryStorage, InMemoryUserRepository
from mlapi.domain.attempts import WindowCount
from mlapi.domain.inspection import Inspection
from mlapi.domain.outbox import QueuedMail

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


class WithoutAFolderForSecrets(InMemoryStorage):
    secrets_folder = Path("no-such-folder")


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


# --- the outbox


class ForgettingMail(InMemoryStorage):
    """Stores users, but does not queue the mail of their commands."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = InMemoryOutbox()


class ClaimingForever(InMemoryOutbox):
    def claim(self, *, now: datetime, until: datetime) -> QueuedMail | None:
        return super().claim(now=now, until=until.replace(year=9999))


class ClaimingWithoutALock(InMemoryOutbox):
    def claim(self, *, now: datetime, until: datetime) -> QueuedMail | None:
        found = [
            mail for mail in self.list_page(limit=999) if mail.due_datetime is not None and mail.due_datetime <= now
        ]
        time.sleep(0.001)
        if not found:
            return None
        claimed = attrs.evolve(found[-1], due_datetime=until, attempts=found[-1].attempts + 1)
        self.change(changed=[claimed])
        return claimed


class ClaimingInTheOrderOfIds(InMemoryOutbox):
    def claim(self, *, now: datetime, until: datetime) -> QueuedMail | None:
        for mail in self.list_page(limit=999)[::-1]:
            if mail.due_datetime is not None and mail.due_datetime <= now:
                self._mails[mail.id] = attrs.evolve(mail, due_datetime=until, attempts=mail.attempts + 1)
                return self._mails[mail.id]
        return None


class IgnoringOtherClaims(InMemoryOutbox):
    def _is_claimed(self, mail: QueuedMail) -> bool:
        return mail.id in self._mails


class PurgingWaitingMail(InMemoryOutbox):
    def purge(self, *, before: datetime, limit: int) -> int:
        old = [mail.id for mail in self.list_page(limit=999) if mail.created_datetime < before][:limit]
        self.change(removed=old)
        return len(old)


# --- counts of login attempts


class CountingEverythingTogether(InMemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        self.attempts = OneCount()


class OneCount(InMemoryAttempts):
    def read(self, keys: Sequence[str]) -> list[WindowCount]:
        return super().read(["any"] * len(keys))

    def add(self, keys: Sequence[str], *, window_seconds: float) -> list[WindowCount]:
        return super().add(["any"], window_seconds=window_seconds) * len(keys)


class ExtendingWindows(InMemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        self.attempts = SlidingCounts()


class SlidingCounts(InMemoryAttempts):
    def add(self, keys: Sequence[str], *, window_seconds: float) -> list[WindowCount]:
        super().add(keys, window_seconds=window_seconds)
        for key in keys:
            ends_at_timestamp = time.time() + window_seconds
            self._counts[key] = attrs.evolve(self._counts[key], ends_at_timestamp=ends_at_timestamp)
        return self.read(keys)


class NeverEndingWindows(InMemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        self.attempts = EndlessCounts()


class EndlessCounts(InMemoryAttempts):
    def read(self, keys: Sequence[str]) -> list[WindowCount]:
        return [self._counts.get(key, WindowCount(0, 0.0)) for key in keys]


class CountingRepeatedKeysOnce(InMemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        self.attempts = DistinctCounts()


class DistinctCounts(InMemoryAttempts):
    def add(self, keys: Sequence[str], *, window_seconds: float) -> list[WindowCount]:
        super().add(list(dict.fromkeys(keys)), window_seconds=window_seconds)
        return self.read(keys)


class LosingConcurrentAttempts(InMemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        self.attempts = RacingCounts()


class RacingCounts(InMemoryAttempts):
    def add(self, keys: Sequence[str], *, window_seconds: float) -> list[WindowCount]:
        counts = self.read(keys)
        time.sleep(0.001)
        now = time.time()
        for key, found in zip(keys, counts, strict=True):
            ends_at_timestamp = found.ends_at_timestamp if found.count else now + window_seconds
            self._counts[key] = WindowCount(found.count + 1, ends_at_timestamp)
        return self.read(keys)
