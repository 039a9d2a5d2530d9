"""The deadline of the current request. Each wait lasts at most until the deadline, so the request ends in time.

A context variable holds the deadline, so each task has its own, and functions need no extra argument. It also tells
whether the client is still connected, so that the service can skip work for a response that no client will read.
"""

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar, Token

import attrs

from mlapi.domain.errors import ServiceUnavailableError

REQUEST_SECONDS = 8.0
"""How long a request may take. Clients are promised a response within 10 seconds; the rest of the time is for sending
it, even if the processor is busy."""


def _never() -> bool:
    return False


@attrs.define
class _Request:
    """The current request. ``is_disconnected`` can be called from any thread."""

    deadline_monotonic: float
    is_disconnected: Callable[[], bool]


_current: ContextVar[_Request | None] = ContextVar("mlapi_request", default=None)


def start_deadline(
    seconds: float = REQUEST_SECONDS, *, is_disconnected: Callable[[], bool] = _never
) -> Token[_Request | None]:
    """Start the deadline of a request, and return the token for `end_deadline`.

    Args:
        seconds: how long the request may take.
        is_disconnected: returns whether the client has disconnected. It must be callable from any thread.
    """
    return _current.set(_Request(time.monotonic() + seconds, is_disconnected))


def end_deadline(token: Token[_Request | None]) -> None:
    """Restore the deadline that was current before `start_deadline`."""
    _current.reset(token)


def remaining_seconds() -> float:
    """Return how long the current request may still wait. Without a deadline, return `REQUEST_SECONDS`.

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


def disconnect_check() -> Callable[[], bool]:
    """Return a function that tells, in any thread, whether the client of the current request has disconnected."""
    request = _current.get()
    return _never if request is None else request.is_disconnected


def raise_if_disconnected() -> None:
    """Raise `ServiceUnavailableError` if the client of the current request has disconnected."""
    if disconnect_check()():
        raise disconnect_error()


def disconnect_error() -> ServiceUnavailableError:
    """Return the error for a request whose client has disconnected. No client sees it."""
    return ServiceUnavailableError("the client has disconnected")


async def pause(seconds: float) -> None:
    """Sleep, but not beyond the deadline of the current request."""
    request = _current.get()
    await asyncio.sleep(seconds if request is None else min(seconds, request.deadline_monotonic - time.monotonic()))


class PausedDeadline:
    """Extends the deadline by the duration of a ``with`` block, in which the service waits for the client."""

    def __enter__(self) -> None:
        self._started_monotonic = time.monotonic()

    def __exit__(self, *_error: object) -> None:
        request = _current.get()
        if request is not None:
            request.deadline_monotonic += time.monotonic() - self._started_monotonic
