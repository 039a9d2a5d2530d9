"""Run a flow of steps without an event loop."""

from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


def run_inline(flow: Coroutine[object, object, T]) -> T:
    """Return the result of a coroutine that never suspends, without an event loop."""
    try:
        flow.send(None)
    except StopIteration as finished:
        result: T = finished.value
        return result
    raise RuntimeError("a flow that runs inline must not wait for an event loop")
