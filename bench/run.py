"""Measure mlapi, its ceiling and its peers in one interleaved run: ``make bench``. Writes RESULTS.md and chart.svg.

Each round starts, loads and stops every server, so that a temporary slowdown of the machine affects all of them. The
server has one core to itself; the load generator and PostgreSQL share the other.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import text
from tests.conftest import KEY, SALT
from tests.postgres_server import PostgresServer, running_postgres

from bench import bulk, report
from bench.measure import Figure, fsync_milliseconds, load
from bench.results import Results
from bench.targets import LOAD_CORE, OPTIONS, PEERS_BIN, SERVER_CORE, UVICORN, Server, Target
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.urls import database_url

HERE = Path(__file__).parent
CONNECTIONS = (1, 16, 64)
APP_DIR = ("--app-dir", str(HERE.parent))
CREDENTIALS = 1_000
REMOVABLE_USERS = 600_000
"""More users than one run of the ``remove`` endpoint can delete."""


class Run:
    """The targets, the databases and the results of one run."""

    def __init__(self, folder: Path, new_postgres: "PostgresDatabases", seconds: float) -> None:
        self.folder = folder
        self.new_postgres = new_postgres
        self.seconds = seconds
        self.results = Results()

    def mlapi(self, name: str, *, kind: str, users: int, scheme: str = "fernet") -> Target:
        """Return mlapi with ``users`` users in its database."""
        folder = self._folder(name)
        url = f"sqlite:///{folder}/mlapi.db" if kind == "sqlite" else self.new_postgres()
        environ = mlapi_environ(url, scheme)
        seconds = bulk.register(environ, users)
        print(f"{name}: {users:,} users in {seconds:.1f} s", flush=True)
        command = [*UVICORN, "mlapi.entrypoints.http:app", "--port", "{port}"]
        return Target(name, command, folder, environ, make_flag_reader(url, "users", "enabled"), users=users)

    def guarded(self, name: str, *, kind: str, per_minute: int | None = None, credentials: int = CREDENTIALS) -> Target:
        """Return a model behind the guard, with the credentials of some of its 10,000 users in its folder.

        Args:
            name: the name of the target.
            kind: the database.
            per_minute: the allowance of each user. None for no plans.
            credentials: how many users have credentials.
        """
        folder = self._folder(name)
        url = f"sqlite:///{folder}/mlapi.db" if kind == "sqlite" else self.new_postgres()
        environ = mlapi_environ(url, "fernet")
        bulk.register(environ, 10_000)
        bulk.write_credentials(environ, credentials, folder)
        if per_minute is not None:
            environ |= {"MLAPI_PLANS__BENCH__PER_MINUTE": str(per_minute), "MLAPI_DEFAULT_PLAN": "bench"}
        return Target(name, [*UVICORN, "bench.guarded:app", *APP_DIR, "--port", "{port}"], folder, environ)

    def open_model(self) -> Target:
        """Return the same model without the guard."""
        folder = self._folder("open model")
        (folder / "tokens").write_text("\n".join(["x" * 300] * CREDENTIALS))
        return Target("open model", [*UVICORN, "bench.ceiling:app", *APP_DIR, "--port", "{port}"], folder)

    def ceiling(self) -> Target:
        """Return bare Starlette with the three endpoints and no database."""
        command = [*UVICORN, "bench.ceiling:app", *APP_DIR, "--port", "{port}"]
        return Target("ceiling", command, self._folder("ceiling"))

    def peer(self, name: str, *, framework: str, kind: str, hashing: str) -> Target:
        """Return a peer with 10,000 users in its database."""
        folder = self._folder(name)
        url = f"sqlite:///{folder}/peer.db" if kind == "sqlite" else self.new_postgres()
        environ = {"PEER_DATABASE_URL": url, "PEER_HASH": hashing}
        program, command = PEERS[framework]
        subprocess.run(
            [str(PEERS_BIN / "python"), str(program), "prepare", "10000"],
            env={**os.environ, **environ},
            cwd=folder,
            check=True,
        )
        table = "user" if framework == "fastapi-users" else "auth_user"
        return Target(name, command, folder, environ, make_flag_reader(url, table, "is_active"))

    def measure(self, target: Target, endpoints: tuple[str, ...], connections: tuple[int, ...]) -> None:
        with Server(target) as server:
            self.results.startup_seconds[target.name].append(server.startup_seconds)
            load(server, endpoints[0], 16, 1)  # warm up
            for endpoint in endpoints:
                for count in connections:
                    figure = load(server, endpoint, count, self.seconds)
                    self.results.figures[target.name][f"{endpoint} {count}"].append(figure)
                    print(
                        f"  {target.name:34} {endpoint:8} c={count:<3} {figure.per_second:9,.0f}/s"
                        f"  p50 {figure.p50:8.2f} ms  p99 {figure.p99:8.2f} ms  errors {figure.errors}",
                        flush=True,
                    )
            self.results.resident_mib[target.name].append(server.resident_mib())

    def measure_default_scheme(self, target: Target) -> None:
        """Measure registrations with argon2id, concurrent toggles, and argon2id alone on the same core."""
        script = [sys.executable, "-m", "bench.bare_argon2id", str(self.seconds)]
        bare = subprocess.run(
            ["taskset", "-c", SERVER_CORE, *script],
            capture_output=True,
            text=True,
            check=True,
            cwd=HERE.parent,
        )
        self.results.other["argon2id alone"].append(float(bare.stdout))
        with Server(target) as server:
            alone = load(server, "register", 16, self.seconds)
            self.results.figures[target.name]["register 16"].append(alone)
            toggles: list[Figure] = []
            concurrent = threading.Thread(target=lambda: toggles.append(load(server, "toggle", 4, self.seconds)))
            concurrent.start()
            load(server, "register", 16, self.seconds)
            concurrent.join()
            self.results.figures[target.name]["toggle 4 concurrent"].append(toggles[0])
            self.results.resident_mib[target.name].append(server.resident_mib())
            print(
                f"  {target.name}: {alone.per_second:.1f}/s of {float(bare.stdout):.1f}/s,"
                f" concurrent toggles p99 {toggles[0].p99:.1f} ms",
                flush=True,
            )

    def _folder(self, name: str) -> Path:
        folder = self.folder / name.replace(" ", "-").replace(",", "")
        folder.mkdir()
        return folder


PEERS = {
    "fastapi-users": (
        HERE / "peers" / "fastapi_users_app.py",
        [
            str(PEERS_BIN / "uvicorn"), *OPTIONS, "fastapi_users_app:app",
            "--app-dir", str(HERE / "peers"), "--port", "{port}",
        ],
    ),
    "Django REST framework": (
        HERE / "peers" / "drf" / "manage.py",
        [
            str(PEERS_BIN / "gunicorn"), "wsgi:application", "--chdir", str(HERE / "peers" / "drf"),
            "--workers", "1", "--threads", "4", "--bind", "127.0.0.1:{port}", "--log-level", "warning",
        ],
    ),
}  # fmt: skip


def mlapi_environ(url: str, scheme: str) -> dict[str, str]:
    """Return the environment variables that configure mlapi for a database."""
    return {
        "MLAPI_DATABASE__URL": url,
        "MLAPI_PASSWORDS__SCHEME": scheme,
        "MLAPI_SECRETS__KEY": KEY,
        "MLAPI_SECRETS__SALT": SALT,
    }


def make_flag_reader(url: str, table: str, column: str) -> Callable[[int], bool]:
    """Return a function that reads the enabled flag of a user from the database."""
    reader = Database(database_url(url))
    statement = text(f'SELECT {column} FROM "{table}" WHERE id = :id')  # noqa: S608 - the names are constants

    def read_flag(user_id: int) -> bool:
        with reader.reading() as connection:
            return bool(connection.scalar(statement, {"id": user_id}))

    return read_flag


class PostgresDatabases:
    """Create a new PostgreSQL database on each call, and return its URL."""

    def __init__(self, server: PostgresServer, stack: ExitStack) -> None:
        self._server = server
        self._stack = stack

    def __call__(self) -> str:
        url = self._stack.enter_context(self._server.new_database())
        return f"postgresql://{url.username}:{quote(str(url.password), safe='')}@{url.host}:{url.port}/{url.database}"


def measure_endpoints(run: Run, arguments: argparse.Namespace) -> None:
    ceiling = run.ceiling()
    ours = [run.mlapi(f"mlapi, {kind}", kind=kind, users=10_000) for kind in ("sqlite", "postgresql")]
    removing = [
        run.mlapi(f"mlapi, {kind}, removing", kind=kind, users=REMOVABLE_USERS) for kind in ("sqlite", "postgresql")
    ]
    default = [
        run.mlapi(f"mlapi, {kind}, argon2id", kind=kind, users=10_000, scheme="argon2id")
        for kind in ("sqlite", "postgresql")
    ]
    peers = [
        run.peer(f"{framework}, {kind}, {hashing} hash", framework=framework, kind=kind, hashing=hashing)
        for framework in ([] if arguments.no_peers else PEERS)
        for kind in ("sqlite", "postgresql")
        for hashing in ("default", "cheap")
    ]
    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
        run.results.other["fsync"].append(fsync_milliseconds(run.folder))
        run.measure(ceiling, ("register", "toggle", "remove"), CONNECTIONS)
        for target in ours:
            run.measure(target, ("register", "toggle"), CONNECTIONS)
        for target in removing:
            run.measure(target, ("remove",), CONNECTIONS)
        for target in default:
            run.measure_default_scheme(target)
        for target in peers:
            run.measure(target, ("toggle", "register"), (16,))  # toggles first: queued hashes would slow them down


def measure_guard(run: Run, arguments: argparse.Namespace) -> None:
    """Measure one endpoint without a guard, behind mlapi's guard, and behind the guard of fastapi-users."""
    open_model = run.open_model()
    ours = [run.guarded(f"guard, {kind}", kind=kind) for kind in ("sqlite", "postgresql")]
    peers = [
        run.peer(f"fastapi-users, {kind}, current_user", framework="fastapi-users", kind=kind, hashing="cheap")
        for kind in ([] if arguments.no_peers else ("sqlite", "postgresql"))
    ]
    limited = [
        run.guarded(f"guard, {limit:,} per minute, {kind}", kind=kind, per_minute=limit)
        for kind in ("sqlite", "postgresql")
        for limit in (1_000, 100_000)
    ]
    # A user's allowance must not be used up during a measurement, so every user has credentials.
    written = [
        run.guarded(f"guard, 10 per minute, {kind}", kind=kind, per_minute=10, credentials=10_000)
        for kind in ("sqlite", "postgresql")
    ]
    for number in range(arguments.rounds):
        print(f"guard, round {number + 1} of {arguments.rounds}", flush=True)
        run.measure(open_model, ("open",), (16, 64))
        for target in ours:
            run.measure(target, ("token", "key"), (16, 64))
        for target in limited:
            run.measure(target, ("key",), (64,))
        for target in written:
            run.measure(target, ("key",), (64,))
        for target in peers:
            run.measure(target, ("token",), (16, 64))


