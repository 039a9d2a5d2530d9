"""Looking up users in PostgreSQL on an event loop, without a thread."""

import asyncio
import os
from collections.abc import Callable, Iterator

import attrs
import psycopg
import pytest
from sqlalchemy import URL, text

from mlapi import RepositoryUnavailableError, User, UserId
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.postgresql import loop_queries
from mlapi.adapters.sql.repository import PostgresqlUserRepository
from mlapi.domain.commands import AddApiKey, SetEnabled
from mlapi.domain.credentials import ApiKeyId, ApiKeyPrincipal, Principal, PrincipalId
from mlapi.domain.users import utc_now
from mlapi.testing.samples import api_key, registered, registration, with_api_key
from tests.cut_connections import CuttingProxy
from tests.pgbouncer import running_pgbouncer
from tests.postgres_server import PostgresServer

MISSING = UserId(404)


@pytest.fixture
def repository(postgres_database: Database) -> PostgresqlUserRepository:
    return PostgresqlUserRepository(postgres_database)


@pytest.fixture
def proxy(postgres_url: URL) -> Iterator[CuttingProxy]:
    assert postgres_url.port is not None
    with CuttingProxy(postgres_url.port) as proxy:
        yield proxy


def find_on_loop(repository: PostgresqlUserRepository, *ids: PrincipalId) -> list[Principal | None]:
    return asyncio.run(repository.find_principals_async(ids))


def open_connection(repository: PostgresqlUserRepository) -> None:
    """Look up a user on a loop in vain, so that the next lookup in a thread opens the connection."""
    with pytest.raises(RepositoryUnavailableError, match="no connection"):
        find_on_loop(repository, MISSING)
    repository.find_principals([MISSING])


def count_sessions(database: Database) -> int:
    statement = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> :pid")
    with database.reading() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        return int(connection.scalar(statement, {"pid": pid}) or 0)


def test_users_and_api_keys_are_found(repository: PostgresqlUserRepository) -> None:
    ada = registered(repository, "ada")
    key = with_api_key(repository, ada)
    open_connection(repository)

    for _ in range(2):
        assert find_on_loop(repository, key.id, MISSING, ada.id, ada.id) == [ApiKeyPrincipal(key, ada), None, ada, ada]
    assert find_on_loop(repository, UserId(2**70), ApiKeyId("\0")) == [None, None]


@pytest.mark.parametrize("key_id", ['"', "\\", "a,b", "{}", "null", "'; --", '\\"},{"'])
def test_id_with_special_characters_is_found(repository: PostgresqlUserRepository, key_id: str) -> None:
    ada = registered(repository)
    key = attrs.evolve(api_key(ada.id), id=ApiKeyId(key_id))
    repository.apply([AddApiKey(key=key)])
    open_connection(repository)

    assert find_on_loop(repository, ApiKeyId("other"), key.id) == [None, ApiKeyPrincipal(key, ada)]


def test_each_query_sees_every_earlier_commit(repository: PostgresqlUserRepository) -> None:
    ada = registered(repository)
    open_connection(repository)

    for is_enabled in (False, True):
        repository.apply([SetEnabled(user_id=ada.id, enabled=is_enabled, at=utc_now())])
        (found,) = find_on_loop(repository, ada.id)

        assert isinstance(found, User)
        assert found.enabled is is_enabled


def test_connection_is_used_by_one_query_at_a_time(repository: PostgresqlUserRepository) -> None:
    open_connection(repository)

    async def find_twice() -> list[object]:
        lookups = [repository.find_principals_async([MISSING]) for _ in range(2)]
        return await asyncio.gather(*lookups, return_exceptions=True)

    first, second = asyncio.run(find_twice())

    assert first == [None]
    assert isinstance(second, RepositoryUnavailableError)
    repository.find_principals([MISSING])
    assert find_on_loop(repository, MISSING) == [None]


def test_failed_query_opens_another_connection(
    repository: PostgresqlUserRepository, postgres_database: Database
) -> None:
    open_connection(repository)
    with postgres_database.writing() as connection:
        connection.execute(text("ALTER TABLE users RENAME TO gone"))

    with pytest.raises(RepositoryUnavailableError, match="42P01"):
        find_on_loop(repository, MISSING)

    with postgres_database.writing() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO users"))
    repository.find_principals([MISSING])
    assert find_on_loop(repository, MISSING) == [None]
    assert count_sessions(postgres_database) <= 2


