"""Run the command line of mlapi, and measure its time and memory."""

import csv
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.cores import assign_cores
from bench.environment import mlapi_environ
from bench.targets import BIN, clean_environ


@dataclass
class Usage:
    """The time and the memory of a command."""

    seconds: float
    peak_mib: float


def measure_help(folder: Path) -> Usage:
    return _run(["--help"], {}, folder)


def measure_transfer(folder: Path, url: str, users: int) -> dict[str, Usage]:
    """Import users with plain-text passwords and the cheap scheme from a CSV file, then export them to another file."""
    environ = mlapi_environ(url, "fernet")
    with (folder / "import.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["username", "email", "password"])
        writer.writerows(
            [f"seed-{number}", f"seed-{number}@example.com", f"battery {number}"] for number in range(users)
        )
    usages = {
        name: _run(["users", name, str(folder / f"{name}.csv")], environ, folder) for name in ("import", "export")
    }
    with (folder / "export.csv").open() as file:
        if (lines := sum(1 for _ in file)) != users + 1:
            raise RuntimeError(f"the export has {lines} lines for {users} users")
    return usages


def _run(arguments: list[str], environ: dict[str, str], folder: Path) -> Usage:
    """Run a command on the cores of the server and of wrk, which does not run."""
    cores = assign_cores()
    with (folder / "commands.log").open("ab") as log:
        started_at = time.perf_counter()
        process = subprocess.Popen(
            ["taskset", "-c", f"{cores.server},{cores.load}", str(BIN / "mlapi"), *arguments],
            env={**clean_environ(), **environ},
            cwd=folder,
            stdout=log,
            stderr=log,
        )
        _, status, resources = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started_at
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"mlapi {' '.join(arguments)} failed: see {folder}/commands.log")
    return Usage(seconds, resources.ru_maxrss / 1024)