def measure_growth(run: Run, arguments: argparse.Namespace) -> None:
    """Measure how rates change with the number of users in the table."""
    sizes = [
        ("sqlite", 10_000),
        ("sqlite", 1_000_000),
        ("sqlite", 10_000_000),
        ("postgresql", 10_000),
        ("postgresql", 1_000_000),
    ]
    grown = [
        run.mlapi(f"mlapi, {kind}, {users:,} users", kind=kind, users=users)
        for kind, users in sizes
        if users <= arguments.grow_to
    ]
    for number in range(arguments.rounds):
        print(f"growth, round {number + 1} of {arguments.rounds}", flush=True)
        for target in grown:
            run.measure(target, ("register", "toggle"), (64,))


def measure_imports(run: Run, arguments: argparse.Namespace) -> None:
    """Measure how long it takes to register users through the library."""
    for kind in ("sqlite", "postgresql"):
        folder = run.folder / f"import-{kind}"
        folder.mkdir()
        url = f"sqlite:///{folder}/mlapi.db" if kind == "sqlite" else run.new_postgres()
        environ = mlapi_environ(url, "fernet")
        seconds = bulk.register(environ, arguments.imports, passwords=True)
        run.results.other[f"import, {kind}"].append(seconds)
        print(f"{arguments.imports:,} registrations on {kind}: {seconds:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="seconds for each measurement")
    parser.add_argument("--grow-to", type=int, default=10_000_000, help="users in the largest table")
    parser.add_argument("--imports", type=int, default=1_000_000, help="users to register in the import")
    parser.add_argument("--no-peers", action="store_true", help="measure mlapi and the ceiling only")
    parser.add_argument("--folder", type=Path, help="folder for the databases, on the disk to measure")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for RESULTS.md and chart.svg")
    arguments = parser.parse_args()
    for tool in ("wrk", "taskset"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is missing: install it from your distribution (Debian: apt-get install wrk util-linux)")
    started_at = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.folder, prefix="mlapi-bench-")))
        postgres = stack.enter_context(running_postgres(durable=True, prefix=["taskset", "-c", LOAD_CORE]))
        run = Run(folder, PostgresDatabases(postgres, stack), arguments.seconds)
        measure_endpoints(run, arguments)
        measure_guard(run, arguments)
        measure_imports(run, arguments)
        measure_growth(run, arguments)
        report.write(run.results, arguments, time.monotonic() - started_at)


if __name__ == "__main__":
    main()
