"""Services that are opened before ``os.fork`` work in the parent and in all children, on SQLite and PostgreSQL."""

import gc
import multiprocessing.process
import multiprocessing.util
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import URL

from mlapi import RepositoryUnavailableError, TooManyAttemptsError, Users, forks
from mlapi.adapters.memory import InMemoryAttempts, InMemoryUsage, InMemoryUserRepository, PlainCipher
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.schema import upgrade
from mlapi.adapters.sql.storage import SqlStorage
from mlapi.adapters.sql.urls import database_url
from mlapi.application.login_throttle import AttemptLimits, FixedWindowAttemptLimiter
from mlapi.application.preparation import Preparation
from mlapi.application.retention import Retention, RetentionRule
from mlapi.application.usage import BackgroundUsage
from mlapi.domain.attempts import Attempt
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.credentials import ApiKey, ApiKeyId
from mlapi.domain.users import UserId, utc_now
from tests.conftest import KEY, SALT
from tests.integration import forking_script

CHILDREN = 3
ROUNDS = 8


def test_every_check_after_a_fork_finds_the_right_user(url: URL) -> None:
    environ = {
        **os.environ,
        "MLAPI_DATABASE__URL": url.render_as_string(hide_password=False),
        "MLAPI_SECRETS__KEY": KEY,
        "MLAPI_SECRETS__SALT": SALT,
        "MLAPI_PASSWORDS__SCHEME": "fernet",  # faster
    }
    command = [sys.executable, "-m", forking_script.__name__, str(CHILDREN), str(ROUNDS)]

    run = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)

    assert run.returncode == 0, run.stderr
    checks = dict(line.split() for line in run.stdout.splitlines())
    assert set(checks) == set(forking_script.WORK)
    assert min(map(int, checks.values())) > CHILDREN * ROUNDS


PRELOADING_SCRIPT = """
import os, sys
from contextlib import ExitStack
from mlapi.bootstrap import open_guard
from mlapi.config import load_settings

guard = ExitStack().enter_context(open_guard(load_settings()))  # never closed, as in gunicorn --preload
for _ in range(5):
    guard.check(sys.argv[1])
if any(os.fork() == 0 for _ in range(3)):
    for _ in range(7):
        guard.check(sys.argv[1])
    sys.exit()
for _ in range(3):
    os.wait()
"""


def test_usage_of_parent_and_children_is_counted_once(url: URL) -> None:
    with Database(url) as database:
        upgrade(database)
        storage = SqlStorage(database)
        users = Users(storage.users, PlainCipher())
        ada = users.register(username="ada", password="difference engine", email="ada@example.com")
        key, secret = users.add_api_key(user_id=ada.id, name="test")
        environ = {**os.environ, "MLAPI_DATABASE__URL": url.render_as_string(hide_password=False)}

        run = subprocess.run(
            [sys.executable, "-c", PRELOADING_SCRIPT, secret], env=environ, capture_output=True, text=True, check=True
        )

        rows = storage.usage.list_page(limit=9)
    assert "usage" not in run.stderr
    assert [(row.user_id, row.key_id, row.requests) for row in rows] == [(ada.id, key.id, 5 + 3 * 7)]


def run_in_child(function: Callable[[], object]) -> str:
    """Return what a function returns in a forked child, or the text of its error."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            result = str(function())
        except BaseException as error:  # noqa: BLE001 - sent to the parent
            result = repr(error)
        os.write(writing, result.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    return text


def test_child_does_not_count_running_attempts_of_its_parent() -> None:
    limiter = FixedWindowAttemptLimiter(InMemoryAttempts(), AttemptLimits(per_name_and_address=2))
    for _ in range(2):
        limiter.start(Attempt(username="ada", address="192.0.2.1"))

    def start() -> str:
        limiter.start(Attempt(username="ada", address="192.0.2.1"))
        return "started"

    with pytest.raises(TooManyAttemptsError):
        start()
    assert run_in_child(start) == "started"


def select_one(database: Database) -> object:
    return database.read(lambda connection: connection.exec_driver_sql("SELECT 1").scalar())


def test_child_does_not_share_or_end_sessions_of_its_parent(postgres_database: Database) -> None:
    def session() -> int:
        pid: int = postgres_database.read_batch(lambda connection: connection.info.backend_pid)
        return pid

    before = session()

    in_child = run_in_child(session)

    assert in_child.isdigit()
    assert int(in_child) != before
    assert session() == before


def test_child_uses_no_sqlite_connection_of_its_parent(sqlite_database: Database) -> None:
    file = os.path.realpath(sqlite_database.engine.url.database or "")

    def open_files() -> list[str]:
        targets = [os.path.realpath(descriptor) for descriptor in Path("/proc/self/fd").iterdir()]
        return [target for target in targets if target.startswith(file)]

    select_one(sqlite_database)
    assert open_files()

    assert run_in_child(open_files) == "[]"
    assert select_one(sqlite_database) == 1


def test_fork_waits_for_a_transaction_of_another_thread(database: Database) -> None:
    started, ended = threading.Event(), []

    def write() -> None:
        with database.writing():
            started.set()
            time.sleep(0.2)
            ended.append(True)

    writing = threading.Thread(target=write)
    writing.start()
    started.wait()

    in_child = run_in_child(lambda: (bool(ended), select_one(database)))
    writing.join()

    assert in_child == "(True, 1)"


def test_sqlite_refuses_a_child_forked_during_a_transaction(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlapi.adapters.sql.pools._FORK_TIMEOUT_SECONDS", 0.05)
    with sqlite_database.reading():
        in_child = run_in_child(lambda: select_one(sqlite_database))

    assert "forked during a transaction" in in_child
    assert select_one(sqlite_database) == 1


@pytest.fixture
def unclosed_connections() -> Iterator[None]:
    """Accept that a child does not close connections of its parent: Python 3.13 warns about those of SQLite."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def become_child() -> None:
    """Run Python's fork hooks for a child in this process."""
    forks._pause_all()
    forks._state.lock.release()
    forks._restart()


