"""Store the units that applications charge while they respond, so that no call has to wait for the database."""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import final

from mlapi.application.repeated_warnings import RepeatedWarnings
from mlapi.domain.errors import MlapiError, RepositoryUnavailableError
from mlapi.domain.users import User, UserId
from mlapi.forks import call_in_children, notice_fork

INTERVAL_SECONDS = 0.5
"""How long units are collected before they are stored, unless a response waits for them."""
RETRY_SECONDS = 1.0
SETTLE_SECONDS = 5.0
"""The longest time that a response waits for its units to be stored."""
CLOSING_SECONDS = 5.0

_logger = logging.getLogger("mlapi")

_Units = dict[UserId, tuple[User, int]]


@final
class ChargeBatch:
    """Units of several users that are stored together."""

    def __init__(self, is_wanted: threading.Event) -> None:
        self.units: _Units = {}
        self.stored: Future[None] = Future()
        self._is_wanted = is_wanted

    def __str__(self) -> str:
        return f"{sum(units for _, units in self.units.values())} charged units"

    def add(self, user: User, units: int) -> None:
        _, before = self.units.get(user.id, (user, 0))
        self.units[user.id] = user, before + units

    async def settle(self) -> None:
        """Store the batch now. Wait until it is stored, but not longer than `SETTLE_SECONDS`."""
        self._is_wanted.set()
        await asyncio.wait([asyncio.wrap_future(self.stored)], timeout=SETTLE_SECONDS)


@final
class BackgroundCharges:
    """Collects the charged units of each user, and stores them from one thread.

    While the database is unavailable, it keeps the units and stores them later. If the connection was lost during the
    commit, it does not store them again, because they could count twice, and logs a warning.

    Args:
        charge: stores units durably, like `Limiter.charge_all`.
        interval_seconds: how long to collect units before storing them.

    Attributes:
        error: the reason why the latest units could not be stored; None if they were stored.
    """

    def __init__(
        self, charge: Callable[[Sequence[tuple[User, int]]], None], *, interval_seconds: float = INTERVAL_SECONDS
    ) -> None:
        self._charge = charge
        self._interval_seconds = interval_seconds
        self._warnings = RepeatedWarnings(interval_seconds=60)
        self._initialize()
        call_in_children(self._initialize)

    def _initialize(self) -> None:
        """Start without units. After a fork, the parent stores the units that it has collected."""
        self._lock = threading.Lock()
        self._has_units, self._is_wanted, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._batch = ChargeBatch(self._is_wanted)
        self._thread: threading.Thread | None = None
        self.error: MlapiError | None = None

    def add(self, user: User, units: int) -> ChargeBatch:
        """Add units to the current batch, and return the batch. After `close`, store them immediately."""
        notice_fork()
        with self._lock:
            if not self._closed.is_set():
                self._batch.add(user, units)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="mlapi-charges", daemon=True)
                    self._thread.start()
                self._has_units.set()
                return self._batch
        batch = ChargeBatch(self._is_wanted)
        batch.add(user, units)
        self._finish(batch)
        return batch

    def close(self) -> None:
        """Store the remaining units, or give up after `CLOSING_SECONDS`."""
        with self._lock:
            self._closed.set()
        self._is_wanted.set()
        self._has_units.set()
        if self._thread is not None:
            self._thread.join(CLOSING_SECONDS)

    def _run(self) -> None:
        while not self._closed.is_set() or self._batch.units:
            self._has_units.wait()
            self._is_wanted.wait(self._interval_seconds)
            with self._lock:
                batch, self._batch = self._batch, ChargeBatch(self._is_wanted)
                if not self._closed.is_set():
                    self._has_units.clear()
                    self._is_wanted.clear()
            self._finish(batch)

    def _finish(self, batch: ChargeBatch) -> None:
        """Store a batch. If that fails, add its units to the next batch, or after `close`, log that they are lost."""
        self.error = error = self._store(batch) if batch.units else None
        batch.stored.set_result(None)
        if error is None:
            return
        with self._lock:
            is_last = self._closed.is_set()
            if not is_last:
                for user, units in batch.units.values():
                    self._batch.add(user, units)
                self._has_units.set()
        if is_last:
            _logger.warning("%s are lost: %s", batch, error)
        else:
            self._warnings.log(f"charged units cannot be stored, and will be stored later: {error}")
            self._closed.wait(RETRY_SECONDS)

    def _store(self, batch: ChargeBatch) -> MlapiError | None:
        """Store a batch. Return an error if it can be stored later."""
        try:
            self._charge(list(batch.units.values()))
        except RepositoryUnavailableError as error:
            if not error.may_be_done:
                return error
            _logger.warning(
                "%s may not be stored, and are not stored again, because they could count twice: %s", batch, error
            )
        except Exception:
            _logger.exception("%s are lost", batch)
        return None
