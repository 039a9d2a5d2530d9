"""Measure throughput and memory by number of workers, and bytes per user: ``python -m bench.scaling``. Prints Markdown.

These are the figures in docs/scaling.md. Workers share all cores with the load generator and PostgreSQL, as on a
single small machine. In contrast, `bench.run` pins the server to one core.
"""

import argparse
import re
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.e2e.server import MlapiServer, Server
from tests.postgres_server import PostgresServer, running_postgres
from tests.torture.test_workers import process_ids

from bench import bulk
from bench.environment import PostgresDatabases, mlapi_environ
from bench.measure import LOAD

WORKERS = (1, 2, 4)
GENERATORS = 4
USERS = 100_000


def resident_mib(server: Server) -> list[float]:
    """Return the proportional memory (PSS) of each process, which divides shared memory among the processes."""
    found = []
    for pid in process_ids(server):
        (kib,) = re.findall(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        found.append(int(kib) / 1024)
    return sorted(found)


def rate(server: Server, script: str, connections: int, seconds: float, *arguments: str) -> str:
    """Return requests per second, marked with ``!`` if a request failed.

    Start the generators one after another: a single worker would accept connections that all open at the same moment.
    """
    command = ["wrk", "-t1", f"-c{connections // GENERATORS}", f"-d{seconds:g}s", "--timeout", "30s"]
    running = []
    for number in range(GENERATORS):
        # Each generator toggles different users.
        start = USERS * int(time.time()) + USERS * number // GENERATORS
        formatted = [argument.format(name=f"{time.time_ns():x}", start=start) for argument in arguments]
        script_and_arguments = ["-s", str(LOAD / f"{script}.lua"), server.base, "--", *formatted]
        running.append(subprocess.Popen([*command, *script_and_arguments], stdout=subprocess.PIPE, text=True))
        time.sleep(0.2)
    outputs = [process.communicate()[0] for process in running]
    rates = [float(found) for output in outputs for found in re.findall(r"Requests/sec:\s+([\d.]+)", output)]
    return f"{sum(rates):,.0f}{' !' * any('Non-2xx' in output for output in outputs)}"


def measure_workers(
    kind: str, new_url: Callable[[Path], str], folder: Path, postgres: PostgresServer, seconds: float
) -> None:
    """Print the rates and the memory of the service and of a guarded application, by number of workers."""
    # Separate databases: toggles would disable the users of the guarded application.
    service_folder, guarded_folder = folder / "service", folder / "guarded"
    for created in (service_folder, guarded_folder):
        created.mkdir(parents=True)
    url, guarded_url = new_url(service_folder), new_url(guarded_folder)
    bulk.register(mlapi_environ(url, "fernet"), USERS)
    bulk.register(mlapi_environ(guarded_url, "fernet"), USERS)
    bulk.write_credentials(mlapi_environ(guarded_url, "fernet"), 1_000, guarded_folder, users=USERS)
    for count in WORKERS:
        options = ["--workers", str(count), "--no-access-log"]
        figures, notes = [], []
        service = MlapiServer(service_folder, mlapi_environ(url, "fernet"), *options)
        hashing = MlapiServer(service_folder, mlapi_environ(url, "argon2id"), *options)
        authenticator = MlapiServer(guarded_folder, mlapi_environ(guarded_url, "fernet"), *options)
        model = Server(guarded_folder, mlapi_environ(guarded_url, "fernet"), *options, app="bench.guarded:app")
        register = ("register", "{name}")
        log_in = ("log_in", str(USERS))
        toggle = ("toggle", str(USERS), "{start}")
        by_token, by_key = (("guard", str(guarded_folder / file)) for file in ("tokens", "keys"))
        for name, server, loads, connections in (
            ("service", service, (toggle, register), 64),
            ("service, logins", authenticator, (log_in,), 64),
            ("service, argon2id", hashing, (register,), 16),
            ("guarded application", model, (by_token, by_key), 64),
        ):
            with server:
                for script, *arguments in loads:
                    rate(server, script, connections, 1, *arguments)  # warm up
                    figures.append(rate(server, script, connections, seconds, *arguments))
                memory = ", ".join(f"{mib:.0f}" for mib in resident_mib(server))
                notes.append(f"  {name}: MiB per process: {memory}")
                if kind == "PostgreSQL":
                    notes.append(f"  {name}: {count_connections(postgres)} connections to PostgreSQL")
        print(f"| {kind} | {count} | {' | '.join(figures)} |", *notes, sep="\n", flush=True)


def count_connections(postgres: PostgresServer) -> object:
    ((count,),) = postgres.execute("SELECT count(*) FROM pg_stat_activity WHERE datname LIKE 'test%'")
    return count


def bytes_per_user(kind: str, url: str, users: int, size: Callable[[str], int]) -> None:
    """Print how many bytes a user and the first audit entry take up in tables and indexes."""
    started_at = time.monotonic()
    bulk.register(mlapi_environ(url, "argon2id"), users)
    sizes = {name: size(name) / users for name in PARTS}
    print(f"{kind}, {users:,} users in {time.monotonic() - started_at:.0f} s: bytes per user")
    for name, size_in_bytes in sizes.items():
        print(f"| {name} | {size_in_bytes:.0f} |")
    print(f"| total | {sum(sizes.values()):.0f} |", flush=True)


PARTS = (
    "users",
    "users_pkey",
    "uq_users_username_key",
    "mlapi_audit",
    "mlapi_audit_pkey",
    "ix_mlapi_audit_at",
    "ix_mlapi_audit_user",
)


def sqlite_size(file: Path) -> Callable[[str], int]:
    def size(name: str) -> int:
        connection = sqlite3.connect(file)
        (found,) = connection.execute("SELECT coalesce(sum(pgsize), 0) FROM dbstat WHERE name = ?", [name]).fetchone()
        connection.close()
        return int(found)

    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3, help="seconds for each measurement")
    parser.add_argument(
        "--users", type=int, default=1_000_000, help="users to register to measure bytes per user; 0 to skip"
    )
    parser.add_argument("--no-workers", action="store_true", help="measure only the bytes per user")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlapi-scaling-")))
        postgres = stack.enter_context(running_postgres(durable=True))
        new_url = PostgresDatabases(postgres, stack)
        if not arguments.no_workers:
            print("| database | workers | toggle | register | log in | register, argon2id | token | API key |")
            print("|---|---|---|---|---|---|---|---|")
            measure_workers(
                "SQLite", lambda at: f"sqlite:///{at}/mlapi.db", folder / "sqlite", postgres, arguments.seconds
            )
            measure_workers("PostgreSQL", lambda _: new_url(), folder / "postgresql", postgres, arguments.seconds)
        if arguments.users:
            file = folder / "bytes.db"
            bytes_per_user("SQLite", f"sqlite:///{file}", arguments.users, sqlite_size(file))
            url = new_url()
            name = url.rpartition("/")[2]

            def postgres_size(part: str) -> int:
                ((found,),) = postgres.execute(f"SELECT coalesce(pg_table_size(to_regclass('{part}')), 0)", name)
                return int(str(found))

            bytes_per_user("PostgreSQL", url, arguments.users, postgres_size)


if __name__ == "__main__":
    main()
