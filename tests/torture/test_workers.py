"""Many processes over one database: each sees at once what any other has acknowledged, and none hinders another."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

from sqlalchemy import URL, text

from mlapi.adapters.sql import Database
from tests.conftest import KEY, SALT
from tests.e2e.server import MlapiServer, Server
from tests.torture.clients import PASSWORD, TIMEOUT, ask, new_user, received, send, stored_users

MODEL_WORKERS = 2
WATCHERS = 4
CROWD = 4
SHARED = 20
"""Names that the crowd fights over: few, so that batches of several workers meet on the same rows."""


def workers_of(server: Server) -> set[int]:
    """Return the ids of the processes of a server."""
    assert server._process is not None
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == server._process.pid:  # the group, which the first of them leads
            found.add(int(stat.parent.name))
    return found


def worker_behind(connection: HTTPConnection, server: Server) -> int:
    """Return the id of the process that holds the other end of a connection, on which it has answered before."""
    ends = f":{server.port:04X}", f":{connection.sock.getsockname()[1]:04X}"
    for _ in range(100):  # a row may be missing while others come and go
        for row in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:]):
            if (row[1][-5:], row[2][-5:]) == ends:
                for pid in workers_of(server):
                    if f"socket:[{row[9]}]" in open_files(pid):
                        return pid
    raise AssertionError("nobody holds the other end of the connection")


def open_files(pid: int) -> Iterator[str]:
    """Yield what the file descriptors of a process are."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            yield str(descriptor.readlink())


@contextmanager
def connections_to_each_worker(
    servers: Sequence[Server], workers: int, *, each: int = 1
) -> Iterator[list[HTTPConnection]]:
    """So many connections to each worker of each server."""
    with ExitStack() as opened:
        found: list[HTTPConnection] = []
        count: Counter[int] = Counter()
        for server in [*servers] * 500:  # the system decides which worker takes a connection
            connection = HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
            opened.callback(connection.close)
            ask(connection, "GET", "/health/live")
            worker = worker_behind(connection, server)
            if count[worker] < each:
                count[worker] += 1
                found.append(connection)
            if len(found) == len(servers) * workers * each:
                yield found
                return
            for other in found:  # who is idle for some seconds is cut off
                ask(other, "GET", "/health/live")
        raise AssertionError(f"only {len(count)} of {len(servers) * workers} workers take connections")


class Watcher:
    """Shuts a user out and lets him in, through one worker after the other, and asks every process each time.

    Args:
        name: of its user.
        services: a connection to each worker of the services.
        models: a connection to each worker of the model.
    """

    def __init__(self, name: str, services: Sequence[HTTPConnection], models: Sequence[HTTPConnection]) -> None:
        self.counted: Counter[str] = Counter()
        self._name = name
        self._services = services
        self._models = models
        self._turn = 0
        _, registered = self._service("POST", "/register-user", new_user(name))
        self._user_id = int(registered["user_id"])
        _, made = self._service("POST", f"/users/{self._user_id}/keys", {"name": "torture"})
        self._key = str(made["key"])
        self._token = self._new_token()

    def watch(self, times: int) -> None:
        for number in range(times):
            self._race(f"{self._name}-{number}")
            assert self._seen_by_all(self._token, self._key) == {200}
            self._set_flag(0)
            assert self._seen_by_all(self._token, self._key) == {403}
            self._set_flag(1)
            assert self._seen_by_all(self._token) == {401}
            assert self._seen_by_all(self._key) == {200}
            self._token = self._new_token()

    def _service(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, str | int]]:
        """Ask the worker whose turn it is."""
        self._turn += 1
        return ask(self._services[self._turn % len(self._services)], method, path, body)

    def _set_flag(self, flag: int) -> None:
        status, _ = self._service("PUT", f"/toggle-user-permission/{self._user_id}/{flag}")
        assert status == 200
        self.counted["toggles"] += 1

    def _new_token(self) -> str:
        status, issued = self._service("POST", "/token", {"username": self._name, "password": PASSWORD})
        assert status == 200
        self.counted["log-ins"] += 1
        return str(issued["token"])

    def _seen_by_all(self, *credentials: str) -> set[int]:
        """Show credentials to all processes at the same time; return the statuses of their answers."""
        statuses = set()
        for credential in credentials:
            for connection in self._models:
                send(connection, "GET", "/predict", bearer=credential)
            for connection in self._services:
                send(connection, "GET", "/users/me", bearer=credential)
            statuses |= {received(connection)[0] for connection in (*self._models, *self._services)}
            self.counted["guarded requests"] += len(self._models) + len(self._services)
        return statuses

    def _race(self, name: str) -> None:
        """Register one name by all workers of the services at the same time: one is told that it is new."""
        for connection in self._services:
            send(connection, "POST", "/register-user", new_user(name))
        answers = [received(connection) for connection in self._services]
        assert sorted(status for status, _ in answers) == [201, *[409] * (len(answers) - 1)]
        assert len({answer["user_id"] for _, answer in answers}) == 1
        self.counted["races for a name"] += 1


