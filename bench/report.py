"""Write RESULTS.md and chart.svg from the results of a benchmark."""

from pathlib import Path

from bench import rate_tables, resource_tables
from bench.chart import draw_chart
from bench.results import Conditions, Results
from bench.tables import Report, render_table

INTRODUCTION = (
    "The ceiling is bare Starlette on uvicorn: it reads the path or the JSON body and responds with JSON, without a"
    " database. mlapi uses the cheap scheme `fernet`, unless a row says otherwise. All writes are durable: WAL with"
    " synchronous=EXTRA on SQLite (peers: FULL), synchronous_commit=on on PostgreSQL. The figures are medians over the"
    " rounds. A row with errors is invalid."
)
SECTIONS = (
    ("endpoints", rate_tables.endpoints),
    ("endpoints", rate_tables.default_scheme),
    ("endpoints", rate_tables.peers),
    ("endpoints", resource_tables.peers_memory),
    ("guard", rate_tables.guard),
    ("logins", rate_tables.logins),
    ("workers", rate_tables.workers),
    ("servers", rate_tables.servers),
    ("growth", rate_tables.growth),
    ("imports", resource_tables.imports),
    ("start", resource_tables.start),
    ("layers", resource_tables.layers),
)
"""The sections in their order, each with the part that it reports."""
CHART = "![Requests per second: mlapi, its ceiling and its peers](chart.svg)"


def write(results: Results, folder: Path) -> None:
    """Write RESULTS.md, and chart.svg if the endpoints were measured."""
    report = Report(results)
    (folder / "RESULTS.md").write_text(describe(report), "utf-8")
    if "endpoints" in results.conditions:
        (folder / "chart.svg").write_text(draw_chart(report.figures), "utf-8")
    print(f"written: {folder}/RESULTS.md; {len(report.goals.missed)} of {report.goals.count} goals were missed")


def describe(report: Report) -> str:
    """Return RESULTS.md."""
    conditions = report.results.conditions
    sections = [line for part, section in SECTIONS if part in conditions for line in ["", *section(report)]]
    goals = report.goals
    summary = [f"## Goals missed: {len(goals.missed)} of {goals.count}", "", *(f"- {goal}" for goal in goals.missed)]
    chart = ["", CHART] if "endpoints" in conditions else []
    lines = ["# Results", "", *_conditions(conditions), "", INTRODUCTION, *chart, "", *summary, *sections]
    return "\n".join(lines).rstrip() + "\n"


def _conditions(conditions: dict[str, Conditions]) -> list[str]:
    """Return the conditions that differ by part as a table, and the others once."""
    parts = conditions.values()
    common = [found.machine for found in parts] + [found.cores for found in parts]
    versions = [", ".join(found.versions) for found in parts]
    rows = [
        [
            name,
            found.commit,
            f"{found.rounds} of {found.seconds} s",
            f"{found.minutes:.1f}",
            f"{found.fsync_milliseconds:.2f}",
            f"`{found.command}`",
        ]
        for name, found in conditions.items()
    ]
    return [
        f"Written by `make bench`. The measurements took {sum(found.minutes for found in parts):.0f} minutes.",
        "",
        *(f"- {text}" for text in dict.fromkeys([*common, *versions])),
        "",
        *render_table(["part", "commit", "rounds", "minutes", "fdatasync of 4 KiB, ms", "command"], rows),
    ]
