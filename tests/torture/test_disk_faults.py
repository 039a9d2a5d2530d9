"""Disk faults, locked and damaged files: the service responds with 503 and recovers without a restart.

A layer below SQLite in the real server injects the faults (`tests.torture.simulated_disk.FaultyDisk`). If mounting
is permitted, some tests also use a real file system that is full or read-only.
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
import prometheus_client.values
import pytest
import requests
from click.testing import CliRunner
from sqlalchemy import URL

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.repository import SqliteUserRepository
from mlapi.adapters.sql.sqlite.connections import enable_write_ahead_log
from mlapi.adapters.sql.urls import database_url
from mlapi.application.users import Users
from mlapi.bootstrap import open_users
from mlapi.config import DatabaseSettings, PasswordSettings, Settings
from mlapi.config.files import read_mounted_value
from mlapi.domain.commands import SetEnabled
from mlapi.domain.errors import ConfigurationError, RepositoryUnavailableError
from mlapi.domain.users import UserId, utc_now
from mlapi.entrypoints.cli import main
from mlapi.entrypoints.http.metrics import Metrics
from mlapi.testing import PlainCipher
from tests.e2e.server import Server
from tests.torture import simulated_disk
from tests.torture.conftest import Report, ShortOrFull

ENVIRON = {"MLAPI_PASSWORDS__SCHEME": "fernet"}  # the fast scheme
RESPONSE_LIMIT_SECONDS = 10.0
RECOVERY_LIMIT_SECONDS = 2.0
"""Maximum time from the end of a fault to the first successful change."""
CLIENTS = 5
"""One client checks readiness, one uses a token, the others change users."""

needs_layer = pytest.mark.skipif(
    simulated_disk.get_unsupported_reason() is not None,
    reason=f"DISK FAULTS ARE NOT TESTED: {simulated_disk.get_unsupported_reason()}",
)


@attrs.frozen
class Response:
    at: float
    kind: str
    status: int
    seconds: float
    has_retry_after: bool


class Load:
    """Clients that send requests continuously during the block."""

    def __init__(self, server: Server) -> None:
        self.base, self.prefix = server.base, secrets.token_hex(4)
        self.responses: list[Response] = []
        self.acknowledged: dict[int, bool] = {}
        """Whether each user is enabled, according to the last acknowledged change."""
        self.unresolved: set[int] = set()
        """Ids of the users whose last change was not acknowledged."""
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> Self:
        first = f"first-{self.prefix}"
        assert self._register(requests.Session(), first) is not None
        self.token = requests.post(f"{self.base}/token", json=login_body(first), timeout=20).json()["token"]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def since(self, begin: float) -> list[Response]:
        """Return the responses to requests that were sent after ``begin``."""
        return [response for response in self.responses if response.at - response.seconds >= begin]

    def changed_since(self, begin: float) -> float | None:
        """Return when the first change that was sent after ``begin`` was acknowledged."""
        return min(
            (response.at for response in self.since(begin) if response.kind == "change" and response.status < 300),
            default=None,
        )

    def call(self, session: requests.Session, kind: str, method: str, path: str, **more: Any) -> requests.Response:
        begin = time.monotonic()
        response = session.request(method, f"{self.base}{path}", timeout=20, **more)
        end = time.monotonic()
        self.responses.append(Response(end, kind, response.status_code, end - begin, "Retry-After" in response.headers))
        return response

    def _register(self, session: requests.Session, name: str) -> int | None:
        response = self.call(session, "change", "POST", "/register-user", json=registration_body(name))
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
                self.call(session, "ready", "GET", "/health/ready")
            elif client == 1:
                self.call(session, "guard", "GET", "/token_status", headers={"Authorization": f"Bearer {self.token}"})
                self.call(session, "read", "GET", "/users?limit=1")
            else:
                self._change(session, f"user-{self.prefix}-{client}-{number}")

    def _change(self, session: requests.Session, name: str) -> None:
        user_id = self._register(session, name)
        if user_id is not None:
            self.unresolved.add(user_id)
            if self.call(session, "change", "PUT", f"/toggle-user-permission/{user_id}/0").status_code == 200:
                self.acknowledged[user_id] = False
                self.unresolved.remove(user_id)


def registration_body(name: str) -> dict[str, Any]:
    return {"username": name, "password": "difference engine", "email": f"{name}@example.com"}


def login_body(name: str) -> dict[str, str]:
    return {"username": name, "password": "difference engine"}


def read_users(folder: Path) -> dict[int, bool]:
    with closing(sqlite3.connect(folder / "mlapi.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT id, enabled, username_key FROM users").fetchall()
    assert len({key for *_, key in rows}) == len(rows)
    return {user_id: bool(enabled) for user_id, enabled, _ in rows}


def wait_until(condition: Callable[[], bool]) -> float:
    """Wait until the condition is true or the time limit is reached; return the elapsed seconds."""
    begin = time.monotonic()
    while not condition() and time.monotonic() - begin < RESPONSE_LIMIT_SECONDS:
        time.sleep(0.01)
    return time.monotonic() - begin


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all faults. It is never restarted."""
    server = Server(
        tmp_path_factory.mktemp("faulty"), ENVIRON, "--factory", app="tests.torture.simulated_disk:create_faulty_app"
    )
    try:
        yield server.start()
    finally:
        server.stop()


