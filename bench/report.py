"""RESULTS.md and chart.svg of a run."""

import argparse
import platform
import statistics
import subprocess
import sys
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure import Figure, median_of
from bench.targets import PEERS_BIN

if TYPE_CHECKING:
    from bench.run import Run

REACH = {
    ("register", "sqlite"): {1: 0.25, 16: 0.42, 64: 0.50},
    ("toggle", "sqlite"): {1: 0.25, 16: 0.42, 64: 0.58},
    ("remove", "sqlite"): {1: 0.25, 16: 0.42, 64: 0.55},
    ("register", "postgresql"): {1: 0.25, 16: 0.42, 64: 0.58},
    ("toggle", "postgresql"): {1: 0.25, 16: 0.38, 64: 0.52},
    ("remove", "postgresql"): {1: 0.25, 16: 0.40, 64: 0.52},
}
"""The shares of the ceiling that we set out to reach."""
REACH_GUARD = {"sqlite": 0.80, "postgresql": 0.60}
"""Shares of the open endpoint at 64 connections that we set out to reach."""
PACKAGES = (
    "mlapi", "starlette", "uvicorn", "uvloop", "httptools", "msgspec", "sqlalchemy", "psycopg", "cryptography",
    "argon2-cffi",
)  # fmt: skip
PEER_PACKAGES = ("fastapi", "fastapi-users", "sqlalchemy", "aiosqlite", "django", "djangorestframework", "gunicorn")


def write(run: "Run", arguments: argparse.Namespace, took: float) -> None:
    figures = {
        name: {measurement: median_of(those) for measurement, those in rows.items()}
        for name, rows in run.figures.items()
    }
    (arguments.out / "RESULTS.md").write_text(_results(run, arguments, figures, took), "utf-8")
    (arguments.out / "chart.svg").write_text(_chart(figures), "utf-8")
    print(f"written: {arguments.out}/RESULTS.md and chart.svg, after {took / 60:.0f} minutes")


