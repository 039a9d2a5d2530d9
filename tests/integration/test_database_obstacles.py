"""``mlapi doctor``, ``mlapi db upgrade`` and ``/health/ready`` report what the service could not change."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import URL

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.schema import downgrade
from mlapi.bootstrap import open_service
from mlapi.config import load_settings
from mlapi.entrypoints.cli import main
from mlapi.entrypoints.http import create_app
from tests.conftest import KEY, SALT
from tests.contract.test_http import asgi_client
from tests.postgres_server import PostgresServer

READER = "the reader"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLAPI_SECRETS__KEY", KEY)
    monkeypatch.setenv("MLAPI_SECRETS__SALT", SALT)
    return tmp_path


@pytest.fixture
def role_url(postgres: PostgresServer, postgres_url: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[URL]:
    """Configure a role that may only connect to an empty database, and yield the URL of the database's owner."""
    postgres.execute(f"CREATE ROLE \"{READER}\" LOGIN PASSWORD 'reader'")
    configure(monkeypatch, postgres_url.set(username=READER, password="reader"))
    yield postgres_url
    postgres.execute(f'DROP OWNED BY "{READER}"', postgres_url.database or "")
    postgres.execute(f'DROP ROLE "{READER}"')


def configure(monkeypatch: pytest.MonkeyPatch, url: URL) -> None:
    monkeypatch.setenv("MLAPI_DATABASE__URL", url.set(drivername="postgresql").render_as_string(hide_password=False))


def prepare(url: URL) -> None:
    """Create the schema and the fingerprint as the owner of the database."""
    owner = {"MLAPI_DATABASE__URL": url.set(drivername="postgresql").render_as_string(hide_password=False)}
    with open_service(load_settings(environ={**owner, "MLAPI_SECRETS__KEY": KEY, "MLAPI_SECRETS__SALT": SALT})):
        pass


def database_problems() -> list[str]:
    result = CliRunner().invoke(main, ["doctor", "--json"])
    checks = json.loads(result.stdout)["checks"]
    problems = [check["message"] for check in checks if (check["about"], check["state"]) == ("database", "problem")]
    assert result.exit_code == (3 if problems else 0)
    return problems


def readiness() -> int:
    with open_service(load_settings()) as service:
        return asgi_client(create_app(service.users, access=service.access)).get("/health/ready").status_code


def run_suggestion(problem: str, postgres: PostgresServer, url: URL) -> None:
    """Run the SQL statement that a message suggests, as the owner of the database."""
    _, statement, *_ = problem.split("`")
    postgres.execute(statement, url.database or "")


def grant_rows(postgres: PostgresServer, url: URL) -> None:
    for grant in ("SELECT, INSERT, UPDATE, DELETE ON ALL TABLES", "USAGE ON ALL SEQUENCES"):
        postgres.execute(f'GRANT {grant} IN SCHEMA public TO "{READER}"', url.database or "")


def registration() -> int:
    with open_service(load_settings()) as service:
        client = asgi_client(create_app(service.users, access=service.access))
        body = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}
        return client.post("/register-user", json=body).status_code


def test_missing_privilege_for_new_ids_is_reported(role_url: URL, postgres: PostgresServer) -> None:
    prepare(role_url)
    grant_rows(postgres, role_url)
    postgres.execute(f'REVOKE ALL ON SEQUENCE users_id_seq FROM "{READER}"', role_url.database or "")

    (problem,) = database_problems()

    assert (readiness(), registration()) == (503, 503)
    assert f'`GRANT USAGE ON SEQUENCE public.users_id_seq TO "{READER}"`' in problem
    run_suggestion(problem, postgres, role_url)
    assert (database_problems(), readiness(), registration()) == ([], 200, 201)


@pytest.mark.parametrize("table", ["users", "mlapi_api_keys", "mlapi_attempts", "mlapi_audit", "mlapi_key_check"])
def test_row_level_security_is_reported(role_url: URL, postgres: PostgresServer, table: str) -> None:
    prepare(role_url)
    grant_rows(postgres, role_url)
    postgres.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY", role_url.database or "")

    assert readiness() == 503
    (problem,) = [problem for problem in database_problems() if "row-level security" in problem]
    assert problem.startswith(f"row-level security may hide rows of {table} and reject changes")
    assert f'`ALTER ROLE "{READER}" BYPASSRLS`' in problem


