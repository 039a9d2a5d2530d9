"""Clients that ask again for what was answered 503 until it is done: at the end they know all that is stored."""

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

ANSWERED_WITHIN = 10.0
"""Seconds."""
PAUSE = 0.05
"""Seconds before a client asks again; less than `Retry-After` says, so that what is measured is the service."""
PERSISTENCE = 120.0
"""Seconds for which a client asks for the same."""


@attrs.frozen
class Answered:
    at: float
    """Of `time.monotonic`."""
    seconds: float
    status: int


@attrs.define(eq=False)
class PatientClient:
    """Registers users and toggles them, one request after the other.

    Args:
        name: begins the names of its users.
    """

    name: str
    users: dict[str, tuple[int, bool]] = attrs.field(factory=dict)
    """Id and flag of each user by his name, as they must be stored now."""
    answers: list[Answered] = attrs.field(factory=list)
    done_unseen: int = 0
    """Registrations that were answered 503, and 409 with the id when they were asked for again."""
    wrong: list[object] = attrs.field(factory=list)
    """What it must not get."""

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
            self.wrong.append(error)
        connection.close()

    def _register(self, connection: HTTPConnection, name: str) -> None:
        status, answer, refusals = self._until_done(
            connection, "POST", "/register-user", {**new_user(name), "email": "user@example.com"}
        )
        assert status == 201 or (status == 409 and refusals), (name, status, answer)
        self.done_unseen += status == 409
        self.users[name] = answer["user_id"], True

    def _toggle(self, connection: HTTPConnection, name: str) -> None:
        user_id, enabled = self.users[name]
        path = f"/toggle-user-permission/{user_id}/{int(not enabled)}"
        status, answer, _ = self._until_done(connection, "PUT", path)
        assert status == 200, (name, status, answer)
        self.users[name] = user_id, not enabled

    def _until_done(
        self, connection: HTTPConnection, method: str, path: str, body: object = None
    ) -> tuple[int, dict[str, int], int]:
        """Return the first answer that is not 503, and how many came before it that were."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        until = time.monotonic() + PERSISTENCE
        refusals = 0
        while True:
            begin = time.monotonic()
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response: HTTPResponse = connection.getresponse()
            answer = json.loads(response.read())
            end = time.monotonic()
            self.answers.append(Answered(end, end - begin, response.status))
            if response.status != 503:
                return response.status, answer, refusals
            assert response.getheader("Retry-After", "").isdigit(), answer
            assert end < until, f"still {answer} after {PERSISTENCE:g} seconds"
            refusals += 1
            time.sleep(PAUSE)


@attrs.frozen
class Load:
    clients: Sequence[PatientClient]

    @property
    def answers(self) -> list[Answered]:
        return sorted((answer for client in self.clients for answer in client.answers), key=lambda answer: answer.at)

    @property
    def users(self) -> dict[str, tuple[int, bool]]:
        """Return what `tests.torture.clients.stored_users` must be when all of them have ended."""
        return {name: user for client in self.clients for name, user in client.users.items()}

    @property
    def wrong(self) -> list[object]:
        return [wrong for client in self.clients for wrong in client.wrong]

    @property
    def refused(self) -> int:
        return sum(answer.status == 503 for answer in self.answers)

    @property
    def done_unseen(self) -> int:
        return sum(client.done_unseen for client in self.clients)

    @property
    def slowest(self) -> float:
        return max(answer.seconds for answer in self.answers)

    def seconds_to_success(self, within: float = 30) -> float:
        """Wait for the next answer that is not 503; return how long that took."""
        begin = time.monotonic()

        def later() -> float:
            return next((answer.at - begin for answer in self.answers if answer.at > begin and answer.status != 503), 0)

        self.wait_for(later, within, "success")
        return later()

    def longest_pause(self) -> float:
        """Return the most seconds between two answers that were not 503."""
        times = [answer.at for answer in self.answers if answer.status != 503]
        return max(later - earlier for earlier, later in pairwise(times))

    def wait_for(self, ready: Callable[[], object], seconds: float, what: str) -> None:
        until = time.monotonic() + seconds
        while not ready():
            assert not self.wrong, self.wrong
            assert time.monotonic() < until, f"no {what} within {seconds:g} seconds"
            time.sleep(0.01)


@contextmanager
def load(port: int, clients: int, prefix: str) -> Iterator[Load]:
    """So many clients work meanwhile, and end what they have begun. The names of their users begin with the prefix."""
    of_them = Load([PatientClient(f"{prefix} {number}") for number in range(clients)])
    stop = threading.Event()
    threads = [threading.Thread(target=client.work, args=(port, stop)) for client in of_them.clients]
    for thread in threads:
        thread.start()
    try:
        of_them.wait_for(lambda: len(of_them.answers) >= 10 * clients, 30, "load")
        yield of_them
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def serving(url: URL, folder: Path, **environ: str) -> Iterator[MlapiServer]:
    """Run the service on a database, with the cheap scheme: what is tried is the database, not the hash."""
    text = url.render_as_string(hide_password=False)
    own = {"MLAPI_DATABASE__URL": text, "MLAPI_PASSWORDS__SCHEME": "fernet"}
    server = MlapiServer(folder, own | environ, "--no-access-log")
    try:
        yield server.start()
    finally:
        server.stop(signal.SIGKILL)
