"""Back up a service under load, restore each backup, and kill both commands at every step."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import attrs
import pytest

from mlapi.bootstrap import open_users
from mlapi.config import DatabaseSettings, PasswordSettings, Settings
from tests.e2e.server import MlapiServer
from tests.torture import crash_points
from tests.torture.clients import call, new_user
from tests.torture.conftest import Report, ShortOrFull

CLIENTS = 4
CHEAP = {"MLAPI_PASSWORDS__SCHEME": "fernet"}


@attrs.define
class Registrar:
    """A client that registers one user after the other, and records the responses."""

    name: str
    statuses: list[int] = attrs.field(factory=list)

    def work(self, port: int, stop: threading.Event) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        while not stop.is_set():
            status, _ = call(connection, "POST", "/register-user", new_user(f"{self.name}-{len(self.statuses)}"))
            self.statuses.append(status)
        connection.close()


@contextmanager
def running(registrars: list[Registrar], port: int) -> Iterator[None]:
    stop = threading.Event()
    threads = [threading.Thread(target=registrar.work, args=(port, stop)) for registrar in registrars]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def users_in(folder: Path) -> list[str]:
    settings = Settings(
        database=DatabaseSettings(url=f"sqlite:///{folder}/mlapi.db"), passwords=PasswordSettings(scheme="fernet")
    )
    with open_users(settings, may_create=False) as users:
        return [user.username for user in users.iterate_users()]


def test_backups_under_load_contain_every_acknowledged_user(
    tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    service, backups = tmp_path / "service", tmp_path / "backups"
    service.mkdir()
    backups.mkdir()
    registrars = [Registrar(f"client{number}") for number in range(CLIENTS)]
    counts: list[tuple[list[int], list[int]]] = []

    with MlapiServer(service, CHEAP, "--no-access-log") as server, running(registrars, server.port):
        for number in range(short_or_full(3, 100)):
            before = [len(registrar.statuses) for registrar in registrars]
            assert crash_points.run(service, CHEAP, ["backup", str(backups / f"{number}.db")]) == 0
            counts.append((before, [len(registrar.statuses) + 1 for registrar in registrars]))

    assert {status for registrar in registrars for status in registrar.statuses} == {201}
    for number, (before, after) in enumerate(counts):
        restored = tmp_path / str(number)
        restored.mkdir()
        assert crash_points.run(restored, CHEAP, ["restore", str(backups / f"{number}.db"), "--yes"]) == 0
        names = users_in(restored)
        for registrar, least, most in zip(registrars, before, after, strict=True):
            found = [name for name in names if name.startswith(f"{registrar.name}-")]
            assert found == [f"{registrar.name}-{index}" for index in range(len(found))]
            assert least <= len(found) <= most
        shutil.rmtree(restored)
    registered = sum(len(registrar.statuses) for registrar in registrars)
    report(f"{len(counts)} backups during {registered:,} registrations: each restored with every acknowledged user")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a database that contains the user ``new``, and a backup of it that contains only ``old``."""
    folder = tmp_path / "template"
    folder.mkdir()
    settings = Settings(
        database=DatabaseSettings(url=f"sqlite:///{folder}/mlapi.db"), passwords=PasswordSettings(scheme="fernet")
    )
    with open_users(settings) as users:
        users.register(**new_user("old"))
    assert crash_points.run(folder, CHEAP, ["backup", "backup.db"]) == 0
    with open_users(settings) as users:
        users.register(**new_user("new"))
    return folder


@pytest.mark.parametrize(
    ("arguments", "possible"),
    [
        (["restore", "backup.db", "--yes", "--end-tokens"], [["old", "new"], ["old"]]),
        (["backup", "backup.db", "--force"], [["old", "new"]]),
    ],
    ids=["restore", "backup"],
)
def test_killed_command_leaves_a_usable_database(
    arguments: list[str], possible: list[list[str]], folder: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    kills, seen = 0, []
    for step in range(0, 1000, short_or_full(8, 1)):
        attempt = folder.with_name("attempt")
        shutil.copytree(folder, attempt)

        exit_code = crash_points.run(attempt, CHEAP, arguments, kill_at=step)

        names = users_in(attempt)
        assert names in possible
        seen.append(names)
        if arguments[0] == "backup":
            assert crash_points.run(attempt, CHEAP, ["restore", "backup.db", "--yes"]) == 0  # the backup is complete
        shutil.rmtree(attempt)
        if exit_code == 0:
            break
        assert exit_code == -9
        kills += 1
    assert kills > 0
    assert [names for names in possible if names not in seen] == []
    report(f"mlapi {arguments[0]} killed at {kills} steps: the database and the backup were complete each time")
