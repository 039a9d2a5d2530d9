"""The text format of times in SQLite, which is also SQLAlchemy's: UTC with microseconds, without the zone."""

from datetime import datetime

_LENGTH_CHARS = len("2026-01-31 12:00:00.000000")
_DATE_LENGTH_CHARS = len("2026-01-31")


def encode_time(time: datetime) -> str:
    """Return an aware datetime in UTC as text."""
    return time.isoformat(" ", "microseconds")[:_LENGTH_CHARS]


def decode_time(text: str) -> datetime:
    """Return the text as an aware datetime in UTC. A date, which administrators may write with SQL, means its start."""
    time = f"{text} 00:00" if len(text) == _DATE_LENGTH_CHARS else text
    return datetime.fromisoformat(f"{time}+00:00")
