"""Clients that retry every 503 until the request succeeds, so that they know exactly which users must be stored."""

import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from itertools import pairwise
from pathlib import Path

import attrs
from sqlalchemy import URL

from tests.e2e.server import MlapiServer
from tests.torture.clients import new_user

RESPONSE_LIMIT_SECONDS = 10.0
RETRY_SECONDS = 0.05
"""Shorter than the responses' `Retry-After`, so that the measured recovery time is the service's, not the clients'."""
RETRY_LIMIT_SECONDS = 120.0


@attrs.frozen
class Response:
    at: float
    """Time of arrival, from `time.monotonic`."""
    seconds: float
    status: int


@attrs.define(eq=False)
class RetryingClient:
    """Registers and toggles users, one request at a time.

    Args:
        name: prefix of the usernames it registers.
    """

    name: str
    users: dict[str, tuple[int, bool]] = attrs.field(factory=dict)
    """The id and the enabled flag that must be stored for each user, by username."""
    responses: list[Response] = attrs.field(factory=list)
    applied_despite_503: int = 0
    """Number of registrations that were stored despite a 503: the retry returned 409 with the id."""
    errors: list[object] = attrs.field(factory=list)
    """Unexpected responses and failed requests."""

    def work(self, port: int, stop: threading.Event) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        rng = random.Random(self.name)
        try:
            while not stop.is_set():
                if len(self.users) < 3 or rng.random() < 0.5:
                    self._register(connection, f"{self.name}-{len(self.users)}")
                else:
                    self._toggle(connection, rng.choice(list(self.users)))
        except (OSError, HTTPException, AssertionError) as error:
            self.errors.append(error)
        connection.close()

    def _register(self, connection: HTTPConnection, name: str) -> None:
        status, body, retries = self._call(
            connection, "POST", "/register-user", {**new_user(name), "email": "user@example.com"}
        )
        assert status == 201 or (status == 409 and retries), (name, status, body)
        self.applied_despite_503 += status == 409
        self.users[name] = body["user_id"], True

    def _toggle(self, connection: HTTPConnection, name: str) -> None:
        user_id, enabled = self.users[name]
        path = f"/toggle-user-permission/{user_id}/{int(not enabled)}"
        status, body, _ = self._call(connection, "PUT", path)
        assert status == 200, (name, status, body)
        self.users[name] = user_id, not enabled

    def _call(
        self, connection: HTTPConnection, method: str, path: str, body: object = None
    ) -> tuple[int, dict[str, int], int]:
        """Retry while the response is 503; return the final status and body, and the number of retries."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        deadline = time.monotonic() + RETRY_LIMIT_SECONDS
        retries = 0
        while True:
            begin = time.monotonic()
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response: HTTPResponse = connection.getresponse()
            received = json.loads(response.read())
            end = time.monotonic()
            self.responses.append(Response(end, end - begin, response.status))
            if response.status != 503:
                return response.status, received, retries
            assert response.getheader("Retry-After", "").isdigit(), received
            assert end < deadline, f"still {received} after {RETRY_LIMIT_SECONDS:g} seconds"
            retries += 1
            time.sleep(RETRY_SECONDS)


@attrs.frozen
class Load:
    """The clients that send requests during a fault, and the results that they collected."""

    clients: Sequence[RetryingClient]

    @property
    def responses(self) -> list[Response]:
        return sorted(
            (response for client in self.clients for response in client.responses), key=lambda response: response.at
        )

    @property
    def users(self) -> dict[str, tuple[int, bool]]:
        """Return the users that must be stored after all clients have stopped, in the format of `stored_users`."""
        return {name: user for client in self.clients for name, user in client.users.items()}

    @property
    def errors(self) -> list[object]:
        return [error for client in self.clients for error in client.errors]

    @property
    def unavailable(self) -> int:
        """Return the number of 503 responses."""
        return sum(response.status == 503 for response in self.responses)

    @property
    def applied_despite_503(self) -> int:
        return sum(client.applied_despite_503 for client in self.clients)

    @property
    def slowest_seconds(self) -> float:
        return max(response.seconds for response in self.responses)

    def seconds_to_success(self, limit_seconds: float = 30) -> float:
        """Wait for the next response other than 503; return the seconds until it arrived."""
        begin = time.monotonic()

        def elapsed() -> float:
            return next(
                (response.at - begin for response in self.responses if response.at > begin and response.status != 503),
                0,
            )

        self.wait_for(elapsed, limit_seconds, "success")
        return elapsed()

    def longest_outage_seconds(self) -> float:
        """Return the longest time between two responses other than 503."""
        times = [response.at for response in self.responses if response.status != 503]
        return max(later - earlier for earlier, later in pairwise(times))

    def wait_for(self, condition: Callable[[], object], limit_seconds: float, what: str) -> None:
        deadline = time.monotonic() + limit_seconds
        while not condition():
            assert not self.errors, self.errors
            assert time.monotonic() < deadline, f"no {what} within {limit_seconds:g} seconds"
            time.sleep(0.01)


@contextmanager
def load(port: int, clients: int, prefix: str) -> Iterator[Load]:
    """Run clients during the block; on exit, let each finish its request. Usernames start with ``prefix``."""
    running = Load([RetryingClient(f"{prefix} {number}") for number in range(clients)])
    stop = threading.Event()
    threads = [threading.Thread(target=client.work, args=(port, stop)) for client in running.clients]
    for thread in threads:
        thread.start()
    try:
        running.wait_for(lambda: len(running.responses) >= 10 * clients, 60, "load")
        yield running
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def serving(url: URL, folder: Path, **environ: str) -> Iterator[MlapiServer]:
    """Run the service on a database. The fast password scheme puts more load on the database."""
    text = url.render_as_string(hide_password=False)
    defaults = {"MLAPI_DATABASE__URL": text, "MLAPI_PASSWORDS__SCHEME": "fernet"}
    server = MlapiServer(folder, defaults | environ, "--no-access-log")
    try:
        yield server.start()
    finally:
        server.stop(signal.SIGKILL)
