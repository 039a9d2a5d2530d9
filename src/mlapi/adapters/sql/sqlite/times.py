"""The text format of times in SQLite, which is also SQLAlchemy's: UTC with microseconds, without the zone."""

from datetime import datetime
from functools import lru_cache

_LENGTH_CHARS = len("2026-01-31 12:00:00.000000")
_DATE_LENGTH_CHARS = len("2026-01-31")


@lru_cache(256)  # the rows of one command, and those of an import's batch, contain the same time several times
def encode_time(time: datetime) -> str:
    """Return an aware datetime in UTC as text."""
    return time.isoformat(" ", "microseconds")[:_LENGTH_CHARS]


def decode_time(text: str) -> datetime:
    """Return the text as an aware datetime in UTC. A date, which administrators may write with SQL, means its start."""
    time = f"{text} 00:00" if len(text) == _DATE_LENGTH_CHARS else text
    return datetime.fromisoformat(f"{time}+00:00")
