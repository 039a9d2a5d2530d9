"""Measure the processor time of each layer for one request: ``python -m bench.layers``.

The applications run in this process, without a server; see `bench.in_process`. Each round measures every stage once, in
alternating order, so that a slowdown of the machine affects all of them. A stage has one layer more than the one that
it extends. The tables show medians over the rounds, and ratios to bare Starlette in the same round.
"""

import argparse
import asyncio
import gc
import json
import logging
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from unittest import mock

import attrs
from starlette.types import ASGIApp
from tests.postgres_server import PostgresServer, running_postgres

from bench import ceiling
from bench.environment import PostgresDatabases, mlapi_environ
from bench.in_process import CONCURRENCY, Request, send_requests
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.adapters.memory import users as memory_users
from mlapi.adapters.sql import statements
from mlapi.application.authentication import VerifiedLogin
from mlapi.application.batching import CommandBatcher
from mlapi.application.users import Users
from mlapi.bootstrap import open_guard, open_service
from mlapi.config import load_settings
from mlapi.domain.commands import Command, Outcome, Register
from mlapi.domain.users import User, UserId, utc_now
from mlapi.entrypoints.application import create_app
from mlapi.entrypoints.guard import GuardMiddleware

OPERATIONS = ("toggle", "register", "remove", "token", "key")
"""Three changes, and a request to a guarded application with a token or an API key."""
STORAGES = ("memory", "sqlite", "postgresql")
CREDENTIALS = 1_000
USERS_PER_COMMIT = 1_000
ADMIN_TOKEN = "bench" * 8
ADMIN_HEADERS = ((b"authorization", f"Bearer {ADMIN_TOKEN}".encode()),)
CEILING = "bare Starlette"
HTTP_LAYERS = "mlapi, HTTP layers"
BATCHING = "batching, writer thread"


@attrs.define
class Storage:
    """A storage with users, and what was requested so far."""

    name: str
    environ: dict[str, str]
    user_count: int
    measure_server: Callable[[], float] = lambda: 0.0
    """Returns the seconds of processor time that the database server has used for this process."""
    users: Users = attrs.field(init=False)
    credentials: dict[str, list[str]] = attrs.field(factory=dict)
    removable: list[UserId] = attrs.field(factory=list)
    numbers: Iterator[int] = attrs.field(factory=count)
    toggles: Iterator[int] = attrs.field(factory=count)

    def add_users(self, user_count: int) -> list[User]:
        password = self.users.cipher.encrypt("correct horse battery")
        names = [f"seed-{next(self.numbers)}" for _ in range(user_count)]
        commands = [
            Register(username=name, password=password, email=f"{name}@example.com", at=utc_now()) for name in names
        ]
        groups = (commands[first : first + USERS_PER_COMMIT] for first in range(0, user_count, USERS_PER_COMMIT))
        outcomes = [outcome for group in groups for outcome in self.users.repository.apply(group)]
        return [outcome for outcome in outcomes if isinstance(outcome, User)]

    def make_requests(self, operation: str, request_count: int) -> list[Request]:
        if operation == "remove":
            self.removable = [user.id for user in self.add_users(request_count)]
        return [self._make_request(operation, number) for number in range(request_count)]

    def _make_request(self, operation: str, number: int) -> Request:
        if operation == "toggle":
            turn = next(self.toggles)
            user_id = 1 + turn * 7919 % self.user_count  # in a scattered order
            flag = turn // self.user_count % 2
            return Request("PUT", f"/toggle-user-permission/{user_id}/{flag}", ADMIN_HEADERS)
        if operation == "register":
            name = f"bench-{next(self.numbers)}"
            body = {"username": name, "password": "correct horse battery", "email": f"{name}@example.com"}
            return Request("POST", "/register-user", body=json.dumps(body).encode())
        if operation == "remove":
            return Request("DELETE", f"/remove-user/{self.removable[number]}", ADMIN_HEADERS)
        credentials = self.credentials[operation]
        return Request("GET", "/predict", ((b"authorization", f"Bearer {credentials[number % CREDENTIALS]}".encode()),))


