"""Clients that retry every 503 until the request succeeds, so that at the end they know everything that is stored."""

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
"""Less than `Retry-After` asks for, so that the tests measure the service and not the clients."""
RETRY_LIMIT_SECONDS = 120.0


@attrs.frozen
class Response:
    at: float
    """When it arrived, by `time.monotonic`."""
    seconds: float
    status: int


@attrs.define(eq=False)
class RetryingClient:
    """Registers users and toggles them, one request after another.

    Args:
        name: prefix of its usernames.
    """

    name: str
    users: dict[str, tuple[int, bool]] = attrs.field(factory=dict)
    """Id and flag of each user, by username, as they must be stored."""
    responses: list[Response] = attrs.field(factory=list)
    applied_despite_503: int = 0
    """Registrations that returned 503, and 409 with the id when they were retried."""
    errors: list[object] = attrs.field(factory=list)
    """Responses that the client must not receive, and failed requests."""

    def work(self, port: int, stop: threading.Event) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        chance = random.Random(self.name)
        try:
            while not stop.is_set():
                if len(self.users) < 3 or chance.random() < 0.5:
                    self._register(connection, f"{self.name}-{len(self.users)}")
                else:
                    self._toggle(connection, chance.choice(list(self.users)))
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
        """Return status and body of the first response other than 503, and the number of retries before it."""
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
    """The clients that send requests during a fault, and their measurements."""

    clients: Sequence[RetryingClient]

    @property
    def responses(self) -> list[Response]:
        return sorted(
            (response for client in self.clients for response in client.responses), key=lambda response: response.at
        )

    @property
    def users(self) -> dict[str, tuple[int, bool]]:
        """Return what `tests.torture.clients.stored_users` must return after all clients have stopped."""
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
    """Run clients during the block; at its end, let each finish its request. Their usernames start with the prefix."""
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
    """Run the service on a database. Passwords use the fast scheme, to load the database more."""
    text = url.render_as_string(hide_password=False)
    defaults = {"MLAPI_DATABASE__URL": text, "MLAPI_PASSWORDS__SCHEME": "fernet"}
    server = MlapiServer(folder, defaults | environ, "--no-access-log")
    try:
        yield server.start()
    finally:
        server.stop(signal.SIGKILL)
