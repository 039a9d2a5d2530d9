"""Many processes share one database: each sees, on its next request, every change that another has acknowledged."""

import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

from sqlalchemy import URL, text

from mlapi.adapters.sql.database import Database
from tests.conftest import KEY, SALT
from tests.e2e.server import MlapiServer, Server
from tests.torture.clients import PASSWORD, TIMEOUT_SECONDS, call, new_user, receive, send, stored_users
from tests.torture.conftest import Report, ShortOrFull

MODEL_WORKERS = 2
WATCHERS = 4
CONTENDERS = 4
SHARED_NAMES = 20
"""Number of usernames that all contenders change: few, so that batches of different workers lock the same rows."""


def process_ids(server: Server) -> set[int]:
    """Return the process ids of a server and its workers."""
    assert server._process is not None
    ids = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == server._process.pid:  # field 5 of the file: the process group
            ids.add(int(stat.parent.name))
    return ids


def find_worker(connection: HTTPConnection, server: Server) -> int:
    """Return the id of the process that serves a connection. The process must already have responded on it."""
    ports = f":{server.port:04X}", f":{connection.sock.getsockname()[1]:04X}"
    for _ in range(100):  # the kernel may skip a row while other connections open and close
        for row in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:]):
            if (row[1][-5:], row[2][-5:]) == ports:
                for pid in process_ids(server):
                    if f"socket:[{row[9]}]" in open_files(pid):
                        return pid
    raise AssertionError("no process of the server has the connection open")


