"""``mlapi managers``."""

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from mlapi.application.managers import ManagerRegistry
from mlapi.bootstrap import open_service
from mlapi.config import load_settings
from mlapi.domain.errors import ManagerNotFoundError
from mlapi.domain.users import utc_now
from tests.command_line import create_users, mlapi

TOKEN = r"mlapi-manager_[0-9a-f]{16}_[0-9a-f]{64}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", "fernet")
    return create_users(tmp_path, (), "difference engine")


def names() -> list[str]:
    with open_service(load_settings()) as service:
        return [manager.name for manager in service.managers.list_all()]


def actions() -> list[tuple[str, str]]:
    return [
        (entry["action"], entry["outcome"])
        for entry in map(json.loads, mlapi("audit", "list", "--json").stdout.splitlines())
    ]


def test_token_of_a_new_manager_is_the_only_output() -> None:
    result = mlapi("managers", "add", "alice", "--role", "viewer", "--expires", "2100-01-31")

    assert re.fullmatch(f"{TOKEN}\n", result.stdout)
    assert result.stderr == (
        "added manager alice (viewer); it expires at 2100-01-31 00:00 UTC; it cannot be shown again\n"
    )
    assert result.stdout.strip() not in mlapi("managers", "list", "--json").stdout
    assert re.fullmatch(
        r"alice +viewer +valid +\d{4}-\d\d-\d\d \d\d:\d\d +2100-01-31 00:00",
        mlapi("managers", "list").stdout.splitlines()[1],
    )


def test_manager_is_printed_as_json() -> None:
    added = json.loads(mlapi("managers", "add", "alice", "--role", "admin", "--json").stdout)
    rotated = json.loads(mlapi("managers", "rotate", "alice", "--expires", "+90d", "--json").stdout)
    (listed,) = map(json.loads, mlapi("managers", "list", "--json").stdout.splitlines())

    assert re.fullmatch(TOKEN, added.pop("token"))
    assert re.fullmatch(TOKEN, rotated.pop("token"))
    assert added == {"name": "alice", "role": "admin", "created_at": added["created_at"], "expires_at": None}
    assert (rotated, listed) == ({**added, "expires_at": rotated["expires_at"]}, rotated)


def test_empty_list_names_the_next_step() -> None:
    result = mlapi("managers", "list")

    assert result.stderr == "no managers yet: add one with `mlapi managers add NAME --role admin`\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "admin", "--role", "admin"], "name must not be admin, which is reserved"),
        (["add", "Alice", "--role", "admin"], "name must be 1 to 64 lower-case letters"),
        (["add", "alice"], "Missing option '--role'"),
        (["add", "alice", "--role", "owner"], "'owner' is not one of 'admin', 'viewer'"),
        (["add", "alice", "--role", "admin", "--expires", "2020-01-01"], "'2020-01-01' is not in the future"),
        (["rotate", "bob"], "manager bob does not exist"),
        (["remove", "bob", "--yes"], "manager bob does not exist"),
        (["remove", "bob"], "add --yes"),
        (["rotate", "mlapi-manager_CANARY"], "NAME must be the name of a manager"),
    ],
)
def test_invalid_command_is_rejected(arguments: list[str], message: str) -> None:
    result = mlapi("managers", *arguments)

    assert result.exit_code in {2, 3}
    assert (message in result.stderr, "CANARY" in result.stderr, names()) == (True, False, [])


def test_manager_can_be_added_only_once() -> None:
    mlapi("managers", "add", "alice", "--role", "viewer")

    result = mlapi("managers", "add", "alice", "--role", "admin")

    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("mlapi: manager alice already exists: choose another name")
    assert actions() == [("add_manager", "manager_exists"), ("add_manager", "done")]


def test_managers_are_removed_after_confirmation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("alice", "bob", "eve"):
        mlapi("managers", "add", name, "--role", "viewer")

    monkeypatch.setattr("mlapi.entrypoints.cli.managers.require_terminal", lambda: None)
    refused = mlapi("managers", "remove", "alice", stdin="n\n")
    kept = names()
    removed = mlapi("managers", "remove", "alice", "joe", "bob", "alice", stdin="y\n")

    assert (refused.exit_code, kept) == (3, ["alice", "bob", "eve"])
    assert (removed.exit_code, names()) == (4, ["eve"])
    assert "  alice (viewer)\n  bob (viewer)\n" in removed.stderr
    assert removed.stdout.endswith("removed manager alice\nremoved manager bob\n")


def test_manager_removed_by_another_process_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    mlapi("managers", "add", "alice", "--role", "viewer")

    def remove(_registry: ManagerRegistry, name: str) -> NoReturn:
        raise ManagerNotFoundError(name)

    monkeypatch.setattr(ManagerRegistry, "remove", remove)
    result = mlapi("managers", "remove", "alice", "--yes")

    assert (result.exit_code, "manager alice does not exist" in result.stderr) == (3, True)


def test_changes_of_managers_are_in_the_audit_trail() -> None:
    mlapi("managers", "add", "alice", "--role", "viewer", "--expires", "2100-01-31")
    mlapi("managers", "rotate", "alice")
    mlapi("managers", "remove", "alice", "--yes")

    lines = mlapi("audit", "list").stdout.splitlines()
    assert [line.split()[2] for line in lines[1:]] == ["remove_manager", "rotate_manager", "add_manager"]
    assert "manager: alice; role: viewer; token_expires_at: 2100-01-31T00:00:00Z" in lines[-1]


def test_doctor_lists_managers_and_expired_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    mlapi("managers", "add", "alice", "--role", "admin")
    mlapi("managers", "add", "bob", "--role", "viewer", "--expires", "+1d")
    healthy = mlapi("doctor").stdout
    monkeypatch.setattr("mlapi.entrypoints.cli.doctor.utc_now", lambda: utc_now() + timedelta(days=2))

    later = mlapi("doctor").stdout

    assert re.search(r"managers +alice \(admin\), bob \(viewer\)\n", healthy)
    assert "has expired" not in healthy
    assert "the token of bob has expired: issue another one with `mlapi managers rotate NAME --expires 90d`" in later


def test_expired_token_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    mlapi("managers", "add", "alice", "--role", "admin", "--expires", "+1d")
    monkeypatch.setattr("mlapi.entrypoints.cli.managers.utc_now", lambda: utc_now() + timedelta(days=2))

    assert mlapi("managers", "list").stdout.splitlines()[1].split()[:3] == ["alice", "admin", "expired"]
