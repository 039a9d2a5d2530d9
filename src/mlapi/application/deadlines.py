"""The deadline of the current request. Every wait in a request takes the time that is left, so all end together.

A context variable holds the deadline, so each task has its own, and functions need no extra argument.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token

from mlapi.domain.errors import ServiceUnavailableError

REQUEST_SECONDS = 8.0
"""How long a request may take. Clients are promised a response within 10 seconds; the rest of the time is for sending
it, even if the processor is busy."""

_deadline_monotonic: ContextVar[float | None] = ContextVar("mlapi_deadline", default=None)


def start_deadline(seconds: float = REQUEST_SECONDS) -> Token[float | None]:
    """Start the deadline of a request, and return the token for `end_deadline`."""
    return _deadline_monotonic.set(time.monotonic() + seconds)


def end_deadline(token: Token[float | None]) -> None:
    """Restore the deadline that was current before `start_deadline`."""
    _deadline_monotonic.reset(token)


def remaining_seconds() -> float:
    """Return how long the current request may still wait. Without a deadline, this is `REQUEST_SECONDS`.

    Raises:
        ServiceUnavailableError: if no time is left.
    """
    deadline = _deadline_monotonic.get()
    if deadline is None:
        return REQUEST_SECONDS
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise deadline_error()
    return remaining


def deadline_error() -> ServiceUnavailableError:
    """Return the error for a request that has taken too long."""
    return ServiceUnavailableError("the request took too long")


async def pause(seconds: float) -> None:
    """Sleep, but not beyond the deadline of the current request."""
    deadline = _deadline_monotonic.get()
    await asyncio.sleep(seconds if deadline is None else min(seconds, deadline - time.monotonic()))


@contextmanager
def paused_deadline() -> Iterator[None]:
    """Extend the deadline by the duration of the block, which waits for the client and not for the service."""
    started = time.monotonic()
    try:
        yield
    finally:
        deadline = _deadline_monotonic.get()
        if deadline is not None:
            _deadline_monotonic.set(deadline + time.monotonic() - started)
