"""Searches are limited in number and duration, end when their client disconnects, and delay no other requests."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, text
from starlette.requests import ClientDisconnect
from starlette.types import Message

from mlapi import UserId
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.repository import SqlUserRepository
from mlapi.adapters.sql.schema import upgrade
from mlapi.adapters.sql.user_lists import ListQuery
from mlapi.domain.errors import SearchUnavailableError, ServiceUnavailableError
from mlapi.domain.metadata import Metadata
from mlapi.domain.rules import UserFilter
from mlapi.entrypoints.http.search_pool import MAX_SEARCHES, SearchPool
from mlapi.entrypoints.http.shared_call import SharedCall
from mlapi.interruption import Interruption
from mlapi.testing.samples import LATER, NOON, registered

ENDLESS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "postgresql": "SELECT count(*) FROM generate_series(1, 1000000000000)",
}
PATIENCE_SECONDS = 3.0
"""Searches end at once when they should; this allows for a busy machine."""


class Client:
    """The ``receive`` of a request. The client disconnects when told to."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    def disconnect(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> Message:
        return await self._messages.get()


@contextmanager
def search_pool(timeout_seconds: float = 30.0) -> Iterator[SearchPool]:
    pool = SearchPool(timeout_seconds=timeout_seconds)
    yield pool
    pool.close()


def endless_search(database: Database) -> Callable[[], object]:
    def search(connection: Connection) -> object:
        return connection.scalar(text(ENDLESS[database.engine.dialect.name]))

    return lambda: database.browse(search)


def test_third_search_is_rejected_quickly() -> None:
    release = threading.Event()

    async def run(pool: SearchPool) -> float:
        running = [asyncio.create_task(pool.run(Client().receive, release.wait, 10)) for _ in range(MAX_SEARCHES)]
        await asyncio.sleep(0.05)
        begin = time.monotonic()
        with pytest.raises(SearchUnavailableError, match="Two other searches are running"):
            await pool.run(Client().receive, release.wait, 10)
        seconds = time.monotonic() - begin
        release.set()
        await asyncio.gather(*running)
        return seconds

    with search_pool() as pool:
        assert asyncio.run(run(pool)) < PATIENCE_SECONDS


def short_search(number: int) -> int:
    time.sleep(0.01)
    return number


def test_short_searches_wait_for_each_other() -> None:
    async def run(pool: SearchPool) -> list[int]:
        return list(await asyncio.gather(*(pool.run(Client().receive, short_search, number) for number in range(8))))

    with search_pool() as pool:
        assert asyncio.run(run(pool)) == list(range(8))


def test_waiting_searches_are_limited() -> None:
    async def run(pool: SearchPool) -> list[object]:
        searches = [pool.run(Client().receive, time.sleep, 0.05) for _ in range(40)]
        return list(await asyncio.gather(*searches, return_exceptions=True))

    with search_pool() as pool:
        results = asyncio.run(run(pool))

    assert {type(result) for result in results} == {type(None), SearchUnavailableError}
    assert results[-1] == SearchUnavailableError("Two other searches are running: try again in a moment")


def test_search_ends_when_its_time_is_up(database: Database) -> None:
    begin = time.monotonic()
    with search_pool(timeout_seconds=0.3) as pool, pytest.raises(SearchUnavailableError, match="takes too long"):
        asyncio.run(pool.run(Client().receive, endless_search(database)))

    assert time.monotonic() - begin < PATIENCE_SECONDS


def reporting_end(search: Callable[[], object], ended: threading.Event) -> Callable[[], object]:
    """Return a search that also sets an event when it ends."""

    def run() -> object:
        try:
            return search()
        finally:
            ended.set()

    return run


def test_search_ends_when_its_client_disconnects(database: Database) -> None:
    ended = threading.Event()
    search = reporting_end(endless_search(database), ended)

    async def run(pool: SearchPool) -> None:
        client = Client()
        searching = asyncio.create_task(pool.run(client.receive, search))
        await asyncio.sleep(0.3)
        client.disconnect()
        with pytest.raises(ClientDisconnect):
            await searching

    with search_pool() as pool:
        asyncio.run(run(pool))
        assert ended.wait(PATIENCE_SECONDS)
    assert database.browse(lambda connection: connection.scalar(text("SELECT 1"))) == 1


def test_search_of_a_canceled_request_ends(database: Database) -> None:
    ended = threading.Event()
    search = reporting_end(endless_search(database), ended)

    async def run(pool: SearchPool) -> None:
        searching = asyncio.create_task(pool.run(Client().receive, search))
        await asyncio.sleep(0.3)
        searching.cancel()
        await asyncio.wait({searching})

    with search_pool() as pool:
        asyncio.run(run(pool))
        assert ended.wait(PATIENCE_SECONDS)


def test_search_that_cannot_be_interrupted_is_answered_in_time() -> None:
    release = threading.Event()

    with search_pool(timeout_seconds=0.1) as pool:
        with pytest.raises(SearchUnavailableError, match="takes too long"):
            asyncio.run(pool.run(Client().receive, release.wait, 10))
        release.set()


def test_interruption_before_the_search_starts_ends_it(database: Database) -> None:
    interruption = Interruption(30.0)
    interruption.request()

    with pytest.raises(SearchUnavailableError):
        interruption.run(endless_search(database))