@attrs.frozen(eq=False)
class Stage:
    """An application with some of the layers.

    Attributes:
        name: the last layer.
        extends: the name of the stage without the last layer; empty if there is none.
        app: the application.
        storage: its users.
        operations: the operations that it serves.
        without_others: removes the layers that this stage does not have.
    """

    name: str
    extends: str
    app: ASGIApp
    storage: Storage
    operations: Sequence[str]
    without_others: Callable[[], AbstractContextManager[object]] = nullcontext

    async def measure(self, operation: str, request_count: int) -> tuple[float, float]:
        """Return the microseconds of processor time for a request, of this process and of the database server."""
        requests = self.storage.make_requests(operation, request_count)
        with self.without_others():
            server, ours = self.storage.measure_server(), time.process_time()
            await send_requests(self.app, requests)
            ours, server = time.process_time() - ours, self.storage.measure_server() - server
        return ours / request_count * 1e6, server / request_count * 1e6


def ceiling_stage(user_count: int) -> Stage:
    """Return bare Starlette, which receives the same requests and ignores the ids and credentials in them."""
    storage = Storage(CEILING, {}, user_count)
    storage.users = Users(InMemoryUserRepository(), PlainCipher())
    storage.credentials |= dict.fromkeys(OPERATIONS[3:], ["x" * 300] * CREDENTIALS)
    return Stage(CEILING, "", ceiling.app, storage, OPERATIONS)


async def change_stages(stack: AsyncExitStack, storage: Storage) -> list[Stage]:
    """Return the stages for requests that change users. In memory, there are also stages without a repository."""
    operations = OPERATIONS[:3]
    app = create_app()
    with mock.patch.dict(os.environ, storage.environ):
        await stack.enter_async_context(app.router.lifespan_context(app))
    storage.users = app.state.runtime.users
    user = storage.add_users(storage.user_count)[0]
    name = storage.name
    if name == "postgresql":  # a single statement changes users and writes audit entries
        return [Stage(f"{name}, users and audit trail", BATCHING, app, storage, operations)]
    stages = [
        Stage(f"{name}, users", BATCHING, app, storage, operations, without_audit_trail),
        Stage(f"{name}, audit trail", f"{name}, users", app, storage, operations),
    ]
    if name != "memory":
        return stages
    return [
        Stage(HTTP_LAYERS, CEILING, app, storage, operations, lambda: without_batching(user)),
        Stage(BATCHING, HTTP_LAYERS, app, storage, operations, lambda: without_repository(user)),
        *stages,
    ]


def without_batching(user: User) -> AbstractContextManager[object]:
    """Answer each command with this user."""

    async def apply(_batcher: CommandBatcher, _command: Command) -> User:
        return user

    return mock.patch.object(CommandBatcher, "apply", apply)


def without_repository(user: User) -> AbstractContextManager[object]:
    """Answer each command of a batch with this user."""

    def apply(_repository: InMemoryUserRepository, commands: Sequence[Command], **_options: object) -> list[Outcome]:
        return [user] * len(commands)

    return mock.patch.object(InMemoryUserRepository, "apply", apply)


def make_no_entry(_command: Command, _outcome: Outcome) -> None:
    """Replace `make_audit_entry`. A mock would take longer than the original."""


@contextmanager
def without_audit_trail() -> Iterator[None]:
    """Write no audit entries."""
    with (
        mock.patch.object(memory_users, "make_audit_entry", make_no_entry),
        mock.patch.object(statements, "make_audit_entry", make_no_entry),
    ):
        yield


