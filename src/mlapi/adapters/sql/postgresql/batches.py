"""Which changes of a batch may be applied together, a kind at a time, and leave what they leave one by one. No SQL."""

from collections.abc import Iterator, Sequence

import attrs

from mlapi.domain.commands import AddApiKey, ApiKeyCommand, Command, Register, Remove, UserUpdate
from mlapi.domain.credentials import ApiKeyId
from mlapi.domain.users import UserId, UsernameKey


@attrs.define
class Segment:
    """Changes by their places in a batch, to be applied by kind: updates, registrations, API keys, removals.

    Every user, every name and every API key is in it once at most. A removal may free a name and takes keys with it, so
    that neither registrations nor changes of keys follow it.
    """

    updates: dict[int, UserUpdate] = attrs.field(factory=dict)
    registers: dict[int, Register] = attrs.field(factory=dict)
    api_keys: dict[int, ApiKeyCommand] = attrs.field(factory=dict)
    removes: dict[int, Remove] = attrs.field(factory=dict)
    _seen: set[UserId | UsernameKey | tuple[ApiKeyId]] = attrs.field(factory=set)

    def takes(self, place: int, command: Command) -> bool:
        """Add a change if it may be in this segment."""
        about = _about(command)
        if not about.isdisjoint(self._seen) or (self.removes and isinstance(command, Register | ApiKeyCommand)):
            return False
        self._seen |= about
        if isinstance(command, Register):
            self.registers[place] = command
        elif isinstance(command, ApiKeyCommand):
            self.api_keys[place] = command
        elif isinstance(command, Remove):
            self.removes[place] = command
        else:
            self.updates[place] = command
        return True


def segments(commands: Sequence[Command]) -> Iterator[Segment]:
    """Cut a batch into segments; applied one after the other they leave what the batch leaves."""
    segment = Segment()
    for place, command in enumerate(commands):
        if not segment.takes(place, command):
            yield segment
            segment = Segment()
            segment.takes(place, command)
    yield segment


def _about(command: Command) -> set[UserId | UsernameKey | tuple[ApiKeyId]]:
    """Return whom a change is about. A key's id is a tuple, as it could be somebody's name."""
    if isinstance(command, Register):
        return {command.username_key}
    if isinstance(command, AddApiKey):
        return {(command.key.id,)}
    return {(command.key_id,)} if isinstance(command, ApiKeyCommand) else {command.user_id}
