"""Write RESULTS.md and chart.svg from the results of a run."""

import argparse
import platform
import statistics
import subprocess
import sys
from html import escape
from importlib.metadata import version
from pathlib import Path

from bench.measure import Figure, median_of
from bench.results import Results
from bench.targets import PEERS_BIN

GOALS = {
    ("register", "sqlite"): {1: 0.25, 16: 0.42, 64: 0.50},
    ("toggle", "sqlite"): {1: 0.25, 16: 0.42, 64: 0.58},
    ("remove", "sqlite"): {1: 0.25, 16: 0.42, 64: 0.55},
    ("register", "postgresql"): {1: 0.25, 16: 0.42, 64: 0.58},
    ("toggle", "postgresql"): {1: 0.25, 16: 0.38, 64: 0.52},
    ("remove", "postgresql"): {1: 0.25, 16: 0.40, 64: 0.52},
}
"""The goal for each endpoint and database, as a share of the ceiling, by number of connections."""
GUARD_GOALS = {"sqlite": 0.80, "postgresql": 0.60}
"""The goal for each database with 64 connections, as a share of the unguarded endpoint."""
PLAN_GOAL = 0.90
"""The goal with allowances of 1,000 and more, as a share of the guard without plans."""
WRITE_GOAL = 0.80
"""The goal with an allowance of 10, as a share of the rate of toggles."""
PACKAGES = (
    "mlapi", "starlette", "uvicorn", "uvloop", "httptools", "msgspec", "sqlalchemy", "psycopg", "cryptography",
    "argon2-cffi",
)  # fmt: skip
PEER_PACKAGES = ("fastapi", "fastapi-users", "sqlalchemy", "aiosqlite", "django", "djangorestframework", "gunicorn")


def write(results: Results, arguments: argparse.Namespace, duration_seconds: float) -> None:
    """Write RESULTS.md and chart.svg into the folder ``arguments.out``."""
    figures = {
        name: {measurement: median_of(repeated) for measurement, repeated in rows.items()}
        for name, rows in results.figures.items()
    }
    (arguments.out / "RESULTS.md").write_text(_results(results, arguments, figures, duration_seconds), "utf-8")
    (arguments.out / "chart.svg").write_text(_chart(figures), "utf-8")
    print(f"written: {arguments.out}/RESULTS.md and chart.svg, after {duration_seconds / 60:.0f} minutes")


