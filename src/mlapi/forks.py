"""Let objects survive ``os.fork``, as in gunicorn with ``--preload``, multiprocessing, Celery and uWSGI.

A forked child has the memory of its parent, but only the thread that called ``fork``. Locks that other threads held
stay locked, the threads that serve queues are missing, and database connections are shared with the parent.

This module registers Python's fork hooks when the first object needs them. uWSGI does not run these hooks, so
`notice_fork` also compares process ids.
"""

import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import Protocol
from weakref import WeakMethod, WeakSet


class PausesForForks(Protocol):
    """An object that must not be in use while the process forks."""

    def pause(self) -> None:
        """Wait until no other thread uses the object, and block new uses until `resume`."""

    def resume(self) -> None:
        """Continue after a fork, in the parent and in the child."""


class _State:
    """The registered objects of this process."""

    def __init__(self) -> None:
        self.is_registered = False
        self.pid = os.getpid()
        self.lock = threading.RLock()  # held during a fork
        self.locks: WeakSet[threading.Lock] = WeakSet()
        self.initializers: list[WeakMethod[Callable[[], None]]] = []
        self.pausing: WeakSet[PausesForForks] = WeakSet()
        self.paused: list[PausesForForks] = []


_state = _State()


def new_lock() -> threading.Lock:
    """Return a lock that is unlocked in a forked child, even if another thread held it."""
    lock = threading.Lock()
    with _state.lock:
        _register()
        _state.locks.add(lock)
    return lock


def call_in_children(method: Callable[[], None]) -> None:
    """Call a bound method in every forked child, as long as its object exists."""
    with _state.lock:
        _register()
        _state.initializers = [each for each in _state.initializers if each() is not None]
        _state.initializers.append(WeakMethod(method))


def pause_during_forks(thing: PausesForForks) -> None:
    """Pause an object before each fork, as long as it exists."""
    with _state.lock:
        _register()
        _state.pausing.add(thing)


def notice_fork() -> None:
    """Initialize all objects again if this process was forked without running Python's fork hooks."""
    if os.getpid() != _state.pid:
        with _state.lock:
            if os.getpid() != _state.pid:  # pragma: no branch - another thread may have been first
                _initialize_all()


def call_at_exit(function: Callable[[], None]) -> Callable[[], None]:
    """Call a function when this process exits, unless it is killed. Return a function that cancels the call.

    A forked child calls the function too, unless multiprocessing has started the child: it skips `atexit` functions.
    """
    processes = sys.modules.get("multiprocessing.process")
    if processes is None or processes.parent_process() is None:
        atexit.register(function)
        return lambda: atexit.unregister(function)
    from multiprocessing.util import Finalize  # noqa: PLC0415 - multiprocessing has imported it already

    return Finalize(None, function, exitpriority=0).cancel


def _register() -> None:
    notice_fork()  # before the new object exists: its lock may be held at the next call of `notice_fork`
    if not _state.is_registered:
        _state.is_registered = True
        os.register_at_fork(before=_pause_all, after_in_parent=_resume_all, after_in_child=_restart)


def _pause_all() -> None:
    _state.lock.acquire()
    _state.paused = list(_state.pausing)
    for thing in _state.paused:
        thing.pause()


def _resume_all() -> None:
    for thing in _state.paused:
        thing.resume()
    _state.paused = []
    _state.lock.release()


def _restart() -> None:
    _state.lock = threading.RLock()  # the old one belongs to a thread of the parent
    _initialize_all()
    for thing in _state.paused:
        thing.resume()
    _state.paused = []


def _initialize_all() -> None:
    for lock in _state.locks:
        lock._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001 - as the module `logging` does
    for initializer in _state.initializers:
        method = initializer()
        if method is not None:
            method()
    _state.pid = os.getpid()
