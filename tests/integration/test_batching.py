"""Tests of `CommandBatcher`: concurrent commands share a durable transaction."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlapi import (
    Command,
    ConfigurationError,
    Outcome,
    RepositoryUnavailableError,
    ServiceUnavailableError,
    User,
    UserExistsError,
    UserId,
    UserNotFoundError,
    UserRepository,
)
from mlapi.adapters.memory import InMemoryUserRepository
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.repository import SqlUserRepository
from mlapi.application.batching import CommandBatcher
from mlapi.application.deadlines import start_deadline
from mlapi.domain.commands import Register, Remove, SetEnabled, UserCommand
from mlapi.domain.rules import canonical_username
from mlapi.testing.samples import LATER, registered, registration


class RecordingRepository(InMemoryUserRepository):
    """A repository that records batches, and can be told to wait or to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Command]] = []
        self.received = threading.Event()
        self.resume = threading.Event()
        self.resume.set()
        self.faulty: Command | None = None
        self.unavailable = False

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        self.batches.append(list(commands))
        self.received.set()
        self.resume.wait(10)
        if self.unavailable:
            raise RepositoryUnavailableError("simulated outage", retry_after_seconds=7)
        if self.faulty in commands:
            raise ZeroDivisionError("simulated bug")
        return super().apply(commands, commit_by=commit_by)


async def outcomes(batcher: CommandBatcher, commands: Sequence[UserCommand]) -> list[User | BaseException]:
    return await asyncio.gather(*[batcher.apply(command) for command in commands], return_exceptions=True)


async def first_batch(repository: RecordingRepository) -> None:
    """Wait until the writer thread has received a batch."""
    assert await asyncio.to_thread(repository.received.wait, 10)


def test_commands_from_one_loop_iteration_form_one_batch() -> None:
    repository = RecordingRepository()
    commands = [registration(f"user{number}") for number in range(50)]

    async def run() -> list[User | BaseException]:
        batcher = CommandBatcher(repository)
        users = await outcomes(batcher, commands)
        batcher.close()
        return users

    users = asyncio.run(run())

    assert repository.batches == [commands]
    assert users == [command.as_user(UserId(number)) for number, command in enumerate(commands, start=1)]


def test_commands_during_a_batch_form_the_next_batch() -> None:
    repository = RecordingRepository()
    repository.resume.clear()

    async def run() -> None:
        batcher = CommandBatcher(repository)
        first = asyncio.create_task(batcher.apply(registration("first")))
        await first_batch(repository)
        rest = [asyncio.create_task(batcher.apply(registration(f"user{number}"))) for number in range(20)]
        await asyncio.sleep(0.02)
        repository.resume.set()
        await asyncio.gather(first, *rest)
        batcher.close()

    asyncio.run(run())

    assert [len(batch) for batch in repository.batches] == [1, 20]


def test_commands_sent_right_after_a_result_share_a_batch() -> None:
    repository = RecordingRepository()

    async def client(batcher: CommandBatcher, number: int) -> None:
        for _ in range(10):
            user = await batcher.apply(registration(f"user{number}"))
            await batcher.apply(Remove(user_id=user.id))

    async def run() -> None:
        batcher = CommandBatcher(repository)
        await asyncio.gather(*[client(batcher, number) for number in range(16)])
        batcher.close()

    asyncio.run(run())

    assert [len(batch) for batch in repository.batches] == [16] * 20


def test_batch_does_not_wait_for_disconnected_clients() -> None:
    repository = RecordingRepository()

    async def run() -> None:
        batcher = CommandBatcher(repository)
        await outcomes(batcher, [registration(f"user{number}") for number in range(16)])
        for number in range(5):
            await asyncio.wait_for(batcher.apply(registration(f"lone{number}")), timeout=5)
        batcher.close()

    asyncio.run(run())

    assert [len(batch) for batch in repository.batches] == [16, 1, 1, 1, 1, 1]


