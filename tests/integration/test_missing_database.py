"""Only some commands create a database. The other commands name the missing path, and create no file."""

import os
from pathlib import Path

import pytest
from sqlalchemy import URL

from mlapi.adapters.fernet import HashingFernetCipher
from tests.command_line import mlapi
from tests.conftest import KEY, SALT
from tests.sample_settings import write


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "current"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", "fernet")
    return folder


READING = {
    "list": ("users", "list"),
    "show": ("users", "show", "ada"),
    "enable": ("users", "enable", "ada"),
    "disable": ("users", "disable", "ada"),
    "set-password": ("users", "set-password", "ada"),
    "export": ("users", "export", "--format", "csv", "-"),
    "rotate": ("secrets", "rotate"),
    "prune": ("secrets", "prune"),
    "check": ("db", "check"),
    "adopt": ("db", "adopt"),
}


@pytest.mark.parametrize("arguments", READING.values(), ids=READING)
def test_reading_command_names_the_missing_database(arguments: tuple[str, ...], folder: Path) -> None:
    result = mlapi(*arguments, stdin="a password\n")

    assert (result.exit_code, result.stdout) == (3, "")
    assert str(folder / "mlapi.db") in result.stderr
    assert "MLAPI_CONFIG" in result.stderr
    assert "MLAPI_DATABASE__URL" in result.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("arguments", READING.values(), ids=READING)
def test_reading_command_leaves_an_empty_file_alone(arguments: tuple[str, ...], folder: Path) -> None:
    (folder / "mlapi.db").touch()

    result = mlapi(*arguments, stdin="a password\n")

    assert (result.exit_code, result.stdout) == (3, "")
    assert f"the database {folder}/mlapi.db is empty (0 bytes)" in result.stderr
    assert [(path.name, path.stat().st_size) for path in folder.iterdir()] == [("mlapi.db", 0)]


def test_reading_command_creates_no_tables_on_a_server(
    folder: Path, postgres_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLAPI_DATABASE__URL", postgres_url.render_as_string(hide_password=False))

    for _ in range(2):
        result = mlapi("users", "list")
        assert (result.exit_code, result.stdout) == (3, "")
        assert "the database contains no tables of mlapi" in result.stderr
    assert list(folder.iterdir()) == []


def test_doctor_names_the_database_before_the_first_startup(folder: Path) -> None:
    result = mlapi("doctor")

    assert result.exit_code == 0
    assert f"none yet: mlapi creates {folder}/mlapi.db on first startup; if the service has one" in result.stdout
    assert list(folder.iterdir()) == []


def test_dry_run_without_a_database_checks_the_rows(folder: Path) -> None:
    rows = "username,email,password\nada,ada@example.com,battery\nbob,nonsense,battery\n"

    result = mlapi("users", "import", "--dry-run", "--format", "csv", "-", stdin=rows)

    assert result.exit_code == 4
    assert "1 imported" in result.stdout
    assert [path.name for path in folder.iterdir()] == ["import.rejects.jsonl"]


def test_dry_run_without_a_database_uses_configured_secrets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_SECRETS__KEY", KEY)
    monkeypatch.setenv("MLAPI_SECRETS__SALT", SALT)
    stored = HashingFernetCipher([KEY], SALT).encrypt("battery").value
    rows = f"username,email,stored_password\nada,ada@example.com,{stored}\n"

    result = mlapi("users", "import", "--dry-run", "--format", "csv", "-", stdin=rows)

    assert (result.exit_code, list(folder.iterdir())) == (0, [])
    assert "1 imported" in result.stdout


CREATING = {
    "add": ("users", "add", "ada", "ada@example.com"),
    "import": ("users", "import", "--format", "csv", "-"),
    "upgrade": ("db", "upgrade"),
}


@pytest.mark.parametrize("arguments", CREATING.values(), ids=CREATING)
def test_database_and_secrets_are_created(arguments: tuple[str, ...], folder: Path) -> None:
    stdin = "battery\n" if "add" in arguments else "username,email,password\nada,ada@example.com,battery\n"

    assert mlapi(*arguments, stdin=stdin).exit_code == 0

    assert sorted(path.name for path in folder.iterdir()) == ["mlapi.db", "secrets.yml"]
    listed = mlapi("users", "list")
    assert (listed.exit_code, "ada" in listed.stdout) == (0, "upgrade" not in arguments)


def test_commands_find_the_service_from_any_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = tmp_path / "service"
    service.mkdir()
    monkeypatch.setenv("MLAPI_CONFIG", str(write(service, "registration: {open: true}")))
    mlapi(*CREATING["add"], stdin="battery\n")

    monkeypatch.setenv("MLAPI_CONFIG", os.path.relpath(service / "config.yml"))

    assert "ada" in mlapi("users", "list").stdout
    assert list(folder.iterdir()) == []
    assert sorted(path.name for path in service.iterdir()) == ["config.yml", "mlapi.db", "secrets.yml"]


def test_missing_secrets_are_not_created_for_reading(folder: Path) -> None:
    mlapi("db", "upgrade")
    (folder / "secrets.yml").unlink()

    result = mlapi("users", "list")

    assert (result.exit_code, result.stdout) == (3, "")
    assert f"{folder}/secrets.yml is missing: `mlapi serve` and `mlapi db upgrade` create it" in result.stderr
    assert not (folder / "secrets.yml").exists()
