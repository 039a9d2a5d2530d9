"""Imports and adoptions that are killed or interrupted lose nothing, and the next run completes them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import URL

from mlapi.application import user_import
from mlapi.bootstrap import open_users
from mlapi.config import load_settings
from mlapi.entrypoints.cli import main
from tests.integration.test_adoption import adopt, content, environment
from tests.integration.test_transfer import HEADER, all_names, import_text
from tests.legacy_database import connected, create_legacy_database, execute, row, snapshot
from tests.postgres_server import PostgresServer
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, with the fast password scheme."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", "fernet")
    return tmp_path


def set_environment(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(url).items():
        monkeypatch.setenv(name, value)


class ImportProcess:
    """``mlapi users import -`` in a child process."""

    def __init__(self, url: URL, errors: int = subprocess.PIPE) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from mlapi.entrypoints.cli import main; main()",
                "users",
                "import",
                "-",
                "--format=csv",
            ],
            env={"MLAPI_DATABASE__URL": url.render_as_string(hide_password=False), "MLAPI_PASSWORDS__SCHEME": "fernet"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )

    def write(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def stop(self, stop_signal: signal.Signals) -> tuple[int, str]:
        self._process.send_signal(stop_signal)
        _, errors = self._process.communicate(timeout=30)
        return self._process.returncode, errors.decode()


@pytest.mark.parametrize(
    ("database", "stop_signal"), [("sqlite", signal.SIGINT), ("sqlite", signal.SIGKILL), ("postgres", signal.SIGKILL)]
)
def test_killed_import_neither_loses_nor_duplicates_users(
    database: str, stop_signal: signal.Signals, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(f"{database}_url")
    monkeypatch.setenv("MLAPI_DATABASE__URL", url.render_as_string(hide_password=False))
    monkeypatch.setattr(user_import, "BATCH_ROWS", 2_000)
    usernames = [f"user{number}" for number in range(6_500)]
    text = HEADER + "".join(f"{name},{name}@example.com,x\n" for name in usernames)
    process = ImportProcess(url)
    process.write(text[: len(text) * 3 // 4])
    with open_users(load_settings()) as users:
        deadline = time.monotonic() + 30
        while (stored := users.count()) < 2_000 and time.monotonic() < deadline:
            time.sleep(0.05)

    code, errors = process.stop(stop_signal)
    with open_users(load_settings()) as users:
        stored_before = users.count()
    result = import_text(text)

    assert stored >= 2_000
    assert stored_before % 2_000 == 0
    assert code == (130 if stop_signal is signal.SIGINT else -signal.SIGKILL)
    interrupted = (
        f"mlapi: interrupted; {stored_before} imported, 0 already present, 0 rejected; run it again to continue\n"
    )
    assert (interrupted in errors) == (stop_signal is signal.SIGINT)
    assert (result.exit_code, result.stdout) == (
        0,
        f"{6_500 - stored_before} imported, {stored_before} already present, 0 rejected\n",
    )
    assert sorted(all_names()) == sorted(usernames)


# --- adoption


@contextmanager
def adopting(folder: Path, url: URL) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `mlapi db adopt` in another process."""
    script = "from mlapi.entrypoints.cli import main; main(['db', 'adopt'])"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, **environment(url)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_killed_adoption_leaves_sqlite_unchanged(url: URL, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(url, monkeypatch)
    create_legacy_database(url, [row(number, f"user{number}") for number in range(1, 3_001)])
    before = content(url)
    journal = Path(f"{url.database}-journal")

    with adopting(folder, url) as process:
        wait_until(lambda: journal.exists() and journal.stat().st_size > 0, 60, interval_seconds=0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL

    assert journal.stat().st_size > 0
    assert CliRunner().invoke(main, ["db", "check", "--json"]).exit_code == 3
    assert content(url) == before
    assert adopt().exit_code == 0


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_killed_adoption_leaves_postgresql_unchanged(
    url: URL, folder: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(url, monkeypatch)
    create_legacy_database(url)
    execute(url, "CREATE TABLE orders (user_id INTEGER REFERENCES users (id))")
    before = snapshot(url)
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%ALTER id TYPE bigint%'"

    with connected(url) as other, adopting(folder, url) as process:
        other.exec_driver_sql("SELECT * FROM orders")  # this lock blocks ALTER TABLE users ALTER id
        wait_until(lambda: postgres.execute(waiting), 60, interval_seconds=0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL

    assert snapshot(url) == before
    assert adopt().exit_code == 0