def fight(servers: Sequence[Server], workers: int, number: int, stop: threading.Event) -> Counter[int]:
    """Register, toggle and remove what others register, toggle and remove too; return how often each status came."""
    chance = random.Random(number)
    statuses: Counter[int] = Counter()
    ids = [0]  # nobody's
    with connections_to_each_worker(servers, workers, each=2) as connections:
        while not stop.is_set():
            for connection in connections:
                kind = chance.random()
                if kind < 0.3:
                    send(connection, "POST", "/register-user", new_user(f"shared{chance.randrange(SHARED)}"))
                elif kind < 0.9:
                    send(connection, "PUT", f"/toggle-user-permission/{chance.choice(ids)}/{chance.randrange(2)}")
                else:
                    send(connection, "DELETE", f"/remove-user/{chance.choice(ids)}")
            for connection in connections:
                status, answer = received(connection)
                statuses[status] += 1
                if status in {201, 409}:
                    ids = [*ids[-SHARED:], answer["user_id"]]
    return statuses


SETUPS = {"sqlite": [(1, 2), (1, 4)], "postgresql+psycopg": [(2, 2), (1, 2), (1, 4)]}
"""Services, each as on a machine of its own, and their workers; the first alone in the short form."""


def test_what_one_worker_acknowledges_every_process_sees_at_its_next_request(
    url: URL, tmp_path: Path, times: Callable[[int, int], int], tell: Callable[[str], None]
) -> None:
    setups = SETUPS[url.drivername]
    cycles = times(6, 250)
    for services, workers in setups[: times(1, len(setups))]:
        prefix = f"{services}x{workers}"
        counted, statuses = watched(url, tmp_path, prefix, services=services, workers=workers, cycles=cycles)

        assert set(statuses) <= {200, 201, 404, 409}
        assert {name for name in stored_users(url) if name.startswith(prefix)} == {  # and no name twice
            name
            for watcher in range(WATCHERS)
            for name in (f"{prefix}-{watcher}", *(f"{prefix}-{watcher}-{cycle}" for cycle in range(cycles)))
        }
        tell(
            f"{'SQLite' if url.drivername == 'sqlite' else 'PostgreSQL'}, {services} x {workers} workers of the service"
            f" and {MODEL_WORKERS} of a model: {counted['toggles']:,} toggles, each seen by every process at its next"
            f" request: {counted['guarded requests']:,} guarded requests by token and by API key, 0 stale answers;"
            f" {counted['log-ins']:,} log-ins; {counted['races for a name']:,} races of all workers for a name, one"
            f" user each; {statuses.total():,} changes meanwhile to {SHARED} names that all fight over, 0 answers of"
            f" 5xx{deadlocks(url)}"
        )


def watched(
    url: URL, folder: Path, prefix: str, *, services: int, workers: int, cycles: int
) -> tuple[Counter[str], Counter[int]]:
    """Run the services and a model; return what the watchers have counted, and the statuses that the crowd got."""
    environ = {
        "MLAPI_DATABASE__URL": url.render_as_string(hide_password=False),
        "MLAPI_PASSWORDS__SCHEME": "fernet",  # what is tried is the database, not the hash
        "MLAPI_SECRETS__KEY": KEY,
        "MLAPI_SECRETS__SALT": SALT,
        "MLAPI_LOGINS__PER_ADDRESS": "100000",
    }
    options = ["--no-access-log", "--workers"]
    kept = ["--timeout-keep-alive", "60"]
    model = Server(folder, environ, *options, str(MODEL_WORKERS), *kept, app="tests.torture.model:app")
    servers = [MlapiServer(folder, environ, *options, str(workers)) for _ in range(services)]
    with ExitStack() as opened, ThreadPoolExecutor(WATCHERS + CROWD) as pool:
        for started in [pool.submit(server.start) for server in (model, *servers)]:
            opened.callback(started.result().stop)

        def watch(number: int) -> Counter[str]:
            with (
                connections_to_each_worker([model], MODEL_WORKERS) as to_models,
                connections_to_each_worker(servers, workers) as to_services,
            ):
                watcher = Watcher(f"{prefix}-{number}", to_services, to_models)
                watcher.watch(cycles)
            return watcher.counted

        stop = threading.Event()
        fights = [pool.submit(fight, servers, workers, number, stop) for number in range(CROWD)]
        try:
            counted = sum(pool.map(watch, range(WATCHERS)), Counter[str]())
        finally:
            stop.set()
        return counted, sum((fought.result() for fought in fights), Counter[int]())


def deadlocks(url: URL) -> str:
    """Tell of the batches that the server has ended because they waited for each other; ours are tried again."""
    if url.drivername == "sqlite":
        return ""
    statement = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    with Database(url) as database:
        count: int = database.read(lambda connection: connection.execute(statement).scalar_one())
    return f"; {count} deadlocks so far on that database, dissolved after a second each"
