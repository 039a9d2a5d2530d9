"""The sections of RESULTS.md with processor time, memory, and the time of commands."""

import re
import statistics

from bench.builder import DATABASES
from bench.goals import HELP_SECONDS, LAYER_RATIOS, RESIDENT_MIB, START_SECONDS, TRANSFER_SECONDS
from bench.tables import Report, render_table

MILLION = 1_000_000


def layers(report: Report) -> list[str]:
    output = report.results.texts["layers"]
    toggles = output.partition("\ntoggle ")[2].partition("\n\n")[0]
    rows = []
    for stage, goal in LAYER_RATIOS.items():
        (ratio,) = re.findall(rf"^  {stage} +[\d.]+ +([\d.]+)", toggles, re.MULTILINE)
        compared = report.goals.at_most(f"processor time of a toggle, {stage}, ratio", float(ratio), goal)
        rows.append([stage, ratio, compared])
    return [
        "## Processor time by layer",
        "",
        "The processor time of a toggle, as a multiple of bare Starlette:",
        "",
        *render_table(["stage", "ratio", "goal"], rows),
        "",
        "The output of `python -m bench.layers`:",
        "",
        "```",
        *output.strip().splitlines(),
        "```",
    ]


def imports(report: Report) -> list[str]:
    users = report.other("imported users")
    rows = []
    for kind in DATABASES:
        for command, goal in TRANSFER_SECONDS.items():
            seconds, mib = (report.other(f"{command}, {kind}, {unit}") for unit in ("seconds", "MiB"))
            scaled = seconds * MILLION / users
            compared = report.goals.at_most(f"{command} of a million users, {kind}, seconds", scaled, goal)
            rows.append([command, kind, f"{seconds:.1f}", f"{users / seconds:,.0f}", compared, f"{mib:.0f}"])
    return [
        "## Import and export",
        "",
        f"`mlapi users import` and `export`, with a CSV file of {users:,.0f} users, plain-text passwords and the cheap"
        " scheme. The goals are the seconds for a million users.",
        "",
        *render_table(["command", "database", "seconds", "users/s", "goal", "peak memory, MiB"], rows),
    ]


def start(report: Report) -> list[str]:
    rows = []
    for name in ("start, ceiling", *(f"start, {server}, {kind}" for kind in DATABASES for server in SERVERS)):
        seconds = statistics.median(report.results.startup_seconds[name])
        mib = statistics.median(report.results.resident_mib[name])
        shown = name.removeprefix("start, ")
        is_goal = shown.startswith("uvicorn")
        compared = report.goals.at_most(
            f"seconds to the first response, {shown}", seconds, START_SECONDS if is_goal else None
        )
        limit = RESIDENT_MIB if shown == "uvicorn, sqlite" else None
        compared_mib = report.goals.at_most(f"resident memory in MiB, {shown}", mib, limit)
        rows.append([shown, f"{seconds:.2f}", compared, f"{mib:.0f}", compared_mib])
    help_seconds = report.other("mlapi --help, seconds")
    compared = report.goals.at_most("mlapi --help, seconds", help_seconds, HELP_SECONDS)
    rows.append(["mlapi --help", f"{help_seconds:.2f}", compared, "", ""])
    return [
        "## Startup time and memory",
        "",
        "The time from the start to the first response, and the resident memory of all processes after a load of"
        " toggles. `mlapi serve` has a supervisor and one worker.",
        "",
        *render_table(["program", "seconds", "goal", "MiB", "goal"], rows),
    ]


SERVERS = ("uvicorn", "mlapi serve")


def peers_memory(report: Report) -> list[str]:
    """Return the startup times and the memory of the servers in the part of the endpoints."""
    rows = []
    for name, resident_mib in report.results.resident_mib.items():
        if name.endswith("hash"):
            seconds = statistics.median(report.results.startup_seconds[name])
            rows.append([name, f"{seconds:.2f}", f"{statistics.median(resident_mib):.0f}"])
    if not rows:
        return []
    return [
        "## Startup time and memory of the peers",
        "",
        *render_table(["server", "seconds", "MiB"], rows),
    ]
