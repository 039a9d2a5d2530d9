"""Split a batch into segments whose commands can be grouped by kind. This module contains no SQL."""

from collections.abc import Iterator, Sequence

import attrs

from mlapi.domain.commands import (
    AddApiKey,
    ApiKeyCommand,
    Command,
    LinkCommand,
    Register,
    Remove,
    UpdateUser,
    UserCommand,
    UserUpdate,
)
from mlapi.domain.credentials import ApiKeyId
from mlapi.domain.links import AddLink, RedeemLink
from mlapi.domain.users import UserId, UsernameKey

_SINGLE = (UpdateUser, AddLink, RedeemLink)


@attrs.define
class Segment:
    """Commands by their position in the batch. Apply them by kind: updates, registrations, API keys, removals.

    Each `UpdateUser` with a new name is a segment of its own, because it may free a username or take one. So is each
    `AddApiKey` with a limit, which depends on the user's other API keys, and each command for a link, which depends on
    the user. Other `UpdateUser` commands share a segment with each other only.

    The result is the same as applying them in order, because each user, name and API key occurs at most once, and no
    registration or API key command comes after a removal, which may free a name and deletes the user's API keys.
    """

    single: tuple[int, UpdateUser | AddApiKey | LinkCommand] | None = None
    changes: dict[int, UpdateUser] = attrs.field(factory=dict)
    updates: dict[int, UserUpdate] = attrs.field(factory=dict)
    registrations: dict[int, Register] = attrs.field(factory=dict)
    api_keys: dict[int, ApiKeyCommand] = attrs.field(factory=dict)
    removals: dict[int, Remove] = attrs.field(factory=dict)
    _targets: set[UserId | UsernameKey | tuple[ApiKeyId]] = attrs.field(factory=set)

    def try_add(self, position: int, command: Command) -> bool:
        """Add a command and return True, or return False if it must go into the next segment."""
        if isinstance(command, UpdateUser) and command.username_key is None:
            return self._try_add_change(position, command)
        if isinstance(command, _SINGLE) or (isinstance(command, AddApiKey) and command.limit is not None):
            if self._targets or self.single is not None:
                return False
            self.single = position, command
            return True
        target = _target(command)
        is_after_removal = bool(self.removals) and isinstance(command, Register | ApiKeyCommand)
        if self.single is not None or self.changes or is_after_removal or target in self._targets:
            return False
        self._targets.add(target)
        if isinstance(command, UserUpdate):
            self.updates[position] = command
        elif isinstance(command, Register):
            self.registrations[position] = command
        elif isinstance(command, Remove):
            self.removals[position] = command
        else:
            self.api_keys[position] = command
        return True

    def _try_add_change(self, position: int, command: UpdateUser) -> bool:
        is_other = self.single is not None or len(self._targets) > len(self.changes)
        if is_other or command.user_id in self._targets:
            return False
        self._targets.add(command.user_id)
        self.changes[position] = command
        return True


def split_batch(commands: Sequence[Command]) -> Iterator[Segment]:
    """Split a batch into segments. Applying them one after another has the same effect as applying the batch."""
    segment = Segment()
    for position, command in enumerate(commands):
        if not segment.try_add(position, command):
            yield segment
            segment = Segment()
            segment.try_add(position, command)
    yield segment


def _target(command: UserCommand | ApiKeyCommand) -> UserId | UsernameKey | tuple[ApiKeyId]:
    """Return the key of the row that a command changes.

    API key ids are wrapped in a tuple, because a username may equal an id.
    """
    if isinstance(command, UserUpdate):
        return command.user_id
    if isinstance(command, Register):
        return command.username_key
    if isinstance(command, Remove):
        return command.user_id
    return (command.key.id,) if isinstance(command, AddApiKey) else (command.key_id,)
