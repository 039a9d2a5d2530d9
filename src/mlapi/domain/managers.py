"""Managers: the people who manage users, each with a name, a role and a token of their own.

Only the SHA-256 of a token is stored. The state is read at every request, so every change takes effect at the next one.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, NewType, Protocol, runtime_checkable

import attrs

from mlapi.domain.actors import UNKNOWN_ACTOR, Actor
from mlapi.domain.audit import Action, AuditEntry
from mlapi.domain.errors import InvalidFieldsError, InvalidTokenError, ManagerExistsError, ManagerNotFoundError
from mlapi.domain.rules import find_time_error
from mlapi.domain.token_formats import ID_CHARS, TokenFormat
from mlapi.domain.users import to_utc

Role = Literal["admin", "viewer"]
"""The permissions of a manager. Viewers read users, usage, the audit trail and metrics; admins also change them."""
ROLES: tuple[Role, ...] = ("admin", "viewer")

ManagerTokenId = NewType("ManagerTokenId", str)
"""The public part of a manager's token."""

RESERVED_NAMES = frozenset({"admin", "local"})
"""``admin`` is the holder of ``secrets.admin_token``, and ``local`` a program on this machine in local mode."""

MANAGER_TOKEN_PREFIX = "mlapi-manager_"  # noqa: S105 - not a password
"""The beginning of every manager's token. Tokens and API keys of users never start this way."""

_TOKEN = TokenFormat(MANAGER_TOKEN_PREFIX)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@attrs.frozen
class ManagerIdentity:
    """A caller who manages users: a named manager, the holder of the admin token, or a program on this machine."""

    name: str
    role: Role

    @property
    def actor(self) -> str:
        """The name in the audit trail, such as ``manager alice``."""
        return self.name if self.name in RESERVED_NAMES else f"manager {self.name}"

    @property
    def is_admin(self) -> bool:
        """True if the caller may change users."""
        return self.role == "admin"


ADMIN = ManagerIdentity("admin", "admin")
"""The holder of ``secrets.admin_token``."""
LOCAL = ManagerIdentity("local", "admin")
"""A program on this machine in local mode."""


@attrs.frozen(kw_only=True)
class Manager:
    """A stored manager. ``digest`` is the SHA-256 of the token, so a new token has a new digest.

    The token is valid until ``expires_datetime``; None means that it does not expire. All times are in UTC.
    """

    name: str
    role: Role
    token_id: ManagerTokenId = attrs.field(repr=False)
    digest: str = attrs.field(repr=False)
    created_datetime: datetime = attrs.field(converter=to_utc)
    expires_datetime: datetime | None = attrs.field(default=None, converter=attrs.converters.optional(to_utc))

    @property
    def identity(self) -> ManagerIdentity:
        return ManagerIdentity(self.name, self.role)

    def has_expired(self, at: datetime) -> bool:
        return self.expires_datetime is not None and self.expires_datetime <= at


@attrs.frozen(kw_only=True)
class AddManager:
    """Add a manager. The outcome is the manager, or a `ManagerExistsError`."""

    manager: Manager
    at: datetime = attrs.field(converter=to_utc)
    actor: Actor = UNKNOWN_ACTOR


@attrs.frozen(kw_only=True)
class RotateManager:
    """Replace the token of a manager. The outcome is the new state, or a `ManagerNotFoundError`."""

    name: str
    token_id: ManagerTokenId = attrs.field(repr=False)
    digest: str = attrs.field(repr=False)
    expires_datetime: datetime | None = attrs.field(converter=attrs.converters.optional(to_utc))
    at: datetime = attrs.field(converter=to_utc)
    actor: Actor = UNKNOWN_ACTOR

    def apply_to(self, manager: Manager) -> Manager:
        return attrs.evolve(manager, token_id=self.token_id, digest=self.digest, expires_datetime=self.expires_datetime)


@attrs.frozen(kw_only=True)
class RemoveManager:
    """Remove a manager. The outcome is their last state, or a `ManagerNotFoundError`."""

    name: str
    at: datetime = attrs.field(converter=to_utc)
    actor: Actor = UNKNOWN_ACTOR


ManagerCommand = AddManager | RotateManager | RemoveManager
ManagerOutcome = Manager | ManagerExistsError | ManagerNotFoundError

_ACTIONS: dict[type[ManagerCommand], Action] = {
    AddManager: "add_manager",
    RotateManager: "rotate_manager",
    RemoveManager: "remove_manager",
}


class Managers(Protocol):
    """Stores the managers.

    Every method raises `RepositoryUnavailableError` while the database is unavailable. Callers may pass names and ids
    with any content: treat those that the database cannot store as unknown. Times are returned in UTC.
    """

    def apply(self, command: ManagerCommand) -> ManagerOutcome:
        """Apply a command in a durable transaction, and return its outcome.

        - If several processes add the same name concurrently, exactly one succeeds.
        - A rejected command changes nothing. Its outcome is an error that is returned, not raised.
        - The audit entry that `make_manager_entry` returns is written in the same transaction.
        """
        ...

    def find_many(self, token_ids: Sequence[ManagerTokenId]) -> list[Manager | None]:
        """Return the manager with each token id, or None.

        The result reflects every change that any process acknowledged before the call.

        Args:
            token_ids: in any order, with or without duplicates; may be empty.
        """
        ...

    def find(self, name: str) -> Manager | None:
        """Return the manager with this name, or None. It reflects the same changes as `find_many`."""
        ...

    def list_all(self) -> list[Manager]:
        """Return all managers, sorted by name."""
        ...


