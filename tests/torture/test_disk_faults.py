"""A disk that is full, read-only, slow or at fault, a file that is locked or damaged: the service says so, and goes on.

Faults are made by a layer under SQLite in the real server (`tests.torture.storage.Faults`), and where the test may
mount, by a file system that is really full or read-only.
"""

import os
import random
import secrets
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import attrs
import pytest
import requests
from click.testing import CliRunner
from sqlalchemy import URL

from mlapi.adapters.sql import Database, SqliteUserRepository, database_url
from mlapi.adapters.sql.sqlite.engine import enable_write_ahead_log
from mlapi.application.users import Users
from mlapi.bootstrap import open_users
from mlapi.config import DatabaseSettings, PasswordSettings, Settings
from mlapi.domain.commands import SetEnabled
from mlapi.domain.errors import ConfigurationError, RepositoryUnavailableError
from mlapi.domain.users import UserId, utc_now
from mlapi.entrypoints.cli import main
from mlapi.entrypoints.http.metrics import Metrics
from mlapi.secret_files import read_value
from mlapi.testing import PlainCipher
from tests.e2e.server import Server
from tests.torture import storage

ENVIRON = {"MLAPI_PASSWORDS__SCHEME": "fernet"}  # quick
PATIENCE = 10.0
"""Seconds within which every request is answered."""
BACK_WITHIN = 2.0
"""Seconds after the end of its cause within which an outage ends."""
CLIENTS = 5
"""One asks whether it is ready, one whether he is let in, the others change something."""

needs_layer = pytest.mark.skipif(storage.missing() is not None, reason=f"NO FAULT IS TRIED: {storage.missing()}")


@attrs.frozen
class Answer:
    at: float
    kind: str
    status: int
    seconds: float
    has_retry_after: bool


class Load:
    """Clients who ask one request after the other, until it is left."""

    def __init__(self, server: Server) -> None:
        self.base, self.prefix = server.base, secrets.token_hex(4)
        self.answers: list[Answer] = []
        self.acknowledged: dict[int, bool] = {}
        """The flag of each user, as his client was told last."""
        self.unsure: set[int] = set()
        """Whose last change was not acknowledged."""
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> Self:
        first = f"first-{self.prefix}"
        assert self._register(requests.Session(), first) is not None
        self.token = requests.post(f"{self.base}/token", json=log_in(first), timeout=20).json()["token"]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def since(self, begin: float) -> list[Answer]:
        return [answer for answer in self.answers if answer.at - answer.seconds >= begin]

    def changed_since(self, begin: float) -> float | None:
        """Return when the first change was acknowledged that was asked for since then."""
        return min(
            (answer.at for answer in self.since(begin) if answer.kind == "change" and answer.status < 300), default=None
        )

    def ask(self, session: requests.Session, kind: str, method: str, path: str, **more: Any) -> requests.Response:
        begin = time.monotonic()
        response = session.request(method, f"{self.base}{path}", timeout=20, **more)
        end = time.monotonic()
        self.answers.append(Answer(end, kind, response.status_code, end - begin, "Retry-After" in response.headers))
        return response

    def _register(self, session: requests.Session, name: str) -> int | None:
        response = self.ask(session, "change", "POST", "/register-user", json=body(name))
        if response.status_code != 201:
            return None
        user_id: int = response.json()["user_id"]
        self.acknowledged[user_id] = True
        return user_id

    def _run(self, client: int) -> None:
        session, number = requests.Session(), 0
        while not self._ended.wait(0.005):
            number += 1
            if client == 0:
                self.ask(session, "ready", "GET", "/health/ready")
            elif client == 1:
                self.ask(session, "guard", "GET", "/token_status", headers={"Authorization": f"Bearer {self.token}"})
                self.ask(session, "read", "GET", "/users?limit=1")
            else:
                self._change(session, f"user-{self.prefix}-{client}-{number}")

    def _change(self, session: requests.Session, name: str) -> None:
        user_id = self._register(session, name)
        if user_id is not None:
            self.unsure.add(user_id)
            if self.ask(session, "change", "PUT", f"/toggle-user-permission/{user_id}/0").status_code == 200:
                self.acknowledged[user_id] = False
                self.unsure.remove(user_id)


def body(name: str) -> dict[str, str]:
    return {"username": name, "password": "difference engine", "email": f"{name}@example.com"}


def log_in(name: str) -> dict[str, str]:
    return {"username": name, "password": "difference engine"}


