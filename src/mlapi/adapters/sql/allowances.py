"""Count what users have used of their allowances, in a database table that all processes share."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mlapi.adapters.sql.database import BatchRejectedError, Database
from mlapi.domain.allowances import Draw, Drawn
from mlapi.domain.errors import RepositoryUnavailableError

_MAX_ATTEMPTS = 5


class SqlAllowances:
    """`Allowances` in a table.

    Args:
        database: contains the table.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def draw(self, requests: Sequence[Draw], *, commit_by: float | None = None) -> list[Drawn | None]:
        if not requests:
            return []
        results = self._database.write_batch(self._work(requests, adds_rows=False), commit_by=commit_by)
        return self._add_rows_and_draw(requests, commit_by) if results is None else results

    def _add_rows_and_draw(self, requests: Sequence[Draw], commit_by: float | None) -> list[Drawn | None]:
        reason = ""
        for _ in range(_MAX_ATTEMPTS):
            try:
                work = self._work(requests, adds_rows=True)
                return self._database.apply_batch(work, commit_by=commit_by) or []
            except BatchRejectedError as rejected:  # a user was removed just before a row with the user's id was added
                reason = str(rejected)
        raise RepositoryUnavailableError(reason)

    def _work(self, requests: Sequence[Draw], *, adds_rows: bool) -> Callable[[Any], list[Drawn | None] | None]:
        return partial(self._database.dialect.draw, requests=requests, adds_rows=adds_rows)

    def read(self, requests: Sequence[Draw]) -> list[Drawn | None]:
        if not requests:
            return []
        return self._database.read_batch(partial(self._database.dialect.read_draws, requests=requests))
