"""Start the servers to measure, each on its assigned cores, and check that it owns its port."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from bench.cores import assign_cores

BIN = Path(sys.executable).parent
PEERS_BIN = BIN.parent / "peers" / "bin"
"""The peers have a separate environment, because fastapi-users needs an older SQLAlchemy."""


@dataclass
class Target:
    """A server to measure: its command, folder and environment."""

    name: str
    command: list[str]
    folder: Path
    environ: dict[str, str] = field(default_factory=dict)
    read_flag: Callable[[int], bool] | None = None
    """Reads a user's enabled flag from the database, to check that a toggle changes it."""
    users: int = 10_000
    workers: int = 1
    toggled: int = 0
    """Number of toggle requests so far. The next run continues from there, so that every toggle changes a flag."""
    removed: int = 0


class Server:
    """A running target."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.cores = assign_cores(target.workers)
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.startup_seconds = 0.0

    def __enter__(self) -> Self:
        output = (self.target.folder / "server.log").open("ab")
        command = [part.replace("{port}", str(self.port)) for part in self.target.command]
        started_at = time.perf_counter()
        self._process = subprocess.Popen(
            ["taskset", "-c", self.cores.server, *command],
            cwd=self.target.folder,
            env={**clean_environ(), **self.target.environ},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        output.close()
        try:
            self._wait_for_first_response(started_at)
            self._check_that_toggles_change_the_flag()
        except BaseException:
            os.killpg(self._process.pid, signal.SIGKILL)  # including its workers
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)

    def call(self, method: str, path: str) -> int:
        request = urllib.request.Request(self.base + path, method=method)  # noqa: S310 - a local server
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - as above
            status: int = response.status
            return status

    def resident_mib(self) -> float:
        """Return the resident memory of all processes of the server."""
        return self._sum_memory("Rss")

    def proportional_mib(self) -> float:
        """Return the memory of all processes of the server. Shared memory counts once."""
        return self._sum_memory("Pss")

    def _sum_memory(self, name: str) -> float:
        pattern = re.compile(rf"^{name}:\s+(\d+) kB", re.MULTILINE)
        rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self._pids()]
        return sum(int(kib) for rollup in rollups for kib in pattern.findall(rollup)) / 1024

    def _pids(self) -> list[int]:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[2]) == self._process.pid:  # the process belongs to the server's process group
                found.append(int(stat.parent.name))
        return found

    def _wait_for_first_response(self, started_at: float) -> None:
        while True:
            if self._process.poll() is not None:
                log = (self.target.folder / "server.log").read_text(errors="replace")
                raise RuntimeError(f"{self.target.name} did not start:\n{log[-2000:]}")
            try:
                self.call("GET", "/health/live")
                break
            except OSError:
                time.sleep(0.005)
        self.startup_seconds = time.perf_counter() - started_at
        if not self._owns_its_port():
            raise RuntimeError(f"another process listens on port {self.port}")

    def _owns_its_port(self) -> bool:
        listening = set()
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].split(":")[1], 16) == self.port:
                listening.add(f"socket:[{fields[9]}]")
        for pid in self._pids():
            for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
                try:
                    if str(descriptor.readlink()) in listening:
                        return True
                except OSError:
                    continue
        return False

    def _check_that_toggles_change_the_flag(self) -> None:
        if self.target.read_flag is None:
            return
        before = self.target.read_flag(1)
        for flag in (not before, before):
            self.call("PUT", f"/toggle-user-permission/1/{flag:d}")
            if self.target.read_flag(1) is not flag:
                raise RuntimeError(f"{self.target.name} accepts a toggle without changing the flag")


def clean_environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("MLAPI_", "PEER_", "DJANGO_"))}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
