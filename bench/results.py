"""The measurements of one benchmark run, collected by `bench.run` and written by `bench.report`."""

from collections import defaultdict
from dataclasses import dataclass, field

from bench.measure import Figure


def _lists_by_name() -> dict[str, list[float]]:
    return defaultdict(list)


@dataclass
class Results:
    """The measurements of each target, by its name, with one value per round."""

    figures: dict[str, dict[str, list[Figure]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    """By target, then by endpoint and number of connections, for example ``"toggle 16"``."""
    startup_seconds: dict[str, list[float]] = field(default_factory=_lists_by_name)
    resident_mib: dict[str, list[float]] = field(default_factory=_lists_by_name)
    other: dict[str, list[float]] = field(default_factory=_lists_by_name)
    """fsync times, argon2id hash rates, and import times."""