@pytest.mark.usefixtures("unclosed_connections")
def test_child_refuses_an_sqlite_file_after_a_torn_transaction(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlapi.adapters.sql.pools._FORK_TIMEOUT_SECONDS", 0.05)
    with sqlite_database.reading():
        become_child()

    with pytest.raises(RepositoryUnavailableError, match="fork before or after it"):
        select_one(sqlite_database)


def test_lock_of_another_thread_is_free_in_a_child() -> None:
    lock = forks.new_lock()
    lock.acquire()

    assert run_in_child(lambda: lock.acquire(blocking=False)) == "True"
    assert lock.locked()


def test_retention_can_be_closed_in_a_child() -> None:
    retention = Retention([RetentionRule.for_audit(InMemoryUserRepository().audit, timedelta(days=1))])

    assert run_in_child(retention.close) == "None"
    retention.close()
    become_child()
    retention.close()


@pytest.mark.usefixtures("unclosed_connections")
def test_fork_without_hooks_is_noticed_by_the_process_id(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = database.engine
    select_one(database)
    monkeypatch.setattr(forks._state, "pid", 1)  # as if this was a child

    assert select_one(database) == 1
    assert database.engine is not engine
    engine.dispose()


OPEN_IN_CHILD = """
import gc
import os
from mlapi.bootstrap import open_guard
from mlapi.config import load_settings

if (pid := os.fork()) == 0:
    with open_guard(load_settings()) as guard:
        guard.repository.find_principals([1])
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_guard_that_is_first_opened_in_a_child_works(tmp_path: Path) -> None:
    environ = {**os.environ, "MLAPI_SECRETS__KEY": KEY, "MLAPI_SECRETS__SALT": SALT}
    with Database(database_url(f"sqlite:///{tmp_path}/mlapi.db")) as database:
        upgrade(database)
    command = [sys.executable, "-c", OPEN_IN_CHILD]

    run = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("is_new", [True, False])
def test_noticed_fork_keeps_the_lock_of_a_preparation(*, is_new: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    preparation = Preparation(forks.notice_fork)
    monkeypatch.setattr(forks._state, "pid", 1)  # as if this was a child
    if is_new:
        preparation = Preparation(forks.notice_fork)

    preparation.ensure()

    assert preparation.is_done


def test_child_leaves_collected_uses_of_api_keys_to_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Command] = []

    class NoticingRepository(InMemoryUserRepository):
        def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
            forks.notice_fork()
            written.extend(commands)
            return []

    stored = InMemoryUsage()
    usage = BackgroundUsage(stored, NoticingRepository(), interval_seconds=60)
    key = ApiKey(id=ApiKeyId("a"), user_id=UserId(1), name="a", digest="a", created_datetime=utc_now())
    usage.record_key_use(key, utc_now())
    usage.record(key.user_id, key.id, utc_now())
    monkeypatch.setattr(forks._state, "pid", 1)  # as if this was a child

    usage.close()

    assert (written, stored.list_page(limit=1)) == ([], [])


def test_children_of_multiprocessing_call_functions_at_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    registry: dict[object, Callable[[], None]] = multiprocessing.util._finalizer_registry  # type: ignore[attr-defined]
    before = set(registry)
    monkeypatch.setattr(multiprocessing.process, "parent_process", lambda: "the parent")

    forks.call_at_exit(lambda: calls.append("called"))
    forget = forks.call_at_exit(lambda: calls.append("forgotten"))
    forget()
    for finalizer in [registry[key] for key in set(registry) - before]:  # as a child does when it ends
        finalizer()

    assert calls == ["called"]


def test_operations_wait_until_the_process_has_forked(sqlite_database: Database) -> None:
    results: list[object] = []
    reading = threading.Thread(target=lambda: results.append(select_one(sqlite_database)))

    sqlite_database.pools.pause()
    reading.start()
    with pytest.raises(RepositoryUnavailableError, match="the process is forking"):
        sqlite_database.read_nowait(lambda connection: connection)
    reading.join(0.1)
    assert reading.is_alive()
    sqlite_database.pools.resume()
    reading.join(10)

    assert results == [1]


def test_deleted_object_is_not_called_in_children() -> None:
    calls = []

    class Counter:
        def count(self) -> None:
            calls.append(self)

    kept = Counter()
    forks.call_in_children(kept.count)
    forks.call_in_children(Counter().count)

    become_child()

    assert calls == [kept]