def test_steady_traffic_does_not_delay_a_batch() -> None:
    repository = RecordingRepository()

    async def run() -> None:
        batcher = CommandBatcher(repository)
        await outcomes(batcher, [registration("a"), registration("b")])
        tasks = []
        for number in range(400):  # about one for each iteration of the event loop
            tasks.append(asyncio.create_task(batcher.apply(registration(f"user{number}"))))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        batcher.close()

    asyncio.run(run())

    assert sum(len(batch) for batch in repository.batches) == 402


def test_each_caller_gets_its_own_outcome() -> None:
    repository = RecordingRepository()

    async def run() -> list[User | BaseException]:
        batcher = CommandBatcher(repository)
        results = await outcomes(batcher, [registration("ada"), registration("ADA"), Remove(user_id=UserId(9))])
        batcher.close()
        return results

    ada, taken, missing = asyncio.run(run())

    assert isinstance(ada, User)
    assert (taken, missing) == (UserExistsError(ada.id), UserNotFoundError(9))


def test_results_are_delivered_after_the_commit(database: Database) -> None:
    """When a result arrives, a second connection already sees the whole batch."""
    second = SqlUserRepository(Database(database.engine.url))

    async def run() -> list[int]:
        batcher = CommandBatcher(SqlUserRepository(database))

        async def register(number: int) -> int:
            user = await batcher.apply(registration(f"user{number}"))
            found = await asyncio.to_thread(second.list_page, after=UserId(0), limit=100)
            assert user in found
            return len(found)

        counts = await asyncio.gather(*[register(number) for number in range(40)])
        batcher.close()
        return list(counts)

    counts = asyncio.run(run())
    second._database.close()

    assert set(counts) == {40}


def test_canceled_command_is_dropped_from_its_batch() -> None:
    repository = RecordingRepository()

    async def run() -> None:
        batcher = CommandBatcher(repository)
        tasks = [asyncio.create_task(batcher.apply(registration(name))) for name in ("ada", "bob", "eve")]
        await asyncio.sleep(0)
        tasks[1].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in results] == [User, asyncio.CancelledError, User]
        batcher.close()

    asyncio.run(run())

    assert [user.username for user in repository.list_page(after=UserId(0), limit=9)] == ["ada", "eve"]


def test_command_canceled_in_flight_is_still_applied() -> None:
    repository = RecordingRepository()
    repository.resume.clear()

    async def run() -> None:
        batcher = CommandBatcher(repository)
        tasks = [asyncio.create_task(batcher.apply(registration(name))) for name in ("ada", "bob")]
        await first_batch(repository)
        tasks[0].cancel()
        repository.resume.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in results] == [asyncio.CancelledError, User]
        batcher.close()

    asyncio.run(run())

    assert len(repository.list_page(after=UserId(0), limit=9)) == 2


def test_batch_after_a_failed_one_succeeds() -> None:
    repository = RecordingRepository()
    repository.unavailable = True

    async def run() -> tuple[list[User | BaseException], User]:
        batcher = CommandBatcher(repository)
        failed = await outcomes(batcher, [registration("ada"), registration("bob")])
        repository.unavailable = False
        return failed, await batcher.apply(registration("ada"))

    failed, ada = asyncio.run(run())

    assert failed == [RepositoryUnavailableError("simulated outage", retry_after_seconds=7)] * 2
    assert failed[0] is not failed[1]
    assert ada.username == "ada"


def test_faulty_command_does_not_make_its_batch_fail(caplog: pytest.LogCaptureFixture) -> None:
    repository = RecordingRepository()
    commands = [registration("ada"), registration("bob"), registration("eve")]
    repository.faulty = commands[1]

    async def run() -> list[User | BaseException]:
        batcher = CommandBatcher(repository)
        results = await outcomes(batcher, commands)
        batcher.close()
        return results

    results = asyncio.run(run())

    assert [type(outcome) for outcome in results] == [User, ZeroDivisionError, User]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_commands_beyond_the_limit_are_rejected() -> None:
    repository = RecordingRepository()

    async def run() -> tuple[list[User | BaseException], list[User | BaseException]]:
        batcher = CommandBatcher(repository, max_waiting_requests=3)
        results = await outcomes(batcher, [registration(f"user{number}") for number in range(5)])
        again = await outcomes(batcher, [registration(f"more{number}") for number in range(3)])
        batcher.close()
        return results, again

    results, again = asyncio.run(run())

    assert results[3:] == [ServiceUnavailableError("too many requests are waiting")] * 2
    assert all(isinstance(outcome, User) for outcome in results[:3] + again)


