"""Many concurrent changes, one durable transaction: what waits together is committed together.

A commit costs a wait for the disk however much is in it. So each event loop gathers its changes, a single thread
applies what it is handed as one batch, and no answer leaves before its commit. Whoever has his answer often comes back
at once; so after a batch the loop waits for those, some 100 us, before it hands over the next. Knows no SQL: it works
over any `UserRepository`.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from queue import SimpleQueue
from weakref import WeakKeyDictionary

import attrs

from mlapi.domain.changes import Change, Outcome
from mlapi.domain.errors import MlapiError, RepositoryUnavailableError
from mlapi.domain.model import User
from mlapi.domain.ports import UserRepository

MAX_WAITING = 10_000
"""Changes. At some 10,000 a second the last of them waits a second; each holds about a kilobyte."""
PATIENCE = 5.0
"""Seconds that a change may wait for its commit before whoever asked is told to come again."""

_QUIET_TURNS = 16
"""Turns of the loop in a row without a new change, some 100 us, after which those that came back are taken for all."""
_LONGEST = 0.005
"""Seconds after which the next batch is handed over although changes still come."""

_logger = logging.getLogger("mlapi")


@attrs.define(eq=False)
class _Waiting:
    change: Change
    answer: "asyncio.Future[User]"
    result: User | Exception = attrs.field(init=False)
    """Left by the writer, to be given in the loop's own thread."""


@attrs.define(eq=False)
class _Batch:
    commit_by: float
    """Time of `time.monotonic` at which whoever still waits is told that it was not done."""
    waiting: list[_Waiting] = attrs.field(factory=list)
    patience: asyncio.TimerHandle = attrs.field(init=False)
    given_up: bool = False


class GroupCommit:
    """The asynchronous face of a repository's write side.

    Args:
        repository: what the batches are applied to, by one thread.
        max_waiting: how many changes may wait for the writer before further ones are refused.
        patience: seconds before a change that waits is answered as unavailable.
    """

    def __init__(
        self, repository: UserRepository, *, max_waiting: int = MAX_WAITING, patience: float = PATIENCE
    ) -> None:
        self._repository = repository
        self._max_waiting = max_waiting
        self._patience = patience
        self._lock = threading.Lock()  # loops in several threads may share this
        self._waiting = 0
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Gathering] = WeakKeyDictionary()
        self._handed_over: SimpleQueue[tuple[_Gathering, _Batch] | None] = SimpleQueue()
        self._writer: threading.Thread | None = None

    async def apply(self, change: Change) -> User:
        """Return the user as the change left him, once that is durable.

        If this is cancelled, a change that has not reached the writer is not applied; its neighbours are in any case.

        Raises:
            UserExistsError, UserNotFoundError: as the change is refused.
            RepositoryUnavailableError: if too many wait already, if this has waited too long (a change that has reached
                the writer may still be applied then), or as the repository does.
        """
        with self._lock:
            if self._waiting >= self._max_waiting:
                raise RepositoryUnavailableError("too many changes wait already")
            self._waiting += 1
        loop = asyncio.get_running_loop()
        gathering = self._loops.get(loop)
        if gathering is None:
            self._loops[loop] = gathering = _Gathering(loop, self._hand_over, self._replace_writer, self._patience)
        waiting = _Waiting(change, loop.create_future())
        gathering.add(waiting)
        return await waiting.answer

    def close(self) -> None:
        """Return when all that was handed over is applied, or has had its time. Nothing may come afterwards."""
        if self._writer is not None:
            self._handed_over.put(None)
            self._writer.join(self._patience)

    def _hand_over(self, gathering: "_Gathering", batch: _Batch) -> None:
        with self._lock:
            if self._writer is None:
                self._start_writer()
        self._handed_over.put((gathering, batch))

    def _start_writer(self) -> None:
        self._writer = threading.Thread(target=self._write, name="mlapi-writer", daemon=True)
        self._writer.start()

    def _replace_writer(self) -> None:
        """Go on with another thread, and so another connection, where one waits for a server that says nothing."""
        with self._lock:
            self._start_writer()

    def _write(self) -> None:
        while (handed_over := self._handed_over.get()) is not None:
            gathering, batch = handed_over
            wanted = [waiting for waiting in batch.waiting if not waiting.answer.done()]
            results = self._results([waiting.change for waiting in wanted], batch.commit_by)
            for waiting, result in zip(wanted, results, strict=True):
                waiting.result = result
            with self._lock:
                self._waiting -= len(batch.waiting)
            with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                gathering.loop.call_soon_threadsafe(gathering.answer, batch)
            with self._lock:
                if threading.current_thread() is not self._writer:
                    return  # this took so long that another goes on

    def _results(self, changes: Sequence[Change], commit_by: float) -> Sequence[Outcome | Exception]:
        try:
            return self._repository.apply(changes, commit_by=commit_by)
        except MlapiError as error:
            return [copy(error) for _ in changes]  # one each: whoever raises it adds to its traceback
        except Exception as error:
            if len(changes) == 1:
                _logger.exception("a change could not be applied")
                return [error]
            # One of them is at fault, and none was applied: each is tried alone, so that the others are.
            return [result for change in changes for result in self._results([change], commit_by)]


