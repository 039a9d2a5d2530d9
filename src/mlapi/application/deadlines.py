"""The deadline of the current request. Every wait in a request takes the time that is left, so all end together.

A context variable holds the deadline, so each task has its own, and functions need no extra argument. It also holds
whether the client still waits, so that no processor time is spent on a response that no client will read.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token

import attrs

from mlapi.domain.errors import ServiceUnavailableError

REQUEST_SECONDS = 8.0
"""How long a request may take. Clients are promised a response within 10 seconds; the rest of the time is for sending
it, even if the processor is busy."""


def _never() -> bool:
    return False


@attrs.frozen
class _Request:
    """The current request. ``is_abandoned`` can be called from any thread."""

    deadline_monotonic: float
    is_abandoned: Callable[[], bool]


_current: ContextVar[_Request | None] = ContextVar("mlapi_request", default=None)


def start_deadline(
    seconds: float = REQUEST_SECONDS, *, is_abandoned: Callable[[], bool] = _never
) -> Token[_Request | None]:
    """Start the deadline of a request, and return the token for `end_deadline`.

    Args:
        seconds: how long the request may take.
        is_abandoned: returns whether the client has disconnected. It must be callable from any thread.
    """
    return _current.set(_Request(time.monotonic() + seconds, is_abandoned))


def end_deadline(token: Token[_Request | None]) -> None:
    """Restore the deadline that was current before `start_deadline`."""
    _current.reset(token)


def remaining_seconds() -> float:
    """Return how long the current request may still wait. Without a deadline, this is `REQUEST_SECONDS`.

    Raises:
        ServiceUnavailableError: if no time is left.
    """
    request = _current.get()
    if request is None:
        return REQUEST_SECONDS
    remaining = request.deadline_monotonic - time.monotonic()
    if remaining <= 0:
        raise deadline_error()
    return remaining


def deadline_error() -> ServiceUnavailableError:
    """Return the error for a request that has taken too long."""
    return ServiceUnavailableError("the request took too long")


def abandonment() -> Callable[[], bool]:
    """Return a function that returns whether the client of the current request has disconnected, in any thread."""
    request = _current.get()
    return _never if request is None else request.is_abandoned


def raise_if_abandoned() -> None:
    """Raise `ServiceUnavailableError` if the client of the current request has disconnected."""
    if abandonment()():
        raise abandonment_error()


def abandonment_error() -> ServiceUnavailableError:
    """Return the error for a request whose client has disconnected. No client sees it."""
    return ServiceUnavailableError("the client has disconnected")


async def pause(seconds: float) -> None:
    """Sleep, but not beyond the deadline of the current request."""
    request = _current.get()
    await asyncio.sleep(seconds if request is None else min(seconds, request.deadline_monotonic - time.monotonic()))


@contextmanager
def paused_deadline() -> Iterator[None]:
    """Extend the deadline by the duration of the block, which waits for the client and not for the service."""
    started = time.monotonic()
    try:
        yield
    finally:
        request = _current.get()
        if request is not None:
            deadline = request.deadline_monotonic + time.monotonic() - started
            _current.set(attrs.evolve(request, deadline_monotonic=deadline))