def test_command_that_times_out_is_not_applied() -> None:
    repository = RecordingRepository()
    repository.resume.clear()

    async def run() -> list[User | BaseException]:
        batcher = CommandBatcher(repository, max_waiting_requests=4, timeout_seconds=0.1)
        stuck = asyncio.create_task(batcher.apply(registration("stuck")))
        await first_batch(repository)
        gone = asyncio.create_task(batcher.apply(registration("gone")))
        await asyncio.sleep(0)
        gone.cancel()
        late = await outcomes(batcher, [registration("late"), registration("later")])
        assert late == [RepositoryUnavailableError("the database did not answer in time", may_be_done=True)] * 2
        assert await outcomes(batcher, [registration("none")]) == [
            ServiceUnavailableError("too many requests are waiting")
        ]
        with pytest.raises(RepositoryUnavailableError):
            await stuck
        repository.resume.set()
        for _ in range(100):
            await asyncio.sleep(0.01)
        results = await outcomes(batcher, [registration(f"user{number}") for number in range(4)])
        batcher.close()
        return results

    results = asyncio.run(run())

    assert [type(outcome) for outcome in results] == [User] * 4
    names = [user.username for user in repository.list_page(after=UserId(0), limit=9)]
    assert names == ["user0", "user1", "user2", "user3"]


def test_commands_of_a_replaced_writer_thread_are_not_applied() -> None:
    repository = RecordingRepository()
    repository.resume.clear()

    async def run() -> tuple[User | BaseException, User]:
        batcher = CommandBatcher(repository, timeout_seconds=0.2)
        (stuck,) = await outcomes(batcher, [registration("stuck")])
        repository.resume.set()  # lets the new writer run; the old one resumes later
        other = await batcher.apply(registration("other"))
        await asyncio.sleep(0.05)
        batcher.close()
        return stuck, other

    stuck, other = asyncio.run(run())

    assert stuck == RepositoryUnavailableError("the database did not answer in time", may_be_done=True)
    assert repository.list_page(after=UserId(0), limit=9) == [other]


def test_hanging_server_does_not_block_later_batches() -> None:
    hang, working = threading.Event(), RecordingRepository()

    class HangsOnce(RecordingRepository):
        def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
            if not self.batches:
                self.batches.append(list(commands))
                hang.wait(10)
            return working.apply(commands, commit_by=commit_by)

    async def run() -> list[User | BaseException]:
        batcher = CommandBatcher(HangsOnce(), timeout_seconds=0.2)
        first = await outcomes(batcher, [registration("stuck")])
        rest = [await batcher.apply(registration(f"user{number}")) for number in range(3)]
        hang.set()
        batcher.close()
        return first + rest

    stuck, *rest = asyncio.run(run())

    assert isinstance(stuck, RepositoryUnavailableError)
    assert [type(outcome) for outcome in rest] == [User] * 3


def test_expected_batch_error_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Misconfigured(RecordingRepository):
        def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
            raise ConfigurationError("another key")

    results = asyncio.run(outcomes(CommandBatcher(Misconfigured()), [registration("ada"), registration("bob")]))

    assert results == [ConfigurationError("another key")] * 2
    assert caplog.records == []


def test_closing_finishes_batches_already_started() -> None:
    repository = RecordingRepository()
    repository.resume.clear()

    async def run() -> None:
        batcher = CommandBatcher(repository)
        task = asyncio.create_task(batcher.apply(registration("ada")))
        await first_batch(repository)
        repository.resume.set()
        batcher.close()
        assert repository.find(canonical_username("ada")) is not None
        await task

    asyncio.run(run())


def test_closing_an_unused_batcher_does_nothing() -> None:
    CommandBatcher(RecordingRepository()).close()


