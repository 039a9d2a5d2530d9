"""Log warnings that clients can cause, without letting them fill the disk."""

import logging
import time
from typing import final

import attrs

_MAX_TEXTS = 1_000

_logger = logging.getLogger("mlapi")


@attrs.define
class _Logged:
    until_monotonic: float
    suppressed: int = 0


@final
class RepeatedWarnings:
    """Logs each text at most once per interval. The next line with the same text says how many were omitted.

    Args:
        interval_seconds: the minimum time between two lines with the same text.
    """

    def __init__(self, *, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._logged: dict[str, _Logged] = {}

    def log(self, text: str) -> None:
        now = time.monotonic()
        logged = self._logged.pop(text, None)
        if logged is not None and now < logged.until_monotonic:
            self._logged[text] = attrs.evolve(logged, suppressed=logged.suppressed + 1)
            return
        if len(self._logged) >= _MAX_TEXTS:
            self.clear()
        self._logged[text] = _Logged(now + self._interval_seconds)
        omitted = logged.suppressed if logged is not None else 0
        _logger.warning("%s%s", text, f" ({omitted} more since the last line)" if omitted else "")

    def clear(self) -> None:
        """Forget which texts have been logged."""
        self._logged.clear()
