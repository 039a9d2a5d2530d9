"""Where the steps of a use case run. Some wait for the database, and others use processor time.

The same flow of steps serves synchronous callers, inline, and an event loop, in threads.
"""

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar, overload

from mlapi.application.users import Users
from mlapi.domain.commands import UserCommand
from mlapi.domain.links import RedeemLink, Redemption
from mlapi.domain.users import User

P = ParamSpec("P")
T = TypeVar("T")


class Executor(Protocol):
    """Decides where each step runs."""

    def for_client(self, address: str, *, is_urgent: bool = True) -> "Executor":
        """Return an executor for the calls of one client, so that clients take turns.

        Args:
            address: the client's address.
            is_urgent: whether the calls run before those that are not urgent.
        """
        ...

    async def query(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that waits for the database."""
        ...

    async def hash(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that runs the password cipher."""
        ...

    @overload
    async def apply(self, command: UserCommand) -> User: ...
    @overload
    async def apply(self, command: RedeemLink) -> Redemption: ...
    async def apply(self, command: UserCommand | RedeemLink) -> User | Redemption:
        """Apply a command durably. Raises the same errors as `Users.apply`."""
        ...


class InlineExecutor:
    """An `Executor` that runs every step in the calling thread."""

    def __init__(self, users: Users) -> None:
        self._users = users

    def for_client(self, address: str, *, is_urgent: bool = True) -> "InlineExecutor":  # noqa: ARG002 - in the protocol
        return self

    async def query(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    async def hash(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    @overload
    async def apply(self, command: UserCommand) -> User: ...
    @overload
    async def apply(self, command: RedeemLink) -> Redemption: ...
    async def apply(self, command: UserCommand | RedeemLink) -> User | Redemption:
        return self._users.apply(command)
