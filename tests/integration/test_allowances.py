"""Allowances in databases: windows end, users are removed, and guards use an SQLite file without SQLAlchemy."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Thread

import pytest
from sqlalchemy import URL, delete, insert, select, text

from mlapi import RepositoryUnavailableError, UserId, UserRepository
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.sqlite import guard_storage
from mlapi.adapters.sql.sqlite.guard_storage import SqliteGuardStorage
from mlapi.adapters.sql.storage import SqlStorage
from mlapi.adapters.sql.tables import allowances as table
from mlapi.adapters.sql.tables import users
from mlapi.domain.allowances import MAX_FUTURE_SECONDS, Allowances, Draw
from mlapi.domain.commands import Remove
from mlapi.domain.plans import Window
from mlapi.testing import AllowancesContract
from mlapi.testing.allowances import LIMIT, draw_one, granted, request_draw
from mlapi.testing.samples import LATER, registered
from tests.waiting import wait_until


@pytest.fixture
def storage(url: URL) -> Iterator[SqlStorage]:
    with closing(SqlStorage(Database(url))) as storage:
        storage.prepare(may_upgrade=True)
        yield storage


@pytest.fixture
def ada(storage: SqlStorage) -> UserId:
    return registered(storage.users).id


def store_use(storage: SqlStorage, draw: Draw, *, starts_at: int, used: int) -> None:
    """Replace a stored count."""
    values = {"user_id": draw.user_id, "allowance": draw.allowance, "starts_at": starts_at, "used": used}
    with storage.database.writing() as connection:
        connection.execute(delete(table))
        connection.execute(insert(table).values(values))


def stored_uses(storage: SqlStorage) -> list[tuple[int, int]]:
    """Return the user and the count of each row."""
    with storage.database.reading() as connection:
        return [(user_id, used) for user_id, used in connection.execute(select(table.c.user_id, table.c.used))]


def is_waiting_for_a_lock(storage: SqlStorage) -> bool:
    """Return whether another session of a PostgreSQL database waits for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with storage.database.reading() as connection:  # in a new transaction, because activity is cached in each
        return bool(connection.scalar(text(query)))