def test_users_without_a_sequence_are_reported(role_url: URL, postgres: PostgresServer) -> None:
    prepare(role_url)
    grant_rows(postgres, role_url)
    postgres.execute("ALTER TABLE users ALTER id DROP IDENTITY", role_url.database or "")

    assert readiness() == 503
    assert "users.id has no sequence that creates ids: restore the table from a backup" in database_problems()


def test_role_that_may_only_read_is_reported(role_url: URL, postgres: PostgresServer) -> None:
    prepare(role_url)
    postgres.execute(f'GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO "{READER}"', role_url.database or "")
    postgres.execute(f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{READER}"', role_url.database or "")

    (problem,) = database_problems()

    assert readiness() == 503
    assert problem == (
        "the role may not change all tables: as their owner, run `GRANT INSERT, UPDATE, DELETE ON users,"
        f" mlapi_api_keys, mlapi_managers, mlapi_sessions, mlapi_links, mlapi_logins, mlapi_attempts, mlapi_audit,"
        f' mlapi_allowances, mlapi_outbox, mlapi_usage, mlapi_activity TO "{READER}"`'
    )
    run_suggestion(problem, postgres, role_url)
    assert (database_problems(), readiness()) == ([], 200)


def test_role_without_any_privilege_is_reported(role_url: URL) -> None:
    prepare(role_url)

    (problem,) = database_problems()

    assert problem.startswith(
        "permission denied: as the owner of the tables, run `GRANT SELECT, INSERT, UPDATE, DELETE"
    )
    assert "check that the server is running" not in problem


@pytest.mark.parametrize("kind", ["INSERT", "UPDATE", "DELETE"])
@pytest.mark.parametrize("table", ["users", "mlapi_api_keys", "mlapi_attempts"])
def test_single_missing_privilege_is_reported(role_url: URL, postgres: PostgresServer, table: str, kind: str) -> None:
    prepare(role_url)
    for statement in (
        f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "{READER}"',
        f'GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO "{READER}"',
        f'REVOKE {kind} ON {table} FROM "{READER}"',
    ):
        postgres.execute(statement, role_url.database or "")

    (problem,) = database_problems()

    assert readiness() == 503
    assert f'`GRANT {kind} ON {table} TO "{READER}"`' in problem


@contextmanager
def setting(postgres: PostgresServer, scope: str, assignment: str) -> Iterator[None]:
    postgres.execute(f"ALTER {scope} SET {assignment}")
    try:
        yield
    finally:
        postgres.execute(f"ALTER {scope} RESET {assignment.partition(' ')[0]}")


@pytest.mark.parametrize("source", ["role", "database", "URL", "environment"])
def test_read_only_default_is_reported(
    source: str, role_url: URL, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(role_url)
    grant_rows(postgres, role_url)
    with ExitStack() as stack:
        if source == "URL":
            options = {"options": "-c default_transaction_read_only=on"}
            configure(monkeypatch, role_url.set(username=READER, password="reader").update_query_dict(options))
        elif source == "environment":
            patched = stack.enter_context(monkeypatch.context())
            patched.setenv("PGOPTIONS", "-c default_transaction_read_only=on")
        else:
            scope = f"DATABASE {role_url.database}" if source == "database" else f'ROLE "{READER}"'
            stack.enter_context(setting(postgres, scope, "default_transaction_read_only = on"))
        problems, status = database_problems(), readiness()

    expected = (
        "default_transaction_read_only is on, so nothing can be changed: turn it off for the server, the database and"
        f" the role {READER}"
    )
    assert (problems, status) == ([expected], 503)


def test_standby_is_reported(role_url: URL, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(role_url)
    grant_rows(postgres, role_url)
    # A function of the same name takes the place of PostgreSQL's own, so that no second server is needed.
    postgres.execute("CREATE FUNCTION pg_is_in_recovery() RETURNS bool RETURN true", role_url.database or "")
    options = {"options": "-c search_path=public,pg_catalog"}
    configure(monkeypatch, role_url.set(username=READER, password="reader").update_query_dict(options))

    problems = database_problems()

    assert problems == [
        "the server is a standby, which is read-only: connect to the primary (target_session_attrs=read-write)"
    ]


@pytest.mark.parametrize("revision", [None, "0003"], ids=["first start", "upgrade"])
def test_missing_create_privilege_is_reported_before_an_upgrade(
    revision: str | None, role_url: URL, postgres: PostgresServer
) -> None:
    if revision is not None:
        prepare(role_url)
        with closing(Database(role_url)) as database:
            downgrade(database, revision)
        for kind in ("TABLES", "SEQUENCES"):
            postgres.execute(f'GRANT ALL ON ALL {kind} IN SCHEMA public TO "{READER}"', role_url.database or "")
        for table in ("users", "mlapi_api_keys", "mlapi_attempts", "mlapi_audit", "mlapi_key_check"):
            postgres.execute(f'ALTER TABLE {table} OWNER TO "{READER}"', role_url.database or "")

    problems = database_problems()
    upgrade = CliRunner().invoke(main, ["db", "upgrade"])

    expected = (
        "the role may not create tables: as the owner of the schema, run"
        f' `GRANT CREATE ON SCHEMA "public" TO "{READER}"` or `mlapi db upgrade`'
    )
    assert problems == ["the schema is outdated: run `mlapi db upgrade`", expected]
    assert (upgrade.exit_code, upgrade.stderr) == (3, f"mlapi: {expected}\n")
    run_suggestion(expected, postgres, role_url)
    assert CliRunner().invoke(main, ["db", "upgrade"]).exit_code == 0
    assert (database_problems(), readiness()) == ([], 200)


def test_tables_of_another_owner_are_reported_before_an_upgrade(role_url: URL, postgres: PostgresServer) -> None:
    prepare(role_url)
    with closing(Database(role_url)) as database:
        downgrade(database, "0003")
    for statement in (
        f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{READER}"',
        f'GRANT CREATE ON SCHEMA public TO "{READER}"',
    ):
        postgres.execute(statement, role_url.database or "")

    problems = database_problems()

    expected = (
        "only the owner of mlapi_api_keys, mlapi_attempts, mlapi_audit, mlapi_key_check, users can change their"
        " columns: run `mlapi db upgrade` as that role"
    )
    assert problems == ["the schema is outdated: run `mlapi db upgrade`", expected]


def test_missing_schema_is_reported(
    postgres_url: URL, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(monkeypatch, postgres_url.update_query_dict({"options": "-c search_path=missing"}))

    assert database_problems() == [
        "the schema is outdated: run `mlapi db upgrade`",
        "no schema of the search_path exists: create one, or change the search_path of the role or database.url",
    ]


def test_missing_sqlite_table_is_reported(folder: Path) -> None:
    with open_service(load_settings()):
        pass
    with closing(sqlite3.connect(folder / "mlapi.db")) as connection:
        connection.execute("DROP TABLE mlapi_attempts")

    (problem,) = database_problems()

    assert readiness() == 503
    assert problem == (
        "the database cannot be changed (the table mlapi_attempts is missing (SQLITE_ERROR)): a table is missing"
        " or was changed by another program, so restore the database from a backup"
    )


def test_locked_sqlite_database_is_reported(folder: Path) -> None:
    with open_service(load_settings()):
        pass
    with closing(sqlite3.connect(folder / "mlapi.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")

        (problem,) = database_problems()

    assert problem.endswith("service own the file and its folder, and stop other programs that use the file")


def test_doctor_changes_nothing(folder: Path) -> None:
    with open_service(load_settings()) as service:
        service.users.register(username="ada", password="difference engine", email="ada@example.com")
    before = (folder / "mlapi.db").read_bytes()

    problems = database_problems()

    assert (problems, (folder / "mlapi.db").read_bytes() == before) == ([], True)
