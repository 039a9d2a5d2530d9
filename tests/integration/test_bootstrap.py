"""Building the service from settings: files created at first startup, later startups, and invalid settings."""

import logging
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from unittest.mock import Mock, call

import pytest
from click.testing import CliRunner
from sqlalchemy import URL

from mlapi import ConfigurationError, InvalidFieldsError, RepositoryUnavailableError
from mlapi.adapters.sql.revisions import HEAD
from mlapi.bootstrap import open_database, open_service, open_users
from mlapi.config import load_settings, secrets_file
from mlapi.config.files import read_yaml
from mlapi.entrypoints.cli import main
from tests.conftest import KEY, OLDER_KEY, SALT
from tests.postgres_server import PostgresServer

Settings = Callable[..., dict[str, str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def register_ada(environ: dict[str, str]) -> None:
    with open_users(load_settings(environ=environ)) as users:
        users.register(username="ada", password="difference engine", email="ada@example.com")


SECRETS = {"MLAPI_SECRETS__KEY": KEY, "MLAPI_SECRETS__SALT": SALT}
PRODUCTION = {**SECRETS, "MLAPI_PROFILE": "production", "MLAPI_SECRETS__ADMIN_TOKEN": "an-admin-token-for-tests"}


def to_text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def test_first_startup_creates_database_and_secrets_together(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    register_ada({})

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"mlapi.db": 0o600, "secrets.yml": 0o600}
    assert f"generated a key and a salt in {folder}/secrets.yml" in caplog.text


def test_first_startup_creates_no_users_and_no_admin_token(folder: Path) -> None:
    with open_service(load_settings()) as service:
        assert service.users.list_page() == []
        assert service.settings.secrets.admin_token is None


def test_second_startup_uses_the_same_users_and_secrets(folder: Path) -> None:
    register_ada({})
    secrets = (folder / "secrets.yml").read_text()

    with open_users(load_settings(environ={})) as users:
        ada = users.find("ADA")

        assert ada is not None
        assert users.cipher.matches("difference engine", ada.password)
    assert (folder / "secrets.yml").read_text() == secrets


def test_startup_reads_the_secrets_file_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_ada({})
    read = Mock(wraps=read_yaml)
    monkeypatch.setattr(secrets_file, "read_yaml", read)

    with open_service(load_settings(environ={})) as service:
        assert service.users.find("ada") is not None

    assert read.mock_calls == [call(folder / "secrets.yml")]


def test_configured_secrets_are_not_generated(folder: Path) -> None:
    register_ada(SECRETS)

    assert not (folder / "secrets.yml").exists()


def test_lost_secrets_are_not_regenerated(folder: Path) -> None:
    register_ada({})
    (folder / "secrets.yml").unlink()

    with pytest.raises(ConfigurationError, match=r"secrets\.yml is missing, and the passwords in this database"):
        register_ada({})

    assert not (folder / "secrets.yml").exists()


def test_first_startup_after_db_upgrade_creates_secrets(folder: Path) -> None:
    CliRunner().invoke(main, ["db", "upgrade"], catch_exceptions=False)

    register_ada({})

    assert (folder / "secrets.yml").exists()


@pytest.mark.parametrize("wrong", [{"MLAPI_SECRETS__SALT": "another"}, {"MLAPI_SECRETS__KEY": OLDER_KEY}])
def test_wrong_key_or_salt_is_rejected(wrong: dict[str, str], url: URL) -> None:
    environ = {**SECRETS, "MLAPI_DATABASE__URL": to_text(url)}
    register_ada(environ)

    with pytest.raises(ConfigurationError, match="does not match this database's passwords"):
        register_ada({**environ, **wrong})


def test_changing_to_a_reversible_scheme_works_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    register_ada(SECRETS)
    assert "fernet" not in caplog.text

    with open_users(load_settings(environ={**SECRETS, "MLAPI_PASSWORDS__SCHEME": "fernet"})) as users:
        ada = users.find("ada")

        assert ada is not None
        assert users.cipher.matches("difference engine", ada.password)
        bob = users.register(username="bob", password="x", email="bob@example.com")
        assert "|" not in bob.password.value
    assert "anyone with the key can decrypt every password" in caplog.text


def test_legacy_connection_block_works(postgres: PostgresServer, postgres_url: URL, folder: Path) -> None:
    Path("config.yml").write_text(
        f"secrets: {{key: {KEY}, salt: {SALT}}}\n"
        f"connection: {{username: mlapi, password: '{postgres_url.password}', host: 127.0.0.1,"
        f" port: {postgres.port}, database: {postgres_url.database}}}\n"
    )
    Path("config.yml").chmod(0o600)

    register_ada({})

    assert postgres.execute("SELECT username FROM users", str(postgres_url.database)) == [("ada",)]


def test_secrets_for_postgresql_are_in_the_working_directory(folder: Path, postgres_url: URL) -> None:
    register_ada({"MLAPI_DATABASE__URL": to_text(postgres_url)})

    assert [path.name for path in folder.iterdir()] == ["secrets.yml"]


def test_schema_is_not_created_without_permission(folder: Path, url: URL) -> None:
    environ = {"MLAPI_DATABASE__URL": to_text(url)}
    with closing(sqlite3.connect(folder / "mlapi.db")) as connection:
        connection.execute("CREATE TABLE notes (text)")

    with (
        pytest.raises(ConfigurationError, match="contains no tables of mlapi"),
        open_users(load_settings(environ=environ), may_create=False),
    ):
        pass

    assert [path.name for path in folder.iterdir()] == ["mlapi.db"]


def test_production_requires_an_explicit_schema_upgrade(url: URL, caplog: pytest.LogCaptureFixture) -> None:
    environ = {**PRODUCTION, "MLAPI_DATABASE__URL": to_text(url)}

    if url.drivername == "sqlite":
        register_ada(environ)  # a local file is upgraded automatically
    else:
        with pytest.raises(ConfigurationError, match="run `mlapi db upgrade`"):
            register_ada(environ)
        result = CliRunner().invoke(main, ["db", "upgrade"], env=environ, catch_exceptions=False)
        assert (result.exit_code, result.output) == (0, f"schema: none -> {HEAD}\n")
        register_ada(environ)


def test_production_rejects_short_and_common_passwords() -> None:
    with open_users(load_settings(environ=PRODUCTION)) as users:
        for password in ["short", "Password1", "iloveyou", "mlapi-Admin.2026"]:
            with pytest.raises(InvalidFieldsError):
                users.register(username="ada", password=password, email="ada@example.com")

        users.register(username="ada", password="difference engine", email="ada@example.com")


@pytest.mark.parametrize(
    ("profile", "min_length"), [(SECRETS, 12), (PRODUCTION, 12)], ids=["development", "production"]
)
def test_minimum_password_length_is_configurable(profile: dict[str, str], min_length: int) -> None:
    environ = {**profile, "MLAPI_PASSWORDS__MIN_LENGTH": str(min_length)}
    with open_users(load_settings(environ=environ)) as users:
        with pytest.raises(InvalidFieldsError, match="at least 12 characters"):
            users.register(username="ada", password="x4Kp9zLw2Qv", email="ada@example.com")

        users.register(username="ada", password="x4Kp9zLw2Qvq", email="ada@example.com")


def test_startup_succeeds_while_the_database_is_unavailable(
    postgres: PostgresServer, postgres_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    environ = {"MLAPI_DATABASE__URL": to_text(postgres_url)}
    postgres.stop()
    with ExitStack() as stack:
        stack.callback(_ensure_running, postgres)
        with open_users(load_settings(environ=environ)) as users:
            with pytest.raises(RepositoryUnavailableError):
                users.find("ada")
            postgres.start()

            assert users.register(username="ada", password="x", email="ada@example.com").username == "ada"

    assert [record.levelno for record in caplog.records if "starting anyway" in record.message] == [logging.WARNING]


def _ensure_running(postgres: PostgresServer) -> None:
    if not postgres.is_running:
        postgres.start()


def test_open_database_provides_an_engine_for_reading_tables() -> None:
    register_ada({})
    database = open_database(load_settings(environ={}))

    with database.engine.connect() as connection:
        (row,) = connection.exec_driver_sql("SELECT username, password FROM users")
    database.close()

    assert row.username == "ada"
    assert row.password.startswith("gAAAA")


# --- the command line


def test_db_upgrade_reports_both_revisions() -> None:
    first = CliRunner().invoke(main, ["db", "upgrade"], catch_exceptions=False)
    second = CliRunner().invoke(main, ["db", "upgrade"], catch_exceptions=False)

    assert (first.exit_code, first.output) == (0, f"schema: none -> {HEAD}\n")
    assert (second.exit_code, second.output) == (0, f"schema: {HEAD} -> {HEAD}\n")


@pytest.mark.parametrize(
    "environ",
    [
        {"MLAPI_DATABASE__URL": "mysql://u:hunter2@h/d"},
        {"MLAPI_DATABASE__ULR": "x"},
        {"MLAPI_DATABASE__URL": "postgresql://u:hunter2@127.0.0.1:1/d"},
    ],
)
def test_db_upgrade_errors_are_one_line_and_exit_code_3(environ: dict[str, str]) -> None:
    result = CliRunner().invoke(main, ["db", "upgrade"], env=environ, catch_exceptions=False)

    assert result.exit_code == 3
    assert result.output.startswith("mlapi: ")
    assert result.output.count("\n") == 1
    assert "hunter2" not in result.output


def test_settings_are_read_from_the_environment_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "MLAPI_PASSWORDS__SCHEME", "fernet")

    assert load_settings().passwords.scheme == "fernet"


# --- memory://


def test_memory_storage_leaves_no_files(folder: Path) -> None:
    with open_service(load_settings(environ={"MLAPI_DATABASE__URL": "memory://"})) as service:
        service.users.register(username="ada", password="difference engine", email="ada@example.com")
        issued = service.access.authenticator.log_in(username="ada", password="difference engine")

        assert service.access.guard.check(issued.token).username == "ada"
    assert list(folder.iterdir()) == []


def test_memory_storage_has_no_engine() -> None:
    with pytest.raises(ConfigurationError, match="needs an SQLite or PostgreSQL database"):
        open_database(load_settings(environ={"MLAPI_DATABASE__URL": "memory://"}))
