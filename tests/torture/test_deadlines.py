"""Every response arrives within 10 seconds of its request, whatever the database does and whatever steps it takes."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import requests
from sqlalchemy import URL

from mlapi.entrypoints.wire.operation import Operation
from mlapi.entrypoints.wire.operations import OPERATIONS
from tests.e2e.server import MlapiServer, Server
from tests.postgres_server import PostgresServer
from tests.torture.clients import PASSWORD, new_user
from tests.torture.conftest import Report, ShortOrFull
from tests.torture.slow_database import SlowProxy, hanging, write_lock_held

LIMIT_SECONDS = 10
RECOVERY_SECONDS = 20
STOP_SECONDS = 15
DELAY_SECONDS = 0.7
"""Each step of a request succeeds with this delay, but all steps together take too long."""
BODIES: dict[str, Any] = {
    "ManagedRegisterRequest": new_user("bob"),
    "UpdateUserRequest": {"expires_at": "+30d"},
    "LoginRequest": {"username": "ada", "password": PASSWORD},
    "ChangePasswordRequest": {"current": PASSWORD, "new": PASSWORD},
    "SetPasswordRequest": {"password": PASSWORD},
    "AddApiKeyRequest": {"name": "laptop"},
    "PasswordLinkRequest": {"token": f"mlapi-link_{'0' * 16}_{'0' * 64}", "password": PASSWORD},
    "PasswordResetRequest": {"username": "ada"},
    "InviteRequest": {"username": "grace", "email": "grace@example.com"},
    "BulkRequest": {"user_ids": [1], "action": "enable"},
}
CONSOLE_PAGES = ["", "?q=ada", "/users/1", "/users/1/remove", "/activity", "/usage", "/usage?user_id=1", "/users/new"]
CONSOLE_FORMS = {
    "/users/new": {"username": "eve", "password": PASSWORD, "email": "eve@example.com"},
    "/users/1/enabled": {"enabled": "1"},
    "/users/1/password": {"password": PASSWORD},
    "/users/1/tokens": {},
    "/users/1/keys": {"name": "desktop"},
}


@attrs.frozen(kw_only=True)
class Call:
    name: str
    method: str
    url: str
    options: dict[str, Any]

    def send(self) -> tuple[str, int, float]:
        """Send the request; return its name, the status and the duration in seconds."""
        begin = time.monotonic()
        response = requests.request(self.method, self.url, timeout=60, allow_redirects=False, **self.options)
        return self.name, response.status_code, time.monotonic() - begin


class Calls:
    """A request to every operation, every console page and form, and a guarded model."""

    def __init__(self, server: Server, model: Server) -> None:
        self._base = server.base
        self._model = model.base
        requests.post(f"{self._base}/register-user", json=new_user("ada"), timeout=60)
        issued = requests.post(f"{self._base}/token", json=BODIES["LoginRequest"], timeout=60)
        self._token: str = issued.json()["token"]
        added = requests.post(f"{self._base}/users/1/keys", json={"name": "old"}, timeout=60)
        self._api_key: str = added.json()["key"]
        page = requests.get(f"{self._base}/console/users/1", timeout=60)
        (self._csrf, *_) = re.findall(r'name="csrf_token" value="([^"]+)"', page.text)
        self._cookies = page.cookies.get_dict()

    def all(self) -> list[Call]:
        calls = [self._operation(operation) for operation in OPERATIONS]
        calls += [self._console("GET", path) for path in CONSOLE_PAGES]
        calls += [self._console("POST", path, form) for path, form in CONSOLE_FORMS.items()]
        credentials = {"token": self._token, "API key": self._api_key}
        return calls + [
            Call(name=f"guard: {kind}", method="GET", url=f"{self._model}/predict", options=_bearer(credential))
            for kind, credential in credentials.items()
        ]

    def _operation(self, operation: Operation) -> Call:
        path = operation.openapi_path.format(user_id=1, permission=1, token=self._token, key_id="0" * 16)
        options: dict[str, Any] = {} if operation.callers.needs_admin else _bearer(self._token)
        if operation.request is not None:
            options["json"] = BODIES[operation.request.__name__]
        return Call(name=operation.name, method=operation.method, url=self._base + path, options=options)

    def _console(self, method: str, path: str, form: dict[str, str] | None = None) -> Call:
        options: dict[str, Any] = {"cookies": self._cookies}
        if form is not None:
            options["data"] = {**form, "csrf_token": self._csrf}
            options["headers"] = {"Sec-Fetch-Site": "same-origin"}
        return Call(name=f"console: {method} {path}", method=method, url=f"{self._base}/console{path}", options=options)


def _bearer(credential: str) -> dict[str, Any]:
    return {"headers": {"Authorization": f"Bearer {credential}"}}


Fault = Callable[[], AbstractContextManager[object]]


@contextmanager
def running(kind: type[Server], folder: Path, url: URL) -> Iterator[Calls]:
    """Run a service and a guarded model, and yield requests to all their endpoints."""
    environ = {"MLAPI_DATABASE__URL": url.render_as_string(hide_password=False)}
    with ExitStack() as stack:
        server = stack.enter_context(kind(folder, environ, "--no-access-log"))
        model = stack.enter_context(Server(folder, environ, app="tests.torture.guarded_app:app"))
        yield Calls(server, model)


def check_deadlines(calls: Calls, fault: Fault, rounds: int) -> tuple[Counter[int], float, float]:
    """Send all requests at once, several times, during a fault. Return the statuses, the slowest and the recovery."""
    everything = calls.all() * rounds
    with fault(), ThreadPoolExecutor(len(everything)) as pool:
        results = list(pool.map(Call.send, everything))
    ended = time.monotonic()
    # The user may have been removed during the fault.
    while calls.all()[0].send()[1] not in {200, 404} and time.monotonic() - ended < RECOVERY_SECONDS:
        time.sleep(0.1)
    recovery_seconds = time.monotonic() - ended

    assert [result for result in results if result[2] >= LIMIT_SECONDS] == []
    assert [result for result in results if result[1] == 500] == []
    assert recovery_seconds < RECOVERY_SECONDS
    return Counter(status for _, status, _ in results), max(seconds for _, _, seconds in results), recovery_seconds


def summary(fault: str, statuses: Counter[int], slowest_seconds: float, recovery_seconds: float) -> str:
    return (
        f"deadlines, {fault}: {statuses.total()} requests to every endpoint at once, {statuses[503]} answered 503,"
        f" slowest {slowest_seconds:.1f} s; recovered {recovery_seconds:.1f} s after the fault"
    )


def test_responses_arrive_in_time_while_postgresql_hangs(
    tmp_path: Path, postgres: PostgresServer, postgres_url: URL, short_or_full: ShortOrFull, report: Report
) -> None:
    with running(MlapiServer, tmp_path, postgres_url) as calls:
        results = check_deadlines(calls, lambda: hanging(postgres), short_or_full(1, 5))

    report(summary("hanging PostgreSQL", *results))


def test_changes_rejected_while_postgresql_hangs_are_not_applied(
    tmp_path: Path, postgres: PostgresServer, postgres_url: URL
) -> None:
    environ = {"MLAPI_DATABASE__URL": postgres_url.render_as_string(hide_password=False)}
    with Server(tmp_path, environ) as server:
        requests.post(f"{server.base}/register-user", json=new_user("ada"), timeout=30)

        def toggle(_number: int) -> int:
            return requests.put(f"{server.base}/toggle-user-permission/1/0", timeout=30).status_code

        with hanging(postgres), ThreadPoolExecutor(24) as pool:
            statuses = list(pool.map(toggle, range(24)))
            assert requests.get(f"{server.base}/health/live", timeout=2).status_code == 200

        assert statuses == [503] * 24
        time.sleep(1)
        assert requests.get(f"{server.base}/users/1", timeout=30).json()["enabled"] is True
        assert toggle(0) == 200


def test_server_stops_while_postgresql_hangs(tmp_path: Path, postgres: PostgresServer, postgres_url: URL) -> None:
    server = Server(tmp_path, {"MLAPI_DATABASE__URL": postgres_url.render_as_string(hide_password=False)}).start()
    url = f"{server.base}/register-user"
    assert requests.post(url, json=new_user("ada"), timeout=30).status_code == 201

    with hanging(postgres):
        assert requests.post(url, json=new_user("bob"), timeout=30).status_code == 503
        begin = time.monotonic()
        server.stop()
        assert time.monotonic() - begin < STOP_SECONDS


def test_responses_arrive_in_time_while_postgresql_is_slow(
    tmp_path: Path, postgres_url: URL, short_or_full: ShortOrFull, report: Report
) -> None:
    assert postgres_url.port is not None
    with SlowProxy(postgres_url.port) as proxy, running(Server, tmp_path, postgres_url.set(port=proxy.port)) as calls:

        @contextmanager
        def slow() -> Iterator[None]:
            proxy.delay_seconds = DELAY_SECONDS
            yield
            proxy.delay_seconds = 0

        results = check_deadlines(calls, slow, short_or_full(1, 5))

    report(summary(f"PostgreSQL answers {DELAY_SECONDS} s late", *results))


def test_responses_arrive_in_time_while_sqlite_is_locked(
    tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    url = URL.create("sqlite", database=str(tmp_path / "mlapi.db"))
    with running(MlapiServer, tmp_path, url) as calls:
        results = check_deadlines(calls, lambda: write_lock_held(tmp_path / "mlapi.db"), short_or_full(1, 5))

    report(summary("locked SQLite file", *results))
