"""What a request shows to be let in, a token or an API key, and the one rule that decides whether it is.

A token says who, and which epoch of him; an API key says its id and proves its secret. Neither says whether the user
may come in *now*: that is asked of the users each time.
"""

import hashlib
import hmac
import re
import secrets
from datetime import datetime, timedelta
from typing import NewType

import attrs

from mlapi.domain.errors import InvalidFieldsError, InvalidTokenError, UserDisabledError
from mlapi.domain.rules import find_text_error, has_invisible
from mlapi.domain.users import User, UserId, to_utc

ApiKeyId = NewType("ApiKeyId", str)

API_KEY_NAME_MAX_CHARS = 100
"""Characters."""
USE_RECORDING_INTERVAL = timedelta(minutes=1)
"""An API key's last use is known to the minute: more often would be a write for each request."""

# Id: 64 bits, to be told apart. Secret: 256 bits, which nobody guesses, so that a fast hash is enough to keep it.
_ID_BYTES, _SECRET_BYTES = 8, 32
_API_KEY = re.compile(r"mlapi_([0-9a-f]{16})_[0-9a-f]{64}")


@attrs.frozen(kw_only=True)
class TokenClaims:
    """What a token says, once its signature has been verified."""

    user_id: UserId
    token_epoch: str = attrs.field(repr=False)
    expires_at: datetime
    token_id: str


@attrs.frozen
class IssuedToken:
    """A token as its bearer gets it; ``expires_in`` is in seconds."""

    token: str = attrs.field(repr=False)
    expires_in: int


@attrs.frozen
class PresentedApiKey:
    """An API key as a request shows it: whose secret it is, is not known yet."""

    id: ApiKeyId
    digest: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class ApiKey:
    """An API key as stored: the SHA-256 of what its bearer sends, never that itself.

    ``last_used_datetime`` is behind actor up to `USE_RECORDED_EVERY`.
    """

    id: ApiKeyId
    user_id: UserId
    name: str
    digest: str = attrs.field(repr=False)
    created_datetime: datetime = attrs.field(converter=to_utc)
    expires_datetime: datetime | None = attrs.field(default=None, converter=attrs.converters.optional(to_utc))
    last_used_datetime: datetime | None = attrs.field(default=None, converter=attrs.converters.optional(to_utc))


@attrs.frozen
class ApiKeyPrincipal:
    """An API key with the user whose it is."""

    key: ApiKey
    user: User


PrincipalId = UserId | ApiKeyId
"""Whom a credential is about: what the users are asked for before `authenticate` can decide."""
ParsedCredential = TokenClaims | PresentedApiKey
Principal = User | ApiKeyPrincipal


def get_principal_id(claim: ParsedCredential) -> PrincipalId:
    return claim.user_id if isinstance(claim, TokenClaims) else claim.id


def authenticate(claim: ParsedCredential, holder: Principal | None, at: datetime) -> User:
    """Return the user whom a credential lets in at a time, given the users as they are then.

    Raises:
        UserDisabledError: if it is genuine, and the user is shut out.
        InvalidTokenError: if nobody has it, its time is over, or it was ended.
    """
    if isinstance(claim, TokenClaims):
        if not isinstance(holder, User) or claim.expires_at <= at:
            raise InvalidTokenError
        if not holder.enabled:
            raise UserDisabledError(holder.id)
        if claim.token_epoch != holder.token_epoch:
            raise InvalidTokenError
        return holder
    if not isinstance(holder, ApiKeyPrincipal) or not hmac.compare_digest(claim.digest, holder.key.digest):
        raise InvalidTokenError
    if holder.key.expires_datetime is not None and holder.key.expires_datetime <= at:
        raise InvalidTokenError
    if not holder.user.enabled:
        raise UserDisabledError(holder.user.id)
    return holder.user


def generate_api_key() -> str:
    """Return a new API key as its bearer will send it: ``mlapi_<id>_<secret>``, both in hex."""
    return f"mlapi_{secrets.token_hex(_ID_BYTES)}_{secrets.token_hex(_SECRET_BYTES)}"


def looks_like_api_key(credential: str) -> bool:
    """Whether this was meant to be an API key: no token begins so."""
    return credential.startswith("mlapi_")


def parse_api_key(credential: str) -> PresentedApiKey:
    """Return what an API key shows.

    Raises:
        InvalidTokenError: if it is none of ours by its form.
    """
    match = _API_KEY.fullmatch(credential)
    if match is None:
        raise InvalidTokenError
    return PresentedApiKey(ApiKeyId(match[1]), hashlib.sha256(credential.encode("ascii")).hexdigest())


def check_api_key_fields(*, name: object, expires: datetime | None, now: datetime) -> None:
    """Raise InvalidFieldsError naming each field of a new API key that breaks a rule."""
    InvalidFieldsError.raise_for([("name", _name_problem(name)), ("expires_at", _expiry_problem(expires, now))])


def _name_problem(name: object) -> str | None:
    problem = find_text_error(name, API_KEY_NAME_MAX_CHARS)
    if problem is None and isinstance(name, str):
        if has_invisible(name):
            return "must hold no control or invisible characters"
        if not name.strip():
            return "must not be empty"
    return problem


def _expiry_problem(expires: datetime | None, now: datetime) -> str | None:
    if expires is None:
        return None
    try:
        return None if to_utc(expires) > now else "must be in the future"
    except ValueError:
        return "must have a zone, as in 2030-01-31T12:00:00Z"
    except OverflowError:
        return "must be of the years 1 to 9999 in UTC"