def test_browsing_takes_no_connection_from_others(database: Database) -> None:
    """While all browsing connections are in use, reads and writes still find a free connection."""
    release, running = threading.Event(), threading.Barrier(5)

    def hold(connection: Connection) -> None:
        connection.scalar(text("SELECT 1"))
        running.wait(10)
        release.wait(10)

    threads = [threading.Thread(target=database.browse, args=(hold,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    running.wait(10)
    try:
        assert database.read(lambda connection: connection.scalar(text("SELECT 1"))) == 1
        database.write_batch(database.dialect.check_writable)
    finally:
        release.set()
        for thread in threads:
            thread.join()


def test_concurrent_readiness_checks_share_one_call() -> None:
    calls: list[float] = []

    def check() -> None:
        calls.append(time.monotonic())
        time.sleep(0.2)

    async def run(shared: SharedCall) -> None:
        await asyncio.gather(*(shared.run() for _ in range(50)))

    shared = SharedCall(check, timeout_seconds=10.0)
    asyncio.run(run(shared))
    asyncio.run(run(shared))
    shared.close()

    assert len(calls) == 2


def test_readiness_check_that_hangs_is_answered_in_time() -> None:
    release = threading.Event()
    shared = SharedCall(lambda: release.wait(10), timeout_seconds=0.1)

    with pytest.raises(ServiceUnavailableError, match="no result within"):
        asyncio.run(shared.run())
    release.set()
    shared.close()


def test_error_of_the_readiness_check_reaches_every_request() -> None:
    def fail() -> None:
        raise SearchUnavailableError("down")

    async def run(shared: SharedCall) -> list[object]:
        return list(await asyncio.gather(*(shared.run() for _ in range(3)), return_exceptions=True))

    shared = SharedCall(fail, timeout_seconds=10.0)
    errors = asyncio.run(run(shared))
    shared.close()

    assert errors == [SearchUnavailableError("down")] * 3


def explain(database: Database, statement: str) -> str:
    with database.reading() as connection:
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # there are too few rows for an index to pay
        return "\n".join(connection.execute(text(f"EXPLAIN {statement}")).scalars())


def test_start_of_a_name_is_found_through_the_index(database: Database) -> None:
    statement = "SELECT id FROM users WHERE username_key >= 'ada' AND username_key < 'adb'"
    if database.engine.dialect.name == "sqlite":
        plan = str(database.read(lambda connection: connection.execute(text(f"EXPLAIN QUERY PLAN {statement}")).all()))
    else:
        plan = explain(database, statement)

    assert "uq_users_username_key" in plan
    assert "username_key>? AND username_key<?" in plan or "Index Cond" in plan


@pytest.mark.parametrize("text", ["cus_7", "7", "true"])
def test_metadata_is_found_through_the_index(postgres_database: Database, text: str) -> None:
    repository = SqlUserRepository(postgres_database)
    ada = registered(repository, metadata=Metadata.from_object({"customer": "cus_7"}))
    with postgres_database.writing() as connection:
        connection.exec_driver_sql(
            "INSERT INTO users (username, password, email, enabled, created_datetime, updated_datetime, username_key,"
            " token_epoch, metadata) SELECT 'x' || n, '', '', true, now(), now(), 'x' || n, '',"
            " '{\"customer\":\"cus_0' || n || '\"}' FROM generate_series(1, 5000) AS n"
        )
        connection.exec_driver_sql("ANALYZE users")

    matching = UserFilter(metadata=("customer", text))
    found = repository.list_page(after=UserId(0), limit=10, matching=matching)
    listed = repository.list_sorted("created", limit=10, matching=matching)
    plan = explain_select(postgres_database, matching)

    assert found == [each.user for each in listed] == ([ada] if text == "cus_7" else [])
    assert "ix_users_metadata" in plan
    assert "Seq Scan" not in plan


def explain_select(database: Database, matching: UserFilter) -> str:
    listing = ListQuery(dialect=database.dialect, order="id", matching=matching)
    query = listing._select(None, None, has_value=True, backward=False).limit(10)
    with database.reading() as connection:
        statement = query.compile(connection, compile_kwargs={"render_postcompile": True})
        return "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}", statement.params).scalars())


def test_users_whose_access_ends_soon_are_read_by_index(sqlite_database: Database) -> None:
    matching = UserFilter(state="active", expires_before=LATER, at=NOON)
    listing = ListQuery(dialect=sqlite_database.dialect, order="name", matching=matching)
    with sqlite_database.reading() as connection:
        leading = listing._find_leading_condition(connection)
        query = listing._select(leading, None, has_value=True, backward=False).limit(10)
        statement = query.compile(connection, compile_kwargs={"render_postcompile": True})
        values = tuple(statement.params[name] for name in statement.positiontup or ())
        (step, *_) = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()

    assert "ix_users_expires_datetime (expires_datetime>? AND expires_datetime<?)" in str(step)


def test_trigram_index_is_created_if_the_extension_is_installed(postgres_database: Database) -> None:
    part = "SELECT id FROM users WHERE username_key LIKE '%vad%' OR lower(email) LIKE '%vad%'"
    before = explain(postgres_database, part)
    with postgres_database.writing() as connection:
        connection.exec_driver_sql("CREATE SCHEMA extensions")
        connection.exec_driver_sql("CREATE EXTENSION pg_trgm SCHEMA extensions")
    upgrade(postgres_database)
    upgrade(postgres_database)

    assert "ix_users_trigrams" not in before
    assert "ix_users_trigrams" in explain(postgres_database, part)
    ada = registered(SqlUserRepository(postgres_database), "nevada")
    found = SqlUserRepository(postgres_database).list_page(
        after=UserId(0), limit=10, matching=UserFilter(containing="vad")
    )
    assert found == [ada]
