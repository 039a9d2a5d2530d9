"""Many concurrent requests, one transaction: what waits together is committed together, and asked together.

A commit costs a wait for the disk however much is in it, and a question a round trip. So each event loop gathers what
its requests want, a single thread is handed that as one batch, and no answer leaves before the batch is done. Whoever
has his answer often comes back at once; so after a batch the loop waits for those, some 100 us, before it hands over
the next. Knows no SQL: it works over any `UserRepository`.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, overload
from weakref import WeakKeyDictionary

import attrs

from mlapi.domain.commands import ApiKeyCommand, Command, Outcome, UserCommand
from mlapi.domain.credentials import ApiKey, Principal, PrincipalId
from mlapi.domain.errors import MlapiError, RepositoryUnavailableError, ServiceUnavailableError
from mlapi.domain.ports import NonblockingLookup, UserRepository
from mlapi.domain.users import User

MAX_WAITING = 10_000
"""Changes. At some 10,000 a second the last of them waits a second; each holds about a kilobyte."""
PATIENCE = 5.0
"""Seconds that a change may wait for its commit before whoever asked is told to come again."""

_QUIET_TURNS = 16
"""Turns of the loop in a row without a new change, some 100 us, after which those that came back are taken for all."""
_LONGEST = 0.005
"""Seconds after which the next batch is handed over although changes still come."""

_TOO_LATE = RepositoryUnavailableError("the database did not answer in time")

_logger = logging.getLogger("mlapi")

Q = TypeVar("Q")
A = TypeVar("A")


@attrs.define(eq=False)
class _Request:
    wanted: Any
    answer: "asyncio.Future[Any]"
    result: Any = attrs.field(init=False)
    """Left by the thread that works, to be given in the loop's own; an exception is raised there."""


@attrs.define(eq=False)
class _Batch:
    by: float
    """Time of `time.monotonic` at which whoever still waits is told that it was not done."""
    waiting: list[_Request] = attrs.field(factory=list)
    patience: asyncio.TimerHandle = attrs.field(init=False)
    given_up: bool = False


class Batcher(Generic[Q, A]):
    """An asynchronous face of what takes many at once.

    Args:
        work: given a batch, returns for each of it an answer, or an error to raise. Done in one thread. Takes too a
            time of `time.monotonic`, after which nobody waits for it any more.
        max_waiting: how many may wait for that thread before further ones are refused.
        patience: seconds before one that waits is answered as unavailable.
    """

    _too_late = _TOO_LATE

    def __init__(
        self,
        work: Callable[[Sequence[Q], float], Sequence[A | Exception]],
        *,
        max_waiting: int = MAX_WAITING,
        patience: float = PATIENCE,
    ) -> None:
        self._work = work
        self._max_waiting = max_waiting
        self._patience = patience
        self._lock = threading.Lock()  # loops in several threads may share this
        self._waiting = 0
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopQueue] = WeakKeyDictionary()
        self._handed_over: SimpleQueue[tuple[_LoopQueue, _Batch] | None] = SimpleQueue()
        self._writer: threading.Thread | None = None

    async def answer(self, wanted: Q) -> A:
        """Return the answer, once its batch is done.

        If this is cancelled, what has not reached the thread that works is not done; its neighbours are in any case.

        Raises:
            RepositoryUnavailableError: if too many wait already, or this has waited too long (what has reached the
                thread may still be done then).
        """
        with self._lock:
            if self._waiting >= self._max_waiting:
                raise ServiceUnavailableError("too many requests are waiting")
            self._waiting += 1
        loop = asyncio.get_running_loop()
        gathering = self._loops.get(loop)
        if gathering is None:
            gathering = _LoopQueue(loop, self._hand_over, self._replace_writer, self._patience, self._too_late)
            self._loops[loop] = gathering
        waiting = _Request(wanted, loop.create_future())
        gathering.add(waiting)
        answer: A = await waiting.answer
        return answer

    def close(self) -> None:
        """Return when all that was handed over is done, or has had its time. Nothing may come afterwards."""
        if self._writer is not None:
            self._handed_over.put(None)
            self._writer.join(self._patience)

    def _hand_over(self, gathering: "_LoopQueue", batch: _Batch) -> None:
        with self._lock:
            if self._writer is None:
                self._start_writer()
        self._handed_over.put((gathering, batch))

    def _start_writer(self) -> None:
        self._writer = threading.Thread(target=self._write, name="mlapi-group", daemon=True)
        self._writer.start()

    def _replace_writer(self) -> None:
        """Go on with another thread, and so another connection, where one waits for a server that says nothing."""
        with self._lock:
            self._start_writer()

    def _write(self) -> None:
        while (handed_over := self._handed_over.get()) is not None:
            gathering, batch = handed_over
            wanted = [waiting for waiting in batch.waiting if not waiting.answer.done()]
            results = self._results([waiting.wanted for waiting in wanted], batch.by)
            for waiting, result in zip(wanted, results, strict=True):
                waiting.result = result
            with self._lock:
                self._waiting -= len(batch.waiting)
            with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                gathering.loop.call_soon_threadsafe(gathering.answer, batch)
            with self._lock:
                if threading.current_thread() is not self._writer:
                    return  # this took so long that another goes on

    def _results(self, wanted: Sequence[Q], by: float) -> Sequence[A | Exception]:
        try:
            return self._work(wanted, by)
        except MlapiError as error:
            return [copy(error) for _ in wanted]  # one each: whoever raises it adds to its traceback
        except Exception as error:
            if len(wanted) == 1:
                _logger.exception("what a request wants could not be done")
                return [error]
            # One of them is at fault, and none was done: each is tried alone, so that the others are.
            return [result for one in wanted for result in self._results([one], by)]


