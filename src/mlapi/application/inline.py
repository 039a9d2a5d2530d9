"""Run a coroutine without an event loop."""

from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


def run_inline(flow: Coroutine[object, object, T]) -> T:
    """Run a coroutine that never suspends, without an event loop, and return its result."""
    try:
        flow.send(None)
    except StopIteration as finished:
        result: T = finished.value
        return result
    raise RuntimeError("a coroutine that runs inline must not wait for an event loop")