@attrs.frozen
class Outage:
    """The clients' observations: statuses during a fault by kind of request, slowest response, time to recover."""

    change: set[int]
    read: set[int]
    guard: set[int]
    ready: set[int]
    slowest_seconds: float
    recovery_seconds: float


def observe_outage(server: Server, begin: Callable[[], object], end: Callable[[], object], seconds: float) -> Outage:
    """Run clients before, during and after a fault; check the guarantees that hold for every fault."""
    with Load(server) as load:
        time.sleep(0.2)
        begin()
        begun = time.monotonic()
        time.sleep(seconds)
        wait_until(lambda: {response.kind for response in load.since(begun)} >= {"guard", "change"})
        during = load.since(begun)
        end()
        ended = time.monotonic()
        wait_until(lambda: load.changed_since(ended) is not None)
        time.sleep(0.2)
    recovered = load.changed_since(ended)
    assert recovered is not None
    users = read_users(server.folder)
    assert {response.status for response in load.responses} <= {200, 201, 503}
    assert all(response.has_retry_after for response in load.responses if response.status == 503)
    assert {response.status for response in load.since(recovered)} <= {200, 201}
    expected = {user_id: flag for user_id, flag in load.acknowledged.items() if user_id not in load.unresolved}
    assert {user_id: users.get(user_id) for user_id in expected} == expected
    assert load.unresolved <= users.keys()
    assert "Traceback" not in server.log
    statuses = {
        kind: {response.status for response in during if response.kind == kind}
        for kind in ("change", "read", "guard", "ready")
    }
    return Outage(
        **statuses,
        slowest_seconds=max(response.seconds for response in load.responses),
        recovery_seconds=recovered - ended,
    )


def describe(fault: str, outage: Outage) -> str:
    return (
        f"{fault}: changes {outage.change}, guarded calls {outage.guard}, ready {outage.ready}, slowest response"
        f" {outage.slowest_seconds:.2f} s, recovered after {outage.recovery_seconds:.2f} s, 0 acknowledged changes lost"
    )


# --- injected disk faults


