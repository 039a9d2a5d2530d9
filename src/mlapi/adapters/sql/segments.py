"""Which changes of a batch may be applied together, a kind at a time, and leave what they leave one by one. No SQL."""

from collections.abc import Iterator, Sequence

import attrs

from mlapi.domain.changes import AddApiKey, ApiKeyChange, Change, Register, Remove, UserUpdate
from mlapi.domain.credentials import ApiKeyId
from mlapi.domain.model import UserId, UsernameKey


@attrs.define
class Segment:
    """Changes by their places in a batch, to be applied by kind: updates, registrations, API keys, removals.

    Every user, every name and every API key is in it once at most. A removal may free a name and takes keys with it, so
    that neither registrations nor changes of keys follow it.
    """

    updates: dict[int, UserUpdate] = attrs.field(factory=dict)
    registers: dict[int, Register] = attrs.field(factory=dict)
    api_keys: dict[int, ApiKeyChange] = attrs.field(factory=dict)
    removes: dict[int, Remove] = attrs.field(factory=dict)
    _seen: set[UserId | UsernameKey | tuple[ApiKeyId]] = attrs.field(factory=set)

    def takes(self, place: int, change: Change) -> bool:
        """Add a change if it may be in this segment."""
        about = _about(change)
        if not about.isdisjoint(self._seen) or (self.removes and isinstance(change, Register | ApiKeyChange)):
            return False
        self._seen |= about
        if isinstance(change, Register):
            self.registers[place] = change
        elif isinstance(change, ApiKeyChange):
            self.api_keys[place] = change
        elif isinstance(change, Remove):
            self.removes[place] = change
        else:
            self.updates[place] = change
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


def _about(change: Change) -> set[UserId | UsernameKey | tuple[ApiKeyId]]:
    """Return whom a change is about. A key's id is a tuple, as it could be somebody's name."""
    if isinstance(change, Register):
        return {change.username_key}
    if isinstance(change, AddApiKey):
        return {(change.key.id,)}
    return {(change.key_id,)} if isinstance(change, ApiKeyChange) else {change.user_id}
