"""Measure mlapi, its ceiling and its peers: ``make bench``. Writes RESULTS.md and chart.svg.

Each part saves its results to a file. ``--only`` measures some of the parts, and ``--merge`` writes the report from the
results of all parts in the folder, including those of earlier runs.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from tests.postgres_server import running_postgres

from bench import report
from bench.cores import assign_cores
from bench.environment import PostgresDatabases
from bench.part import Part
from bench.parts import PARTS, WORKERS
from bench.results import Conditions, Results, merge
from bench.targets import PEERS_BIN

HERE = Path(__file__).parent
PACKAGES = (
    "mlapi-users", "starlette", "uvicorn", "granian", "uvloop", "httptools", "msgspec", "sqlalchemy", "psycopg",
    "cryptography", "argon2-cffi",
)  # fmt: skip
PEER_PACKAGES = ("fastapi", "fastapi-users", "sqlalchemy", "aiosqlite", "django", "djangorestframework", "gunicorn")


def measure_part(name: str, arguments: argparse.Namespace) -> Results:
    """Measure a part with new databases and a new PostgreSQL server."""
    print(f"part {name}", flush=True)
    started_at = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.folder, prefix="mlapi-bench-")))
        fsync = fsync_milliseconds(folder)
        cores = assign_cores(max(WORKERS) if name == "workers" else 1)
        postgres = stack.enter_context(running_postgres(durable=True, prefix=["taskset", "-c", cores.database]))
        part = Part(folder, PostgresDatabases(postgres, stack), arguments)
        PARTS[name](part)
    part.results.conditions[name] = Conditions(
        command=command_line(sys.argv[1:]),
        commit=_commit(),
        minutes=(time.monotonic() - started_at) / 60,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        machine=f"{_processor()}, {platform.system()} {platform.release()}, Python {platform.python_version()}",
        cores=str(assign_cores()),
        fsync_milliseconds=fsync,
        versions=_versions(),
    )
    return part.results


def fsync_milliseconds(folder: Path, count: int = 200) -> float:
    """Return the median time of an fdatasync of 4 KiB in the databases' folder."""
    times = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(b"x" * 4096)
            started_at = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - started_at)
    return statistics.median(times) * 1000


def command_line(arguments: list[str]) -> str:
    """Return the command line without the options that name folders on this machine."""
    parts = iter(arguments)
    shown = [part for part in parts if not (part in {"--out", "--folder"} and next(parts, None))]
    return " ".join(["python -m bench.run", *shown])


def _versions() -> list[str]:
    """Return the package versions in this environment and in the peers' environment."""
    script = "import sys; from importlib.metadata import version\nfor name in sys.argv[1:]: print(name, version(name))"
    output = ""
    if PEERS_BIN.exists():  # absent with --no-peers
        command = [str(PEERS_BIN / "python"), "-c", script, *PEER_PACKAGES]
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [*(f"{name} {version(name)}" for name in PACKAGES), *(f"{line} (peers)" for line in output.splitlines())]


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="PARTS", help=f"measure some parts, separated by commas: {', '.join(PARTS)}")
    parser.add_argument("--merge", action="store_true", help="report the saved results of all parts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="seconds for each measurement")
    parser.add_argument("--grow-to", type=int, default=10_000_000, help="users in the largest table")
    parser.add_argument("--imports", type=int, default=1_000_000, help="users to import")
    parser.add_argument("--no-peers", action="store_true", help="measure mlapi and the ceiling only")
    parser.add_argument("--folder", type=Path, help="folder for the databases, on the disk to measure")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for RESULTS.md, chart.svg and the results")
    arguments = parser.parse_args()
    arguments.parts = list(PARTS) if arguments.only is None else [name for name in arguments.only.split(",") if name]
    if unknown := [name for name in arguments.parts if name not in PARTS]:
        parser.error(f"unknown parts: {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    for tool in ("wrk", "taskset"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is missing: install it from your distribution (Debian: apt-get install wrk util-linux)")
    if assign_cores(max(WORKERS)).are_shared:
        print(f"{max(WORKERS)} workers share the cores of this machine with wrk and PostgreSQL: the report says so")
    files = [arguments.out / "results" / f"{name}.json" for name in PARTS]
    measured = [file for file in files if file.stem in arguments.parts]
    for file in measured:
        measure_part(file.stem, arguments).save(file)
    reported = [file for file in files if file.exists()] if arguments.merge else measured
    report.write(merge(Results.load(file) for file in reported), arguments.out)


if __name__ == "__main__":
    main()