def _results(run: "Run", arguments: argparse.Namespace, figures: dict[str, dict[str, Figure]], took: float) -> str:
    ceiling = figures["ceiling"]
    lines = [
        "# Results",
        "",
        f"Written by `make bench` (`{_command()}`) in {took / 60:.0f} minutes, at"
        f" commit {_commit()}. Medians of {len(run.other['fsync'])} rounds; a row with an error is void.",
        "",
        f"- machine: {_processor()}, {platform.system()} {platform.release()}, Python {platform.python_version()}",
        "- the server on one core, wrk (one thread) and PostgreSQL on the other",
        f"- fdatasync after 4 KiB on this disk at the time: {statistics.median(run.other['fsync']):.2f} ms",
        f"- {', '.join(_versions())}",
        "",
        "The ceiling is bare Starlette on uvicorn, reading the path or the JSON body and answering JSON, without a"
        " database. Ours runs the scheme `fernet` unless a row says otherwise. All writes are durable: WAL with"
        " synchronous=FULL, and synchronous_commit=on.",
        "",
        "![share of the ceiling](chart.svg)",
        "",
        "## Three endpoints",
        "",
        "| endpoint | database | connections | requests/s | share of ceiling | to reach | p50 ms | p99 ms | errors |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (endpoint, kind), shares in REACH.items():
        name = f"mlapi, {kind}, removing" if endpoint == "remove" else f"mlapi, {kind}"
        for connections, to_reach in shares.items():
            figure = figures[name][f"{endpoint} {connections}"]
            share = figure.per_second / ceiling[f"{endpoint} {connections}"].per_second
            lines.append(
                f"| {endpoint} | {kind} | {connections} | {figure.per_second:,.0f} | {share:.2f} | {to_reach:.2f} |"
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
    lines += _default_scheme(run, figures)
    lines += _peers(figures)
    lines += _guard(figures)
    lines += _growth(figures)
    lines += [
        "",
        "## Import",
        "",
        "Registrations by the library, a thousand to a transaction, each with a password of its own.",
    ]
    lines += ["", "| database | seconds | registrations/s |", "|---|---|---|"]
    for kind in ("sqlite", "postgresql"):
        (seconds,) = run.other[f"import, {kind}"]
        lines.append(f"| {kind} | {seconds:.1f} | {arguments.imports / seconds:,.0f} |")
    lines += [
        "",
        "## Start and memory",
        "",
        "| server | start to first answer, s | resident after load, MiB |",
        "|---|---|---|",
    ]
    for name, resident in run.resident.items():
        startup = f"{statistics.median(run.startup[name]):.2f}" if run.startup[name] else ""
        lines.append(f"| {name} | {startup} | {statistics.median(resident):.0f} |")
    return "\n".join(lines) + "\n"


def _default_scheme(run: "Run", figures: dict[str, dict[str, Figure]]) -> list[str]:
    bare = statistics.median(run.other["argon2id alone"])
    lines = [
        "",
        "## The default scheme, argon2id",
        "",
        f"argon2id alone on the server's core: {bare:.1f} hashes/s.",
        "",
        "| database | registrations/s, 16 connections | share of argon2id alone | toggles meanwhile, p50 ms | p99 ms |",
        "|---|---|---|---|---|",
    ]
    for kind in ("sqlite", "postgresql"):
        rows = figures[f"mlapi, {kind}, argon2id"]
        register, toggle = rows["register 16"], rows["toggle 4 meanwhile"]
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
        "`cheap` takes a hash about as cheap as one Fernet encryption: what is compared is then the rest. `default` is"
        " each one's own.",
        "",
        "| server | endpoint | requests/s | p50 ms | p99 ms | errors | mlapi is faster by |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in peers:
        kind = name.split(", ")[1]
        for endpoint in ("register", "toggle"):
            figure = figures[name][f"{endpoint} 16"]
            ours = figures[f"mlapi, {kind}"][f"{endpoint} 16"]
            if endpoint == "register" and "default" in name:
                ours = figures[f"mlapi, {kind}, argon2id"]["register 16"]
            void = figure.errors or not figure.per_second
            ratio = "void" if void else f"{ours.per_second / figure.per_second:.1f}"
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
        "An endpoint that answers a constant, open and behind the guard; a thousand users take turns, and the user is"
        " read at every request. fastapi-users guards its own with `current_user(active=True)`.",
        "",
        "| server | credential | connections | requests/s | share of open | to reach | p50 ms | p99 ms | errors |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    guarded = [name for name in figures if name.startswith("guard, ") or name.endswith("current_user")]
    for name in ("open model", *guarded):
        for measurement, figure in figures[name].items():
            credential, connections = measurement.split()
            share = figure.per_second / figures["open model"][f"open {connections}"].per_second
            to_reach = REACH_GUARD.get(name.removeprefix("guard, "), "") if connections == "64" else ""
            lines.append(
                f"| {name} | {credential} | {connections} | {figure.per_second:,.0f} | {share:.2f} | {to_reach} |"
                f" {figure.p50:.2f} | {figure.p99:.2f} | {figure.errors} |"
            )
    return lines


def _growth(figures: dict[str, dict[str, Figure]]) -> list[str]:
    lines = [
        "",
        "## Growth, 64 connections",
        "",
        "| database and users in the table | endpoint | requests/s | of that with 10,000 | p99 ms | errors |",
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
    """Bars for 16 connections: the ceiling, us and the peers with a hash as cheap, on one scale."""
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
        most = figures["ceiling"][f"{endpoint} 16"].per_second
        rows.append(f'<text x="-12" y="{y}" class="title">{title} a second</text>')
        y += 14
        for name, label, colour in shown:
            if name not in figures:
                continue
            rate = figures[name][f"{endpoint} 16"].per_second
            width = max(1.0, 440 * rate / most)
            rows.append(f'<text x="250" y="{y + 13}" class="label">{escape(label)}</text>')
            rows.append(f'<rect x="258" y="{y}" width="{width:.1f}" height="17" rx="2" fill="{colour}"/>')
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
        ' aria-label="Requests a second of the ceiling, mlapi and its peers">'
        f'<style>{style}</style><rect x="-36" width="836" height="100%" fill="#ffffff"/>'
        '<text x="-12" y="32" class="head">One core, 16 connections, every write durable, equally cheap hashes</text>'
        + "".join(rows)
        + "</svg>\n"
    )


def _command() -> str:
    """As it was called, without the folders of this machine."""
    shown = iter(sys.argv[1:])
    kept = [part for part in shown if not (part in {"--out", "--folder"} and next(shown, None))]
    return " ".join(["python -m bench.run", *kept])


def _versions() -> list[str]:
    """Of what ran: in our environment, and in that of the peers."""
    script = "import sys; from importlib.metadata import version\nfor name in sys.argv[1:]: print(name, version(name))"
    peers = [PEERS_BIN / "python", "-c", script, *PEER_PACKAGES]
    found = subprocess.run(peers, capture_output=True, text=True, check=False).stdout.split("\n")
    return [*(f"{name} {version(name)}" for name in PACKAGES), *(f"{line} (peers)" for line in found if line)]


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