class TestGuardAllowances(AllowancesContract):
    @pytest.fixture
    def service(self, sqlite_url: URL) -> Iterator[SqlStorage]:
        with closing(SqlStorage(Database(sqlite_url))) as service:
            service.prepare(may_upgrade=True)
            yield service

    @pytest.fixture
    def repository(self, service: SqlStorage) -> UserRepository:
        return service.users

    @pytest.fixture
    def allowances(self, service: SqlStorage) -> Iterator[Allowances]:
        with closing(SqliteGuardStorage.from_file(service.files[0])) as storage:
            yield storage.allowances

    def test_guard_and_service_share_the_counts(self, service: SqlStorage, allowances: Allowances, ada: UserId) -> None:
        results = [each.draw([request_draw(ada, 6)]) for each in (service.allowances, allowances, service.allowances)]

        assert [granted(drawn) for drawn in results] == [[6], [4], [0]]

    def test_draw_waits_for_other_threads_only_briefly(
        self, service: SqlStorage, ada: UserId, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(guard_storage, "TIMEOUT_SECONDS", 0.05)
        with closing(SqliteGuardStorage.from_file(service.files[0])) as storage:
            storage._write_slot.acquire()

            with pytest.raises(RepositoryUnavailableError, match="too many threads are writing"):
                storage.allowances.draw([request_draw(ada)])


def test_ended_window_is_replaced(storage: SqlStorage, ada: UserId) -> None:
    draw = request_draw(ada, 3, allowance="requests per day", window=Window.DAY)
    store_use(storage, draw, starts_at=Window.DAY.start_of(time.time()) - 86_400, used=LIMIT)

    (read,) = storage.allowances.read([draw])
    drawn = draw_one(storage.allowances, draw)

    assert read is not None
    assert (read.used, drawn.granted, drawn.used) == (0, 3, 3)
    assert stored_uses(storage) == [(ada, 3)]


@pytest.mark.parametrize(("ahead_seconds", "expected"), [(MAX_FUTURE_SECONDS - 60, 0), (MAX_FUTURE_SECONDS + 60, 3)])
def test_only_a_window_far_in_the_future_is_replaced(
    storage: SqlStorage, ada: UserId, ahead_seconds: int, expected: int
) -> None:
    draw = request_draw(ada, 3, allowance="requests per minute", window=Window.MINUTE)
    store_use(storage, draw, starts_at=Window.MINUTE.start_of(time.time() + ahead_seconds), used=LIMIT)

    assert draw_one(storage.allowances, draw).granted == expected


def test_lease_from_a_slightly_later_window_ends_with_it(storage: SqlStorage, ada: UserId) -> None:
    draw = request_draw(ada, 3, allowance="requests per minute", window=Window.MINUTE)
    starts_at = Window.MINUTE.start_of(time.time() + 120)
    store_use(storage, draw, starts_at=starts_at, used=0)

    drawn = draw_one(storage.allowances, draw)

    assert drawn.starts_at == starts_at
    assert drawn.ends_in_seconds == pytest.approx(starts_at + 60 - time.time(), abs=30)


def test_draw_that_grants_nothing_writes_nothing(storage: SqlStorage, ada: UserId) -> None:
    draw_one(storage.allowances, request_draw(ada, LIMIT))
    before = stored_uses(storage)

    draw_one(storage.allowances, request_draw(ada))

    assert stored_uses(storage) == before == [(ada, LIMIT)]


def test_removing_a_user_removes_the_counts(storage: SqlStorage, ada: UserId) -> None:
    draw_one(storage.allowances, request_draw(ada))

    storage.users.apply([Remove(user_id=ada, at=LATER)])

    assert stored_uses(storage) == []


def test_draws_survive_concurrent_removals(storage: SqlStorage) -> None:
    ids = [registered(storage.users, f"user{number}").id for number in range(60)]
    stays = registered(storage.users, "stays").id

    def draw_all(number: int) -> list[int | None]:
        draws = [request_draw(user_id, limit=None, allowance=f"requests {number % 3}") for user_id in (*ids, stays)]
        return granted(storage.allowances.draw(draws))

    def remove(user_id: UserId) -> None:
        storage.users.apply([Remove(user_id=user_id, at=LATER)])

    with ThreadPoolExecutor(4) as pool:
        removals = pool.map(remove, ids)
        results = list(pool.map(draw_all, range(12)))
        list(removals)

    assert {result[-1] for result in results} == {1}
    assert {each for result in results for each in result} <= {1, None}
    assert {user_id for user_id, _ in stored_uses(storage)} == {stays}


def test_user_removed_while_a_row_is_added_is_unknown(postgres_url: URL) -> None:
    with closing(SqlStorage(Database(postgres_url))) as storage:
        storage.prepare(may_upgrade=True)
        ada, bob = registered(storage.users, "ada").id, registered(storage.users, "bob").id
        results: list[int | None] = []
        draws = [request_draw(ada), request_draw(bob)]
        drawing = Thread(target=lambda: results.extend(granted(storage.allowances.draw(draws))))

        with storage.database.writing() as connection:
            connection.execute(delete(users).where(users.c.id == bob))
            drawing.start()
            wait_until(lambda: is_waiting_for_a_lock(storage))
        drawing.join()

        assert results == [1, None]


def test_draws_fail_if_their_rows_cannot_be_added(postgres_url: URL) -> None:
    with closing(SqlStorage(Database(postgres_url))) as storage:
        storage.prepare(may_upgrade=True)
        ada = registered(storage.users).id
        with storage.database.writing() as connection:
            connection.execute(text("ALTER TABLE mlapi_allowances ADD CHECK (used > 0)"))

        with pytest.raises(RepositoryUnavailableError, match="a constraint was violated"):
            storage.allowances.draw([request_draw(ada)])


def test_guard_that_may_only_read_cannot_draw(sqlite_url: URL) -> None:
    with closing(SqlStorage(Database(sqlite_url))) as service:
        service.prepare(may_upgrade=True)
        ada = registered(service.users).id
    file = Path(str(sqlite_url.database))
    with closing(SqliteGuardStorage.from_file(file)) as storage:
        storage.read(lambda connection: connection.execute("PRAGMA query_only = ON").fetchall())

        with pytest.raises(RepositoryUnavailableError, match="this account may only read the database"):
            storage.allowances.draw([request_draw(ada)])
