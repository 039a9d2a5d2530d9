"""The last uses of API keys, written in the background: no request waits for that, and none fails by it."""

import logging
import threading
import time
from datetime import datetime

from mlapi.domain.commands import RecordApiKeyUse
from mlapi.domain.credentials import USE_RECORDING_INTERVAL, ApiKey, ApiKeyId
from mlapi.domain.errors import MlapiError
from mlapi.domain.ports import UserRepository

GATHERED_FOR = 1.0
"""Seconds for which uses are gathered before they are written together."""

_logger = logging.getLogger("mlapi")


class BackgroundKeyUsage:
    """A `KeyUsage` over a repository.

    Args:
        repository: where they are written.
        gathered_for: seconds, see `GATHERED_FOR`.
    """

    def __init__(self, repository: UserRepository, *, gathered_for: float = GATHERED_FOR) -> None:
        self._repository = repository
        self._gathered_for = gathered_for
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._noted: dict[ApiKeyId, datetime] = {}
        self._written: dict[ApiKeyId, float] = {}
        """When, by `time.monotonic`: the row may be read for some time without its new last use."""
        self._timer: threading.Timer | None = None

    def __call__(self, key: ApiKey, at: datetime) -> None:
        with self._lock:
            if time.monotonic() - self._written.get(key.id, float("-inf")) < USE_RECORDING_INTERVAL.total_seconds():
                return
            self._noted[key.id] = at
            if self._timer is None:
                self._timer = threading.Timer(self._gathered_for, self._write)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Write what is left, and return when it is written."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
        self._write()

    def _write(self) -> None:
        with self._writing:
            self._write_noted()

    def _write_noted(self) -> None:
        with self._lock:
            self._timer = None
            noted, self._noted = self._noted, {}
            now = time.monotonic()
            self._written = {
                key_id: when
                for key_id, when in self._written.items()
                if now - when < USE_RECORDING_INTERVAL.total_seconds()
            } | dict.fromkeys(noted, now)
        if not noted:
            return
        try:
            self._repository.apply([RecordApiKeyUse(key_id=key_id, at=at) for key_id, at in noted.items()])
        except MlapiError as error:
            _logger.warning("the last uses of %d API keys could not be written: %s", len(noted), error)
