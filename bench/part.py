"""One part of a benchmark, with its targets and results."""

import argparse
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.builder import Builder
from bench.environment import PostgresDatabases
from bench.measure import Figure, load
from bench.results import Results
from bench.targets import Server, Target


class Part:
    """Measures targets and collects the results.

    Args:
        folder: an empty folder for the databases.
        new_postgres: creates PostgreSQL databases.
        arguments: the command line of `bench.run`.
    """

    def __init__(self, folder: Path, new_postgres: PostgresDatabases, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.build = Builder(folder, new_postgres)
        self.results = Results()
        self._seconds: int = arguments.seconds

    def rounds(self) -> Iterator[None]:
        for number in range(self.arguments.rounds):
            print(f"  round {number + 1} of {self.arguments.rounds}", flush=True)
            yield

    def measure(self, target: Target, endpoints: Sequence[str], connections: Sequence[int]) -> None:
        """Start a server, measure each endpoint with each number of connections, and stop the server."""
        with Server(target) as server:
            self.results.startup_seconds[target.name].append(server.startup_seconds)
            load(server, endpoints[0], 16, 1)  # warm up
            for endpoint in endpoints:
                for count in connections:
                    self._add(target.name, f"{endpoint} {count}", load(server, endpoint, count, self._seconds))
            self.results.resident_mib[target.name].append(server.resident_mib())
            self.results.other[f"PSS, {target.name}"].append(server.proportional_mib())

    def measure_concurrent(self, target: Target) -> None:
        """Measure toggles while users register."""
        with Server(target) as server:
            toggles: list[Figure] = []
            toggling = threading.Thread(target=lambda: toggles.append(load(server, "toggle", 4, self._seconds)))
            toggling.start()
            load(server, "register", 16, self._seconds)
            toggling.join()
            self._add(target.name, "toggle 4 concurrent", toggles[0])

    def measure_bare_argon2id(self, cores: str) -> None:
        """Measure how many argon2id hashes per second these cores compute without a server."""
        script = [sys.executable, "-m", "bench.bare_argon2id", str(self._seconds)]
        output = subprocess.run(
            ["taskset", "-c", cores, *script],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent.parent,
        ).stdout
        self.results.other[f"argon2id alone, {cores.count(',') + 1}"].append(float(output))
        print(f"    argon2id alone on cores {cores}: {float(output):.1f}/s", flush=True)

    def _add(self, name: str, measurement: str, figure: Figure) -> None:
        self.results.figures[name][measurement].append(figure)
        print(
            f"    {name:42} {measurement:20} {figure.per_second:9,.1f}/s"
            f"  p50 {figure.p50:8.2f} ms  p99 {figure.p99:8.2f} ms  errors {figure.errors}",
            flush=True,
        )
