"""Tests of `mlapi db check`: it reports problems in each kind of database and changes nothing."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import URL

from mlapi.adapters.sql.revisions import HEAD, VERSION_TABLE
from mlapi.bootstrap import check_database, open_users
from mlapi.config import load_settings
from mlapi.domain.users import utc_now
from mlapi.entrypoints.cli import main
from tests.conftest import KEY, OLDER_KEY, SALT
from tests.legacy_database import LEGACY, create_legacy_database, execute, snapshot

only_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)

HEALTHY = [
    "users table: belongs to mlapi",
    f"schema: revision {HEAD}, newest {HEAD}",
    "users: 2",
    "problem: none",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, url: URL, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, with the settings in the environment."""
    monkeypatch.chdir(tmp_path)
    configure(monkeypatch, url=url.render_as_string(hide_password=False), key=KEY, salt=SALT)
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", "fernet")
    return tmp_path


def configure(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    for name, value in settings.items():
        section = "DATABASE" if name == "url" else "SECRETS"
        monkeypatch.setenv(f"MLAPI_{section}__{name.upper()}", value)


@pytest.fixture
def two_users(url: URL) -> None:
    with open_users(load_settings()) as users:
        for name in ("ada", "José"):
            users.register(username=name, password="p", email="a@example.com")


def check(*options: str) -> Result:
    return CliRunner().invoke(main, ["db", "check", *options])


def problems() -> list[str]:
    result = check("--json")
    found: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == (3 if found["problems"] else 0)
    lines: list[str] = found["problems"]
    return lines


@pytest.mark.usefixtures("two_users")
def test_healthy_database_has_no_problems(url: URL) -> None:
    before = snapshot(url)

    result, as_json = check(), check("--json")

    assert snapshot(url) == before
    assert (result.exit_code, result.stdout.splitlines()) == (0, HEALTHY)
    assert json.loads(as_json.stdout) == {
        "kind": "mlapi",
        "revision": HEAD,
        "newest_revision": HEAD,
        "users": 2,
        "misnamed": [],
        "problems": [],
    }


@pytest.mark.usefixtures("two_users")
def test_database_in_use_can_be_checked(url: URL) -> None:
    with open_users(load_settings()) as users:
        users.register(username="bob", password="p", email="a@example.com")
        result = check()

    assert result.stdout.splitlines() == [*HEALTHY[:2], "users: 3", "problem: none"]


@pytest.mark.usefixtures("two_users")
def test_server_clock_and_latest_change_are_reported(url: URL) -> None:
    found = check_database(load_settings()).found

    assert found.latest_change is not None
    assert timedelta() <= utc_now() - found.latest_change < timedelta(minutes=5)
    if url.get_backend_name() == "sqlite":
        assert found.clock is None
    else:
        assert found.clock is not None
        assert abs(utc_now() - found.clock) < timedelta(minutes=5)


@only_sqlite
def test_missing_file_is_not_created(folder: Path) -> None:
    result = check()

    assert (result.exit_code, result.stdout) == (3, "")
    assert f"mlapi: there is no database at {folder}/mlapi.db: set MLAPI_CONFIG" in result.stderr
    assert list(folder.iterdir()) == []


def test_empty_database_needs_an_upgrade(url: URL) -> None:
    execute(url, "CREATE TABLE other (id INTEGER PRIMARY KEY)")

    result = check()

    assert (result.exit_code, result.stderr) == (3, "")
    assert result.stdout.splitlines() == [
        "users table: does not exist",
        f"schema: revision none, newest {HEAD}",
        "users: 0",
        "problem: the schema is outdated: run `mlapi db upgrade`",
    ]


def test_legacy_database_needs_adoption(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    create_legacy_database(url)
    before = snapshot(url)

    with_other_secrets = check()
    monkeypatch.delenv("MLAPI_SECRETS__KEY")
    without_key = problems()

    assert snapshot(url) == before
    assert with_other_secrets.stdout.splitlines() == [
        "users table: belongs to the legacy app",
        f"schema: revision none, newest {HEAD}",
        "users: 10",
        "problem: the legacy app's users have not been adopted yet: run `mlapi db adopt`",
        "problem: secrets.key and secrets.salt do not match 10 of 10 stored passwords",
    ]
    assert without_key[1].startswith("secrets.key is missing: ")
    assert not Path("secrets.yml").exists()


def test_adopted_database_has_no_problems(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, key=LEGACY["key"], salt=LEGACY["salt"])
    create_legacy_database(url)
    before = problems()
    CliRunner().invoke(main, ["db", "adopt"])

    assert before == ["the legacy app's users have not been adopted yet: run `mlapi db adopt`"]
    assert problems() == []


def test_users_table_of_another_program_is_reported(url: URL) -> None:
    execute(url, "CREATE TABLE users (id INTEGER PRIMARY KEY)")

    assert problems() == ["the table `users` belongs to another program: point database.url at a different database"]


@pytest.mark.usefixtures("two_users")
@pytest.mark.parametrize(
    ("revision", "problem"),
    [
        ("0001", "the schema is outdated: run `mlapi db upgrade`"),
        ("9999", "the schema was created by a newer version of mlapi: upgrade mlapi"),
    ],
)
def test_outdated_or_newer_schema_is_reported(url: URL, revision: str, problem: str) -> None:
    execute(url, f"UPDATE {VERSION_TABLE} SET version_num = '{revision}'")

    assert problems() == [problem]


@pytest.mark.usefixtures("two_users")
def test_wrong_key_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, key=OLDER_KEY)

    assert problems() == ["secrets.key or secrets.salt does not match this database's passwords"]


@pytest.mark.usefixtures("two_users")
def test_wrong_username_keys_are_reported(url: URL) -> None:
    execute(url, "UPDATE users SET username_key = username WHERE id = 2")

    assert problems() == ["users that cannot be found by name because their username_key is wrong: 1, ids 2"]


@only_sqlite
@pytest.mark.usefixtures("two_users")
def test_damaged_file_is_reported(url: URL) -> None:
    execute(
        url,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = 'mlapi_audit')"
        " WHERE name = 'ix_mlapi_audit_at'",
    )

    assert any(problem.startswith("the file is damaged: ") for problem in problems())


@only_sqlite
def test_file_that_is_not_a_database_is_reported_in_one_line(folder: Path) -> None:
    (folder / "mlapi.db").write_text("no database " * 100)

    result = check()

    line = "mlapi: the database is unavailable: the file is not a database (SQLITE_NOTADB)\n"
    assert (result.exit_code, result.stderr) == (3, line)


@only_sqlite
@pytest.mark.usefixtures("two_users")
def test_invalid_text_is_reported_but_not_shown(url: URL) -> None:
    execute(url, "UPDATE users SET username_key = CAST(x'63616e617279ff' AS TEXT) WHERE id = 1")

    result = check()

    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1].startswith("mlapi: ")
    assert "damaged" in result.stderr
    assert "canary" not in result.stderr
    assert "Traceback" not in result.stderr
