"""The measurements of the parts of a benchmark, each in a separate file."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.measure import Figure


def _lists_by_name() -> dict[str, list[float]]:
    return defaultdict(list)


@dataclass
class Conditions:
    """How a part was measured."""

    command: str
    commit: str
    minutes: float
    rounds: int
    seconds: int
    machine: str
    cores: str
    fsync_milliseconds: float
    versions: list[str]


@dataclass
class Results:
    """The measurements of each target, by its name, with one value per round."""

    figures: dict[str, dict[str, list[Figure]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    """By target, then by endpoint and number of connections, for example ``"toggle 16"``."""
    startup_seconds: dict[str, list[float]] = field(default_factory=_lists_by_name)
    resident_mib: dict[str, list[float]] = field(default_factory=_lists_by_name)
    other: dict[str, list[float]] = field(default_factory=_lists_by_name)
    """argon2id hash rates, times of commands, and counts of users."""
    texts: dict[str, str] = field(default_factory=dict)
    """Output of other programs."""
    conditions: dict[str, Conditions] = field(default_factory=dict)
    """By part."""

    def save(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.format(msgspec.json.encode(self)))

    @classmethod
    def load(cls, file: Path) -> "Results":
        return msgspec.json.decode(file.read_bytes(), type=cls)


def merge(parts: Iterable[Results]) -> Results:
    """Return the measurements of several parts together."""
    merged = Results()
    for part in parts:
        merged.figures |= part.figures
        merged.texts |= part.texts
        merged.conditions |= part.conditions
        for name in ("startup_seconds", "resident_mib", "other"):
            for key, values in getattr(part, name).items():
                getattr(merged, name)[key] += values
    return merged