class CommandBatcher(Batcher[Command, User | ApiKey]):
    """The asynchronous face of a repository's write side.

    Args:
        repository: where changes are applied.
        told: of each batch that is durable, in the thread that works.
        max_waiting: see `Batcher`.
        patience: see `Batcher`.
    """

    # A commit can hang: while a standby is away for which it waits, say. It is made when that comes back.
    _too_late = attrs.evolve(_TOO_LATE, may_be_done=True)

    def __init__(
        self,
        repository: UserRepository,
        *,
        told: Callable[[Sequence[Command], Sequence[Outcome]], None] = lambda _changes, _outcomes: None,
        max_waiting: int = MAX_WAITING,
        patience: float = PATIENCE,
    ) -> None:
        def work(commands: Sequence[Command], commit_by: float) -> list[Outcome]:
            outcomes = repository.apply(commands, commit_by=commit_by)
            told(commands, outcomes)
            return outcomes

        super().__init__(work, max_waiting=max_waiting, patience=patience)

    @overload
    async def apply(self, command: UserCommand) -> User: ...
    @overload
    async def apply(self, command: ApiKeyCommand) -> ApiKey: ...
    async def apply(self, command: Command) -> User | ApiKey:
        """Return the user or the API key as the change left it, once that is durable.

        Raises:
            UserExistsError, UserNotFoundError, PasswordChangedError, ApiKeyNotFoundError: as the change is refused.
            RepositoryUnavailableError: as `answer` and the repository do.
        """
        return await self.answer(command)


