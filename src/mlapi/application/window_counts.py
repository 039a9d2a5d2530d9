"""Keys of counts in fixed time windows, for `mlapi.domain.attempts.AttemptCounts`."""

import hashlib
import math
import time

WINDOW_SECONDS = 60


def count_key(kind: str, counted: str, limit: int, window_seconds: int) -> str:
    """Return the key of a count. It contains the limit, so that counting starts again when the limit is changed."""
    return f"{kind}/{counted}/{limit}/{window_seconds}/second"


def digest(text: str) -> str:
    """Return a digest for a key, so that the table of counts contains neither names nor addresses."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def seconds_until(end_timestamp: float) -> int:
    """Return when to retry after a window ends: the time from now, rounded up, and at least 1."""
    return max(1, math.ceil(end_timestamp - time.time()))
