"""Apply draws of allowances to the stored rows. Both databases use this module, without SQLAlchemy."""

from collections.abc import Iterable, Mapping, Sequence

import attrs

from mlapi.adapters.sql.principals import is_storable_user_id
from mlapi.domain.allowances import AllowanceUse, Draw, Drawn
from mlapi.domain.users import UserId

AllowanceKey = tuple[UserId, str]
"""The user and the key of the allowance: the primary key of a row."""
FoundUses = Mapping[AllowanceKey, tuple[AllowanceUse | None, float]]
"""The stored use of each key, or None, and the database's clock when it was read. Keys of unknown users are missing."""


def keys_of(requests: Iterable[Draw]) -> list[AllowanceKey]:
    """Return the keys of the rows that draws need, without duplicates, in no particular order."""
    return list({(draw.user_id, draw.allowance) for draw in requests if is_storable_user_id(draw.user_id)})


def apply_draws(
    requests: Sequence[Draw], found: FoundUses
) -> tuple[list[Drawn | None], dict[AllowanceKey, AllowanceUse]]:
    """Apply draws in order to locked rows. Return the results, and the new content of the rows that changed."""
    changed: dict[AllowanceKey, AllowanceUse] = {}
    results: list[Drawn | None] = []
    for draw in requests:
        key = (draw.user_id, draw.allowance)
        if key not in found:
            results.append(None)
            continue
        use, timestamp = found[key]
        new_use, drawn = draw.apply_to(changed.get(key, use), timestamp)
        if drawn.granted:
            changed[key] = new_use
        results.append(drawn)
    return results, changed


def read_draws(requests: Sequence[Draw], found: FoundUses) -> list[Drawn | None]:
    """Return the result of each draw as if its ``wanted`` were 0. See `mlapi.domain.allowances.Allowances.read`."""
    results, _ = apply_draws([attrs.evolve(draw, wanted=0) for draw in requests], found)
    return results
