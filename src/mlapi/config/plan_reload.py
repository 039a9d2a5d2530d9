"""Read the plans again when the configuration file changes, so that new limits apply at the next request."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from mlapi.config.loading import load_plans
from mlapi.config.plans import make_plans
from mlapi.config.settings import Settings
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.plans import Plans
from mlapi.forks import new_lock

CHECK_SECONDS = 0.0005
"""Without a `refresh`, check the file at most this often: a system call takes longer than admitting a request."""
SETTLE_SECONDS = 0.1
"""Read a changed file again after this time: two changes in quick succession may have the same time and size."""

_logger = logging.getLogger("mlapi")


def reloading_plans(settings: Settings) -> Callable[[], Plans]:
    """Return a function that returns the current plans.

    If the settings contain no plans, or were not read from a file, it always returns the same plans.
    """
    plans = make_plans(settings)
    return PlansInFile(settings.file, plans) if settings.plans and settings.file is not None else lambda: plans


class PlansInFile:
    """The plans in a configuration file and in the environment variables that override it.

    If the changed file cannot be used, the previous plans stay in use.

    Args:
        file: the configuration file.
        plans: the plans that were read from it.
        load: reads the plans again.
        monotonic: returns the time in seconds.
    """

    def __init__(
        self,
        file: Path,
        plans: Plans,
        *,
        load: Callable[[Path], Plans] = load_plans,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file
        self._plans = plans
        self._load = load
        self._monotonic = monotonic
        self._lock = new_lock()
        self._logged = ""
        self._signature: object = None
        self._checked_at = float("-inf")
        self._settled_at = monotonic()  # the file may have changed since the plans were read

    def __call__(self) -> Plans:
        now = self._monotonic()
        if now >= self._checked_at + CHECK_SECONDS:
            self._check(now)
        return self._plans

    def refresh(self, since: float) -> None:
        """Check the file, unless it was checked after this time, on the clock of `time.monotonic`."""
        if self._checked_at <= since:
            self._check(self._monotonic())

    def _check(self, now: float) -> None:
        signature = self._read_signature()
        if signature != self._signature or now >= self._settled_at:
            with self._lock:
                self._reload(signature, now)
        self._checked_at = now

    def _reload(self, signature: object, now: float) -> None:
        if signature == self._signature and now < self._settled_at:
            return  # another thread has reloaded the plans
        self._settled_at = float("inf") if signature == self._signature else now + SETTLE_SECONDS
        self._load_plans()
        self._signature = signature  # last, so that other threads wait for the lock until the plans are loaded

    def _load_plans(self) -> None:
        try:
            plans = self._load(self._file)
        except ConfigurationError as error:
            if str(error) != self._logged:
                _logger.warning("the configuration changed but cannot be used, keeping the previous plans: %s", error)
            self._logged = str(error)
            return
        self._logged = ""
        if plans != self._plans:
            self._plans = plans
            _logger.info("reloaded the plans from the configuration")

    def _read_signature(self) -> object:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size