class _Gathering:
    """The changes of one event loop: what it has handed over, and what comes meanwhile. Lives in the loop's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        hand_over: Callable[["_Gathering", _Batch], None],
        replace_writer: Callable[[], None],
        patience: float,
    ) -> None:
        self.loop = loop
        self._hand_over = hand_over
        self._replace_writer = replace_writer
        self._patience = patience
        self._next: _Batch | None = None
        self._on_their_way = False
        self._decided = False
        """When the next batch goes is seen to already."""

    def add(self, waiting: _Waiting) -> None:
        if self._next is None:
            self._next = _Batch(time.monotonic() + self._patience)
            self._next.patience = self.loop.call_later(self._patience, self._give_up, self._next)
        self._next.waiting.append(waiting)
        if not self._on_their_way and not self._decided:
            self._decided = True
            self.loop.call_soon(self._send)  # after all that this turn of the loop has to read

    def answer(self, batch: _Batch) -> None:
        """Give the answers of a batch and see to the next one."""
        if batch.given_up:
            return
        batch.patience.cancel()
        for waiting in batch.waiting:
            if waiting.answer.done():
                continue  # cancelled or given up meanwhile
            if isinstance(waiting.result, User):
                waiting.answer.set_result(waiting.result)
            else:
                waiting.answer.set_exception(waiting.result)
        self._on_their_way = False
        self._decided = True
        if len(batch.waiting) == 1:
            self._send()
        else:  # the answers leave in the next turn, before this
            self.loop.call_soon(self._await_those_who_return, len(batch.waiting) + self._gathered, time.monotonic())

    @property
    def _gathered(self) -> int:
        return 0 if self._next is None else len(self._next.waiting)

    def _await_those_who_return(self, all_of_them: int, began: float, seen: int = 0, quiet: int = 0) -> None:
        gathered = self._gathered
        quiet = quiet + 1 if gathered == seen else 0
        if gathered >= all_of_them or quiet > _QUIET_TURNS or time.monotonic() - began > _LONGEST:
            self._send()
        else:
            self.loop.call_soon(self._await_those_who_return, all_of_them, began, gathered, quiet)

    def _send(self) -> None:
        self._decided = False
        batch, self._next = self._next, None
        if batch is not None:
            self._on_their_way = True
            self._hand_over(self, batch)

    def _give_up(self, batch: _Batch) -> None:
        for waiting in batch.waiting:
            if not waiting.answer.done():
                waiting.answer.set_exception(RepositoryUnavailableError("no commit in time"))
        batch.given_up = True  # it is on its way: what comes after it has more patience left, and goes now
        self._on_their_way = False
        self._replace_writer()
        self._send()
