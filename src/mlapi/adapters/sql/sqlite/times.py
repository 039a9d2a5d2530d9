"""The text format of times in SQLite, which is also SQLAlchemy's: UTC with microseconds, without the zone."""

from datetime import datetime

_LENGTH_CHARS = len("2026-01-31 12:00:00.000000")


def encode_time(time: datetime) -> str:
    """Return an aware datetime in UTC as text."""
    return time.isoformat(" ", "microseconds")[:_LENGTH_CHARS]


def decode_time(text: str) -> datetime:
    """Return the text as an aware datetime in UTC."""
    return datetime.fromisoformat(f"{text}+00:00")
