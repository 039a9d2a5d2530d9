"""Searches by admins in a large table, while users log in and are changed and checked."""

import http.client
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from sqlalchemy import URL, text

from mlapi.adapters.sql.database import Database
from tests.e2e.server import MlapiServer
from tests.torture.clients import PASSWORD, call, new_user
from tests.torture.conftest import Report, ShortOrFull

SEARCHERS = 16
ADMIN_TOKEN = "search-torture-0123456789abcdefgh"
ROWS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rows) SELECT {columns} FROM n",
    "postgresql": "SELECT {columns} FROM generate_series(1, :rows) AS n(i)",
}
COLUMNS = (
    "'User-' || (10000000 + i), 'gAAAA', (10000000 + i) || '@example.com', {true}, '2026-01-01 00:00:00.000000'{cast},"
    " '2026-01-01 00:00:00.000000'{cast}, 'user-' || (10000000 + i), '0123456789abcdef'"
)
INSERT = (
    "INSERT INTO users"
    " (username, password, email, enabled, created_datetime, updated_datetime, username_key, token_epoch)"
)

Request = Callable[[http.client.HTTPConnection], int]
Statuses = dict[str, dict[int, list[float]]]


def connection_to(server: MlapiServer) -> closing[http.client.HTTPConnection]:
    return closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30))


def insert_users(url: URL, rows: int) -> None:
    with Database(url) as database, database.writing() as connection:
        database.dialect.disable_timeouts(connection)
        is_sqlite = url.get_backend_name() == "sqlite"
        columns = COLUMNS.format(true="1" if is_sqlite else "true", cast="" if is_sqlite else "::timestamptz")
        statement = f"{INSERT} {ROWS[url.get_backend_name()].format(columns=columns)}"
        connection.execute(text(statement.replace("::", "\\:\\:")), {"rows": rows})


def run_for(
    seconds: float, calls: dict[str, tuple[int, Callable[[http.client.HTTPConnection], int]]], port: int
) -> Statuses:
    """Repeat each call in a number of threads; return the durations of its requests by status."""
    results: Statuses = {name: defaultdict(list) for name in calls}
    stop = time.monotonic() + seconds

    def repeat(name: str, request: Request) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while time.monotonic() < stop:
            begin = time.monotonic()
            status = request(connection)
            results[name][status].append(time.monotonic() - begin)
            time.sleep(0.05)
        connection.close()

    repeated = [(name, request) for name, (count, request) in calls.items() for _ in range(count)]
    threads = [threading.Thread(target=repeat, args=arguments) for arguments in repeated]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_searches_delay_neither_logins_nor_readiness(
    durable_url: URL, tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    rows, seconds = short_or_full(50_000, 1_000_000), short_or_full(3, 20)
    environ = {
        "MLAPI_DATABASE__URL": durable_url.render_as_string(hide_password=False),
        "MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN,
        "MLAPI_PASSWORDS__SCHEME": "fernet",  # the processor is busy with searches, not with hashing
    }
    with MlapiServer(tmp_path, environ, "--no-access-log") as server:
        with connection_to(server) as connection:
            _, created = call(connection, "POST", "/register-user", new_user("ada"))
        insert_users(durable_url, rows)
        with connection_to(server) as connection:
            found, page = call(connection, "GET", f"/users?q={10_000_000 + rows - 1}", bearer=ADMIN_TOKEN)
        login = {"username": "ada", "password": PASSWORD}
        toggle = f"/toggle-user-permission/{created['user_id']}/1"
        results = run_for(
            seconds,
            {
                "search": (SEARCHERS, lambda to: call(to, "GET", "/users?q=no-such-text", bearer=ADMIN_TOKEN)[0]),
                "filter": (2, lambda to: call(to, "GET", "/users?enabled=0", bearer=ADMIN_TOKEN)[0]),
                "login": (2, lambda to: call(to, "POST", "/token", login)[0]),
                "ready": (2, lambda to: call(to, "GET", "/health/ready")[0]),
                "toggle": (2, lambda to: call(to, "PUT", toggle, bearer=ADMIN_TOKEN)[0]),
            },
            server.port,
        )

    slowest = {name: max(map(max, by_status.values())) for name, by_status in results.items()}
    counts = {name: {status: len(each) for status, each in by_status.items()} for name, by_status in results.items()}
    count = {name: by_status.get(200, 0) for name, by_status in counts.items()}
    report(
        f"searches ({durable_url.get_backend_name()}, {rows:,} users): {count['search']:,} answered 200 and"
        f" {counts['search'].get(503, 0):,} answered 503, the slowest after {slowest['search']:.1f} s; at the same time"
        f" {count['login']:,} logins (slowest {slowest['login']:.1f} s), {count['ready']:,} readiness checks"
        f" ({slowest['ready']:.1f} s) and {count['toggle']:,} toggles ({slowest['toggle']:.1f} s), all 200"
    )
    assert (found, len(page["users"])) == (200, 1)
    assert set(counts["search"]) | set(counts["filter"]) <= {200, 503}
    assert [set(counts[name]) for name in ("login", "ready", "toggle")] == [{200}] * 3
    assert max(slowest.values()) < 8
    assert "Traceback" not in server.log
