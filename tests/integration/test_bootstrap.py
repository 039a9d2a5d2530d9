"""From settings to users: what a first start makes, and what refuses one."""

import logging
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import URL

from mlapi import ConfigurationError, InvalidFieldsError, RepositoryUnavailableError
from mlapi.adapters.sql.schema import HEAD
from mlapi.bootstrap import open_database, open_service, open_users
from mlapi.config import load_settings
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


def text_of(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def test_a_first_start_makes_database_and_secrets_side_by_side(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    register_ada({})

    made = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert made == {"mlapi.db": 0o600, "secrets.yml": 0o600}
    assert f"generated a key and a salt in {folder}/secrets.yml" in caplog.text


def test_a_first_start_has_no_user_and_no_admin_token(folder: Path) -> None:
    with open_service(load_settings()) as opened:
        assert opened.users.list_page() == []
        assert opened.settings.secrets.admin_token is None


def test_a_second_start_finds_the_same_users_and_secrets(folder: Path) -> None:
    register_ada({})
    secrets = (folder / "secrets.yml").read_text()

    with open_users(load_settings(environ={})) as users:
        ada = users.find("ADA")

        assert ada is not None
        assert users.cipher.matches("difference engine", ada.password)
    assert (folder / "secrets.yml").read_text() == secrets


def test_secrets_that_are_given_are_not_made(folder: Path) -> None:
    register_ada(SECRETS)

    assert not (folder / "secrets.yml").exists()


def test_lost_secrets_are_not_replaced_by_others(folder: Path) -> None:
    register_ada({})
    (folder / "secrets.yml").unlink()

    with pytest.raises(ConfigurationError, match=r"secrets\.yml is missing, and the passwords in this database"):
        register_ada({})

    assert not (folder / "secrets.yml").exists()


def test_a_database_made_by_the_command_line_gets_its_secrets_at_the_first_start(folder: Path) -> None:
    CliRunner().invoke(main, ["db", "upgrade"], catch_exceptions=False)

    register_ada({})

    assert (folder / "secrets.yml").exists()


@pytest.mark.parametrize("wrong", [{"MLAPI_SECRETS__SALT": "another"}, {"MLAPI_SECRETS__KEY": OLDER_KEY}])
def test_another_key_or_salt_is_refused(wrong: dict[str, str], url: URL) -> None:
    environ = {**SECRETS, "MLAPI_DATABASE__URL": text_of(url)}
    register_ada(environ)

    with pytest.raises(ConfigurationError, match="not the one that this database's passwords were encrypted with"):
        register_ada({**environ, **wrong})


def test_the_scheme_may_change_and_a_start_warns_of_the_reversible_one(caplog: pytest.LogCaptureFixture) -> None:
    register_ada(SECRETS)
    assert "fernet" not in caplog.text

    with open_users(load_settings(environ={**SECRETS, "MLAPI_PASSWORDS__SCHEME": "fernet"})) as users:
        ada = users.find("ada")

        assert ada is not None
        assert users.cipher.matches("difference engine", ada.password)
        bob = users.register(username="bob", password="x", email="bob@example.com")
        assert "|" not in bob.password.value
    assert "anyone with the key can decrypt every password" in caplog.text


def test_the_connection_block_of_the_origin_connects(postgres: PostgresServer, postgres_url: URL, folder: Path) -> None:
    Path("config.yml").write_text(
        f"secrets: {{key: {KEY}, salt: {SALT}}}\n"
        f"connection: {{username: mlapi, password: '{postgres_url.password}', host: 127.0.0.1,"
        f" port: {postgres.port}, database: {postgres_url.database}}}\n"
    )
    Path("config.yml").chmod(0o600)

    register_ada({})

    assert postgres.execute("SELECT username FROM users", str(postgres_url.database)) == [("ada",)]


def test_a_postgresql_without_folder_keeps_its_secrets_in_the_working_folder(folder: Path, postgres_url: URL) -> None:
    register_ada({"MLAPI_DATABASE__URL": text_of(postgres_url)})

    assert [path.name for path in folder.iterdir()] == ["secrets.yml"]


def test_production_asks_for_the_schema_to_be_brought_up_by_hand(url: URL, caplog: pytest.LogCaptureFixture) -> None:
    environ = {**PRODUCTION, "MLAPI_DATABASE__URL": text_of(url)}

    if url.drivername == "sqlite":
        register_ada(environ)  # nobody else can be using a file of ours
    else:
        with pytest.raises(ConfigurationError, match="run `mlapi db upgrade`"):
            register_ada(environ)
        result = CliRunner().invoke(main, ["db", "upgrade"], env=environ, catch_exceptions=False)
        assert (result.exit_code, result.output) == (0, f"schema: none -> {HEAD}\n")
        register_ada(environ)


def test_production_refuses_short_and_common_passwords() -> None:
    with open_users(load_settings(environ=PRODUCTION)) as users:
        for password in ["short", "Password1", "iloveyou", "mlapi-Admin.2026"]:
            with pytest.raises(InvalidFieldsError):
                users.register(username="ada", password=password, email="ada@example.com")

        users.register(username="ada", password="difference engine", email="ada@example.com")


@pytest.mark.parametrize(("profile", "shortest"), [(SECRETS, 12), (PRODUCTION, 12)], ids=["development", "production"])
def test_the_least_length_of_a_password_can_be_set(profile: dict[str, str], shortest: int) -> None:
    environ = {**profile, "MLAPI_PASSWORDS__MIN_LENGTH": str(shortest)}
    with open_users(load_settings(environ=environ)) as users:
        with pytest.raises(InvalidFieldsError, match="at least 12 characters"):
            users.register(username="ada", password="x4Kp9zLw2Qv", email="ada@example.com")

        users.register(username="ada", password="x4Kp9zLw2Qvq", email="ada@example.com")


def test_a_database_that_is_away_does_not_hinder_a_start(
    postgres: PostgresServer, postgres_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    environ = {"MLAPI_DATABASE__URL": text_of(postgres_url)}
    postgres.stop()
    with ExitStack() as started:
        started.callback(_started, postgres)
        with open_users(load_settings(environ=environ)) as users:
            with pytest.raises(RepositoryUnavailableError):
                users.find("ada")
            postgres.start()

            assert users.register(username="ada", password="x", email="ada@example.com").username == "ada"

    assert [record.levelno for record in caplog.records if "starting anyway" in record.message] == [logging.WARNING]


def _started(postgres: PostgresServer) -> None:
    if not postgres.is_running:
        postgres.start()


def test_an_engine_for_those_who_read_tables_is_at_hand() -> None:
    register_ada({})
    database = open_database(load_settings(environ={}))

    with database.engine.connect() as connection:
        (row,) = connection.exec_driver_sql("SELECT username, password FROM users")
    database.close()

    assert row.username == "ada"
    assert row.password.startswith("gAAAA")


# --- the command line


def test_the_command_line_upgrades_and_says_so() -> None:
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
def test_the_command_line_refuses_in_one_line_with_exit_code_3(environ: dict[str, str]) -> None:
    result = CliRunner().invoke(main, ["db", "upgrade"], env=environ, catch_exceptions=False)

    assert result.exit_code == 3
    assert result.output.startswith("mlapi: ")
    assert result.output.count("\n") == 1
    assert "hunter2" not in result.output


def test_settings_are_read_from_the_environment_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "MLAPI_PASSWORDS__SCHEME", "fernet")

    assert load_settings().passwords.scheme == "fernet"