def test_closing_an_event_loop_does_not_stop_the_writer() -> None:
    repository = RecordingRepository()
    repository.resume.clear()
    batcher = CommandBatcher(repository)

    async def leave() -> None:
        task = asyncio.create_task(batcher.apply(registration("ada")))
        await first_batch(repository)
        task.cancel()

    asyncio.run(leave())
    repository.resume.set()
    bob = asyncio.run(batcher.apply(registration("bob")))
    batcher.close()

    assert bob.username == "bob"
    assert repository.find(canonical_username("ada")) is not None


def test_loops_in_several_threads_share_a_writer(database: Database) -> None:
    batcher = CommandBatcher(SqlUserRepository(database))

    def run_loop(thread: int) -> int:
        commands = [registration(f"user{number}") for number in range(thread, thread + 30)]
        results = asyncio.run(outcomes(batcher, commands))
        return sum(isinstance(outcome, User) for outcome in results)

    with ThreadPoolExecutor(4) as pool:
        created = sum(pool.map(run_loop, range(0, 40, 10)))
    batcher.close()

    assert created == 60
    assert len(SqlUserRepository(database).list_page(after=UserId(0), limit=100)) == 60


names = st.sampled_from(["ada", "ADA", "bob", "Straße", "STRASSE"])
operation = st.tuples(st.just("register"), names) | st.tuples(st.just("toggle"), st.integers(1, 3))
submissions = st.lists(operation, max_size=30)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequence=submissions)
def test_batches_give_the_same_result_as_single_commands(
    database: Database, sequence: list[tuple[str, str | int]]
) -> None:
    """Compare with the same commands applied one by one, in the order of submission."""
    real, reference = SqlUserRepository(database), InMemoryUserRepository()
    for user in real.list_page(after=UserId(0), limit=100):
        real.apply([Remove(user_id=user.id)])
    olds = [registered(real, f"old{number}") for number in range(3)]
    reference_ids = [registered(reference, f"old{number}").id for number in range(3)]

    def commands(ids: Sequence[UserId]) -> list[UserCommand]:
        return [
            registration(value, token_epoch="epoch")
            if isinstance(value, str)
            else SetEnabled(user_id=ids[value - 1], enabled=number % 2 == 0, at=LATER, token_epoch=str(number))
            for number, (_, value) in enumerate(sequence)
        ]

    async def submit() -> list[User | BaseException]:
        batcher = CommandBatcher(real)
        results = await outcomes(batcher, commands([user.id for user in olds]))
        batcher.close()
        return results

    results = asyncio.run(submit())
    expected = [outcome for command in commands(reference_ids) for outcome in reference.apply([command])]

    assert [type(outcome) for outcome in results] == [type(outcome) for outcome in expected]
    assert rows(real) == rows(reference)


def rows(repository: UserRepository) -> list[tuple[object, ...]]:
    users = repository.list_page(after=UserId(0), limit=100)
    return [(user.username, user.enabled, user.updated_datetime) for user in users]


def test_command_ends_at_the_deadline_of_its_request() -> None:
    repository = RecordingRepository()
    repository.resume.clear()

    async def apply_by(batcher: CommandBatcher, seconds: float, name: str) -> User:
        start_deadline(seconds)
        return await batcher.apply(registration(name))

    async def run() -> list[User | BaseException]:
        batcher = CommandBatcher(repository)
        late = asyncio.create_task(apply_by(batcher, 0.05, "late"))
        neighbor = asyncio.create_task(apply_by(batcher, 8, "neighbor"))
        expired = asyncio.create_task(apply_by(batcher, -1, "expired"))
        results: list[User | BaseException] = [*await asyncio.gather(late, expired, return_exceptions=True)]
        repository.resume.set()
        results = [*results, await neighbor, await apply_by(batcher, 1, "quick")]
        batcher.close()
        return results

    late, expired, neighbor, quick = asyncio.run(run())

    assert late == RepositoryUnavailableError("the database did not answer in time", may_be_done=True)
    assert expired == ServiceUnavailableError("the request took too long")
    assert isinstance(neighbor, User)
    assert isinstance(quick, User)
    assert [
        [command.username for command in batch if isinstance(command, Register)] for batch in repository.batches
    ] == [
        ["late", "neighbor"],
        ["quick"],
    ]
