"""Tests of the schema: upgrades and downgrades, concurrent upgrades, and tables of other programs."""

import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, inspect, text

from mlapi import ConfigurationError, RepositoryUnavailableError, UserId
from mlapi.adapters.sql import Database, SqlUserRepository, prepare_schema, upgrade
from mlapi.adapters.sql import schema as schema_module
from mlapi.adapters.sql.schema import HEAD, VERSION_TABLE, current_revision, downgrade
from mlapi.adapters.sql.sqlite.engine import enable_write_ahead_log
from mlapi.adapters.sql.tables import metadata
from mlapi.testing.samples import registered, with_api_key

MIGRATIONS = ScriptDirectory(schema_module.__file__.replace("schema.py", "migrations"))
REVISIONS = [script.revision for script in reversed(list(MIGRATIONS.walk_revisions()))]


@pytest.fixture
def empty(url: URL) -> Database:
    return Database(url)


def tables_of(database: Database) -> set[str]:
    with database.reading() as connection:
        return set(inspect(connection).get_table_names()) - {"sqlite_sequence"}


def revision_of(database: Database) -> str | None:
    with database.reading() as connection:
        return current_revision(connection)


def test_revisions_equal_those_of_alembic() -> None:
    assert (list(schema_module.REVISIONS), MIGRATIONS.get_current_head()) == (REVISIONS, HEAD)


def test_every_revision_can_be_upgraded_and_downgraded(empty: Database) -> None:
    for revision in REVISIONS:
        upgrade(empty, revision)
        assert revision_of(empty) == revision
    for revision in reversed(["base", *REVISIONS[:-1]]):
        downgrade(empty, revision)
        assert revision_of(empty) == (None if revision == "base" else revision)

    assert tables_of(empty) == {VERSION_TABLE}
    assert upgrade(empty) == (None, HEAD)
    empty.close()


def test_users_survive_a_downgrade_and_an_upgrade(empty: Database) -> None:
    upgrade(empty)
    repository = SqlUserRepository(empty)
    ada = registered(repository)
    with_api_key(repository, ada)
    downgrade(empty, "0001")
    upgrade(empty)

    assert repository.list_page(after=UserId(0), limit=10) == [ada]
    assert repository.list_api_keys(ada.id) == []
    assert repository.audit.list_page(limit=10) == []
    empty.close()


def test_migrations_create_the_tables_of_the_code(database: Database) -> None:
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "version_table": VERSION_TABLE})
        differences = compare_metadata(context, metadata)

    assert differences == []


def test_upgrade_of_a_current_schema_does_nothing(database: Database) -> None:
    assert upgrade(database) == (HEAD, HEAD)


def test_ids_are_autoincremented_on_sqlite(sqlite_url: URL) -> None:
    database = Database(sqlite_url)
    upgrade(database)

    with database.reading() as connection:
        (sql,) = connection.execute(text("SELECT sql FROM sqlite_master WHERE name = 'users'")).one()
    database.close()

    assert "AUTOINCREMENT" in sql


def test_start_upgrades_the_schema_where_allowed(empty: Database) -> None:
    prepare_schema(empty, may_upgrade=True)

    assert revision_of(empty) == HEAD
    empty.close()


def test_start_without_permission_names_the_command(empty: Database) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        prepare_schema(empty, may_upgrade=False)

    assert str(refusal.value) == (
        f"the database's schema is at revision none and must be at {HEAD}: run `mlapi db upgrade`"
    )
    assert tables_of(empty) == set()
    empty.close()


def test_schema_of_a_newer_mlapi_is_refused(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))

    with pytest.raises(ConfigurationError, match="revision 9999, which this version of mlapi does not know"):
        prepare_schema(database, may_upgrade=True)


def test_other_users_table_is_not_changed(empty: Database) -> None:
    with empty.writing() as connection:
        connection.execute(text("CREATE TABLE users (id INTEGER PRIMARY KEY, username VARCHAR)"))
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR)"))

    with pytest.raises(ConfigurationError, match="a table `users` that mlapi did not create"):
        prepare_schema(empty, may_upgrade=True)

    assert tables_of(empty) == {"users", "alembic_version"}
    empty.close()


def test_failed_upgrade_changes_nothing(empty: Database) -> None:
    with empty.writing() as connection:
        connection.execute(text("CREATE TABLE mlapi_key_check (id INTEGER PRIMARY KEY)"))

    with pytest.raises(Exception, match="mlapi_key_check"):  # the first revision creates it after the users
        upgrade(empty)

    assert tables_of(empty) == {"mlapi_key_check"}
    empty.close()


def test_threads_can_upgrade_concurrently(url: URL) -> None:
    databases = [Database(url) for _ in range(4)]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(upgrade, databases))

    assert sorted(results, key=str) == [(HEAD, HEAD)] * 3 + [(None, HEAD)]
    for database in databases:
        database.close()


def test_upgrade_waits_for_a_locked_file(sqlite_url: URL) -> None:
    other = sqlite3.connect(str(sqlite_url.database), isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(0.3, other.close).start()

    with Database(sqlite_url) as database:
        assert upgrade(database) == (None, HEAD)


def test_file_that_stays_locked_is_unavailable(sqlite_url: URL) -> None:
    other = sqlite3.connect(str(sqlite_url.database), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")

    with (
        Database(sqlite_url, timeout_seconds=0.1) as database,
        pytest.raises(RepositoryUnavailableError, match="locked"),
    ):
        upgrade(database)
    other.close()


def test_lock_that_sqlite_does_not_wait_for_is_retried() -> None:
    asked: list[str] = []

    def hindered(statement: str) -> None:
        asked.append(statement)
        if len(asked) < 3:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error

    enable_write_ahead_log(hindered, deadline=time.monotonic() + 10)

    assert asked == ["PRAGMA journal_mode = WAL"] * 3


def test_processes_can_upgrade_concurrently(url: URL) -> None:
    script = (
        "import sys; from mlapi.adapters.sql import Database, database_url, prepare_schema;"
        "prepare_schema(Database(database_url(sys.argv[1])), may_upgrade=True)"
    )
    command = [sys.executable, "-c", script, url.render_as_string(hide_password=False)]

    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [process.communicate(timeout=60)[1] for process in processes]

    assert [(process.returncode, error) for process, error in zip(processes, errors, strict=True)] == [(0, "")] * 4
