"""A storage is prepared before its first use, and the key that encrypts its passwords is checked."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import URL

from mlapi import ConfigurationError, RepositoryUnavailableError
from mlapi.adapters.memory import (
    InMemoryAllowances,
    InMemoryAttempts,
    InMemoryAuditTrail,
    InMemoryManagers,
    InMemorySessions,
    InMemoryStorage,
    InMemoryUsage,
    InMemoryUserRepository,
)
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.storage import SqlStorage
from mlapi.application.preparation import (
    Preparation,
    PreparedAllowances,
    PreparedAttemptCounts,
    PreparedManagers,
    PreparedRepository,
    PreparedUsage,
    check_key,
    prepare_managers_on_first_use,
    prepare_on_first_use,
)
from mlapi.application.sessions import PreparedSessions
from mlapi.domain.allowances import Draw
from mlapi.domain.managers import NonblockingManagers
from mlapi.domain.plans import Window
from mlapi.domain.ports import NonblockingLookup
from mlapi.domain.rules import canonical_username
from mlapi.domain.users import UserId
from mlapi.testing.managers import added
from mlapi.testing.samples import registered
from mlapi.testing.sessions import new_session
from mlapi.testing.usage import row

Open = Callable[[URL], Database]


def test_first_key_is_remembered_and_others_are_rejected(database: Database) -> None:
    storage = SqlStorage(database)
    check_key(storage, ["first", "older"])

    check_key(storage, ["first"])
    check_key(storage, ["newer", "first"])
    with pytest.raises(ConfigurationError, match="does not match this database's passwords"):
        check_key(storage, ["older"])


def test_concurrent_processes_agree_on_the_first_key(database: Database, open_database: Open) -> None:
    rivals = [SqlStorage(open_database(database.engine.url)) for _ in range(8)]

    def is_accepted(number: int) -> bool:
        try:
            check_key(rivals[number], [f"key {number}"])
        except ConfigurationError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        accepted = list(pool.map(is_accepted, range(8)))

    assert accepted.count(True) == 1


# --- a database that is unavailable at startup


class FailingAtFirst:
    """An action that fails until its third run."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self) -> None:
        self.runs += 1
        if self.runs < 3:
            raise RepositoryUnavailableError("not started yet")


def test_preparation_is_retried_until_it_succeeds() -> None:
    action = FailingAtFirst()
    preparation = Preparation(action)

    for _ in range(2):
        with pytest.raises(RepositoryUnavailableError, match="not started yet"):
            preparation.ensure()
    before = preparation.is_done
    for _ in range(3):
        preparation.ensure()

    assert (before, preparation.is_done, action.runs) == (False, True, 3)


def test_concurrent_threads_run_the_preparation_only_once() -> None:
    runs: list[int] = []
    started, released = threading.Event(), threading.Event()

    def action() -> None:
        runs.append(1)
        started.set()
        released.wait(10)

    preparation = Preparation(action)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(preparation.ensure) for _ in range(4)]
        started.wait(10)
        released.set()
        for future in waiting:
            future.result()

    assert len(runs) == 1


def test_threads_stop_waiting_for_a_slow_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlapi.application.preparation.WAIT_SECONDS", 0.01)
    started, released = threading.Event(), threading.Event()

    def action() -> None:
        started.set()
        released.wait(10)

    preparation = Preparation(action)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(preparation.ensure)
        started.wait(10)
        with pytest.raises(RepositoryUnavailableError, match="the database is being opened"):
            preparation.ensure()
        released.set()
        running.result()


def test_prepared_repository_is_returned_unchanged() -> None:
    repository, preparation = InMemoryStorage().users, Preparation(lambda: None)
    preparation.ensure()

    assert prepare_on_first_use(repository, preparation) is repository


def test_attempt_counts_are_prepared_before_their_first_use() -> None:
    counts = PreparedAttemptCounts(InMemoryAttempts(), Preparation(FailingAtFirst()))

    with pytest.raises(RepositoryUnavailableError, match="not started yet"):
        counts.read(["key"])
    with pytest.raises(RepositoryUnavailableError, match="not started yet"):
        counts.add(["key"], window_seconds=60)
    counts.add(["key"], window_seconds=60)
    assert [found.count for found in counts.read(["key"])] == [1]