@needs_layer
@pytest.mark.parametrize(
    ("fault", "statuses"),
    [("full", {503}), ("read-only", {503}), ("fsync", {503}), ("read", {200, 201, 503}), ("hanging", {503})],
)
def test_changes_are_rejected_while_the_disk_fault_lasts(
    fault: str, statuses: set[int], server: Server, short_or_full: ShortOrFull, report: Report
) -> None:
    switch = server.folder / simulated_disk.SWITCH

    outage = observe_outage(server, lambda: replace_file(switch, fault), switch.unlink, short_or_full(1, 30) / 2)

    report(describe(f"{fault} errors" if fault in {"fsync", "read"} else f"{fault} disk", outage))
    assert outage.change <= statuses
    # With read errors, users that are not cached get 503.
    assert outage.guard <= ({200, 503} if fault == "read" else {200})
    assert outage.change
    assert outage.guard
    assert outage.ready <= ({200} if fault == "full" else {200, 503})
    assert outage.slowest_seconds < RESPONSE_LIMIT_SECONDS
    assert outage.recovery_seconds < RECOVERY_LIMIT_SECONDS


def replace_file(file: Path, text: str) -> None:
    """Replace a file atomically: the server reads it before every disk access."""
    draft = file.with_suffix(".new")
    draft.write_text(text)
    draft.replace(file)


# --- locked file


LOCK_PROGRAM = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@needs_layer
def test_reads_are_served_while_the_database_file_is_locked(
    server: Server, short_or_full: ShortOrFull, report: Report
) -> None:
    processes: list[subprocess.Popen[str]] = []

    def begin() -> None:
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", LOCK_PROGRAM, str(server.folder / "mlapi.db")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert processes[0].stdout is not None
        assert processes[0].stdout.readline() == "locked\n"

    outage = observe_outage(server, begin, lambda: processes.pop().communicate(), short_or_full(3, 6))

    report(describe("database locked by another process", outage))
    assert outage.change <= {503}
    assert outage.guard == {200}
    assert outage.ready <= {503}  # readiness waits for the write slot and then for the lock
    assert outage.slowest_seconds < RESPONSE_LIMIT_SECONDS
    assert outage.recovery_seconds < RECOVERY_LIMIT_SECONDS


# --- full and read-only file systems


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A 16 MiB file system. Skips the test if mounting is not permitted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("not tested on a full file system: mounting one needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_changes_are_rejected_while_the_file_system_is_full(
    small_disk: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    ballast = small_disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as stream:
            for size in (65536, 4096):
                with suppress(OSError):
                    while True:
                        stream.write(bytes(size))

    with Server(small_disk, ENVIRON) as server:
        outage = observe_outage(server, fill, ballast.unlink, short_or_full(1, 5))

    report(describe("full file system", outage))
    assert 503 in outage.change
    assert (outage.guard, outage.ready) == ({200}, {200})
    assert outage.slowest_seconds < RESPONSE_LIMIT_SECONDS
    assert outage.recovery_seconds < RECOVERY_LIMIT_SECONDS


def test_service_started_on_a_read_only_disk_recovers(small_disk: Path) -> None:
    with open_users(make_settings(small_disk)) as users:
        ada = users.register(**registration_body("ada"))
    remount(small_disk, "ro")

    with Server(small_disk.parent, {**ENVIRON, "MLAPI_DATABASE__URL": f"sqlite:///{small_disk}/mlapi.db"}) as server:
        response = requests.post(
            f"{server.base}/register-user", json=registration_body("grace"), timeout=RESPONSE_LIMIT_SECONDS
        )
        ready = requests.get(f"{server.base}/health/ready", timeout=RESPONSE_LIMIT_SECONDS)
        remount(small_disk, "rw")
        recovery_seconds = wait_until(lambda: can_register(server, "grace"))

    assert (response.status_code, ready.status_code) == (503, 503)
    assert recovery_seconds < RECOVERY_LIMIT_SECONDS
    assert read_users(small_disk) == {ada.id: True, ada.id + 1: True}
    assert "Traceback" not in server.log


def remount(folder: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], check=True)


def make_settings(folder: Path) -> Settings:
    url = f"sqlite:///{folder}/mlapi.db"
    return Settings(database=DatabaseSettings(url=url), passwords=PasswordSettings(scheme="fernet"))