@runtime_checkable
class NonblockingManagers(Protocol):
    """An optional capability of `Managers`. See `mlapi.domain.ports.NonblockingLookup`."""

    def find_many_nowait(self, token_ids: Sequence[ManagerTokenId]) -> list[Manager | None]:
        """Return the same result as `Managers.find_many`, without waiting."""
        ...


@attrs.frozen
class PresentedManagerToken:
    """A manager's token from a request, before it is checked. ``digest`` is the SHA-256 of the whole token."""

    id: ManagerTokenId
    digest: str = attrs.field(repr=False)


def generate_manager_token(token_id: ManagerTokenId | None = None) -> str:
    """Return a new token in the form that managers send: ``mlapi-manager_<id>_<secret>``, with both parts in hex.

    Args:
        token_id: the id of the token, which is not secret; None for a random one.
    """
    return _TOKEN.generate(token_id)


def derive_token_id(text: str) -> ManagerTokenId:
    """Return a token id that depends only on this text."""
    return ManagerTokenId(hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:ID_CHARS])


def looks_like_manager_token(credential: str) -> bool:
    """Return whether a credential starts like a manager's token, even if it is invalid."""
    return credential.startswith(MANAGER_TOKEN_PREFIX)


def parse_manager_token(credential: str) -> PresentedManagerToken:
    """Return the id and the digest of a manager's token.

    Raises:
        InvalidTokenError: if the text is not formatted like a manager's token.
    """
    found = _TOKEN.parse(credential)
    if found is None:
        raise InvalidTokenError
    token_id, digest = found
    return PresentedManagerToken(ManagerTokenId(token_id), digest)


def authenticate_manager(presented: PresentedManagerToken, stored: Manager | None, at: datetime) -> Manager:
    """Return the authenticated manager.

    Args:
        presented: the token from the request.
        stored: the manager with its token id; None if the id is unknown.
        at: the current time.

    Raises:
        InvalidTokenError: if the token is unknown or has expired.
    """
    if stored is None or not hmac.compare_digest(presented.digest, stored.digest) or stored.has_expired(at):
        raise InvalidTokenError
    return stored


def validate_manager_fields(*, name: object, role: object, expires_datetime: datetime | None, now: datetime) -> None:
    """Validate the fields of a new manager.

    Raises:
        InvalidFieldsError: if a field is invalid. The error lists every invalid field.
    """
    InvalidFieldsError.raise_for(
        [
            ("name", find_manager_name_error(name)),
            ("role", None if role in ROLES else f"must be {' or '.join(ROLES)}"),
            ("expires_at", find_manager_expiry_error(expires_datetime, now)),
        ]
    )


def find_manager_name_error(name: object) -> str | None:
    """Return the rule that the name of a manager violates, or None."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        return (
            "must be 1 to 64 lower-case letters (a-z), digits, dots, hyphens and underscores, and start with a letter"
            " or a digit"
        )
    if name in RESERVED_NAMES:
        return f"must not be {name}, which is reserved: choose the name of a person or a program"
    return None


def find_manager_expiry_error(expires_datetime: datetime | None, now: datetime) -> str | None:
    """Return why a token cannot expire at this time, or None."""
    if expires_datetime is None:
        return None
    return find_time_error(expires_datetime) or (None if expires_datetime > now else "must be in the future")


def make_manager_entry(command: ManagerCommand, outcome: ManagerOutcome) -> AuditEntry:
    """Return the audit entry for an applied or rejected command.

    Its ``changes`` contain the name of the manager and, if known, the role and when the token expires. A name that no
    manager can have is omitted.
    """
    name = command.manager.name if isinstance(command, AddManager) else command.name
    changes: dict[str, Any] = {"manager": name} if _NAME.fullmatch(name) else {}
    if isinstance(outcome, Manager):
        changes["role"] = outcome.role
        if not isinstance(command, RemoveManager) and outcome.expires_datetime is not None:
            changes["token_expires_at"] = outcome.expires_datetime.isoformat().replace("+00:00", "Z")
    elif isinstance(command, AddManager):
        changes["role"] = command.manager.role
    return AuditEntry(
        at=command.at,
        actor=command.actor.name,
        action=_ACTIONS[type(command)],
        user_id=None,
        api_key_id=None,
        outcome=_get_result(outcome),
        request_id=command.actor.request_id,
        changes=json.dumps(changes) if changes else None,
    )


def _get_result(outcome: ManagerOutcome) -> Literal["done", "manager_exists", "manager_not_found"]:
    if isinstance(outcome, Manager):
        return "done"
    return "manager_exists" if isinstance(outcome, ManagerExistsError) else "manager_not_found"
