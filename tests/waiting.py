"""Wait for other processes and threads."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], timeout_seconds: float = 10, interval_seconds: float = 0.01) -> None:
    """Wait until a condition is true. Fail after the timeout."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(interval_seconds)
