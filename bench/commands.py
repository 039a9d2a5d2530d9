"""Run the command line of mlapi, and measure its time and memory."""

import csv
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.cores import assign_cores
from bench.environment import mlapi_environ
from bench.targets import BIN, clean_environ

POLL_SECONDS = 0.005


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
        peak_kib = 0
        while process.poll() is None:  # its resource usage would include the memory of this process before the exec
            peak_kib = _peak_kib(process.pid) or peak_kib
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - started_at
    if process.returncode:
        raise RuntimeError(f"mlapi {' '.join(arguments)} failed: see {folder}/commands.log")
    return Usage(seconds, peak_kib / 1024)


def _peak_kib(pid: int) -> int:
    """Return the peak resident memory of a process. 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0
