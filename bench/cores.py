"""Assign processor cores to the servers, the load generator and PostgreSQL."""

import os
from dataclasses import dataclass

AVAILABLE = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Cores:
    """The cores of each program, as taskset expects them: ``0,1``."""

    server: str
    load: str
    database: str

    @property
    def are_shared(self) -> bool:
        """True if programs compete for a core, so that the rates are lower than on a larger machine."""
        return len({self.server, self.load, self.database}) < 3

    def __str__(self) -> str:
        if self.server == self.load:
            return f"the server, wrk and PostgreSQL share core {self.server}"
        if self.are_shared:
            return f"the server runs on core {self.server}; wrk and PostgreSQL share core {self.load}"
        return f"the server runs on core {self.server}, wrk on core {self.load}, PostgreSQL on core {self.database}"


def assign_cores(workers: int = 1) -> Cores:
    """Return a core for each worker, one for wrk, and the others for PostgreSQL.

    On two cores, one worker still has a core to itself. Otherwise, on a machine with too few cores, all programs share
    all of them.
    """
    server, load, database = AVAILABLE[:workers], AVAILABLE[workers : workers + 1], AVAILABLE[workers + 1 :]
    if workers == 1 and len(AVAILABLE) == 2:
        database = load
    if not database:
        server = load = database = AVAILABLE
    return Cores(*(",".join(map(str, cores)) for cores in (server, load, database)))
