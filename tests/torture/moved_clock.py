"""The application by a clock that is ahead of the world's by what a file says, for ``uvicorn --app-dir``.

All of ours tells the time by `mlapi.domain.users.utc_now` and, where seconds are counted, by `time.time`. What measures
how long something takes goes by `time.monotonic`, which no clock moves.
"""

import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

AHEAD = Path(os.environ["CLOCK_FILE"])
"""Holds seconds."""
_real: Callable[[], float] = time.time


def moved() -> float:
    return _real() + float(AHEAD.read_text())


class MovedDatetime(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # no driver knows a class of ours
        return datetime.now(tz) + timedelta(seconds=float(AHEAD.read_text()))


time.time = moved  # before anything of ours takes it for a default

from mlapi.domain import users as model  # noqa: E402 - see above

vars(model)["datetime"] = MovedDatetime  # the one place that asks it for the time

from mlapi.entrypoints.http.application import app  # noqa: E402 - see above

__all__ = ["app"]
