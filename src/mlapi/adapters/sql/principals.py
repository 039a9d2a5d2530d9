"""Find users and API keys by the ids in credentials. Both databases use this module, without SQLAlchemy."""

from collections.abc import Callable, Iterable, Sequence

from mlapi.domain.credentials import ApiKeyId, ApiKeyPrincipal, Principal, PrincipalId
from mlapi.domain.rules import has_lone_surrogate
from mlapi.domain.users import MAX_USER_ID, User, UserId

MAX_CACHED_ROWS = 10_000
"""Size of the caches for parsed users and for parsed API keys. An entry takes about a kilobyte."""


def find_principals(
    ids: Sequence[PrincipalId],
    find_users: Callable[[list[UserId]], Iterable[User]],
    find_api_keys: Callable[[list[ApiKeyId]], Iterable[ApiKeyPrincipal]],
) -> list[Principal | None]:
    """Return the principal for each id, or None, using functions that find users and API keys by their ids."""
    user_ids, key_ids = split_ids(ids)
    return in_order(ids, find_users(user_ids) if user_ids else (), find_api_keys(key_ids) if key_ids else ())


def split_ids(ids: Sequence[PrincipalId]) -> tuple[list[UserId], list[ApiKeyId]]:
    """Return the ids of users and of API keys, without those that the database cannot store."""
    user_ids = [UserId(each) for each in ids if isinstance(each, int) and is_storable_user_id(UserId(each))]
    key_ids = [ApiKeyId(each) for each in ids if isinstance(each, str) and is_storable_key_id(each)]
    return user_ids, key_ids


def in_order(
    ids: Sequence[PrincipalId], users: Iterable[User], api_keys: Iterable[ApiKeyPrincipal]
) -> list[Principal | None]:
    """Return the principal for each id, or None, given those that were found, in any order."""
    found: dict[PrincipalId, Principal] = {user.id: user for user in users}
    for principal in api_keys:
        found[principal.key.id] = principal
    return [found.get(each) for each in ids]


def is_storable_user_id(user_id: UserId) -> bool:
    """Return False for ids that no user can have. Drivers raise errors for integers too large for the column."""
    return 0 < user_id <= MAX_USER_ID


def is_storable_key_id(key_id: str) -> bool:
    """Return False for ids that no API key or link can have. Valid ids are ASCII, and PostgreSQL rejects NUL."""
    return key_id.isascii() and "\0" not in key_id


def is_storable_text(text: str) -> bool:
    """Return False for texts that no column can contain: drivers raise errors for lone surrogates and for NUL."""
    return "\0" not in text and not has_lone_surrogate(text)
