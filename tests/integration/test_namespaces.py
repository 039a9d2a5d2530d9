"""``database.schema``: mlapi's tables in a PostgreSQL schema of their own, beside the tables of other programs."""

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import URL, text

from mlapi import ConfigurationError, InvalidTokenError, UserId, Users
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.revisions import HEAD
from mlapi.application import secret_rotation
from mlapi.bootstrap import Service, open_database, open_service, open_users, upgrade_database
from mlapi.config import Settings, load_settings
from tests.command_line import mlapi
from tests.conftest import KEY, OLDER_KEY, SALT
from tests.legacy_database import LEGACY, create_legacy_database, execute
from tests.pgbouncer import PgBouncer, running_pgbouncer
from tests.postgres_server import PASSWORD, PostgresServer
from tests.session_scenario import COMMANDS, run_commands, run_service

SCHEMA = "Model-Users"  # PostgreSQL needs quotation marks for it
ROLE = "the service"
HOST_TABLE = "CREATE TABLE public.users (id serial PRIMARY KEY, username text, created_datetime text)"
DOCS = Path(__file__).parents[2] / "docs" / "postgresql.md"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, postgres_url: URL, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(secret_rotation, "SETTLE_SECONDS", 0.0)
    for name, value in environment(postgres_url).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def environment(url: URL, schema: str | None = SCHEMA, key: str = KEY) -> dict[str, str]:
    return {
        "MLAPI_DATABASE__URL": url.set(drivername="postgresql").render_as_string(hide_password=False),
        "MLAPI_PASSWORDS__SCHEME": "fernet",  # fast
        "MLAPI_SECRETS__KEY": key,
        "MLAPI_SECRETS__SALT": SALT,
        **({} if schema is None else {"MLAPI_DATABASE__SCHEMA": schema}),
    }


def settings_for(url: URL, schema: str | None = SCHEMA, key: str = KEY, profile: str = "development") -> Settings:
    return load_settings(
        environ={
            **environment(url, schema, key),
            "MLAPI_PROFILE": profile,
            "MLAPI_SECRETS__ADMIN_TOKEN": "an-admin-token-for-tests",
        }
    )


def tables(postgres: PostgresServer, url: URL) -> dict[str, set[str]]:
    """Return the names of all tables, indexes and sequences by their schema."""
    found = postgres.execute(
        "SELECT nspname, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
        " WHERE nspname <> 'information_schema' AND nspname NOT LIKE 'pg\\_%'",
        url.database or "",
    )
    return {str(schema): {str(name) for each, name in found if each == schema} for schema, _ in found}


@pytest.fixture
def pooler(postgres: PostgresServer) -> Iterator[PgBouncer]:
    """Run a pooler in transaction mode with a single server connection."""
    with running_pgbouncer(postgres, pool_mode="transaction", default_pool_size=1) as running:
        yield running


@pytest.mark.parametrize("is_pooled", [False, True])
def test_everything_works_beside_the_table_of_a_host(
    postgres: PostgresServer,
    postgres_url: URL,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    *,
    is_pooled: bool,
) -> None:
    execute(postgres_url, HOST_TABLE, "INSERT INTO users (username) VALUES ('ada')", "CREATE EXTENSION pg_trgm")
    before = tables(postgres, postgres_url)
    if is_pooled:
        pooler: PgBouncer = request.getfixturevalue("pooler")
        monkeypatch.setenv("MLAPI_DATABASE__URL", environment(pooler.url(postgres_url))["MLAPI_DATABASE__URL"])
    monkeypatch.delenv("MLAPI_SECRETS__KEY")  # `mlapi secrets rotate` changes the generated secrets
    monkeypatch.delenv("MLAPI_SECRETS__SALT")

    assert run_commands(folder) == [(command, 0) for command in COMMANDS]
    run_service(load_settings())

    after = tables(postgres, postgres_url)
    assert after["public"] == before["public"]
    assert {"users", "users_id_seq", "ix_users_trigrams", "mlapi_alembic_version"} < after[SCHEMA]
    assert postgres.execute("SELECT username FROM public.users", postgres_url.database or "") == [("ada",)]


def use(service: Service) -> tuple[int, str]:
    """Register, log in and list, and return the id and a token of the user."""
    user = service.users.register(username="ada", password="difference engine", email="ada@example.com")
    for _ in range(5):
        service.users.set_enabled(user_id=user.id, enabled=False)
        service.users.set_enabled(user_id=user.id, enabled=True)
        assert [each.username for each in service.users.iterate_users()] == ["ada"]
    token = service.access.authenticator.log_in(username="ada", password="difference engine", address="192.0.2.1").token
    assert service.access.guard.check(token).username == "ada"
    return user.id, token


