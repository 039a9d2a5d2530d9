"""Credentials: the tokens and API keys that clients present, and the rule that accepts or rejects them.

A token contains a user id and a token epoch; an API key contains its own id and a secret. Neither says whether the user
is enabled *now*, so `authenticate` also needs the current principal.
"""

import hmac
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NewType

import attrs

from mlapi.domain.errors import (
    AccessDeniedError,
    AccessExpiredError,
    InvalidFieldsError,
    InvalidTokenError,
    MlapiError,
    UserDisabledError,
    UserPendingError,
)
from mlapi.domain.rules import find_text_error, find_time_error, has_invisible
from mlapi.domain.token_formats import TokenFormat
from mlapi.domain.users import User, UserId, UserState, to_utc

ApiKeyId = NewType("ApiKeyId", str)

MAX_CREDENTIAL_CHARS = 4096
"""Longer than every token and API key that mlapi issues. Longer credentials are rejected without parsing them."""
MAX_API_KEY_NAME_CHARS = 100
USE_RECORDING_INTERVAL = timedelta(minutes=1)
"""How precisely an API key's last use is recorded. Recording every use would cost one write per request."""

API_KEY_PREFIX = "mlapi_"
"""The beginning of every API key. Tokens never start this way."""

_TOKEN_PRECISION = timedelta(seconds=1)
_API_KEY = TokenFormat(API_KEY_PREFIX)


@attrs.frozen(kw_only=True)
class TokenClaims:
    """The contents of a token whose signature has been verified."""

    user_id: UserId
    token_epoch: str = attrs.field(repr=False)
    expires_datetime: datetime
    token_id: str


@attrs.frozen
class IssuedToken:
    """A new token, as the client receives it. ``expires_in`` is in seconds."""

    token: str = attrs.field(repr=False)
    expires_in: int


@attrs.frozen
class PresentedApiKey:
    """An API key from a request, before it is checked. ``digest`` is the SHA-256 of the whole key."""

    id: ApiKeyId
    digest: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class ApiKey:
    """A stored API key. Only the SHA-256 of the key is stored, never the key itself.

    ``last_used_datetime`` may be up to `USE_RECORDING_INTERVAL` before the actual last use.
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
    """A stored API key together with its user."""

    key: ApiKey
    user: User


ParsedCredential = TokenClaims | PresentedApiKey
PrincipalId = UserId | ApiKeyId
Principal = User | ApiKeyPrincipal
"""The stored counterpart of a credential: the user of a token, or the API key with its user."""


def get_principal_id(parsed: ParsedCredential) -> PrincipalId:
    return parsed.user_id if isinstance(parsed, TokenClaims) else parsed.id


ACCESS_ERRORS: tuple[type[AccessDeniedError], ...] = (UserDisabledError, UserPendingError, AccessExpiredError)
"""The errors that `check_access` raises."""
AUTHENTICATION_ERRORS: tuple[type[MlapiError], ...] = (InvalidTokenError, *ACCESS_ERRORS)
"""The errors that `authenticate` raises."""


_ERRORS: dict[UserState, Callable[[UserId], AccessDeniedError]] = {
    "disabled": UserDisabledError,
    "pending": UserPendingError,
    "expired": AccessExpiredError,
}


def check_access(user: User, at: datetime) -> None:
    """Check that a user with valid credentials has access at this time. Logins and the guard both call this.

    Raises:
        UserDisabledError: if the user is disabled.
        UserPendingError: if the user is new and has not been enabled yet.
        AccessExpiredError: if the user is enabled, and their access has expired.
    """
    state = user.state_at(at)
    if state != "active":
        raise _ERRORS[state](user.id)


def authenticate(parsed: ParsedCredential, principal: Principal | None, at: datetime) -> User:
    """Return the authenticated user.

    Args:
        parsed: the parsed credential from the request.
        principal: the current principal with the id from `get_principal_id`; None if it does not exist.
        at: the current time.

    Raises:
        AccessDeniedError: if the credential is valid but the user has no access; see `check_access`.
        InvalidTokenError: if the credential is unknown, forged, expired or revoked.
    """
    if isinstance(parsed, TokenClaims):
        if not isinstance(principal, User) or _has_expired(parsed, principal, at):
            raise InvalidTokenError
        # Disabling a user starts a new epoch. The tokens from before get the answer for disabled users.
        if principal.enabled and parsed.token_epoch != principal.token_epoch:
            raise InvalidTokenError
        check_access(principal, at)
        return principal
    if not isinstance(principal, ApiKeyPrincipal) or not hmac.compare_digest(parsed.digest, principal.key.digest):
        raise InvalidTokenError
    if principal.key.expires_datetime is not None and principal.key.expires_datetime <= at:
        raise InvalidTokenError
    check_access(principal.user, at)
    return principal.user


def _has_expired(claims: TokenClaims, user: User, at: datetime) -> bool:
    """Return whether a token has expired, although it was not shortened because the user's access expires.

    A shortened token expires with the user's access, rounded down to a whole second. `check_access` judges such tokens.
    """
    if claims.expires_datetime > at:
        return False
    expiry = user.expires_datetime
    return expiry is None or expiry - claims.expires_datetime >= _TOKEN_PRECISION


def generate_api_key() -> str:
    """Return a new API key in the form that clients send: ``mlapi_<id>_<secret>``, with both parts in hex."""
    return _API_KEY.generate()


def looks_like_api_key(credential: str) -> bool:
    """Return whether a credential starts like an API key, even if it is invalid."""
    return credential.startswith(API_KEY_PREFIX)


def parse_api_key(credential: str) -> PresentedApiKey:
    """Return the id and the digest of an API key.

    Raises:
        InvalidTokenError: if the text is not formatted like an API key.
    """
    found = _API_KEY.parse(credential)
    if found is None:
        raise InvalidTokenError
    key_id, digest = found
    return PresentedApiKey(ApiKeyId(key_id), digest)


def validate_api_key_fields(*, name: object, expires_datetime: datetime | None, now: datetime) -> None:
    """Validate the fields of a new API key.

    Raises:
        InvalidFieldsError: if a field is invalid. The error lists every invalid field.
    """
    InvalidFieldsError.raise_for(
        [("name", _find_name_error(name)), ("expires_at", _find_expiry_error(expires_datetime, now))]
    )


def _find_name_error(name: object) -> str | None:
    error = find_text_error(name, MAX_API_KEY_NAME_CHARS)
    if error is None and isinstance(name, str):
        if has_invisible(name):
            return "must not contain control or invisible characters"
        if not name.strip():
            return "must not be empty"
    return error


def _find_expiry_error(expires_datetime: datetime | None, now: datetime) -> str | None:
    if expires_datetime is None:
        return None
    error = find_time_error(expires_datetime)
    return error or (None if expires_datetime > now else "must be in the future")
