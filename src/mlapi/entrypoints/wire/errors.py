"""Errors that are detected before the application logic runs: unreadable bodies and missing admin access."""

from typing import Literal

import attrs

from mlapi.domain.errors import InvalidTokenError, MlapiError

MAX_BODY_BYTES = 16 * 1024  # three fields of maximum length need less than half of this in UTF-8
MAX_BULK_BODY_BYTES = 256 * 1024
"""The ids of 10,000 users, each with up to 20 digits."""
MAX_PATH_CHARS = 4096
"""Longer than the path of every operation, including tokens."""
MAX_QUERY_BYTES = 4096
"""Longer than the longest search, in any script, with every byte percent-encoded."""
MAX_HEADERS = 100
"""Each takes about 200 bytes of memory, however short it is."""
MAX_HEADER_BYTES = 16 * 1024


class RequestError(MlapiError):
    """The base class of the errors in this module."""


@attrs.frozen
class UnreadableBodyError(RequestError):
    reason: str
    media_type: Literal["JSON", "form"] = "JSON"

    def __str__(self) -> str:
        expected = "valid JSON" if self.media_type == "JSON" else "a valid form"
        return f"The body is not {expected}: {self.reason}"


@attrs.frozen
class BodyTooLargeError(RequestError):
    max_bytes: int = MAX_BODY_BYTES

    def __str__(self) -> str:
        return f"The body is larger than {self.max_bytes} bytes"


class UriTooLongError(RequestError):
    def __str__(self) -> str:
        return f"The path is longer than {MAX_PATH_CHARS} characters, or the query than {MAX_QUERY_BYTES} bytes"


class HeadersTooLargeError(RequestError):
    def __str__(self) -> str:
        return f"There are more than {MAX_HEADERS} headers, or one is longer than {MAX_HEADER_BYTES} bytes"


@attrs.frozen
class UnsupportedMediaTypeError(RequestError):
    accepted: str = "application/json"

    def __str__(self) -> str:
        return f"The Content-Type must be {self.accepted}, in UTF-8"


class UnsupportedContentEncodingError(RequestError):
    def __str__(self) -> str:
        return "The body is compressed: send it without Content-Encoding"


class UnsupportedGrantTypeError(RequestError):
    def __str__(self) -> str:
        return "The grant_type must be password"


class MissingCredentialError(RequestError, InvalidTokenError):
    """The request has no token and no API key."""

    def __str__(self) -> str:
        return "This needs a token or an API key: send Authorization: Bearer <token>, or X-API-Key: <API key>"


class TokenRequiredError(RequestError, InvalidTokenError):
    """The operation needs a token, but the request has no credential."""

    def __str__(self) -> str:
        return "This needs a token: log in with POST /token, and send Authorization: Bearer <token>"


class ApiKeyNotAcceptedError(TokenRequiredError):
    """The operation needs a token, but the request has an API key."""

    def __str__(self) -> str:
        return (
            "This needs a token, and the request has an API key: log in with POST /token, and send Authorization:"
            " Bearer <token>"
        )


class OwnApiKeysDisabledError(RequestError):
    """Users cannot add API keys for themselves."""

    def __str__(self) -> str:
        return "Users cannot add API keys, because account.keys is false: ask a manager for one"


class AdminTokenRequiredError(RequestError):
    """The operation needs the admin token, but the request contains no credential, or several."""

    def __str__(self) -> str:
        return (
            "This needs the admin token: send one Authorization header with Bearer <admin token>, or with the token of"
            " a manager"
        )


class WrongAdminTokenError(AdminTokenRequiredError):
    """The operation needs the admin token, but the request contains another one."""

    def __str__(self) -> str:
        return "The admin token is wrong: send the value of secrets.admin_token in Authorization: Bearer <admin token>"


class WrongManagerTokenError(AdminTokenRequiredError):
    """The operation needs the token of a manager, but the request contains one that is unknown or has expired."""

    def __str__(self) -> str:
        return (
            "The manager's token is unknown, or it has expired: an admin can issue another one with `mlapi managers"
            " rotate NAME`"
        )


class UserIsNotAdminError(AdminTokenRequiredError):
    """The operation needs the admin token, but the request contains a user's token or API key."""

    def __str__(self) -> str:
        return (
            "This needs the admin token, and the request has a user's token or API key: send Authorization: Bearer"
            " <admin token>"
        )


@attrs.frozen
class ViewerRoleError(RequestError):
    """The operation needs the role ``admin``, but the manager with this name has the role ``viewer``."""

    name: str

    def __str__(self) -> str:
        return (
            f"Manager {self.name} has the role viewer, which may only read: ask a manager with the role admin for this"
            " change, or for that role"
        )


@attrs.frozen
class AdminAccessDeniedError(RequestError):
    """The request lacks admin access, for a reason other than a missing admin token.

    Attributes:
        reason: the reason, with the setting that grants access.
    """

    reason: str

    def __str__(self) -> str:
        return self.reason
