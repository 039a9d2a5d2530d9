"""In every process, access expires at the exact instant, and an extension applies to the next request."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path

from sqlalchemy import URL

from tests.conftest import KEY, SALT
from tests.e2e.server import MlapiServer, Server
from tests.torture.clients import PASSWORD, call, new_user
from tests.torture.conftest import Report, ShortOrFull
from tests.torture.test_workers import connect_to_each_worker

WORKERS = 2
WATCHERS = 3
SECONDS_AFTERWARDS = 0.2
"""How long clients continue to send requests after the expiry."""


class Watcher:
    """Lets a user's access expire, extends it, and sends requests to all processes before and after the expiry.

    Args:
        name: username.
        services: one connection to each worker of the service.
        models: one connection to each worker of the model.
    """

    def __init__(self, name: str, services: Sequence[HTTPConnection], models: Sequence[HTTPConnection]) -> None:
        self.counts: Counter[str] = Counter()
        self._random = random.Random(name)
        self._name = name
        self._services = services
        self._endpoints = [
            *((connection, "/users/me") for connection in services),
            *((connection, "/predict") for connection in models),
        ]
        _, user = self._call_any_worker("POST", "/register-user", new_user(name))
        self._path = f"/users/{user['user_id']}"
        _, api_key = self._call_any_worker("POST", f"{self._path}/keys", {"name": "torture"})
        self._key = str(api_key["key"])

    def watch(self, cycles: int) -> None:
        for _ in range(cycles):
            token = self._log_in()
            end = datetime.now(UTC) + timedelta(seconds=self._random.uniform(2, 3))
            self._set_end(end.isoformat())
            self._ask_until_after(end.timestamp(), token, self._log_in(), self._key)
            assert self._call_any_worker("POST", "/token", self._credentials)[0] == 403
            self._set_end("+1h")
            for connection, path in self._endpoints:
                assert call(connection, "GET", path, bearer=self._key)[0] == 200
                self.counts["requests after an extension"] += 1

    @property
    def _credentials(self) -> dict[str, str]:
        return {"username": self._name, "password": PASSWORD}

    def _ask_until_after(self, end_timestamp: float, *credentials: str) -> None:
        while time.time() < end_timestamp + SECONDS_AFTERWARDS:
            for connection, path in self._endpoints:
                credential = self._random.choice(credentials)
                sent_timestamp = time.time()
                status, body = call(connection, "GET", path, bearer=credential)
                assert status == 200 or body == {"message": "Access has expired"}, (status, body)
                if status == 200:
                    assert sent_timestamp < end_timestamp, "admitted after the expiry"
                    self.counts["admitted"] += 1
                else:
                    assert time.time() >= end_timestamp, "rejected before the expiry"
                    self.counts["rejected"] += 1

    def _call_any_worker(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, str | int]]:
        return call(self._random.choice(self._services), method, path, body)

    def _set_end(self, expires_at: str) -> None:
        status, _ = self._call_any_worker("PATCH", self._path, {"expires_at": expires_at})
        assert status == 200
        self.counts["changes"] += 1

    def _log_in(self) -> str:
        status, token = self._call_any_worker("POST", "/token", self._credentials)
        assert status == 200
        return str(token["token"])


def test_access_expires_at_the_same_instant_in_every_process(
    url: URL, tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    environ = {
        "MLAPI_DATABASE__URL": url.render_as_string(hide_password=False),
        "MLAPI_PASSWORDS__SCHEME": "fernet",
        "MLAPI_SECRETS__KEY": KEY,
        "MLAPI_SECRETS__SALT": SALT,
        "MLAPI_LOGINS__PER_ADDRESS": "100000",
    }
    options = ["--no-access-log", "--workers", str(WORKERS)]
    model = Server(tmp_path, environ, *options, "--timeout-keep-alive", "60", app="tests.torture.guarded_app:app")
    service = MlapiServer(tmp_path, environ, *options)

    def watch(number: int) -> Counter[str]:
        with (
            connect_to_each_worker([model], WORKERS) as to_models,
            connect_to_each_worker([service], WORKERS) as to_services,
        ):
            watcher = Watcher(f"watcher-{number}", to_services, to_models)
            watcher.watch(short_or_full(2, 100))
        return watcher.counts

    with ExitStack() as stack, ThreadPoolExecutor(WATCHERS) as pool:
        stack.enter_context(service)
        stack.enter_context(model)  # after the service, which creates the database
        counts = sum(pool.map(watch, range(WATCHERS)), Counter[str]())

    assert min(counts["admitted"], counts["rejected"]) > 0
    report(
        f"{'SQLite' if url.drivername == 'sqlite' else 'PostgreSQL'}, {WORKERS} workers of the service and of a model:"
        f" {counts['changes']:,} changes of the expiry; {counts['admitted']:,} requests admitted, 0 of them sent"
        f" after the expiry; {counts['rejected']:,} rejected, 0 of them before it;"
        f" {counts['requests after an extension']:,} requests after an extension, all admitted"
    )