def test_allowances_are_prepared_before_their_first_use() -> None:
    allowances = PreparedAllowances(InMemoryAllowances(lambda _: True), Preparation(FailingAtFirst()))
    draw = Draw(user_id=UserId(7), allowance="requests per day", window=Window.DAY, limit=10, wanted=2)

    with pytest.raises(RepositoryUnavailableError, match="not started yet"):
        allowances.read([draw])
    with pytest.raises(RepositoryUnavailableError, match="not started yet"):
        allowances.draw([draw])
    allowances.draw([draw])
    assert [found and found.used for found in allowances.read([draw])] == [2]


def test_usage_is_prepared_before_its_first_use() -> None:
    usage = PreparedUsage(InMemoryUsage(), Preparation(FailingAtFirst()))

    with pytest.raises(RepositoryUnavailableError, match="not started yet"):
        usage.add([row()])
    with pytest.raises(RepositoryUnavailableError, match="not started yet"):
        usage.list_page(limit=1)
    usage.add([row()])
    assert usage.list_page(limit=1) == [row()]


def test_repository_is_prepared_before_its_first_use() -> None:
    inner = InMemoryUserRepository()
    ada = registered(inner)
    repository = prepare_on_first_use(inner, Preparation(FailingAtFirst()))
    assert isinstance(repository, NonblockingLookup)

    with pytest.raises(RepositoryUnavailableError, match="not prepared yet"):
        repository.find_principals_nowait([ada.id])
    with pytest.raises(RepositoryUnavailableError, match="not prepared yet"):
        repository.find_many_nowait([canonical_username("ada")])
    with pytest.raises(RepositoryUnavailableError, match="not started yet"):
        repository.audit.list_page(limit=1)
    with pytest.raises(RepositoryUnavailableError, match="not started yet"):
        repository.get(ada.id)

    assert repository.get(ada.id) == ada
    assert repository.find_principals_nowait([ada.id]) == [ada]
    assert repository.find_many_nowait([canonical_username("ada")]) == [ada]


def test_managers_are_prepared_before_their_first_use() -> None:
    inner = InMemoryManagers(InMemoryAuditTrail())
    alice = added(inner)
    managers = prepare_managers_on_first_use(inner, Preparation(FailingAtFirst()))
    assert isinstance(managers, NonblockingManagers)

    with pytest.raises(RepositoryUnavailableError, match="not prepared yet"):
        managers.find_many_nowait([alice.token_id])
    for read in (managers.list_all, lambda: managers.find("alice")):
        with pytest.raises(RepositoryUnavailableError, match="not started yet"):
            read()

    assert managers.find("alice") == alice
    assert managers.find_many_nowait([alice.token_id]) == [alice]


def test_sessions_are_prepared_before_their_first_use() -> None:
    session = new_session(manager="alice")
    sessions = PreparedSessions(InMemorySessions(), Preparation(FailingAtFirst()))

    with pytest.raises(RepositoryUnavailableError, match="not started yet"):
        sessions.find(session.id)
    with pytest.raises(RepositoryUnavailableError, match="not started yet"):
        sessions.add(session)
    sessions.add(session)

    assert sessions.find(session.id) == session


def test_prepared_managers_gain_no_nonblocking_lookup() -> None:
    inner = PreparedManagers(InMemoryManagers(InMemoryAuditTrail()), Preparation(lambda: None))

    managers = prepare_managers_on_first_use(inner, Preparation(FailingAtFirst()))

    assert not isinstance(managers, NonblockingManagers)


def test_prepared_repository_gains_no_nonblocking_lookup() -> None:
    inner = PreparedRepository(InMemoryUserRepository(), Preparation(lambda: None))

    repository = prepare_on_first_use(inner, Preparation(lambda: None))

    assert not isinstance(repository, NonblockingLookup)
    assert repository.count() == 0