def test_two_installations_share_one_pooled_connection(pooler: PgBouncer, postgres_url: URL) -> None:
    url = pooler.url(postgres_url)
    configurations = [settings_for(url, "one"), settings_for(url, "two", OLDER_KEY), settings_for(url, None)]
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        services = [stack.enter_context(open_service(each)) for each in configurations]

        results = list(pool.map(use, services))

        assert [user_id for user_id, _ in results] == [1, 1, 1]
        with pytest.raises(InvalidTokenError):
            services[1].access.guard.check(results[0][1])


def test_engine_reads_the_tables_in_the_schema(postgres_url: URL) -> None:
    execute(postgres_url, HOST_TABLE)
    with open_users(load_settings()) as users:
        users.register(username="ada", password="difference engine", email="ada@example.com")

    with open_database(load_settings()) as database, database.engine.connect() as connection:
        assert connection.scalars(text("SELECT username FROM users")).all() == ["ada"]


def test_concurrent_starts_create_the_schema_once(postgres_url: URL) -> None:
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(upgrade_database, [load_settings()] * 4))

    assert sorted(before or "" for before, _ in results) == ["", HEAD, HEAD, HEAD]


def test_adoption_works_in_the_schema(
    postgres: PostgresServer, postgres_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_legacy_database(postgres_url)
    assert "to adopt, but the schema public has one: move it, or set database.schema" in mlapi("db", "adopt").stderr
    execute(postgres_url, f'CREATE SCHEMA "{SCHEMA}"', f'ALTER TABLE users SET SCHEMA "{SCHEMA}"', HOST_TABLE)

    monkeypatch.setenv("MLAPI_SECRETS__KEY", LEGACY["key"])
    monkeypatch.setenv("MLAPI_SECRETS__SALT", LEGACY["salt"])

    result = mlapi("db", "adopt", "--rename-duplicates", "--rename-invalid", "--lock-passwordless")

    assert result.output.splitlines()[-1].startswith("adopted ")
    assert (mlapi("db", "check").exit_code, tables(postgres, postgres_url)["public"]) == (
        0,
        {"users", "users_pkey", "users_id_seq", "alembic_version", "alembic_version_pkey"},
    )


def test_printed_commands_back_up_and_restore_the_schema(
    postgres: PostgresServer, postgres_url: URL, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(postgres_url, HOST_TABLE)
    register_ada(load_settings())
    monkeypatch.setenv("PATH", f"{postgres._bin}:{os.environ['PATH']}")
    monkeypatch.setenv("PGPASSWORD", PASSWORD)

    _, dump, _, restore, _ = mlapi("backup", "backup.db").stderr.split("`")
    subprocess.run(dump, shell=True, check=True)
    with open_users(load_settings()) as users:
        users.remove(user_id=UserId(1))
    subprocess.run(restore, shell=True, check=True)

    with open_users(load_settings()) as users:
        assert names(users) == ["ada"]
        assert users.register(username="bob", password="analytical", email="b@example.com").id == 2


# --- tables in another schema


def register_ada(settings: Settings) -> None:
    with open_users(settings) as users:
        users.register(username="ada", password="difference engine", email="ada@example.com")


def names(users: Users) -> list[str]:
    return [user.username for user in users.iterate_users()]


@pytest.mark.parametrize(("before", "after"), [(None, "one"), ("one", None), ("one", "two")])
def test_changed_schema_is_reported(
    before: str | None,
    after: str | None,
    postgres_url: URL,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    register_ada(settings_for(postgres_url, before))
    monkeypatch.delenv("MLAPI_DATABASE__SCHEMA")
    if after is not None:
        monkeypatch.setenv("MLAPI_DATABASE__SCHEMA", after)
    place = before or "public"

    check, doctor = mlapi("db", "check"), mlapi("doctor")
    with pytest.raises(ConfigurationError, match=f"tables of mlapi in the schema {place}, set database.schema"):
        register_ada(settings_for(postgres_url, after, profile="production"))
    upgraded = mlapi("db", "upgrade")

    message = f"tables of mlapi are in the schema {place}: set database.schema, or run `mlapi db upgrade`"
    assert message in check.output
    assert message in doctor.output
    assert (check.exit_code, doctor.exit_code, upgraded.exit_code) == (3, 3, 0)
    assert f"although this database also contains tables of mlapi in the schema {place}" in caplog.text
    assert mlapi("db", "check").exit_code == 0


def test_forgotten_schema_is_named_beside_the_table_of_a_host(postgres_url: URL) -> None:
    execute(postgres_url, HOST_TABLE)
    register_ada(load_settings())

    with pytest.raises(ConfigurationError) as caught:
        register_ada(settings_for(postgres_url, None))

    assert str(caught.value) == (
        "the database has a table `users` that mlapi did not create: point database.url at an empty database, or set"
        " database.schema to create mlapi's tables in a PostgreSQL schema of their own; to use the tables of mlapi in"
        f" the schema {SCHEMA}, set database.schema"
    )


def test_documented_statements_move_the_tables(postgres: PostgresServer, postgres_url: URL) -> None:
    (statements,) = re.findall(
        r"^```sql\n(CREATE SCHEMA mlapi;.*?)^```", DOCS.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    register_ada(settings_for(postgres_url, None))
    postgres.execute(statements, postgres_url.database or "")

    with open_users(settings_for(postgres_url, "mlapi", profile="production")) as users:
        assert names(users) == ["ada"]
        users.register(username="bob", password="analytical engine", email="bob@example.com")
    assert "public" not in tables(postgres, postgres_url)


# --- privileges


@pytest.fixture
def role_url(postgres: PostgresServer, postgres_url: URL) -> Iterator[URL]:
    """Yield the URL of a role that may only connect."""
    postgres.execute(f"CREATE ROLE \"{ROLE}\" LOGIN PASSWORD 'service'")
    yield postgres_url.set(username=ROLE, password="service")
    postgres.execute(f'DROP OWNED BY "{ROLE}"', postgres_url.database or "")
    postgres.execute(f'DROP ROLE "{ROLE}"')


def suggested_statement(message: str) -> str:
    _, statement, *_ = message.split("`")
    return statement


def test_role_without_create_gets_the_statement(postgres: PostgresServer, postgres_url: URL, role_url: URL) -> None:
    settings = settings_for(role_url)

    with pytest.raises(ConfigurationError) as caught:
        upgrade_database(settings)

    statement = f'CREATE SCHEMA "{SCHEMA}" AUTHORIZATION "{ROLE}"'
    assert str(caught.value) == (
        f"the role may not create the schema {SCHEMA}: as the owner of the database, run `{statement}`"
    )
    postgres.execute(statement, postgres_url.database or "")
    register_ada(settings)


def test_role_with_few_privileges_gets_the_statements(
    postgres: PostgresServer, postgres_url: URL, role_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_ada(load_settings())
    settings = settings_for(role_url, profile="production")
    monkeypatch.setenv("MLAPI_DATABASE__URL", environment(role_url)["MLAPI_DATABASE__URL"])

    with pytest.raises(ConfigurationError, match=f"the role may not use the schema {SCHEMA}") as caught:
        register_ada(settings)
    assert str(caught.value) in mlapi("doctor").output
    postgres.execute(suggested_statement(str(caught.value)), postgres_url.database or "")
    grant = f'GRANT SELECT ON ALL TABLES IN SCHEMA "{SCHEMA}" TO "{ROLE}"'
    postgres.execute(grant, postgres_url.database or "")
    problems = [line for line in mlapi("doctor").output.splitlines() if line.startswith("problem")]

    assert f'ON "{SCHEMA}".users, "{SCHEMA}".mlapi_api_keys' in problems[0]
    for problem in problems:
        postgres.execute(suggested_statement(problem), postgres_url.database or "")
    with open_users(settings) as users:
        users.register(username="bob", password="analytical engine", email="bob@example.com")


# --- settings


@pytest.mark.parametrize("url", ["sqlite:///mlapi.db", "memory://"])
def test_schema_needs_postgresql(url: str, folder: Path) -> None:
    settings = load_settings(environ={"MLAPI_DATABASE__URL": url, "MLAPI_DATABASE__SCHEMA": "mlapi"})

    with pytest.raises(ConfigurationError, match=r"database\.schema needs PostgreSQL: remove it, or set"):
        register_ada(settings)
    assert list(folder.iterdir()) == []


def test_schema_applies_to_the_connection_block(postgres: PostgresServer, postgres_url: URL) -> None:
    environ = environment(postgres_url)
    del environ["MLAPI_DATABASE__URL"]
    parts = {
        "username": postgres_url.username,
        "password": postgres_url.password,
        "host": postgres_url.host,
        "port": postgres_url.port,
        "database": postgres_url.database,
    }
    environ |= {f"MLAPI_CONNECTION__{name.upper()}": str(value) for name, value in parts.items()}

    upgrade_database(load_settings(environ=environ))

    assert set(tables(postgres, postgres_url)) == {SCHEMA}


def test_any_name_is_quoted(postgres: PostgresServer, postgres_url: URL) -> None:
    with Database(postgres_url, namespace='it\'s "my" schema') as database, database.reading() as connection:
        assert connection.exec_driver_sql("SELECT current_setting('search_path')").scalar() == '"it\'s ""my"" schema"'