def stored(folder: Path) -> dict[int, bool]:
    with closing(sqlite3.connect(folder / "mlapi.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT id, enabled, username_key FROM users").fetchall()
    assert len({key for *_, key in rows}) == len(rows)
    return {user_id: bool(enabled) for user_id, enabled, _ in rows}


def wait_until(condition: Callable[[], bool]) -> float:
    """Return the seconds until something is so; that it never is, is for others to say."""
    begin = time.monotonic()
    while not condition() and time.monotonic() - begin < PATIENCE:
        time.sleep(0.01)
    return time.monotonic() - begin


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all faults: it is never started again."""
    server = Server(tmp_path_factory.mktemp("faulty"), ENVIRON, "--factory", app="tests.torture.storage:faulty_app")
    try:
        yield server.start()
    finally:
        server.stop()


@attrs.frozen
class Outage:
    """What was seen of one, from the outside: the statuses of each kind of request, and seconds."""

    change: set[int]
    read: set[int]
    guard: set[int]
    ready: set[int]
    slowest: float
    back_after: float


def outage(server: Server, begin: Callable[[], object], end: Callable[[], object], lasts: float) -> Outage:
    """Let clients work before, during and after a fault; check what holds of every fault."""
    with Load(server) as load:
        time.sleep(0.2)
        begin()
        begun = time.monotonic()
        time.sleep(lasts)
        during = [answer for answer in load.answers if answer.at > begun + 0.1]  # none of before is under way then
        end()
        ended = time.monotonic()
        wait_until(lambda: load.changed_since(ended) is not None)
        time.sleep(0.2)
    back = load.changed_since(ended)
    assert back is not None
    users = stored(server.folder)
    assert {answer.status for answer in load.answers} <= {200, 201, 503}
    assert all(answer.has_retry_after for answer in load.answers if answer.status == 503)
    assert {answer.status for answer in load.since(back)} <= {200, 201}
    known = {user_id: flag for user_id, flag in load.acknowledged.items() if user_id not in load.unsure}
    assert {user_id: users.get(user_id) for user_id in known} == known
    assert load.unsure <= users.keys()
    assert "Traceback" not in server.log
    seen = {
        kind: {answer.status for answer in during if answer.kind == kind}
        for kind in ("change", "read", "guard", "ready")
    }
    return Outage(**seen, slowest=max(answer.seconds for answer in load.answers), back_after=back - ended)


def told(what: str, seen: Outage) -> str:
    return (
        f"{what}: changes {seen.change}, guarded calls {seen.guard}, ready {seen.ready} meanwhile, answered after"
        f" {seen.slowest:.2f} s at most, back {seen.back_after:.2f} s after its end; nothing acknowledged was lost"
    )


# --- faults of the disk, made by the layer


@needs_layer
@pytest.mark.parametrize(
    ("fault", "statuses"),
    [("full", {503}), ("read-only", {503}), ("fsync", {503}), ("read", {200, 201, 503}), ("hanging", {503})],
)
def test_a_disk_at_fault_refuses_changes_and_is_back_by_itself(
    fault: str, statuses: set[int], server: Server, times: Callable[[int, int], int], tell: Callable[[str], None]
) -> None:
    switch = server.folder / storage.SWITCH

    seen = outage(server, lambda: written(switch, fault), switch.unlink, times(1, 30) / 2)

    tell(told(f"errors of {fault}" if fault in {"fsync", "read"} else f"a disk that is {fault}", seen))
    assert seen.change <= statuses
    assert seen.guard <= ({200, 503} if fault == "read" else {200})  # what is read anew, and what is remembered
    assert seen.guard
    assert seen.ready <= ({200} if fault == "full" else {200, 503})
    assert seen.slowest < PATIENCE
    assert seen.back_after < BACK_WITHIN


def written(file: Path, text: str) -> None:
    """Write a whole file at once: it is read all the time."""
    draft = file.with_suffix(".new")
    draft.write_text(text)
    draft.replace(file)


# --- a lock


HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@needs_layer
def test_a_lock_that_another_process_holds_refuses_changes_and_not_who_reads(
    server: Server, times: Callable[[int, int], int], tell: Callable[[str], None]
) -> None:
    holders: list[subprocess.Popen[str]] = []

    def begin() -> None:
        holders.append(
            subprocess.Popen(
                [sys.executable, "-c", HOLD, str(server.folder / "mlapi.db")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert holders[0].stdout is not None
        assert holders[0].stdout.readline() == "locked\n"

    seen = outage(server, begin, lambda: holders.pop().communicate(), times(3, 6))

    tell(told("a lock that another process holds", seen))
    assert seen.change <= {503}
    assert seen.guard == {200}
    assert seen.ready <= {503}  # it waits for its turn, and then for the lock
    assert seen.slowest < PATIENCE
    assert seen.back_after < BACK_WITHIN


# --- a file system that is really full, or read-only


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder of 16 MiB, if the test may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system was filled: that takes a root who may mount one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_file_system_that_is_full_refuses_changes_until_there_is_room(
    small_disk: Path, times: Callable[[int, int], int], tell: Callable[[str], None]
) -> None:
    ballast = small_disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as stream:
            for size in (65536, 4096):
                with suppress(OSError):
                    while True:
                        stream.write(bytes(size))

    with Server(small_disk, ENVIRON) as server:
        seen = outage(server, fill, ballast.unlink, times(1, 5))

    tell(told("a file system without room", seen))
    assert 503 in seen.change
    assert (seen.guard, seen.ready) == ({200}, {200})
    assert seen.slowest < PATIENCE
    assert seen.back_after < BACK_WITHIN


def test_a_server_that_starts_on_a_read_only_file_system_serves_when_that_can_be_written(small_disk: Path) -> None:
    with open_users(settings_of(small_disk)) as users:
        ada = users.register(**body("ada"))
    remount(small_disk, "ro")

    with Server(small_disk.parent, {**ENVIRON, "MLAPI_DATABASE__URL": f"sqlite:///{small_disk}/mlapi.db"}) as server:
        refused = requests.post(f"{server.base}/register-user", json=body("grace"), timeout=PATIENCE)
        ready = requests.get(f"{server.base}/health/ready", timeout=PATIENCE)
        remount(small_disk, "rw")
        back = wait_until(lambda: registers(server, "grace"))

    assert (refused.status_code, ready.status_code) == (503, 503)
    assert back < BACK_WITHIN
    assert stored(small_disk) == {ada.id: True, ada.id + 1: True}
    assert "Traceback" not in server.log


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def settings_of(folder: Path) -> Settings:
    url = f"sqlite:///{folder}/mlapi.db"
    return Settings(database=DatabaseSettings(url=url), passwords=PasswordSettings(scheme="fernet"))


def registers(server: Server, name: str) -> bool:
    return requests.post(f"{server.base}/register-user", json=body(name), timeout=PATIENCE).status_code == 201


# --- a damaged file


def damage(file: Path, chance: random.Random) -> None:
    """Overwrite all but the first page."""
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.seek(4096)
        stream.write(chance.randbytes(size - 4096))


def put_back(copy: Path, folder: Path) -> None:
    """As `mlapi doctor` says."""
    for end in ("-wal", "-shm"):
        (folder / f"mlapi.db{end}").unlink(missing_ok=True)
    shutil.copy(copy, folder / "draft")
    (folder / "draft").replace(folder / "mlapi.db")


def test_a_file_that_is_damaged_is_refused_and_told_until_a_copy_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Callable[[str], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_users(settings_of(tmp_path)) as users:
        kept = {users.register(**body(f"user-{number}")).id: True for number in range(100)}
    shutil.copy("mlapi.db", "copy")
    damage(tmp_path / "mlapi.db", random.Random(1))
    paths = ["/users/1", "/users", "/audit", "/health/ready"]

    def statuses(server: Server) -> set[int]:
        answers = [requests.get(server.base + path, timeout=PATIENCE) for path in paths]
        answers.append(requests.post(f"{server.base}/register-user", json=body("ada"), timeout=PATIENCE))
        answers.append(requests.post(f"{server.base}/token", json=log_in("user-1"), timeout=PATIENCE))
        return {answer.status_code for answer in answers}

    with Server(tmp_path, ENVIRON) as server:  # it starts, as it would with any database that is away
        before_the_start = statuses(server)
        said = [CliRunner().invoke(main, command) for command in (["doctor"], ["db", "check"])]
        put_back(Path("copy"), tmp_path)
        first_back = wait_until(lambda: registers(server, "ada"))
        time.sleep(0.1)
        with closing(sqlite3.connect("mlapi.db")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy("mlapi.db", "copy")
        damage(tmp_path / "mlapi.db", random.Random(2))
        while_it_runs = [statuses(server) for _ in range(5)]
        put_back(Path("copy"), tmp_path)
        second_back = wait_until(lambda: registers(server, "grace"))

    assert before_the_start == {503}
    assert set().union(*while_it_runs) <= {200, 201, 401, 404, 409, 503}
    assert 503 in set().union(*while_it_runs)
    assert [result.exit_code for result in said] == [3, 3]
    assert "put back a copy of mlapi.db, and remove mlapi.db-wal and mlapi.db-shm" in said[0].stdout
    assert "Traceback" not in server.log
    assert "`mlapi doctor` looks at it" in server.log
    tell(f"a damaged file: no 500; back {max(first_back, second_back):.2f} s after a copy was put back at most")
    assert max(first_back, second_back) < BACK_WITHIN
    assert kept.items() <= stored(tmp_path).items()


@pytest.mark.parametrize(
    "damage", ["created_datetime = 'c4n4ry'", "email = CAST(x'63346e347279ff' AS TEXT)"], ids=["no time", "no UTF-8"]
)
def test_a_value_that_is_none_of_its_kind_is_unavailable_and_not_shown(damage: str, sqlite_database: Database) -> None:
    repository = SqliteUserRepository(sqlite_database)
    user = Users(repository, PlainCipher()).register(**body("ada"))
    with sqlite_database.writing() as connection:
        connection.exec_driver_sql(f"UPDATE users SET {damage}")
    repository.find_principals([UserId(user.id + 1)])  # opens what reads at once

    for read in (
        lambda: repository.get(user.id),
        lambda: repository.find_principals([user.id]),
        lambda: repository.find_principals_nowait([user.id]),
        lambda: repository.apply([SetEnabled(user_id=user.id, enabled=True, at=utc_now())]),
    ):
        with pytest.raises(RepositoryUnavailableError, match="contains unreadable data") as caught:
            read()
        assert "c4n4ry" not in str(caught.value)


def test_a_fault_of_ours_is_no_damage_of_a_server() -> None:
    database = Database(database_url("postgresql://host/database"))

    with pytest.raises(ValueError, match="ours"), database._translating_errors():
        raise ValueError("ours")
    database.close()


@pytest.mark.parametrize("fault", ["full", "sync"])
def test_a_log_that_was_left_is_written_back_before_anything_follows_it(
    fault: str, sqlite_database: Database, sqlite_url: URL
) -> None:
    with sqlite_database.writing() as connection:  # closes nothing: the log is left
        connection.exec_driver_sql("CREATE TABLE left (by TEXT)")
    copy = Path(str(sqlite_url.database)).with_name("copy")
    copy.mkdir()
    for end in ("", "-wal"):
        shutil.copy(f"{sqlite_url.database}{end}", copy / f"mlapi.db{end}")

    class Failing(storage.Layer):
        def before(self, call: storage.Call, path: Path) -> int:
            if path.parent != copy:
                return 0
            if fault == "full":
                return sqlite3.SQLITE_FULL if call == "write" else 0
            return 10 | 4 << 8 if call == "sync" else 0

        def after(self, call: storage.Call, path: Path, offset: int = 0, data: bytes = b"") -> None:
            pass

    url = sqlite_url.set(database=str(copy / "mlapi.db"))
    with storage.UnderSqlite(Failing()), Database(url) as database:
        found = None
        with suppress(RepositoryUnavailableError), database.reading() as connection:
            found = connection.exec_driver_sql("SELECT * FROM left").all()

    with Database(url) as database, database.reading():
        log = (copy / "mlapi.db-wal").stat().st_size
    assert (found, log) == ([] if fault == "full" else None, 0)


def test_a_disk_that_cannot_be_written_is_told_at_once() -> None:
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN

    def refused(_statement: str) -> None:
        raise error

    begin = time.monotonic()
    with pytest.raises(sqlite3.OperationalError):
        enable_write_ahead_log(refused, deadline=begin + 10)

    assert time.monotonic() - begin < 1


# --- other files


def test_a_fifo_in_the_place_of_a_file_with_secrets_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "secrets.yml", 0o600)

    with pytest.raises(ConfigurationError, match=r"secrets\.yml is no regular file"), open_users(settings_of(tmp_path)):
        pass
    with pytest.raises(ConfigurationError, match=r"MLAPI_SECRETS__KEY_FILE: .* is no regular file"):
        read_value(tmp_path / "secrets.yml", "MLAPI_SECRETS__KEY_FILE", is_secret=True)


def test_counts_that_are_cut_short_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import prometheus_client  # noqa: F401, PLC0415 - before it sees the folder: nothing of this process shall be in it

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    (tmp_path / "counter_1.db").write_bytes(b"")  # as one is for a moment that another process begins
    (tmp_path / "histogram_2.db").write_bytes((1000).to_bytes(8, "little"))
    another = "from mlapi.entrypoints.http.metrics import Metrics; Metrics().count_request('live', 'GET', 200, 0.1)"
    subprocess.run([sys.executable, "-c", another], check=True)

    shown = Metrics().exposition()

    assert b'mlapi_requests_total{endpoint="live",method="GET",status="200"} 1.0' in shown
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        f"the counts in {tmp_path}/{name} are left out" for name in ("counter_1.db", "histogram_2.db")
    ]


def test_a_disk_without_room_is_a_problem_to_the_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=4096))

    result = CliRunner().invoke(main, ["doctor"])

    assert result.exit_code == 3
    assert "nothing can be changed until there is more" in result.stdout