class PrincipalLookup:
    """The asynchronous face of a repository's `find_principals`: those who ask at once share a question.

    A local repository is asked in the loop's own thread, once for all that came in one turn of the loop: a thread would
    cost more than the question. Where it would have to wait, that is done in a thread, as with any other.
    """

    def __init__(self, repository: UserRepository, *, patience: float = PATIENCE) -> None:
        self._nonblocking = repository if isinstance(repository, NonblockingLookup) else None
        self._in_thread = Batcher[PrincipalId, Principal | None](
            lambda ids, _: repository.find_principals(ids), patience=patience
        )
        self._turns: dict[asyncio.AbstractEventLoop, list[tuple[PrincipalId, asyncio.Future[Principal | None]]]] = {}

    async def holder(self, subject: PrincipalId) -> Principal | None:
        """Return who stands behind a subject, as the users are after this was called.

        Raises:
            RepositoryUnavailableError: as `Batcher.answer` and the repository do.
        """
        if self._nonblocking is not None:
            try:
                return await self._find_nowait(subject, self._nonblocking)
            except RepositoryUnavailableError:
                pass  # so it is waited for
        return await self._in_thread.answer(subject)

    def close(self) -> None:
        self._in_thread.close()

    def _find_nowait(self, subject: PrincipalId, repository: NonblockingLookup) -> "asyncio.Future[Principal | None]":
        loop = asyncio.get_running_loop()
        turn = self._turns.get(loop)
        if turn is None:
            self._turns[loop] = turn = []
            loop.call_soon(self._ask, loop, repository)
        answer = loop.create_future()
        turn.append((subject, answer))
        return answer

    def _ask(self, loop: asyncio.AbstractEventLoop, repository: NonblockingLookup) -> None:
        turn = self._turns.pop(loop)
        try:
            principals = repository.find_principals_nowait([subject for subject, _ in turn])
        except Exception as error:  # noqa: BLE001 - it is theirs who wait
            for _, answer in turn:
                if not answer.done():
                    answer.set_exception(copy(error))
            return
        for (_, answer), holder in zip(turn, principals, strict=True):
            if not answer.done():  # cancelled meanwhile
                answer.set_result(holder)


class _LoopQueue:
    """What the requests of one event loop want: what is handed over, and what comes meanwhile. Lives in its thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        hand_over: Callable[["_LoopQueue", _Batch], None],
        replace_writer: Callable[[], None],
        patience: float,
        too_late: RepositoryUnavailableError,
    ) -> None:
        self.loop = loop
        self._hand_over = hand_over
        self._replace_writer = replace_writer
        self._patience = patience
        self._too_late = too_late
        self._next: _Batch | None = None
        self._in_flight = False
        self._decided = False
        """When the next batch goes is seen to already."""

    def add(self, waiting: _Request) -> None:
        if self._next is None:
            self._next = _Batch(time.monotonic() + self._patience)
            self._next.patience = self.loop.call_later(self._patience, self._give_up, self._next)
        self._next.waiting.append(waiting)
        if not self._in_flight and not self._decided:
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
            if isinstance(waiting.result, Exception):
                waiting.answer.set_exception(waiting.result)
            else:
                waiting.answer.set_result(waiting.result)
        self._in_flight = False
        self._decided = True
        if len(batch.waiting) == 1:
            self._send()
        else:  # the answers leave in the next turn, before this
            self.loop.call_soon(self._wait_for_follow_ups, len(batch.waiting) + self._gathered, time.monotonic())

    @property
    def _gathered(self) -> int:
        return 0 if self._next is None else len(self._next.waiting)

    def _wait_for_follow_ups(self, all_of_them: int, began: float, seen: int = 0, quiet: int = 0) -> None:
        gathered = self._gathered
        quiet = quiet + 1 if gathered == seen else 0
        if gathered >= all_of_them or quiet > _QUIET_TURNS or time.monotonic() - began > _LONGEST:
            self._send()
        else:
            self.loop.call_soon(self._wait_for_follow_ups, all_of_them, began, gathered, quiet)

    def _send(self) -> None:
        self._decided = False
        batch, self._next = self._next, None
        if batch is not None:
            self._in_flight = True
            self._hand_over(self, batch)

    def _give_up(self, batch: _Batch) -> None:
        for waiting in batch.waiting:
            if not waiting.answer.done():
                waiting.answer.set_exception(copy(self._too_late))
        batch.given_up = True  # it is on its way: what comes after it has more patience left, and goes now
        self._in_flight = False
        self._replace_writer()
        self._send()
