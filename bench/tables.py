"""Medians and Markdown tables for the sections of RESULTS.md."""

import statistics
from collections.abc import Sequence

from bench.goals import Goals
from bench.measure import Figure, median_of
from bench.results import Results

TIMES = ("p50 ms", "p99 ms", "errors")


class Report:
    """The medians of a benchmark, and the goals to compare them with."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.goals = Goals()
        self.figures = {
            name: {measurement: median_of(repeated) for measurement, repeated in rows.items()}
            for name, rows in results.figures.items()
        }

    def other(self, name: str) -> float:
        return statistics.median(self.results.other[name])


def render_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [columns, ["---"] * len(columns), *rows]]


def time_cells(figure: Figure) -> list[str]:
    return [f"{figure.p50:.2f}", f"{figure.p99:.2f}", str(figure.errors)]
