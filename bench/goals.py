"""The goals of the benchmark, and which of them were missed."""

from bench.builder import DATABASES

SHARES = {
    ("register", "sqlite"): {1: 0.25, 16: 0.45, 64: 0.58},
    ("toggle", "sqlite"): {1: 0.25, 16: 0.45, 64: 0.62},
    ("remove", "sqlite"): {1: 0.25, 16: 0.45, 64: 0.62},
    ("register", "postgresql"): {1: 0.20, 16: 0.45, 64: 0.60},
    ("toggle", "postgresql"): {1: 0.20, 16: 0.42, 64: 0.58},
    ("remove", "postgresql"): {1: 0.20, 16: 0.42, 64: 0.58},
}
"""The share of the ceiling for each endpoint and database, by number of connections."""
PEER_FACTOR = 12
"""How many times faster mlapi is than the fastest peer, with 16 connections and equal hash costs."""
GUARD_SHARES = {
    ("token", "sqlite"): 0.85,
    ("token", "postgresql"): 0.72,
    ("key", "sqlite"): 0.82,
    ("key", "postgresql"): 0.68,
}
"""The share of the unguarded endpoint with 64 connections."""
GUARD_P99_MILLISECONDS = 8
PLAN_SHARE = 0.90
"""With allowances of 1,000 and more, the share of the guard without plans."""
WRITE_SHARE = 0.80
"""With an allowance of 10, the share of the rate of toggles."""
LOGINS_PER_SECOND = 3_000
ARGON2ID_SHARE = 0.90
"""The share of the rate of bare argon2id."""
GROWTH_SHARES = {
    ("toggle", "sqlite", 10_000_000): 0.75,
    ("toggle", "postgresql", 1_000_000): 0.85,
} | {
    (endpoint, kind, users): 0.90
    for endpoint in ("register", "key")
    for kind in DATABASES
    for users in (1_000_000, 10_000_000)
}
"""The share of the rate with 10,000 users."""
TRANSFER_SECONDS = {"import": 35, "export": 20}
"""For a million users."""
START_SECONDS = 0.40
RESIDENT_MIB = 70
"""On SQLite, after a load."""
HELP_SECONDS = 0.25
LAYER_RATIOS = {"memory, audit trail": 2.8, "sqlite, audit trail": 4.6}
"""The processor time of a toggle, as a multiple of bare Starlette."""


class Goals:
    """Compares figures with goals."""

    def __init__(self) -> None:
        self.count = 0
        self.missed: list[str] = []
        """Describes each missed goal."""

    def at_least(self, what: str, figure: float, goal: float | None) -> str:
        """Return the text for a table: the goal, and whether it was missed. Empty without a goal."""
        return "" if goal is None else self._compare(what, figure, _format(goal), is_met=figure >= goal)

    def at_most(self, what: str, figure: float, goal: float | None) -> str:
        return "" if goal is None else self._compare(what, figure, _format(goal), is_met=figure <= goal)

    def _compare(self, what: str, figure: float, goal: str, *, is_met: bool) -> str:
        self.count += 1
        if is_met:
            return goal
        digits = 0 if figure >= 100 else 3 if f"{figure:.2f}" == goal else 2
        self.missed.append(f"{what}: {figure:,.{digits}f} instead of {goal}")
        return f"{goal} **missed**"


def _format(goal: float) -> str:
    return f"{goal:,}" if goal >= 1 else f"{goal:.2f}"
