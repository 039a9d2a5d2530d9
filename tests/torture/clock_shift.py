"""The application with a shifted clock, for ``uvicorn --app-dir``. The shift, in seconds, is read from a file.

mlapi reads the time of day from `mlapi.domain.users.utc_now` and `time.time`; both are patched here. Durations are
measured with `time.monotonic`, which is unaffected by clock changes.
"""

import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

SHIFT_FILE = Path(os.environ["CLOCK_FILE"])
_real_time: Callable[[], float] = time.time


def read_shift_seconds() -> float:
    return float(SHIFT_FILE.read_text())


def shifted_time() -> float:
    return _real_time() + read_shift_seconds()


class ShiftedDatetime(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # drivers reject subclasses
        return datetime.now(tz) + timedelta(seconds=read_shift_seconds())


time.time = shifted_time  # must come before mlapi binds it as a default argument

from mlapi.domain import users  # noqa: E402 - see above

vars(users)["datetime"] = ShiftedDatetime  # the only mlapi module that calls `datetime.now`

from mlapi.entrypoints.http import app  # noqa: E402 - see above

__all__ = ["app"]