def _results(
    results: Results, arguments: argparse.Namespace, figures: dict[str, dict[str, Figure]], duration_seconds: float
) -> str:
    ceiling = figures["ceiling"]
    lines = [
        "# Results",
        "",
        f"Written by `make bench` (`{_command()}`) in {duration_seconds / 60:.0f} minutes, at commit {_commit()}."
        f" Medians of {len(results.other['fsync'])} rounds. A row with errors is invalid.",
        "",
        f"- machine: {_processor()}, {platform.system()} {platform.release()}, Python {platform.python_version()}",
        "- the server runs on one core; wrk (one thread) and PostgreSQL share the other",
        f"- fdatasync of 4 KiB on this disk: {statistics.median(results.other['fsync']):.2f} ms",
        f"- {', '.join(_versions())}",
        "",
        "The ceiling is bare Starlette on uvicorn: it reads the path or the JSON body and responds with JSON, without a"
        " database. mlapi uses the cheap scheme `fernet`, unless a row says otherwise. All writes are durable:"
        " WAL with synchronous=FULL on SQLite, synchronous_commit=on on PostgreSQL.",
        "",
        "![Requests per second: mlapi, its ceiling and its peers](chart.svg)",
        "",
        "## Three endpoints",
        "",
        "| endpoint | database | connections | requests/s | share of ceiling | goal | p50 ms | p99 ms | errors |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (endpoint, kind), shares in GOALS.items():
        name = f"mlapi, {kind}, removing" if endpoint == "remove" else f"mlapi, {kind}"
        for count, goal in shares.items():
            figure = figures[name][f"{endpoint} {count}"]
            share = figure.per_second / ceiling[f"{endpoint} {count}"].per_second
            lines.append(
                f"| {endpoint} | {kind} | {count} | {figure.per_second:,.0f} | {share:.2f} | {goal:.2f} |"
                f" {figure.p50:.2f} | {figure.p99:.2f} | {figure.errors} |"
            )
    lines += [
        "",
        "## The ceiling",
        "",
        "| endpoint | connections | requests/s | p50 ms | p99 ms |",
        "|---|---|---|---|---|",
    ]
    for measurement, figure in ceiling.items():
        endpoint, connections = measurement.split()
        lines.append(f"| {endpoint} | {connections} | {figure.per_second:,.0f} | {figure.p50:.2f} | {figure.p99:.2f} |")
    lines += _default_scheme(results, figures)
    lines += _peers(figures)
    lines += _guard(figures)
    lines += _limits(figures)
    lines += _growth(figures)
    lines += [
        "",
        "## Import",
        "",
        "Users are registered through the library, a thousand per transaction, each with a different password.",
    ]
    lines += ["", "| database | seconds | registrations/s |", "|---|---|---|"]
    for kind in ("sqlite", "postgresql"):
        (duration,) = results.other[f"import, {kind}"]
        lines.append(f"| {kind} | {duration:.1f} | {arguments.imports / duration:,.0f} |")
    lines += [
        "",
        "## Startup time and memory",
        "",
        "| server | seconds from startup to first response | resident memory after load, MiB |",
        "|---|---|---|",
    ]
    for name, resident_mib in results.resident_mib.items():
        startup = f"{statistics.median(seconds):.2f}" if (seconds := results.startup_seconds[name]) else ""
        lines.append(f"| {name} | {startup} | {statistics.median(resident_mib):.0f} |")
    return "\n".join(lines) + "\n"


def _default_scheme(results: Results, figures: dict[str, dict[str, Figure]]) -> list[str]:
    bare = statistics.median(results.other["argon2id alone"])
    lines = [
        "",
        "## The default scheme, argon2id",
        "",
        f"argon2id alone on the server's core: {bare:.1f} hashes/s.",
        "",
        "| database | registrations/s, 16 connections | share of argon2id alone | concurrent toggles, p50 | p99 ms |",
        "|---|---|---|---|---|",
    ]
    for kind in ("sqlite", "postgresql"):
        rows = figures[f"mlapi, {kind}, argon2id"]
        register, toggle = rows["register 16"], rows["toggle 4 concurrent"]
        share = register.per_second / bare
        lines.append(f"| {kind} | {register.per_second:.1f} | {share:.2f} | {toggle.p50:.1f} | {toggle.p99:.1f} |")
    return lines


def _peers(figures: dict[str, dict[str, Figure]]) -> list[str]:
    peers = [name for name in figures if name.endswith("hash")]
    if not peers:
        return []
    lines = [
        "",
        "## Peers, 16 connections",
        "",
        "The `cheap` hash costs about as much as one Fernet encryption, so its rows compare everything except hashing."
        " The `default` hash is the default of each server.",
        "",
        "| server | endpoint | requests/s | p50 ms | p99 ms | errors | mlapi is faster by a factor of |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in peers:
        kind = name.split(", ")[1]
        for endpoint in ("register", "toggle"):
            figure = figures[name][f"{endpoint} 16"]
            ours = figures[f"mlapi, {kind}"][f"{endpoint} 16"]
            if endpoint == "register" and "default" in name:
                ours = figures[f"mlapi, {kind}, argon2id"]["register 16"]
            is_invalid = figure.errors or not figure.per_second
            ratio = "invalid" if is_invalid else f"{ours.per_second / figure.per_second:.1f}"
            lines.append(
                f"| {name} | {endpoint} | {figure.per_second:,.1f} | {figure.p50:.2f} | {figure.p99:.2f} |"
                f" {figure.errors} | {ratio} |"
            )
    return lines


def _guard(figures: dict[str, dict[str, Figure]]) -> list[str]:
    lines = [
        "",
        "## The guard",
        "",
        "The endpoint returns a constant. It is measured without and with the guard, which reads the user on every"
        " request. The credentials of a thousand users are used in turn. fastapi-users guards its endpoint with"
        " `current_user(active=True)`.",
        "",
        "| server | credential | connections | requests/s | share of open model | goal | p50 ms | p99 ms | errors |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    guarded = [name for name in figures if name.startswith("guard, ") or name.endswith("current_user")]
    guarded = [name for name in guarded if " per minute, " not in name]
    for name in ("open model", *guarded):
        for measurement, figure in figures[name].items():
            credential, connections = measurement.split()
            share = figure.per_second / figures["open model"][f"open {connections}"].per_second
            goal = GUARD_GOALS.get(name.removeprefix("guard, "), "") if connections == "64" else ""
            lines.append(
                f"| {name} | {credential} | {connections} | {figure.per_second:,.0f} | {share:.2f} | {goal} |"
                f" {figure.p50:.2f} | {figure.p99:.2f} | {figure.errors} |"
            )
    return lines


def _limits(figures: dict[str, dict[str, Figure]]) -> list[str]:
    lines = [
        "",
        "## The guard with plans, 64 connections",
        "",
        "The first column has each user's allowance. With 10 requests per minute, every request is a durable write,"
        " so the rate is compared with that of toggles; otherwise, with the guard without plans.",
        "",
        "| allowance and database | requests/s | share | goal | p50 ms | p99 ms | errors |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in figures:
        if " per minute, " in name:
            figure, kind = figures[name]["key 64"], name.rpartition(", ")[2]
            is_write = name.startswith("guard, 10 ")
            base = figures[f"mlapi, {kind}"]["toggle 64"] if is_write else figures[f"guard, {kind}"]["key 64"]
            lines.append(
                f"| {name.removeprefix('guard, ')} | {figure.per_second:,.0f} |"
                f" {figure.per_second / base.per_second:.2f} | {WRITE_GOAL if is_write else PLAN_GOAL} |"
                f" {figure.p50:.2f} | {figure.p99:.2f} | {figure.errors} |"
            )
    return lines


def _growth(figures: dict[str, dict[str, Figure]]) -> list[str]:
    lines = [
        "",
        "## Growth, 64 connections",
        "",
        "| database and users in the table | endpoint | requests/s | share of 10,000 users | p99 ms | errors |",
        "|---|---|---|---|---|---|",
    ]
    for name in figures:
        if name.endswith(" users"):
            for endpoint in ("register", "toggle"):
                figure = figures[name][f"{endpoint} 64"]
                smallest = figures[f"mlapi, {name.split(', ')[1]}, 10,000 users"][f"{endpoint} 64"]
                lines.append(
                    f"| {name.removeprefix('mlapi, ')} | {endpoint} | {figure.per_second:,.0f} |"
                    f" {figure.per_second / smallest.per_second:.2f} | {figure.p99:.2f} | {figure.errors} |"
                )
    return lines


def _chart(figures: dict[str, dict[str, Figure]]) -> str:
    """Return a bar chart of the ceiling, mlapi, and the peers with a cheap hash, for 16 connections."""
    shown = [
        ("ceiling", "bare Starlette, no database", "#b8b8b8"),
        ("mlapi, sqlite", "mlapi on SQLite", "#1f6feb"),
        ("mlapi, postgresql", "mlapi on PostgreSQL", "#54aeff"),
        ("fastapi-users, sqlite, cheap hash", "fastapi-users on SQLite", "#d29922"),
        ("fastapi-users, postgresql, cheap hash", "fastapi-users on PostgreSQL", "#e3b341"),
        ("Django REST framework, sqlite, cheap hash", "Django REST framework on SQLite", "#8250df"),
        ("Django REST framework, postgresql, cheap hash", "Django REST framework on PostgreSQL", "#a475f9"),
    ]
    rows = []
    y = 64
    for endpoint, title in (("register", "Registrations"), ("toggle", "Toggles")):
        highest = figures["ceiling"][f"{endpoint} 16"].per_second
        rows.append(f'<text x="-12" y="{y}" class="title">{title} per second</text>')
        y += 14
        for name, label, color in shown:
            if name not in figures:
                continue
            rate = figures[name][f"{endpoint} 16"].per_second
            width = max(1.0, 440 * rate / highest)
            rows.append(f'<text x="250" y="{y + 13}" class="label">{escape(label)}</text>')
            rows.append(f'<rect x="258" y="{y}" width="{width:.1f}" height="17" rx="2" fill="{color}"/>')
            rows.append(f'<text x="{258 + width + 6:.1f}" y="{y + 13}" class="value">{rate:,.0f}</text>')
            y += 23
        rows.append(f'<line x1="698" x2="698" y1="{y - 23 * len(shown)}" y2="{y - 4}" class="ceiling"/>')
        y += 34
    style = (
        "text{font:13px system-ui,sans-serif;fill:#24292f}.title{font-weight:600;font-size:15px}"
        ".label{text-anchor:end}.ceiling{stroke:#57606a;stroke-dasharray:4 3}.head{font-weight:600;font-size:17px}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-36 0 836 {y - 10}" role="img"'
        ' aria-label="Requests per second: mlapi, its ceiling and its peers">'
        f'<style>{style}</style><rect x="-36" width="836" height="100%" fill="#ffffff"/>'
        '<text x="-12" y="32" class="head">One core, 16 connections, every write durable, equally cheap hashes</text>'
        + "".join(rows)
        + "</svg>\n"
    )


def _command() -> str:
    """Return the command line without the options that name folders on this machine."""
    arguments = iter(sys.argv[1:])
    shown = [part for part in arguments if not (part in {"--out", "--folder"} and next(arguments, None))]
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
    root = Path(__file__).parent.parent
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=root,
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
