"""Which changes of a batch may be applied together, a kind at a time, and leave what they leave one by one. No SQL."""

from collections.abc import Iterator, Sequence

import attrs

from mlapi.domain.changes import Change, Register, Remove, SetEnabled
from mlapi.domain.model import UserId, UsernameKey


@attrs.define
class Segment:
    """Changes by their places in a batch, to be applied by kind: those that set, then registrations, then removals.

    Every user and every name is in it once at most. A removal may free a name, so that no registration follows it.
    """

    sets: dict[int, SetEnabled] = attrs.field(factory=dict)
    registers: dict[int, Register] = attrs.field(factory=dict)
    removes: dict[int, Remove] = attrs.field(factory=dict)
    _ids: set[UserId] = attrs.field(factory=set)
    _keys: set[UsernameKey] = attrs.field(factory=set)

    def takes(self, place: int, change: Change) -> bool:
        """Add a change if it may be in this segment."""
        if isinstance(change, Register):
            if self.removes or change.username_key in self._keys:
                return False
            self._keys.add(change.username_key)
            self.registers[place] = change
            return True
        if change.user_id in self._ids:
            return False
        self._ids.add(change.user_id)
        if isinstance(change, SetEnabled):
            self.sets[place] = change
        else:
            self.removes[place] = change
        return True


def segments(changes: Sequence[Change]) -> Iterator[Segment]:
    """Cut a batch into segments; applied one after the other they leave what the batch leaves."""
    segment = Segment()
    for place, change in enumerate(changes):
        if not segment.takes(place, change):
            yield segment
            segment = Segment()
            segment.takes(place, change)
    yield segment
