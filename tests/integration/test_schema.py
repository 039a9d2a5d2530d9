"""Tests of the schema: upgrades, downgrades, concurrent upgrades, and databases of other programs."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, inspect, text

from mlapi import ConfigurationError, RepositoryUnavailableError, UserId
from mlapi.adapters.sql import revisions
from mlapi.adapters.sql import schema as schema_module
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.indexes import metadata
from mlapi.adapters.sql.repository import SqlUserRepository
from mlapi.adapters.sql.revisions import HEAD, VERSION_TABLE
from mlapi.adapters.sql.schema import current_revision, downgrade, prepare_schema, upgrade
from mlapi.adapters.sql.sqlite.connections import enable_write_ahead_log
from mlapi.testing.samples import registered, with_api_key
from tests.torture.crash_points import run

MIGRATIONS = ScriptDirectory(schema_module.__file__.replace("schema.py", "migrations"))
REVISIONS = [script.revision for script in reversed(list(MIGRATIONS.walk_revisions()))]


@pytest.fixture
def empty_database(url: URL) -> Iterator[Database]:
    with Database(url) as database:
        yield database


def table_names(database: Database) -> set[str]:
    with database.reading() as connection:
        return set(inspect(connection).get_table_names()) - {"sqlite_sequence"}


def revision_of(database: Database) -> str | None:
    with database.reading() as connection:
        return current_revision(connection)


def test_revisions_match_the_migration_scripts() -> None:
    assert (list(revisions.REVISIONS), MIGRATIONS.get_current_head()) == (REVISIONS, HEAD)


def test_every_revision_can_be_upgraded_and_downgraded(empty_database: Database) -> None:
    for revision in REVISIONS:
        upgrade(empty_database, revision)
        assert revision_of(empty_database) == revision
    for revision in reversed(["base", *REVISIONS[:-1]]):
        downgrade(empty_database, revision)
        assert revision_of(empty_database) == (None if revision == "base" else revision)

    assert table_names(empty_database) == {VERSION_TABLE}
    assert upgrade(empty_database) == (None, HEAD)


def test_users_survive_a_downgrade_and_an_upgrade(empty_database: Database) -> None:
    upgrade(empty_database)
    repository = SqlUserRepository(empty_database)
    ada = registered(repository)
    with_api_key(repository, ada)
    downgrade(empty_database, "0001")
    upgrade(empty_database)

    assert repository.list_page(after=UserId(0), limit=10) == [ada]
    assert repository.list_api_keys(ada.id) == []
    assert repository.audit.list_page(limit=10) == []


@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
def test_migrations_create_the_tables_that_the_code_defines(database: Database) -> None:
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "version_table": VERSION_TABLE})
        differences = compare_metadata(context, metadata)

    if database.engine.dialect.name == "sqlite":  # it has no identities, which alembic 1.11 reports as differences
        differences = [each for each in differences if not (isinstance(each, list) and each[0][0] == "modify_default")]
    assert [each for each in differences if not _is_of_other_dialect(each, database)] == []


def _is_of_other_dialect(difference: Any, database: Database) -> bool:
    """Return whether a difference is an index that only the other database has. alembic ignores ``ddl_if``."""
    dialects = {each.name: each._ddl_if.dialect for each in metadata.tables["users"].indexes if each._ddl_if}
    expected = dialects.get(difference[1].name) if difference[0] == "add_index" else None
    return expected not in {None, database.engine.dialect.name}


def test_upgrade_names_columns_to_rename(empty_database: Database) -> None:
    upgrade(empty_database, "0004")
    with empty_database.writing() as connection:
        connection.execute(text("ALTER TABLE users ADD COLUMN plan VARCHAR"))

    with pytest.raises(ConfigurationError) as exc_info:
        upgrade(empty_database)
    with empty_database.writing() as connection:
        connection.execute(text("ALTER TABLE users RENAME COLUMN plan TO legacy_plan"))

    assert str(exc_info.value) == (
        "mlapi needs columns that the table `users` already has for another program: plan: rename them, for example to"
        " legacy_plan, then run `mlapi db upgrade`"
    )
    assert upgrade(empty_database) == ("0004", HEAD)


def test_upgrade_of_a_current_schema_does_nothing(database: Database) -> None:
    assert upgrade(database) == (HEAD, HEAD)


def test_ids_are_autoincremented_on_sqlite(sqlite_url: URL) -> None:
    database = Database(sqlite_url)
    upgrade(database)

    with database.reading() as connection:
        (sql,) = connection.execute(text("SELECT sql FROM sqlite_master WHERE name = 'users'")).one()
    database.close()

    assert "AUTOINCREMENT" in sql


def test_schema_is_upgraded_at_startup_if_allowed(empty_database: Database) -> None:
    prepare_schema(empty_database, may_upgrade=True)

    assert revision_of(empty_database) == HEAD


def test_error_names_the_command_if_upgrading_is_not_allowed(empty_database: Database) -> None:
    with pytest.raises(ConfigurationError) as exc_info:
        prepare_schema(empty_database, may_upgrade=False)

    assert str(exc_info.value) == (
        "the database contains no tables of mlapi: check database.url (MLAPI_DATABASE__URL), or run `mlapi db upgrade`"
        " to create them"
    )
    assert table_names(empty_database) == set()


@pytest.mark.parametrize(
    ("revision", "error"),
    [
        ("9999", "revision 9999, which this version of mlapi does not know: upgrade mlapi"),
        ("0001", f"revision 0001 and must be at {HEAD}: run `mlapi db upgrade`"),
    ],
)
def test_other_schema_is_rejected_without_permission(database: Database, revision: str, error: str) -> None:
    with database.writing() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '{revision}'"))

    with pytest.raises(ConfigurationError, match=error):
        prepare_schema(database, may_upgrade=False)


def test_schema_of_a_newer_mlapi_is_rejected(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))

    with pytest.raises(ConfigurationError, match="revision 9999, which this version of mlapi does not know"):
        prepare_schema(database, may_upgrade=True)


def test_users_table_of_another_program_is_not_changed(empty_database: Database) -> None:
    with empty_database.writing() as connection:
        connection.execute(text("CREATE TABLE users (id INTEGER PRIMARY KEY, username VARCHAR)"))
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR)"))

    with pytest.raises(ConfigurationError, match="a table `users` that mlapi did not create"):
        prepare_schema(empty_database, may_upgrade=True)

    assert table_names(empty_database) == {"users", "alembic_version"}


def test_failed_upgrade_changes_nothing(empty_database: Database) -> None:
    with empty_database.writing() as connection:
        connection.execute(text("CREATE TABLE mlapi_key_check (id INTEGER PRIMARY KEY)"))

    with pytest.raises(Exception, match="mlapi_key_check"):  # the first revision creates it after the users table
        upgrade(empty_database)

    assert table_names(empty_database) == {"mlapi_key_check"}


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


def test_database_that_stays_locked_is_unavailable(sqlite_url: URL) -> None:
    other = sqlite3.connect(str(sqlite_url.database), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")

    with (
        Database(sqlite_url, timeout_seconds=0.1) as database,
        pytest.raises(RepositoryUnavailableError, match="locked"),
    ):
        upgrade(database)
    other.close()


def test_busy_error_while_enabling_write_ahead_log_is_retried() -> None:
    statements: list[str] = []

    def locked_twice(statement: str) -> None:
        statements.append(statement)
        if len(statements) < 3:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error

    enable_write_ahead_log(locked_twice, deadline=time.monotonic() + 10)

    assert statements == ["PRAGMA journal_mode = WAL"] * 3


def test_processes_can_upgrade_concurrently(url: URL, tmp_path: Path) -> None:
    environ = {"MLAPI_DATABASE__URL": url.render_as_string(hide_password=False)}
    folders = [tmp_path / str(number) for number in range(4)]
    for folder in folders:
        folder.mkdir()

    with ThreadPoolExecutor(len(folders)) as pool:
        codes = list(pool.map(lambda folder: run(folder, environ, ["db", "upgrade"]), folders))

    assert codes == [0, 0, 0, 0], [(folder / "command.log").read_text() for folder in folders]
