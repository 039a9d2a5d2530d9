"""Counts of log-in attempts."""

import attrs


@attrs.frozen
class WindowCount:
    """How many attempts were counted in a window of time, and when that window ends."""

    count: int
    ends_at: float
    """Seconds since 1970."""
