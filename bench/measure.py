"""Run wrk on a separate core and parse its output."""

import re
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.targets import Server

LOAD = Path(__file__).parent / "load"
SCRIPTS = {"open": "guard", "token": "guard", "key": "guard", "verify": "guard", "log_in_many": "log_in"}
ADDRESSES = 10_000
"""Number of clients in the endpoint ``log_in_many``."""


@dataclass
class Figure:
    """The result of one run of the load generator. ``p50`` and ``p99`` are in milliseconds."""

    per_second: float
    p50: float
    p99: float
    errors: int


def load(server: Server, endpoint: str, connections: int, seconds: int) -> Figure:
    """Send requests to one endpoint, continuing where the previous run stopped."""
    target = server.target
    arguments = {
        "toggle": [str(target.users), str(target.toggled)],
        "register": [f"bench{time.time_ns():x}"],
        "remove": [str(target.removed + 1)],
        "open": [str(target.folder / "tokens")],  # credentials of the same length, which the open model ignores
        "token": [str(target.folder / "tokens")],
        "key": [str(target.folder / "keys")],
        "verify": [str(target.folder / "keys"), "/verify"],
        "log_in": [str(target.users)],
        "log_in_many": [str(target.users), str(ADDRESSES)],
    }[endpoint]
    script = SCRIPTS.get(endpoint, endpoint)
    command = [
        "taskset",
        "-c",
        server.cores.load,
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        "30s",
        "--latency",
    ]
    output = subprocess.run(
        [*command, "-s", str(LOAD / f"{script}.lua"), server.base, "--", *arguments],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    requests = int(_find(r"(\d+) requests in", output))
    if endpoint == "toggle":
        target.toggled += requests + connections
    elif endpoint == "remove":
        target.removed += requests + connections
    return Figure(
        per_second=float(_find(r"Requests/sec:\s+([\d.]+)", output)),
        p50=_milliseconds(_find(r"^ +50% +(\S+) *$", output)),
        p99=_milliseconds(_find(r"^ +99% +(\S+) *$", output)),
        errors=sum(
            int(number)
            for number in re.findall(r"(?:Non-2xx or 3xx responses: |connect |read |write |timeout )(\d+)", output)
        ),
    )


def median_of(figures: list[Figure]) -> Figure:
    """Return the median of each column and the sum of the errors, because any error invalidates the row."""
    return Figure(
        per_second=statistics.median(figure.per_second for figure in figures),
        p50=statistics.median(figure.p50 for figure in figures),
        p99=statistics.median(figure.p99 for figure in figures),
        errors=sum(figure.errors for figure in figures),
    )


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"the output of wrk does not match {pattern!r}:\n{text}")
    return found.group(1)


def _milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()  # type: ignore[union-attr]  # wrk has no other units
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}[unit]
