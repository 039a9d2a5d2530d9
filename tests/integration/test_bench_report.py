"""The benchmark's report: goals, conditions, and parts from several runs."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from bench import report
from bench.builder import DATABASES, PEERS
from bench.cores import Cores
from bench.goals import Goals
from bench.measure import Figure
from bench.parts import CONNECTIONS, HASHING_WORKERS, PARTS, SIZES, WORKERS
from bench.results import Conditions, Results, merge
from bench.run import parse_arguments
from bench.tables import Report

LAYERS = """\
processor time of one request, 64 at once

toggle                        total us   ratio  layer us  server us
  bare Starlette                  14.0    1.00      14.0
  memory, audit trail             35.0    2.50      10.0
  sqlite, audit trail             70.0    5.00      35.0

register                      total us   ratio  layer us  server us
  memory, audit trail             99.0    9.90      10.0
"""


def conditions() -> Conditions:
    return Conditions(
        command="python -m bench.run",
        commit="abc1234",
        minutes=2.0,
        rounds=3,
        seconds=2,
        machine="a machine",
        cores="the server runs on core 0",
        fsync_milliseconds=0.25,
        versions=["mlapi 1"],
    )


def figures(*measurements: str, per_second: float) -> dict[str, list[Figure]]:
    return {measurement: [Figure(per_second, 1.0, 2.0, 0)] * 3 for measurement in measurements}


def endpoints() -> Results:
    results = Results(conditions={"endpoints": conditions()})
    changes = [f"{endpoint} {count}" for endpoint in ("register", "toggle") for count in CONNECTIONS]
    removals = [f"remove {count}" for count in CONNECTIONS]
    results.figures["ceiling"] = figures(*changes, *removals, per_second=10_000)
    results.other["argon2id alone, 1"] = [50.0]
    for kind in DATABASES:
        results.figures[f"mlapi, {kind}"] = figures(*changes, per_second=5_000)
        results.figures[f"mlapi, {kind}, removing"] = figures(*removals, per_second=7_000)
        results.figures[f"mlapi, {kind}, argon2id"] = figures("register 16", "toggle 4 concurrent", per_second=45)
        for number, framework in enumerate(PEERS):
            for hashing in ("default", "cheap"):
                name = f"{framework}, {kind}, {hashing} hash"
                measurements = ["register 16"] if hashing == "default" else ["register 16", "toggle 16"]
                results.figures[name] = figures(*measurements, per_second=400 + number * 100)
                results.startup_seconds[name], results.resident_mib[name] = [0.5], [80.0]
    return results


def guard() -> Results:
    results = Results(conditions={"guard": conditions()})
    results.figures["open model"] = figures("open 16", "open 64", per_second=20_000)
    for kind in DATABASES:
        results.figures[f"guard, {kind}"] = figures("token 64", "key 64", per_second=16_000)
        results.figures[f"guard, 10 per minute, {kind}"] = figures("key 64", per_second=4_500)
        results.figures[f"toggles beside the guard, {kind}"] = figures("toggle 64", per_second=5_000)
    return results


def others() -> Results:
    """Return the results of the other parts."""
    results = Results(texts={"layers": LAYERS}, conditions={name: conditions() for name in list(PARTS)[2:]})
    for workers in HASHING_WORKERS:
        results.other[f"argon2id alone, {workers}"] = [50.0 * workers]
    for app in ("bare Starlette", *(f"mlapi, {kind}" for kind in DATABASES)):
        for server in ("uvicorn", "Granian"):
            results.figures[f"{server}, {app}"] = figures("toggle 64", "register 64", per_second=8_000)
    for name in ("start, ceiling", *(f"start, {s}, {k}" for s in ("uvicorn", "mlapi serve") for k in DATABASES)):
        results.startup_seconds[name], results.resident_mib[name] = [0.35], [65.0]
    results.other["mlapi --help, seconds"] = [0.20]
    results.other["imported users"] = [1_000_000]
    for kind in DATABASES:
        results.figures[f"logins, {kind}"] = figures("log_in 64", "log_in_many 64", per_second=3_100)
        for workers in HASHING_WORKERS:
            results.figures[f"logins, {kind}, argon2id, {workers}"] = figures("log_in 16", per_second=46 * workers)
        for workers in WORKERS:
            results.figures[f"changes, {kind}, {workers}"] = figures("toggle 64", "register 64", per_second=5_000)
            results.figures[f"reads, {kind}, {workers}"] = figures("verify 64", per_second=5_000)
            results.other[f"PSS, changes, {kind}, {workers}"] = [60.0 * workers]
            results.texts[f"cores of {workers} workers"] = "shared"
        for users in SIZES[kind]:
            results.figures[f"mlapi, {kind}, {users:,} users"] = figures("toggle 64", "register 64", per_second=5_000)
            results.figures[f"guard, {kind}, {users:,} users"] = figures("key 64", per_second=5_000)
        for command in ("import", "export"):
            results.other[f"{command}, {kind}, seconds"] = [19.0]
            results.other[f"{command}, {kind}, MiB"] = [90.0]
    return results


def test_report_has_every_part_and_names_missed_goals() -> None:
    text = report.describe(Report(merge([endpoints(), guard(), others()])))

    assert {line for line in text.splitlines() if line.startswith("## ")} == {
        "## Goals missed: 11 of 58",
        "## Three endpoints",
        "## The ceiling",
        "## The default scheme, argon2id",
        "## Peers, 16 connections",
        "## Startup time and memory of the peers",
        "## The guard",
        "## The guard with plans, 64 connections",
        "## Logins",
        "## Workers, 64 connections",
        "## Servers, one worker, 64 connections",
        "## Growth, 64 connections",
        "## Import and export",
        "## Startup time and memory",
        "## Processor time by layer",
    }
    assert "- processor time of a toggle, sqlite, audit trail, ratio: 5.00 instead of 4.6\n" in text
    assert "- toggle, factor to Django REST framework, sqlite, cheap hash: 8.33 instead of 12\n" in text
    assert "| toggle | sqlite | 64 | 5,000 | 0.50 | 0.62 **missed** | 1.00 | 2.00 | 0 |" in text
    assert "| remove | sqlite | 64 | 7,000 | 0.70 | 0.62 | 1.00 | 2.00 | 0 |" in text
    assert "| logins | abc1234 | 3 of 2 s | 2.0 | 0.25 | `python -m bench.run` |" in text


def test_report_of_some_parts_has_only_their_sections(tmp_path: Path) -> None:
    report.write(guard(), tmp_path)

    text = (tmp_path / "RESULTS.md").read_text()
    sections = [line for line in text.splitlines() if line.startswith("## ")]
    assert sections[1:] == ["## The guard", "## The guard with plans, 64 connections"]
    assert not (tmp_path / "chart.svg").exists()


def test_results_survive_saving_and_loading(tmp_path: Path) -> None:
    endpoints().save(tmp_path / "results" / "endpoints.json")

    assert Results.load(tmp_path / "results" / "endpoints.json") == endpoints()


def test_chart_has_a_bar_for_each_server(tmp_path: Path) -> None:
    report.write(endpoints(), tmp_path)

    labels = [text.text for text in ET.parse(tmp_path / "chart.svg").iter() if text.get("class") == "label"]
    assert len(labels) == 2 * (1 + 2 + 2 * len(PEERS))
    assert "Starlette and SQLAlchemy on SQLite" in labels


def test_missed_goals_are_marked() -> None:
    goals = Goals()

    assert goals.at_least("share", 0.449, 0.45) == "0.45 **missed**"
    assert goals.at_least("rate", 3_100, 3_000) == "3,000"
    assert goals.at_most("seconds", 0.41, 0.4) == "0.40 **missed**"
    assert goals.at_most("seconds", 9.0, None) == ""
    assert (goals.count, goals.missed) == (3, ["share: 0.449 instead of 0.45", "seconds: 0.41 instead of 0.40"])


@pytest.mark.parametrize(
    ("cores", "are_shared"),
    [(Cores("0", "1", "2,3"), False), (Cores("0", "1", "1"), True), (Cores("0,1", "0,1", "0,1"), True)],
)
def test_report_knows_whether_cores_are_shared(cores: Cores, *, are_shared: bool) -> None:
    assert cores.are_shared is are_shared


def test_unknown_parts_are_rejected(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bench.run", "--only", "guard,gard"])

    with pytest.raises(SystemExit):
        parse_arguments()

    assert "unknown parts: gard" in capsys.readouterr().err


def test_every_part_is_measured_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench.run"])

    arguments = parse_arguments()

    assert arguments.parts == list(PARTS)
