"""Record the last use of API keys in the background, so that no request waits for a write or fails because of one."""

import logging
import threading
import time
from datetime import datetime

from mlapi.domain.commands import RecordApiKeyUse
from mlapi.domain.credentials import USE_RECORDING_INTERVAL, ApiKey, ApiKeyId
from mlapi.domain.errors import MlapiError
from mlapi.domain.ports import PrincipalRepository
from mlapi.forks import call_in_children, new_lock, notice_fork

INTERVAL_SECONDS = 1.0
_RETRY_SECONDS = 60.0
"""How long to wait after a failed write. A guard with a read-only database account can never write."""

_logger = logging.getLogger("mlapi")


class BackgroundApiKeyUsage:
    """An `ApiKeyUsage` that collects uses and writes them to a repository in batches.

    Args:
        repository: stores the uses.
        interval_seconds: how long to collect uses before writing them.
    """

    def __init__(self, repository: PrincipalRepository, *, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._repository = repository
        self._interval_seconds = interval_seconds
        self._lock = new_lock()
        self._write_lock = new_lock()
        self._initialize()
        call_in_children(self._initialize)

    def _initialize(self) -> None:
        """Start without uses. After a fork, the parent writes those that it collected before."""
        self._collected: dict[ApiKeyId, datetime] = {}
        # When each key's use was last written, on the clock of `time.monotonic`. Readers may still see the older row
        # for a while.
        self._written_at: dict[ApiKeyId, float] = {}
        self._timer: threading.Timer | None = None
        self._is_failing = False

    def __call__(self, key: ApiKey, at: datetime) -> None:
        with self._lock:
            if self._is_recent(self._written_at.get(key.id, float("-inf")), time.monotonic()):
                return
            self._collected[key.id] = at
            if self._timer is None:
                delay_seconds = _RETRY_SECONDS if self._is_failing else self._interval_seconds
                self._timer = threading.Timer(delay_seconds, self._write)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Write the collected uses, and return when they are stored."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
        self._write()

    def _write(self) -> None:
        notice_fork()  # before taking the lock: a noticed fork unlocks it
        with self._write_lock:
            self._write_collected()

    def _write_collected(self) -> None:
        with self._lock:
            self._timer = None
            collected, self._collected = self._collected, {}
            now = time.monotonic()
            recent = {key_id: then for key_id, then in self._written_at.items() if self._is_recent(then, now)}
            self._written_at = recent | dict.fromkeys(collected, now)
        if not collected:
            return
        try:
            self._repository.apply([RecordApiKeyUse(key_id=key_id, at=at) for key_id, at in collected.items()])
        except MlapiError as error:
            if not self._is_failing:
                _logger.warning(
                    "cannot record when API keys were last used, and will retry every minute: %s",
                    error,
                )
            self._is_failing = True
        else:
            self._is_failing = False

    @staticmethod
    def _is_recent(then: float, now: float) -> bool:
        return now - then < USE_RECORDING_INTERVAL.total_seconds()
