"""Run the contract suite against the backend, and test the journal file, the service and the command line."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import requests
from examples.own_adapter.storage import JournalStorage
from tests.e2e.server import Server

from mlapi import ApiKey, AuditEntry, ConfigurationError, RepositoryUnavailableError, User, Users
from mlapi.domain.storage import Storage
from mlapi.testing import PlainCipher, StorageContract

ROOT = Path(__file__).parents[2]


class TestJournalStorage(StorageContract):
    @pytest.fixture
    def open_storage(self, tmp_path: Path) -> Callable[[], Storage]:
        return lambda: JournalStorage(tmp_path / "users.jsonl")


# --- the service and the command line


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"MLAPI_DATABASE__URL": f"journal://{tmp_path}/users.jsonl", "PYTHONPATH": str(ROOT)}


def test_users_survive_a_restart_of_the_service(tmp_path: Path, environ: dict[str, str]) -> None:
    ada, bob = ({"username": name, "password": f"password of {name}"} for name in ("ada", "bob"))
    server = Server(tmp_path, environ, app="examples.own_adapter.app:app").start()
    try:
        registered = requests.post(f"{server.base}/register-user", json={**ada, "email": "ada@example.com"}, timeout=10)
        requests.post(f"{server.base}/register-user", json={**bob, "email": "bob@example.com"}, timeout=10)
        logged_in = requests.post(f"{server.base}/token", json=ada, timeout=10)
        disabled = requests.put(f"{server.base}/toggle-user-permission/2/0", timeout=10)

        server.stop()
        server.start()

        again = requests.post(f"{server.base}/register-user", json={**ada, "email": "ada@example.com"}, timeout=10)
        headers = {"Authorization": f"Bearer {logged_in.json()['token']}"}
        status = requests.get(f"{server.base}/token_status", headers=headers, timeout=10)
        log_ins = [requests.post(f"{server.base}/token", json=user, timeout=10).status_code for user in (ada, bob)]
    finally:
        server.stop()

    assert [response.status_code for response in (registered, logged_in, disabled)] == [201, 200, 200]
    assert (again.status_code, again.json()["user_id"]) == (409, registered.json()["user_id"])
    assert status.json() == {"message": "Token is valid"}
    assert log_ins == [200, 403]


def test_command_line_uses_the_journal(tmp_path: Path, environ: dict[str, str]) -> None:
    def mlapi(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "examples.own_adapter.app", *arguments]
        return subprocess.run(  # noqa: S603 - our own module
            command, cwd=tmp_path, env={**os.environ, **environ}, capture_output=True, text=True, check=False
        )

    missing = mlapi("users", "list")
    created = mlapi("db", "upgrade")
    checked = mlapi("db", "check")

    assert (missing.returncode, "there is no database at" in missing.stderr) == (3, True)
    assert created.returncode == 0
    assert ("users: 0" in checked.stdout, checked.returncode) == (True, 0)


def test_installed_package_is_registered_by_its_entry_point(tmp_path: Path, environ: dict[str, str]) -> None:
    package = tmp_path / "packages" / "own_adapter-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.4\nName: own-adapter\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[mlapi.storages]\njournal = examples.own_adapter.storage:JournalStorage.from_url\n"
    )
    environ["PYTHONPATH"] += os.pathsep + str(package.parent)

    server = Server(tmp_path, environ).start()
    try:
        response = requests.get(f"{server.base}/health/ready", timeout=10)
    finally:
        server.stop()

    assert response.status_code == 200
    assert (tmp_path / "users.jsonl").exists()


@pytest.mark.parametrize("url", ["journal://", "journal:///nowhere/users.jsonl", "journal:///tmp", "other://x"])
def test_url_without_a_file_is_rejected(url: str) -> None:
    with pytest.raises(ConfigurationError, match="the path of a file in an existing folder"):
        JournalStorage.from_url(url)


# --- the journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with the user ada, who was disabled and has an API key."""
    path = tmp_path / "users.jsonl"
    with open_journal(path) as storage:
        users = Users(storage.users, PlainCipher())
        ada = users.register(username="ada", password="difference engine", email="ada@example.com")
        users.set_enabled(user_id=ada.id, enabled=False)
        users.add_api_key(user_id=ada.id, name="nightly job")
    return path


@contextmanager
def open_journal(path: Path) -> Iterator[JournalStorage]:
    with closing(JournalStorage(path)) as storage:
        storage.prepare(may_upgrade=True)
        yield storage


def read_contents(path: Path) -> tuple[list[User], list[ApiKey], list[AuditEntry]]:
    with open_journal(path) as storage:
        users = Users(storage.users, PlainCipher()).list_page()
        keys = [key for user in users for key in storage.users.list_api_keys(user.id)]
        return users, keys, storage.users.audit.list_page(limit=100)


@contextmanager
def limit_file_size(size: int) -> Iterator[None]:
    """Limit the size of the files that this process can write, in bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_reopened_journal_has_the_same_users(path: Path) -> None:
    (ada,), (key,), entries = first = read_contents(path)

    assert (ada.username, ada.enabled, key.name, len(entries)) == ("ada", False, "nightly job", 3)
    assert read_contents(path) == first


def test_incomplete_last_line_is_ignored(path: Path) -> None:
    before = read_contents(path)
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines()[0][:-7])

    assert read_contents(path) == before
    assert path.read_bytes().endswith(b"]\n")


@pytest.mark.parametrize(
    "damage", [b"[", b'[["Invent", {}]]', b'[["Remove", {}]]', b'[["Remove", {"user_id": "x"}]]', b"7"]
)
def test_error_names_the_damaged_line(path: Path, damage: bytes) -> None:
    with path.open("ab") as file:
        file.write(damage + b"\n")

    with pytest.raises(ConfigurationError, match=r"line 4 of .*users\.jsonl is damaged"):
        read_contents(path)


def test_purged_entries_stay_purged(path: Path) -> None:
    with open_journal(path) as storage:
        trail = storage.users.audit
        (_, _, oldest) = trail.list_page(limit=3)
        purged = trail.purge(before=oldest.at + timedelta(days=1), limit=2)
        left = trail.list_page(limit=3)

    assert (purged, len(left)) == (2, 1)
    assert read_contents(path)[-1] == left


def test_only_one_storage_can_open_a_journal(path: Path) -> None:
    with open_journal(path), pytest.raises(ConfigurationError, match="is open in another process"):
        JournalStorage(path).prepare(may_upgrade=True)


def test_journal_can_be_inspected_while_it_is_open(path: Path) -> None:
    with open_journal(path):
        found = JournalStorage(path).inspect(find_password_error=None)

    assert found.users == 1


def test_command_is_not_applied_when_the_disk_is_full(path: Path) -> None:
    before = read_contents(path)
    with open_journal(path) as storage:
        users = Users(storage.users, PlainCipher())

        with (
            limit_file_size(path.stat().st_size + 10),
            pytest.raises(RepositoryUnavailableError, match="No space left"),
        ):
            users.register(username="eve", password="x", email="eve@example.com")

        assert users.find("eve") is None
        with pytest.raises(RepositoryUnavailableError, match="the journal is closed"):
            users.check()

    assert read_contents(path) == before


def test_only_the_owner_may_read_the_journal(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
