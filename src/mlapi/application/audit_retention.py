"""The audit trail is kept for so long and no longer: what is older goes in the background, a little at a time."""

import logging
import threading
from datetime import timedelta

from mlapi.domain.errors import MlapiError
from mlapi.domain.ports import AuditTrail, Clock
from mlapi.domain.users import utc_now

EVERY = 600.0
"""Seconds between two looks, and before the first: a start has enough to do."""
AT_ONCE = 1000
"""Entries of one transaction, some 10 ms."""
PAUSE = 0.1
"""Seconds between two of those, for whoever else writes."""

_logger = logging.getLogger("mlapi")


class AuditRetention:
    """Purges an audit trail from the time it is made until it is closed.

    Args:
        trail: what is purged.
        kept: how long an entry is kept.
        every: seconds, see `EVERY`.
        clock: by which entries grow old.
    """

    def __init__(
        self, trail: AuditTrail, kept: timedelta, *, every: float | None = None, clock: Clock = utc_now
    ) -> None:
        self._trail = trail
        self._kept = kept
        self._every = EVERY if every is None else every
        self._clock = clock
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlapi-retention", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Return when the transaction that is under way has ended."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._every):
            try:
                self._purge()
            except MlapiError as error:
                _logger.warning("old entries of the audit trail could not be removed: %s", error)

    def _purge(self) -> None:
        before = self._clock() - self._kept
        while self._trail.purge(before=before, limit=AT_ONCE) == AT_ONCE:
            if self._closing.wait(PAUSE):
                return
