"""Measure what more workers, more users and more connections come to: ``python -m bench.scaling``. Prints Markdown.

The figures of docs/scaling.md. Workers share all cores with the load generator and with PostgreSQL, as on one small
machine; `bench.run` pins them apart and compares what one core does.
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
from tests.torture.test_workers import workers_of

from bench import bulk
from bench.measure import LOAD
from bench.run import PostgresUrl, environ_of

WORKERS = (1, 2, 4)
GENERATORS = 4
USERS = 100_000


def resident_mib(server: Server) -> list[float]:
    """Return the proportional memory of each process: what it shares with others is counted once for all of them."""
    found = []
    for pid in workers_of(server):
        (kib,) = re.findall(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        found.append(int(kib) / 1024)
    return sorted(found)


def rate(server: Server, script: str, connections: int, seconds: float, *arguments: str) -> str:
    """Return requests a second; marked if one of them was refused.

    Several generators, one after the other: of the connections that are opened at once one worker takes all.
    """
    command = ["wrk", "-t1", f"-c{connections // GENERATORS}", f"-d{seconds:g}s", "--timeout", "30s"]
    running = []
    for number in range(GENERATORS):
        place = (
            USERS * int(time.time()) + USERS * number // GENERATORS
        )  # of the first toggle: each has users of its own
        own = [argument.format(name=f"{time.time_ns():x}", place=place) for argument in arguments]
        script_and_arguments = ["-s", str(LOAD / f"{script}.lua"), server.base, "--", *own]
        running.append(subprocess.Popen([*command, *script_and_arguments], stdout=subprocess.PIPE, text=True))
        time.sleep(0.2)
    outputs = [process.communicate()[0] for process in running]
    rates = [float(found) for output in outputs for found in re.findall(r"Requests/sec:\s+([\d.]+)", output)]
    return f"{sum(rates):,.0f}{' !' * any('Non-2xx' in output for output in outputs)}"


def workers(kind: str, new_url: Callable[[Path], str], folder: Path, postgres: PostgresServer, seconds: float) -> None:
    """Print the rates and the memory of the service and of a guarded application with more and more workers."""
    kept, guarded = folder / "service", folder / "guarded"  # toggles would shut those out who are let in
    for place in (kept, guarded):
        place.mkdir(parents=True)
    url, guarded_url = new_url(kept), new_url(guarded)
    bulk.register(environ_of(url, "fernet"), USERS)
    bulk.register(environ_of(guarded_url, "fernet"), USERS)
    bulk.let_in(environ_of(guarded_url, "fernet"), 1_000, guarded)
    for count in WORKERS:
        options = ["--workers", str(count), "--no-access-log"]
        figures, notes = [], []
        service = MlapiServer(kept, environ_of(url, "fernet"), *options)
        hashing = MlapiServer(kept, environ_of(url, "argon2id"), *options)
        authenticator = MlapiServer(guarded, environ_of(guarded_url, "fernet"), *options)
        model = Server(guarded, environ_of(guarded_url, "fernet"), *options, app="bench.guarded:app")
        register = ("register", "{name}")
        log_in = ("log_in", str(USERS))
        toggle = ("toggle", str(USERS), "{place}")
        by_token, by_key = (("guard", str(guarded / file)) for file in ("tokens", "keys"))
        for name, server, loads, at_once in (
            ("service", service, (toggle, register), 64),
            ("service, log-ins", authenticator, (log_in,), 64),
            ("service, argon2id", hashing, (register,), 16),
            ("guarded application", model, (by_token, by_key), 64),
        ):
            with server:
                for script, *arguments in loads:
                    rate(server, script, at_once, 1, *arguments)  # warm
                    figures.append(rate(server, script, at_once, seconds, *arguments))
                each = ", ".join(f"{one:.0f}" for one in resident_mib(server))
                notes.append(f"  {name}: MiB of each process: {each}")
                if kind == "PostgreSQL":
                    notes.append(f"  {name}: {connections(postgres)} connections to PostgreSQL")
        print(f"| {kind} | {count} | {' | '.join(figures)} |", *notes, sep="\n", flush=True)


def connections(postgres: PostgresServer) -> object:
    ((count,),) = postgres.execute("SELECT count(*) FROM pg_stat_activity WHERE datname LIKE 'test%'")
    return count


def bytes_per_user(kind: str, url: str, users: int, size: Callable[[str], int]) -> None:
    """Print what a user and his first entry in the audit trail take, tables and indexes."""
    begin = time.monotonic()
    bulk.register(environ_of(url, "argon2id"), users)
    sizes = {name: size(name) / users for name in PARTS}
    print(f"{kind}, {users:,} users in {time.monotonic() - begin:.0f} s: bytes for each")
    for name, each in sizes.items():
        print(f"| {name} | {each:.0f} |")
    print(f"| all | {sum(sizes.values()):.0f} |", flush=True)


PARTS = (
    "users",
    "users_pkey",
    "uq_users_username_key",
    "mlapi_audit",
    "mlapi_audit_pkey",
    "ix_mlapi_audit_at",
    "ix_mlapi_audit_user_id",
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
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    parser.add_argument("--users", type=int, default=1_000_000, help="of whom the bytes are measured; 0 for none")
    parser.add_argument("--no-workers", action="store_true", help="measure the bytes alone")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlapi-scaling-")))
        postgres = stack.enter_context(running_postgres(durable=True))
        new_url = PostgresUrl(postgres, stack)
        if not arguments.no_workers:
            print("| database | workers | toggle | register | log in | register, argon2id | token | API key |")
            print("|---|---|---|---|---|---|---|---|")
            workers("SQLite", lambda at: f"sqlite:///{at}/mlapi.db", folder / "sqlite", postgres, arguments.seconds)
            workers("PostgreSQL", lambda _: new_url(), folder / "postgresql", postgres, arguments.seconds)
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
