"""Delete old audit entries in the background, in small transactions."""

import logging
import threading
from datetime import timedelta

from mlapi.domain.errors import MlapiError
from mlapi.domain.ports import AuditTrail, Clock
from mlapi.domain.users import utc_now
from mlapi.forks import call_in_children

INTERVAL_SECONDS = 600.0
"""The first purge also waits this long, so that it does not slow down startup."""
BATCH_ENTRIES = 1000
"""Maximum number of entries deleted in one transaction, which takes about 10 ms."""
PAUSE_SECONDS = 0.1
"""Pause between two transactions, so that other writers are not blocked."""

_logger = logging.getLogger("mlapi")


class AuditRetention:
    """Purges an audit trail in a background thread until it is closed.

    Args:
        trail: the audit trail to purge.
        max_age: delete entries older than this.
        interval_seconds: the time between two purges; by default `INTERVAL_SECONDS`.
        clock: used to calculate the age of entries.
    """

    def __init__(
        self, trail: AuditTrail, max_age: timedelta, *, interval_seconds: float | None = None, clock: Clock = utc_now
    ) -> None:
        self._trail = trail
        self._max_age = max_age
        self._interval_seconds = INTERVAL_SECONDS if interval_seconds is None else interval_seconds
        self._clock = clock
        self._closing = threading.Event()
        call_in_children(self._stop_closing)
        self._thread = threading.Thread(target=self._run, name="mlapi-retention", daemon=True)
        self._thread.start()

    def _stop_closing(self) -> None:
        """Replace the event in a forked child, which has no purging thread. The parent keeps purging."""
        self._closing = threading.Event()

    def close(self) -> None:
        """Stop purging, and wait for the current transaction to end."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._interval_seconds):
            try:
                self._purge()
            except MlapiError as error:
                _logger.warning("cannot delete old audit entries: %s", error)

    def _purge(self) -> None:
        before = self._clock() - self._max_age
        while self._trail.purge(before=before, limit=BATCH_ENTRIES) == BATCH_ENTRIES:
            if self._closing.wait(PAUSE_SECONDS):
                return