def can_register(server: Server, name: str) -> bool:
    return (
        requests.post(
            f"{server.base}/register-user", json=registration_body(name), timeout=RESPONSE_LIMIT_SECONDS
        ).status_code
        == 201
    )


# --- damaged files


def damage(file: Path, rng: random.Random) -> None:
    """Overwrite all pages except the first with random bytes."""
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.seek(4096)
        stream.write(rng.randbytes(size - 4096))


def restore(copy: Path, folder: Path) -> None:
    """Restore a copy of the database file, following the instructions of `mlapi doctor`."""
    for end in ("-wal", "-shm"):
        (folder / f"mlapi.db{end}").unlink(missing_ok=True)
    shutil.copy(copy, folder / "draft")
    (folder / "draft").replace(folder / "mlapi.db")


def test_damaged_file_is_reported_until_a_copy_is_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_users(make_settings(tmp_path)) as users:
        expected = {users.register(**registration_body(f"user-{number}")).id: True for number in range(100)}
    shutil.copy("mlapi.db", "copy")
    damage(tmp_path / "mlapi.db", random.Random(1))
    paths = ["/users/1", "/users", "/audit", "/health/ready"]

    def statuses(server: Server) -> set[int]:
        responses = [requests.get(server.base + path, timeout=RESPONSE_LIMIT_SECONDS) for path in paths]
        responses.append(
            requests.post(f"{server.base}/register-user", json=registration_body("ada"), timeout=RESPONSE_LIMIT_SECONDS)
        )
        responses.append(
            requests.post(f"{server.base}/token", json=login_body("user-1"), timeout=RESPONSE_LIMIT_SECONDS)
        )
        return {response.status_code for response in responses}

    with Server(tmp_path, ENVIRON) as server:  # starts even though the database is unavailable
        before_restore = statuses(server)
        results = [CliRunner().invoke(main, command) for command in (["doctor"], ["db", "check"])]
        restore(Path("copy"), tmp_path)
        first_recovery = wait_until(lambda: can_register(server, "ada"))
        time.sleep(0.1)
        with closing(sqlite3.connect("mlapi.db")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy("mlapi.db", "copy")
        damage(tmp_path / "mlapi.db", random.Random(2))
        while_running = [statuses(server) for _ in range(5)]
        restore(Path("copy"), tmp_path)
        second_recovery = wait_until(lambda: can_register(server, "grace"))

    assert before_restore == {503}
    assert set().union(*while_running) <= {200, 201, 401, 404, 409, 503}
    assert 503 in set().union(*while_running)
    assert [result.exit_code for result in results] == [3, 3]
    assert (
        "restore mlapi.db from a backup, and delete mlapi.db-wal, mlapi.db-shm, mlapi.db-journal" in results[0].stdout
    )
    assert "Traceback" not in server.log
    assert "run `mlapi doctor`" in server.log
    report(f"damaged file: no 500; recovered {max(first_recovery, second_recovery):.2f} s after a copy was restored")
    assert max(first_recovery, second_recovery) < RECOVERY_LIMIT_SECONDS
    assert expected.items() <= read_users(tmp_path).items()


@pytest.mark.parametrize(
    "assignment",
    ["created_datetime = 'c4n4ry'", "email = CAST(x'63346e347279ff' AS TEXT)"],
    ids=["invalid time", "invalid UTF-8"],
)
def test_malformed_value_is_reported_without_its_content(assignment: str, sqlite_database: Database) -> None:
    repository = SqliteUserRepository(sqlite_database)
    user = Users(repository, PlainCipher()).register(**registration_body("ada"))
    with sqlite_database.writing() as connection:
        connection.exec_driver_sql(f"UPDATE users SET {assignment}")
    repository.find_principals([UserId(user.id + 1)])  # opens the connection for non-blocking reads

    for read in (
        lambda: repository.get(user.id),
        lambda: repository.find_principals([user.id]),
        lambda: repository.find_principals_nowait([user.id]),
        lambda: repository.apply([SetEnabled(user_id=user.id, enabled=True, at=utc_now())]),
    ):
        with pytest.raises(RepositoryUnavailableError, match="contains unreadable data") as caught:
            read()
        assert "c4n4ry" not in str(caught.value)


def test_programming_error_is_not_reported_as_database_damage() -> None:
    database = Database(database_url("postgresql://host/database"))

    with pytest.raises(ValueError, match="a bug"), database._operation():
        raise ValueError("a bug")
    database.close()


@pytest.mark.parametrize("fault", ["full", "sync"])
def test_leftover_write_ahead_log_is_checkpointed_on_open(
    fault: str, sqlite_database: Database, sqlite_url: URL
) -> None:
    with sqlite_database.writing() as connection:  # the open connection keeps the write-ahead log
        connection.exec_driver_sql("CREATE TABLE leftover (name TEXT)")
    copy = Path(str(sqlite_url.database)).with_name("copy")
    copy.mkdir()
    for end in ("", "-wal"):
        shutil.copy(f"{sqlite_url.database}{end}", copy / f"mlapi.db{end}")

    class Failing(simulated_disk.Layer):
        def before(self, call: simulated_disk.Call, path: Path) -> int:
            if path.parent != copy:
                return 0
            if fault == "full":
                return sqlite3.SQLITE_FULL if call == "write" else 0
            return 10 | 4 << 8 if call == "sync" else 0

        def after(self, call: simulated_disk.Call, path: Path, offset: int = 0, data: bytes = b"") -> None:
            pass

    url = sqlite_url.set(database=str(copy / "mlapi.db"))
    with simulated_disk.SqliteLayer(Failing()), Database(url) as database:
        rows = None
        with suppress(RepositoryUnavailableError), database.reading() as connection:
            rows = connection.exec_driver_sql("SELECT * FROM leftover").all()

    with Database(url) as database, database.reading():
        log_bytes = (copy / "mlapi.db-wal").stat().st_size
    assert (rows, log_bytes) == ([] if fault == "full" else None, 0)


def test_opening_an_unwritable_database_is_not_retried() -> None:
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN

    def fail(_statement: str) -> None:
        raise error

    begin = time.monotonic()
    with pytest.raises(sqlite3.OperationalError):
        enable_write_ahead_log(fail, deadline=begin + 10)

    assert time.monotonic() - begin < 1


# --- other files


def test_fifo_is_rejected_as_secrets_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "secrets.yml", 0o600)

    with (
        pytest.raises(ConfigurationError, match=r"secrets\.yml is not a regular file"),
        open_users(make_settings(tmp_path)),
    ):
        pass
    with pytest.raises(ConfigurationError, match=r"MLAPI_SECRETS__KEY_FILE: .* is not a regular file"):
        read_mounted_value(tmp_path / "secrets.yml", "MLAPI_SECRETS__KEY_FILE", is_secret=True)


def test_truncated_metrics_files_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(prometheus_client.values, "ValueClass", prometheus_client.values.MultiProcessValue())  # type: ignore[no-untyped-call]  # of prometheus_client
    (tmp_path / "counter_1.db").write_bytes(b"")  # created by another process, but still empty
    (tmp_path / "histogram_2.db").write_bytes((1000).to_bytes(8, "little"))
    program = "from mlapi.entrypoints.http.metrics import Metrics; Metrics().count_request('live', 'GET', 200, 0.1)"
    subprocess.run([sys.executable, "-c", program], check=True)

    exposition = Metrics().exposition()

    assert b'mlapi_requests_total{endpoint="live",method="GET",status="200"} 1.0' in exposition
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        f"metrics file {tmp_path}/{name} is unreadable and was skipped" for name in ("counter_1.db", "histogram_2.db")
    ]


def test_doctor_reports_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=4096))

    result = CliRunner().invoke(main, ["doctor"])

    assert result.exit_code == 3
    assert "changes fail until you free space" in result.stdout
