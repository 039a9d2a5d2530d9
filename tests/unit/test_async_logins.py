"""Concurrent logins on an event loop: turns, waiting for running attempts, deadlines and cancellation."""

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import ParamSpec, TypeVar

import pytest

from mlapi import Authenticator, InvalidCredentialsError, ServiceUnavailableError, TooManyAttemptsError, Users
from mlapi.adapters.memory import InMemoryAttempts, InMemoryTokens, InMemoryUserRepository, PlainCipher
from mlapi.application.authentication import (
    MAX_RUNNING_PER_ADDRESS,
    MAX_RUNNING_PER_NAME_AND_ADDRESS,
    AsyncAuthenticator,
)
from mlapi.application.concurrency import ConcurrencyLimit
from mlapi.application.deadlines import start_deadline
from mlapi.application.executors import InlineExecutor
from mlapi.application.login_throttle import AttemptLimits, FixedWindowAttemptLimiter
from mlapi.domain.attempts import Attempt
from mlapi.entrypoints.http.peers import connected_client

PASSWORD = "difference engine"
HOME = "192.0.2.1"
TOO_LATE = ServiceUnavailableError("the request took too long")

P = ParamSpec("P")
T = TypeVar("T")


class HeldExecutor(InlineExecutor):
    """Runs the cipher only after ``release``. Records how often, and how many logins waited for it at the same time."""

    def __init__(self, users: Users) -> None:
        super().__init__(users)
        self._released = asyncio.Event()
        self.waiting = self.most_waiting = self.hashes = 0

    def for_client(self, address: str, *, is_urgent: bool = True) -> "HeldExecutor":
        return self

    def release(self) -> None:
        self._released.set()

    async def hash(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        await self._released.wait()
        self.waiting -= 1
        self.hashes += 1
        return function(*args, **kwargs)


@pytest.fixture
def users() -> Users:
    users = Users(InMemoryUserRepository(), PlainCipher())
    for name in ("ada", "bob", "eve"):
        users.register(username=name, password=PASSWORD, email="ada@example.com")
    return users


@pytest.fixture
def limiter() -> FixedWindowAttemptLimiter:
    return FixedWindowAttemptLimiter(InMemoryAttempts(), AttemptLimits())


@pytest.fixture
def authenticator(users: Users, limiter: FixedWindowAttemptLimiter) -> Authenticator:
    return Authenticator(users, InMemoryTokens(), limiter)


async def settle() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


def test_logins_of_one_address_take_turns(authenticator: Authenticator) -> None:
    async def run() -> tuple[int, int, int]:
        executor = HeldExecutor(authenticator.users)
        logins = AsyncAuthenticator(authenticator, executor)

        def log_in(name: str, address: str) -> "asyncio.Task[object]":
            return asyncio.create_task(logins.log_in(username=name, password=PASSWORD, address=address))

        tasks = [log_in("ada", HOME) for _ in range(300)]
        await settle()
        of_one_name = executor.waiting
        tasks += [log_in(name, HOME) for name in ("bob", "eve") for _ in range(100)]
        await settle()
        of_one_address = executor.waiting
        tasks.append(log_in("ada", "198.51.100.7"))
        await settle()
        executor.release()
        await asyncio.gather(*tasks)
        return of_one_name, of_one_address, executor.most_waiting

    assert asyncio.run(run()) == (
        MAX_RUNNING_PER_NAME_AND_ADDRESS,
        MAX_RUNNING_PER_ADDRESS,
        MAX_RUNNING_PER_ADDRESS + 1,
    )


def test_attempt_near_the_limit_waits_for_those_that_run(authenticator: Authenticator) -> None:
    async def run() -> list[object]:
        executor = HeldExecutor(authenticator.users)
        logins = AsyncAuthenticator(authenticator, executor)
        for _ in range(18):
            with pytest.raises(InvalidCredentialsError):
                authenticator.log_in(username="ada", password="wrong", address=HOME)
        tasks = [asyncio.create_task(logins.log_in(username="ada", password=PASSWORD, address=HOME)) for _ in range(5)]
        await settle()
        waiting = executor.waiting
        executor.release()
        return [waiting, *await asyncio.gather(*tasks, return_exceptions=True)]

    waiting, *results = asyncio.run(run())

    assert waiting == 2
    assert not [result for result in results if isinstance(result, BaseException)]


@pytest.mark.parametrize("failures", [0, 18], ids=["turn", "limit"])
def test_wait_ends_at_the_deadline_of_the_request(authenticator: Authenticator, failures: int) -> None:
    async def log_in(logins: AsyncAuthenticator, seconds: float) -> object:
        start_deadline(seconds)
        return await logins.log_in(username="ada", password=PASSWORD, address=HOME)

    async def run() -> list[object]:
        executor = HeldExecutor(authenticator.users)
        logins = AsyncAuthenticator(authenticator, executor)
        for _ in range(failures):
            with pytest.raises(InvalidCredentialsError):
                authenticator.log_in(username="ada", password="wrong", address=HOME)
        running = [asyncio.create_task(log_in(logins, 60)) for _ in range(2 if failures else 8)]
        await settle()
        late = await asyncio.gather(log_in(logins, 0.1), return_exceptions=True)
        executor.release()
        await asyncio.gather(*running)
        return [*late]

    assert asyncio.run(run()) == [TOO_LATE]


def test_logins_of_disconnected_clients_end_at_their_turn(authenticator: Authenticator) -> None:
    async def log_in(logins: AsyncAuthenticator, is_disconnected: Callable[[], bool]) -> object:
        start_deadline(is_disconnected=is_disconnected)
        return await logins.log_in(username="ada", password=PASSWORD, address=HOME)

    async def run() -> tuple[int, list[object]]:
        executor = HeldExecutor(authenticator.users)
        logins = AsyncAuthenticator(authenticator, executor)
        gone = asyncio.Event()
        running = [asyncio.create_task(log_in(logins, lambda: False)) for _ in range(8)]
        waiting = [asyncio.create_task(log_in(logins, gone.is_set)) for _ in range(50)]
        await settle()
        gone.set()
        executor.release()
        await asyncio.gather(*running)
        return executor.hashes, await asyncio.gather(*waiting, return_exceptions=True)

    hashes, abandoned = asyncio.run(run())

    assert hashes == 8
    assert abandoned == [ServiceUnavailableError("the client has disconnected")] * 50


def test_canceled_logins_leave_nothing_behind(authenticator: Authenticator, limiter: FixedWindowAttemptLimiter) -> None:
    async def run() -> object:
        executor = HeldExecutor(authenticator.users)
        logins = AsyncAuthenticator(authenticator, executor)
        tasks = [asyncio.create_task(logins.log_in(username="ada", password="wrong", address=HOME)) for _ in range(300)]
        await settle()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        executor.release()
        return await logins.log_in(username="ada", password=PASSWORD, address=HOME)

    asyncio.run(run())

    assert not limiter._running_counts
    for _ in range(20):
        with pytest.raises(InvalidCredentialsError):
            authenticator.log_in(username="ada", password="wrong", address=HOME)
    with pytest.raises(TooManyAttemptsError):
        authenticator.log_in(username="ada", password=PASSWORD, address=HOME)


def test_too_many_parallel_failures_are_logged(users: Users, caplog: pytest.LogCaptureFixture) -> None:
    counts, limits = InMemoryAttempts(), AttemptLimits(per_name_and_address=1)
    processes = [Authenticator(users, InMemoryTokens(), FixedWindowAttemptLimiter(counts, limits)) for _ in range(2)]

    async def run() -> list[object]:
        executors = [HeldExecutor(users) for _ in processes]
        tasks = [
            asyncio.create_task(
                AsyncAuthenticator(process, executor).log_in(username="ada", password="wrong", address=HOME)
            )
            for process, executor in zip(processes, executors, strict=True)
        ]
        await settle()
        for executor in executors:
            executor.release()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    results = asyncio.run(run())

    assert {type(result) for result in results} == {InvalidCredentialsError, TooManyAttemptsError}
    assert sorted(caplog.messages) == [  # each process counts in a thread
        f"login from {HOME}: too many attempts",
        f"login from {HOME}: wrong password for user 1",
    ]


def test_keys_of_finished_tasks_are_forgotten() -> None:
    async def run() -> ConcurrencyLimit:
        limit = ConcurrencyLimit(1)

        async def take(key: str) -> None:
            async with limit.slot(key):
                await asyncio.sleep(0)

        await asyncio.gather(*[take(key) for key in "aabbc"])
        return limit

    limit = asyncio.run(run())

    assert (limit._semaphores, limit._tasks) == ({}, {})


def test_attempt_that_starts_after_its_end_takes_no_slot(users: Users, limiter: FixedWindowAttemptLimiter) -> None:
    started, resumed, finished = threading.Event(), threading.Event(), threading.Event()

    class SlowLimiter:
        record_failure, record_success, end = limiter.record_failure, limiter.record_success, limiter.end

        def start(self, attempt: Attempt) -> None:
            started.set()
            resumed.wait(10)
            limiter.start(attempt)
            finished.set()

    class ThreadExecutor(InlineExecutor):
        def for_client(self, address: str, *, is_urgent: bool = True) -> "ThreadExecutor":
            return self

        async def query(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
            return await asyncio.to_thread(function, *args, **kwargs)

    async def run() -> None:
        authenticator = Authenticator(users, InMemoryTokens(), SlowLimiter())
        logins = AsyncAuthenticator(authenticator, ThreadExecutor(users))
        task = asyncio.create_task(logins.log_in(username="ada", password=PASSWORD, address=HOME))
        assert await asyncio.to_thread(started.wait, 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        resumed.set()
        assert await asyncio.to_thread(finished.wait, 10)

    asyncio.run(run())

    assert (limiter._running, dict(limiter._running_counts)) == ({}, {})


# --- the address of a connection


class UvicornLikeCycle:
    """Has the attributes of the object that uvicorn creates for each request."""

    def __init__(self, peername: object) -> None:
        self.transport = SimpleNamespace(get_extra_info={"peername": peername}.get)

    async def receive(self) -> dict[str, object]:
        return {"type": "http.request"}


@pytest.mark.parametrize(
    ("peername", "address"),
    [
        (("203.0.113.9", 50001), "203.0.113.9"),
        (("2001:db8::1", 50001, 0, 0), "2001:db8::1"),
        (None, "unknown"),
        ("", "unix"),
    ],
)
def test_address_is_taken_from_the_connection(peername: object, address: str) -> None:
    scope = {
        "type": "http",
        "path": "/token",
        "http_version": "1.1",
        "headers": [(b"x-forwarded-for", b"198.51.100.7")],
        "client": ("198.51.100.7", 0),
    }

    client = connected_client(scope, UvicornLikeCycle(peername).receive)

    assert client.resolve_address() == address