def guard_stage(stack: AsyncExitStack, storage: Storage) -> Stage:
    """Return the stage for requests to a guarded application. In memory, it has users of its own."""
    settings = load_settings(environ=storage.environ)
    service = stack.enter_context(open_service(settings))
    users = service.users
    if storage.name == "memory":
        storage = Storage(storage.name, storage.environ, CREDENTIALS)
        storage.users = users
        guard = service.access.guard
    else:
        guard = stack.enter_context(open_guard(settings))
    guarded = storage.add_users(CREDENTIALS)
    keys = [users.prepare_api_key(user_id=user.id, name="bench", expires_datetime=None) for user in guarded]
    users.repository.apply([command for command, _ in keys])
    logins = [VerifiedLogin(user=user, needs_upgrade=False) for user in guarded]
    storage.credentials["token"] = [service.access.authenticator.issue_token(login).token for login in logins]
    storage.credentials["key"] = [secret for _, secret in keys]
    return Stage(f"{storage.name}, guard", CEILING, GuardMiddleware(ceiling.app, guard), storage, OPERATIONS[3:])


class Figures:
    """What was measured, by operation and stage, with one entry for each round."""

    def __init__(self) -> None:
        self._rounds: dict[str, dict[Stage, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))

    def add(self, operation: str, stage: Stage, microseconds: tuple[float, float]) -> None:
        self._rounds[operation][stage].append(microseconds)

    def print(self) -> None:
        for operation, by_stage in self._rounds.items():
            print(f"\n{operation:28}{'total us':>10}{'ratio':>8}{'layer us':>10}{'server us':>11}")
            ours = {stage.name: [us for us, _ in rounds] for stage, rounds in by_stage.items()}
            for stage, rounds in by_stage.items():
                total = statistics.median(ours[stage.name])
                layer = total - statistics.median(ours.get(stage.extends, [0.0]))
                ratio = statistics.median(us / bare for us, bare in zip(ours[stage.name], ours[CEILING], strict=True))
                server = statistics.median(server for _, server in rounds)
                shown_server = f"{server:11.1f}" if server else ""
                print(f"  {stage.name:26}{total:10.1f}{ratio:8.2f}{layer:10.1f}{shown_server}")


def open_storage(kind: str, folder: Path, user_count: int, stack: AsyncExitStack) -> Storage:
    """Return a new storage without users."""
    if kind != "postgresql":
        url = "memory://" if kind == "memory" else f"sqlite:///{folder}/mlapi.db"
        return Storage(kind, to_environ(url), user_count)
    server = stack.enter_context(running_postgres(durable=True))
    url = PostgresDatabases(server, stack.enter_context(ExitStack()))()
    return Storage(kind, to_environ(url), user_count, lambda: measure_server(server, url.rpartition("/")[2]))


def to_environ(url: str) -> dict[str, str]:
    return {**mlapi_environ(url, "fernet"), "MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN}


def measure_server(server: PostgresServer, database: str) -> float:
    """Return the seconds of processor time of the server processes with a connection to this database."""
    query = f"SELECT pid FROM pg_stat_activity WHERE datname = '{database}' AND backend_type = 'client backend'"  # noqa: S608 - the name is ours
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for (pid,) in server.execute(query)) / 1e9


async def measure_layers(arguments: argparse.Namespace, folder: Path) -> Figures:
    figures = Figures()
    async with AsyncExitStack() as stack:
        stages = [ceiling_stage(arguments.users)]
        for kind in arguments.storages:
            storage = open_storage(kind, folder, arguments.users, stack)
            stages += await change_stages(stack, storage)
            stages.append(guard_stage(stack, storage))
        gc.collect()
        gc.freeze()
        for number in range(arguments.rounds + 1):
            for operation in arguments.operations:
                serving = [stage for stage in stages if operation in stage.operations]
                for stage in serving if number % 2 else reversed(serving):
                    microseconds = await stage.measure(operation, arguments.requests)
                    if number:  # the first round warms up
                        figures.add(operation, stage, microseconds)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=3_000, help="requests for each measurement")
    parser.add_argument("--users", type=int, default=10_000, help="users in each storage")
    parser.add_argument("--storages", nargs="+", choices=STORAGES, default=STORAGES)
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="mlapi-layers-") as folder:
        figures = asyncio.run(measure_layers(arguments, Path(folder)))
    print(f"processor time of one request, {CONCURRENCY} at once; server: of the database server")
    figures.print()


if __name__ == "__main__":
    main()
