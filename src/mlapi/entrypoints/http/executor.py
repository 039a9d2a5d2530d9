"""The threads of an application. Each kind of work has its own, so that none has to wait for another kind."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar, overload

import attrs
from starlette.types import Receive

from mlapi.application.batching import CommandBatcher
from mlapi.application.deadlines import disconnect_check
from mlapi.application.users import Users
from mlapi.domain.addresses import rate_limit_key
from mlapi.domain.commands import ApiKeyCommand, Command, Outcome, Result, UpdateUser, UserChange, UserCommand
from mlapi.domain.credentials import ApiKey
from mlapi.domain.errors import ServiceUnavailableError
from mlapi.domain.links import AddLink, Link, RedeemLink, Redemption
from mlapi.domain.ports import PasswordCipher, is_costly
from mlapi.domain.users import User, UserId
from mlapi.entrypoints.http.search_pool import SearchPool
from mlapi.entrypoints.http.shared_call import SharedCall
from mlapi.entrypoints.http.thread_pool import BoundedThreadPool, Priority, Turn
from mlapi.platforms import cores

MAX_QUEUED_PER_HASHING_THREAD = 64  # a thread hashes about this many in 1.3 to 3.2 seconds, at 20 to 50 ms each
QUERY_THREADS = 2
"""Threads that wait for the database during registrations, and for links and mail. Logins share queries instead."""
_MAX_QUEUED_PER_QUERY_THREAD = 2_000
PAGE_THREADS = 2
"""Threads for the pages of admins. Together with the searches, they need four connections to the database."""
_MAX_QUEUED_PER_PAGE_THREAD = 50
READY_TIMEOUT_SECONDS = 4.5
_MAX_QUEUED_FOR_FILES = 100

P = ParamSpec("P")
T = TypeVar("T")


@attrs.frozen
class PoolExecutor:
    """An `Executor` for an event loop: each kind of work has its own threads, and commands are batched.

    The kinds are queries, hashing, pages for admins, searches by admins, files, and the readiness check. Pages
    and searches therefore never delay logins, changes, the guard or the readiness check.

    Every wait ends at the deadline of the request; see `mlapi.application.deadlines`.
    """

    _cipher: PasswordCipher
    _commands: CommandBatcher
    _hashing: BoundedThreadPool
    _queries: BoundedThreadPool
    _pages: BoundedThreadPool
    _searches: SearchPool
    _readiness: SharedCall
    _files: BoundedThreadPool
    _turn: Turn = attrs.field(factory=Turn)

    @classmethod
    def from_users(
        cls, users: Users, *, on_committed: Callable[[Sequence[Command], Sequence[Outcome]], None]
    ) -> "PoolExecutor":
        """Create the threads for these users. See `CommandBatcher` for ``on_committed``."""
        return cls(
            cipher=users.cipher,
            commands=CommandBatcher(users.repository, on_committed=on_committed),
            hashing=BoundedThreadPool(cores(), max_queued_per_thread=MAX_QUEUED_PER_HASHING_THREAD),
            files=BoundedThreadPool(1, max_queued_per_thread=_MAX_QUEUED_FOR_FILES),
            queries=BoundedThreadPool(QUERY_THREADS, max_queued_per_thread=_MAX_QUEUED_PER_QUERY_THREAD),
            pages=BoundedThreadPool(PAGE_THREADS, max_queued_per_thread=_MAX_QUEUED_PER_PAGE_THREAD),
            searches=SearchPool(),
            readiness=SharedCall(users.check, timeout_seconds=READY_TIMEOUT_SECONDS),
        )

    def for_client(self, address: str, *, is_urgent: bool = True) -> "PoolExecutor":
        turn = Turn(rate_limit_key(address), Priority.HIGH if is_urgent else Priority.LOW)
        return PoolExecutor(  # `attrs.evolve` takes several times as long
            self._cipher,
            self._commands,
            self._hashing,
            self._queries,
            self._pages,
            self._searches,
            self._readiness,
            self._files,
            turn,
        )

    async def query(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._queries.run_as(self._turn, function, *args, **kwargs)

    async def read_page(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that reads a few rows through an index, for an admin."""
        return await self._pages.run(function, *args, **kwargs)

    async def read_own(self, user_id: UserId, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that reads the rows of a user, at this user's request. Reads of admins have priority."""
        return await self._pages.run_as(Turn(str(user_id), Priority.LOW), function, *args, **kwargs)

    async def search(self, receive: Receive, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function whose cost grows with the number of rows, for an admin. See `SearchPool.run`."""
        return await self._searches.run(receive, function, *args, **kwargs)

    async def check_ready(self) -> None:
        """Raise `ServiceUnavailableError` if the database cannot start a write transaction now."""
        await self._readiness.run()

    async def hash(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if is_costly(self._cipher):
            turn = attrs.evolve(self._turn, is_disconnected=disconnect_check())
            return await self._hashing.run_as(turn, function, *args, **kwargs)
        return function(*args, **kwargs)  # switching to a thread would take longer than the call

    async def read_files(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that reads files. A hanging database does not delay it, because it has its own thread."""
        return await self._files.run(function, *args, **kwargs)

    @overload
    async def apply(self, command: UserCommand) -> User: ...
    @overload
    async def apply(self, command: UpdateUser) -> UserChange: ...
    @overload
    async def apply(self, command: ApiKeyCommand) -> ApiKey: ...
    @overload
    async def apply(self, command: AddLink) -> Link: ...
    @overload
    async def apply(self, command: RedeemLink) -> Redemption: ...
    def apply(self, command: Command) -> Coroutine[Any, Any, Result]:
        return self._commands.apply(command)

    async def apply_all(self, commands: Sequence[Command]) -> list[Outcome | ServiceUnavailableError]:
        """Apply many commands durably. See `CommandBatcher.apply_all`."""
        return await self._commands.apply_all(commands)

    def close(self) -> None:
        self._hashing.close()
        self._queries.close()
        self._pages.close()
        self._searches.close()
        self._readiness.close()
        self._files.close()
        self._commands.close()
