"""Read and add counts for many concurrent attempts with one query, and let synchronous callers do the same inline."""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from itertools import chain, islice
from typing import Protocol, final

from mlapi.application.batching import Batcher
from mlapi.application.lookups import Lookup
from mlapi.domain.attempts import AttemptCounts, NonblockingAttemptCounts, WindowCount
from mlapi.domain.errors import MlapiError

Keys = tuple[str, ...]


class SharedCounts(Protocol):
    """Access to `AttemptCounts` for concurrent attempts."""

    async def read(self, keys: Keys) -> list[WindowCount]:
        """See `AttemptCounts.read`."""
        ...

    async def add(self, keys: Keys, *, window_seconds: float) -> list[WindowCount]:
        """See `AttemptCounts.add`."""
        ...


@final
class InlineCounts:
    """`SharedCounts` that call `AttemptCounts` in the thread of each caller."""

    def __init__(self, counts: AttemptCounts) -> None:
        self._counts = counts

    async def read(self, keys: Keys) -> list[WindowCount]:
        return self._counts.read(keys)

    async def add(self, keys: Keys, *, window_seconds: float) -> list[WindowCount]:
        return self._counts.add(keys, window_seconds=window_seconds)


@final
class BatchedCounts:
    """`SharedCounts` for coroutines. Concurrent calls share a query, and their events a row for each key.

    So an address with many concurrent attempts costs one update for all of them. Reads do not wait for writers.

    Both methods raise `ServiceUnavailableError` if too many calls are waiting.
    """

    def __init__(self, counts: AttemptCounts) -> None:
        nowait = partial(_read_all, counts.read_nowait) if isinstance(counts, NonblockingAttemptCounts) else None
        self._counts = counts
        self._reads = Lookup(partial(_read_all, counts.read), nowait)
        self._additions = Batcher(self._add_all)

    async def read(self, keys: Keys) -> list[WindowCount]:
        return await self._reads.find(keys)

    async def add(self, keys: Keys, *, window_seconds: float) -> list[WindowCount]:
        return await self._additions.submit((keys, window_seconds))

    def close(self) -> None:
        self._reads.close()
        self._additions.close()

    def _add_all(
        self, additions: Sequence[tuple[Keys, float]], _deadline_monotonic: float
    ) -> list[list[WindowCount] | Exception]:
        results: dict[int, list[WindowCount] | Exception] = {}
        for window_seconds in {window_seconds for _, window_seconds in additions}:
            positions = [number for number, (_, each) in enumerate(additions) if each == window_seconds]
            groups = [additions[number][0] for number in positions]
            results |= zip(positions, self._add_groups(groups, window_seconds), strict=True)
        return [results[number] for number in range(len(additions))]

    def _add_groups(self, groups: Sequence[Keys], window_seconds: float) -> Sequence[list[WindowCount] | Exception]:
        try:
            counts = iter(self._counts.add(list(chain.from_iterable(groups)), window_seconds=window_seconds))
        except MlapiError as error:  # of these groups only: others may have been counted already
            return [copy(error) for _ in groups]
        return [list(islice(counts, len(keys))) for keys in groups]


def _read_all(
    read: Callable[[Sequence[str]], Sequence[WindowCount]], groups: Sequence[Keys]
) -> list[list[WindowCount]]:
    """Read the counts for several groups of keys. Keys that occur in several groups are read once."""
    keys = list(dict.fromkeys(chain.from_iterable(groups)))
    found = dict(zip(keys, read(keys), strict=True))
    return [[found[key] for key in group] for group in groups]