def through(proxy: CuttingProxy, url: URL, open_database: Callable[[URL], Database]) -> PostgresqlUserRepository:
    return PostgresqlUserRepository(open_database(url.set(port=proxy.port)))


@pytest.mark.usefixtures("postgres_database")
def test_lost_connection_is_replaced(
    proxy: CuttingProxy, postgres_url: URL, open_database: Callable[[URL], Database]
) -> None:
    repository = through(proxy, postgres_url, open_database)
    open_connection(repository)
    find_on_loop(repository, MISSING)
    proxy.reset()

    with pytest.raises(RepositoryUnavailableError):
        find_on_loop(repository, MISSING)

    repository.find_principals([MISSING])
    assert find_on_loop(repository, MISSING) == [None]


@pytest.mark.usefixtures("postgres_database")
def test_query_without_an_answer_ends(
    proxy: CuttingProxy, postgres_url: URL, open_database: Callable[[URL], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = through(proxy, postgres_url, open_database)
    open_connection(repository)
    find_on_loop(repository, MISSING)
    monkeypatch.setattr(loop_queries, "MAX_SECONDS", 0.01)
    proxy.silence()

    with pytest.raises(RepositoryUnavailableError, match="did not answer"):
        find_on_loop(repository, MISSING)


def test_long_answer_arrives_in_parts(repository: PostgresqlUserRepository) -> None:
    commands = [registration(f"user-{number}" + "x" * 200) for number in range(1_000)]
    users = [outcome for outcome in repository.apply(commands) if isinstance(outcome, User)]
    open_connection(repository)

    assert find_on_loop(repository, *(user.id for user in users)) == users


def test_canceled_query_closes_its_connection(repository: PostgresqlUserRepository) -> None:
    open_connection(repository)

    async def cancel() -> None:
        lookup = asyncio.create_task(repository.find_principals_async([MISSING]))
        await asyncio.sleep(0)  # the query is sent
        lookup.cancel()
        await lookup

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())

    repository.find_principals([MISSING])
    assert find_on_loop(repository, MISSING) == [None]


def test_query_that_would_block_the_loop_is_not_sent(repository: PostgresqlUserRepository) -> None:
    open_connection(repository)

    with pytest.raises(RepositoryUnavailableError):
        find_on_loop(repository, *(UserId(2**62 + number) for number in range(1_000_000)))


def test_closed_database_closes_the_connection(
    repository: PostgresqlUserRepository, postgres_database: Database
) -> None:
    open_connection(repository)

    async def close_during_a_query() -> list[Principal | None]:
        lookup = asyncio.create_task(repository.find_principals_async([MISSING]))
        await asyncio.sleep(0)
        postgres_database.close()
        return await lookup

    assert asyncio.run(close_during_a_query()) == [None]
    assert count_sessions(postgres_database) == 0
    open_connection(repository)


def test_lookup_in_a_thread_succeeds_if_no_connection_opens(
    repository: PostgresqlUserRepository, postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_connection: object) -> bool:
        raise psycopg.OperationalError

    with monkeypatch.context() as patch:
        patch.setattr(postgres_database.dialect, "supports_loops", fail)
        open_connection(repository)

    open_connection(repository)
    assert find_on_loop(repository, MISSING) == [None]


def test_child_process_opens_a_connection_of_its_own(repository: PostgresqlUserRepository) -> None:
    ada = registered(repository)
    open_connection(repository)

    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        status = 1
        try:
            open_connection(repository)
            status = int(find_on_loop(repository, ada.id) != [ada])
        finally:
            os._exit(status)

    assert os.waitpid(pid, 0)[1] == 0
    assert find_on_loop(repository, ada.id) == [ada]


def test_pooled_connection_is_left_to_threads(
    postgres: PostgresServer, postgres_database: Database, open_database: Callable[[URL], Database]
) -> None:
    with running_pgbouncer(postgres, pool_mode="transaction") as pooler:
        pooled = open_database(pooler.url(postgres_database.engine.url))
        repository = PostgresqlUserRepository(pooled)
        for _ in range(2):
            open_connection(repository)
        pooled.close()


def test_sqlite_has_no_connection_for_loops(sqlite_database: Database) -> None:
    async def select(_connection: object) -> None:
        raise AssertionError

    for _ in range(2):
        with pytest.raises(RepositoryUnavailableError, match="no connection"):
            asyncio.run(sqlite_database.read_async(select))
        sqlite_database.read_batch(lambda connection: connection.execute("SELECT 1").fetchall())
