"""One address floods the service with costly requests while another one logs in."""

import http.client
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import pytest
from sqlalchemy import URL, func, select

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.tables import audit, users
from tests.e2e.server import ROOT, MlapiServer
from tests.torture.clients import PASSWORD, call, new_user
from tests.torture.conftest import Report, ShortOrFull
from tests.torture.flood_clients import NEW_NAME

FLOOD_ADDRESS = "127.0.0.2"
ADMIN_TOKEN = "flood-clients-do-not-have-this-token"
DEVELOPMENT = {"MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN}


@attrs.frozen(kw_only=True)
class Flood:
    """A request that the flood clients repeat, and the statuses of the responses."""

    name: str
    path: str
    body: Any
    method: str = "POST"
    expected: frozenset[str]
    is_user: bool = False
    """True if the flood clients have a token."""
    environ: Mapping[str, str] = attrs.field(factory=dict)


FLOODS = [
    Flood(name="taken username", path="/register-user", body=new_user("ada"), expected=frozenset({"409"})),
    Flood(name="new usernames", path="/register-user", body=new_user(NEW_NAME), expected=frozenset({"201", "503"})),
    Flood(
        name="new usernames above the limit",
        path="/register-user",
        body=new_user(NEW_NAME),
        expected=frozenset({"201", "429"}),
        environ={"MLAPI_REGISTRATIONS__PER_ADDRESS": "5"},
    ),
    Flood(
        name="wrong passwords",
        path="/token",
        body={"username": NEW_NAME, "password": "wrong"},
        expected=frozenset({"401", "429", "503"}),
    ),
    Flood(
        name="wrong passwords of the neighbor",
        path="/token",
        body={"username": "ada", "password": "wrong"},
        expected=frozenset({"401", "429", "503"}),
    ),
    Flood(name="invalid bodies", path="/register-user", body='{"username":', expected=frozenset({"400"})),
    Flood(
        name="password changes",
        path="/users/me/password",
        method="PUT",
        body={"current": "wrong", "new": PASSWORD},
        expected=frozenset({"401", "429", "503"}),
        is_user=True,
    ),
]


@contextmanager
def flood(server: MlapiServer, request: Mapping[str, Any], connections: int, statuses: Counter[str]) -> Iterator[None]:
    """Send a request again and again from another address during the block, and count the responses by status."""
    command = [sys.executable, "-m", "tests.torture.flood_clients", str(server.port), FLOOD_ADDRESS, str(connections)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "open\n"
        try:
            yield
        finally:
            output, _ = process.communicate(timeout=60)
            statuses.update(json.loads(output))


def log_ins(port: int, seconds: float, at_least: int) -> tuple[Counter[int], list[float]]:
    """Log in repeatedly as another user, on a new connection each time, and measure each login."""
    statuses, durations = Counter[int](), list[float]()
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(durations) < at_least:
        begin = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        status, _ = call(connection, "POST", "/token", {"username": "ada", "password": PASSWORD})
        connection.close()
        statuses[status] += 1
        durations.append(time.monotonic() - begin)
    return statuses, durations


def token_of_a_user(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    call(connection, "POST", "/register-user", new_user("eve"))
    _, issued = call(connection, "POST", "/token", {"username": "eve", "password": PASSWORD})
    connection.close()
    token: str = issued["token"]
    return token


def stored(url: URL) -> tuple[int, int]:
    """Return the number of users and of audit entries."""
    with Database(url) as database:
        return database.read(
            lambda connection: (
                connection.scalar(select(func.count()).select_from(users)) or 0,
                connection.scalar(select(func.count()).select_from(audit)) or 0,
            )
        )


@pytest.mark.parametrize("kind", FLOODS, ids=lambda flood: flood.name)
def test_flood_from_one_address_does_not_delay_logins_of_another(
    tmp_path: Path, kind: Flood, short_or_full: ShortOrFull, report: Report
) -> None:
    connections, seconds = short_or_full(30, 150), short_or_full(1, 20)
    url = URL.create("sqlite", database=str(tmp_path / "mlapi.db"))
    with MlapiServer(tmp_path, {**DEVELOPMENT, **kind.environ}, "--no-access-log") as server:
        neighbor = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        assert call(neighbor, "POST", "/register-user", new_user("ada"))[0] == 201
        neighbor.close()
        request = {"method": kind.method, "path": kind.path, "body": kind.body}
        if kind.is_user:
            request["bearer"] = token_of_a_user(server.port)
        _, calm = log_ins(server.port, 0, at_least=short_or_full(3, 10))
        before, responses = stored(url), Counter[str]()
        with flood(server, request, connections, responses):
            time.sleep(0.5)
            statuses, durations = log_ins(server.port, seconds, at_least=5)
        added_users, added_entries = (after - old for after, old in zip(stored(url), before, strict=True))

    calm_ms, median_ms, slowest_ms = (1000 * figure for figure in (median(calm), median(durations), max(durations)))
    report(
        f"{kind.name}, {connections} connections from one address: {dict(responses)}; {added_users} users and"
        f" {added_entries} audit entries added; {len(durations)} logins from another address: median"
        f" {median_ms:.0f} ms, slowest {slowest_ms:.0f} ms (median without the flood: {calm_ms:.0f} ms)"
    )
    assert set(statuses) == {200}
    assert set(responses) - {"closed"} <= kind.expected
    assert sum(responses.values()) > 0
    assert slowest_ms < short_or_full(5_000, 3_000)  # the short form shares the processor with other tests
    assert added_entries == added_users
    assert len(server.log) < 100_000
    assert (added_users > 0) == ("201" in kind.expected)