def open_files(pid: int) -> Iterator[str]:
    """Yield the targets of the file descriptors of a process."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed in the meantime
            yield str(descriptor.readlink())


@contextmanager
def connect_to_each_worker(
    servers: Sequence[Server], workers: int, *, connections_per_worker: int = 1
) -> Iterator[list[HTTPConnection]]:
    """Yield the same number of connections to every worker of every server."""
    with ExitStack() as stack:
        connections: list[HTTPConnection] = []
        count: Counter[int] = Counter()
        for server in [*servers] * 500:  # the kernel chooses the worker that accepts a connection
            connection = HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_SECONDS)
            stack.callback(connection.close)
            call(connection, "GET", "/health/live")
            worker = find_worker(connection, server)
            if count[worker] < connections_per_worker:
                count[worker] += 1
                connections.append(connection)
            if len(connections) == len(servers) * workers * connections_per_worker:
                yield connections
                return
            for other in connections:  # the server closes idle connections after some seconds
                call(other, "GET", "/health/live")
        raise AssertionError(f"only {len(count)} of {len(servers) * workers} workers accept connections")


class Watcher:
    """Disables and enables a user, each time through a different worker, and checks that all processes see the change.

    Args:
        name: username.
        services: one connection to each worker of the services.
        models: one connection to each worker of the model.
    """

    def __init__(self, name: str, services: Sequence[HTTPConnection], models: Sequence[HTTPConnection]) -> None:
        self.counts: Counter[str] = Counter()
        self._name = name
        self._services = services
        self._models = models
        self._calls = 0
        _, user = self._call_next_worker("POST", "/register-user", new_user(name))
        self._user_id = int(user["user_id"])
        _, api_key = self._call_next_worker("POST", f"/users/{self._user_id}/keys", {"name": "torture"})
        self._key = str(api_key["key"])
        self._token = self._log_in()

    def watch(self, cycles: int) -> None:
        for number in range(cycles):
            self._race(f"{self._name}-{number}")
            assert self._statuses_from_all(self._token, self._key) == {200}
            self._set_flag(0)
            assert self._statuses_from_all(self._token, self._key) == {403}
            self._set_flag(1)
            assert self._statuses_from_all(self._token) == {401}
            assert self._statuses_from_all(self._key) == {200}
            self._token = self._log_in()

    def _call_next_worker(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, str | int]]:
        self._calls += 1
        return call(self._services[self._calls % len(self._services)], method, path, body)

    def _set_flag(self, flag: int) -> None:
        status, _ = self._call_next_worker("PUT", f"/toggle-user-permission/{self._user_id}/{flag}")
        assert status == 200
        self.counts["toggles"] += 1

    def _log_in(self) -> str:
        status, token = self._call_next_worker("POST", "/token", {"username": self._name, "password": PASSWORD})
        assert status == 200
        self.counts["logins"] += 1
        return str(token["token"])

    def _statuses_from_all(self, *credentials: str) -> set[int]:
        """Send each credential to all processes at the same time; return the statuses."""
        statuses = set()
        for credential in credentials:
            for connection in self._models:
                send(connection, "GET", "/predict", bearer=credential)
            for connection in self._services:
                send(connection, "GET", "/users/me", bearer=credential)
            statuses |= {receive(connection)[0] for connection in (*self._models, *self._services)}
            self.counts["guarded requests"] += len(self._models) + len(self._services)
        return statuses

    def _race(self, name: str) -> None:
        """Register one name through all workers at the same time: exactly one must create the user."""
        for connection in self._services:
            send(connection, "POST", "/register-user", new_user(name))
        responses = [receive(connection) for connection in self._services]
        assert sorted(status for status, _ in responses) == [201, *[409] * (len(responses) - 1)]
        assert len({body["user_id"] for _, body in responses}) == 1
        self.counts["races for a name"] += 1


def contend(servers: Sequence[Server], workers: int, number: int, stop: threading.Event) -> Counter[int]:
    """Register, toggle and remove users that all contenders change; return the number of responses by status."""
    rng = random.Random(number)
    statuses: Counter[int] = Counter()
    ids = [0]  # no user has this id
    with connect_to_each_worker(servers, workers, connections_per_worker=2) as connections:
        while not stop.is_set():
            for connection in connections:
                choice = rng.random()
                if choice < 0.3:
                    send(connection, "POST", "/register-user", new_user(f"shared{rng.randrange(SHARED_NAMES)}"))
                elif choice < 0.9:
                    send(connection, "PUT", f"/toggle-user-permission/{rng.choice(ids)}/{rng.randrange(2)}")
                else:
                    send(connection, "DELETE", f"/remove-user/{rng.choice(ids)}")
            for connection in connections:
                status, body = receive(connection)
                statuses[status] += 1
                if status in {201, 409}:
                    ids = [*ids[-SHARED_NAMES:], body["user_id"]]
    return statuses


SETUPS = {"sqlite": [(1, 2), (1, 4)], "postgresql+psycopg": [(2, 2), (1, 2), (1, 4)]}
"""Number of services, and number of workers in each. The short form runs only the first setup."""


def test_acknowledged_change_is_visible_to_every_process(
    url: URL, tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    setups = SETUPS[url.drivername]
    cycles = short_or_full(6, 250)
    for services, workers in setups[: short_or_full(1, len(setups))]:
        prefix = f"{services}x{workers}"
        counts, statuses = run_setup(url, tmp_path, prefix, services=services, workers=workers, cycles=cycles)

        assert set(statuses) <= {200, 201, 404, 409}
        assert {name for name in stored_users(url) if name.startswith(prefix)} == {
            name
            for watcher in range(WATCHERS)
            for name in (f"{prefix}-{watcher}", *(f"{prefix}-{watcher}-{cycle}" for cycle in range(cycles)))
        }
        report(
            f"{'SQLite' if url.drivername == 'sqlite' else 'PostgreSQL'}, {services} x {workers} workers of the service"
            f" and {MODEL_WORKERS} of a model: {counts['toggles']:,} toggles, each visible to all processes on their"
            f" next request: {counts['guarded requests']:,} guarded requests with tokens and API keys, 0 stale"
            f" responses; {counts['logins']:,} logins; {counts['races for a name']:,} races of all workers for a"
            f" username, one user created in each; {statuses.total():,} concurrent changes to {SHARED_NAMES} shared"
            f" usernames, 0 5xx responses{describe_deadlocks(url)}"
        )


def run_setup(
    url: URL, folder: Path, prefix: str, *, services: int, workers: int, cycles: int
) -> tuple[Counter[str], Counter[int]]:
    """Run services and a model; return the counts of the watchers and the statuses that the contenders received."""
    environ = {
        "MLAPI_DATABASE__URL": url.render_as_string(hide_password=False),
        "MLAPI_PASSWORDS__SCHEME": "fernet",  # fast, to put more load on the database
        "MLAPI_SECRETS__KEY": KEY,
        "MLAPI_SECRETS__SALT": SALT,
        "MLAPI_LOGINS__PER_ADDRESS": "100000",
    }
    options = ["--no-access-log", "--workers"]
    keep_alive = ["--timeout-keep-alive", "60"]
    model = Server(folder, environ, *options, str(MODEL_WORKERS), *keep_alive, app="tests.torture.guarded_app:app")
    servers = [MlapiServer(folder, environ, *options, str(workers)) for _ in range(services)]
    with ExitStack() as stack, ThreadPoolExecutor(WATCHERS + CONTENDERS) as pool:
        for started in [pool.submit(server.start) for server in servers]:
            stack.callback(started.result().stop)
        stack.enter_context(model)  # after the services, which create the database

        def watch(number: int) -> Counter[str]:
            with (
                connect_to_each_worker([model], MODEL_WORKERS) as to_models,
                connect_to_each_worker(servers, workers) as to_services,
            ):
                watcher = Watcher(f"{prefix}-{number}", to_services, to_models)
                watcher.watch(cycles)
            return watcher.counts

        stop = threading.Event()
        contenders = [pool.submit(contend, servers, workers, number, stop) for number in range(CONTENDERS)]
        try:
            counts = sum(pool.map(watch, range(WATCHERS)), Counter[str]())
        finally:
            stop.set()
        return counts, sum((contender.result() for contender in contenders), Counter[int]())


def describe_deadlocks(url: URL) -> str:
    """Describe how many deadlocks the server resolved. mlapi retries a batch that was rolled back."""
    if url.drivername == "sqlite":
        return ""
    statement = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    with Database(url) as database:
        count: int = database.read(lambda connection: connection.execute(statement).scalar_one())
    return f"; {count} deadlocks in total in that database, each resolved by PostgreSQL after one second"
