"""Types for request bodies, and functions that decode bodies and path parameters."""

import json
import re
from collections.abc import AsyncIterable
from datetime import datetime
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_origin

import msgspec

from mlapi.domain.credentials import MAX_API_KEY_NAME_CHARS
from mlapi.domain.errors import FieldError, InvalidFieldsError
from mlapi.domain.rules import MAX_EMAIL_CHARS, MAX_PASSWORD_CHARS, MAX_USERNAME_CHARS
from mlapi.domain.users import UserId
from mlapi.entrypoints.wire import patterns
from mlapi.entrypoints.wire.errors import (
    MAX_BODY_BYTES,
    MAX_PATH_CHARS,
    BodyTooLargeError,
    UnreadableBodyError,
    UnsupportedGrantTypeError,
)
from mlapi.entrypoints.wire.forms import decode_form

TOKEN_PATH_PREFIX = "/token_status/"  # noqa: S105 - a path
"""The prefix of paths that contain a token."""

T = TypeVar("T")


def _field(description: str, example: str, **schema: object) -> msgspec.Meta:
    """Describe a field for OpenAPI only: the domain validates values, and reports all invalid fields together."""
    return msgspec.Meta(description=description, examples=[example], extra_json_schema=schema)


Username = Annotated[
    str,
    _field(
        "No control, invisible or unassigned characters, and no leading or trailing whitespace. "
        "Usernames are compared case-insensitively after NFKC normalization: `Ada` and `ADA` refer to the same user.",
        "ada",
        pattern=patterns.USERNAME,
        minLength=1,
        maxLength=MAX_USERNAME_CHARS,
    ),
]
Password = Annotated[
    str,
    _field(
        "Stored exactly as sent, without normalization or truncation. The production profile sets a minimum length and"
        " rejects common passwords and the name of this service.",
        "difference engine",
        minLength=1,
        maxLength=MAX_PASSWORD_CHARS,
    ),
]
Email = Annotated[
    str,
    _field(
        "Only the format is checked. Several users may share an address.",
        "ada@example.com",
        format="idn-email",
        minLength=3,
        maxLength=MAX_EMAIL_CHARS,
    ),
]
ApiKeyName = Annotated[
    str,
    _field(
        "The purpose of the key. No control or invisible characters, and not only whitespace.",
        "nightly job",
        pattern=patterns.API_KEY_NAME,
        minLength=1,
        maxLength=MAX_API_KEY_NAME_CHARS,
    ),
]
# Existing credentials have no constraints: an invalid value simply does not match.
KnownUsername = Annotated[str, _field("Matched case-insensitively, after NFKC normalization.", "ada")]
KnownPassword = Annotated[str, _field("The current password.", "difference engine")]
_GRANT_TYPES = ["password", ""]
GrantType = Annotated[str, _field("The grant type of OAuth 2.0.", "password", enum=_GRANT_TYPES)]
IgnoredField = Annotated[str, _field("Ignored.", "")]
Expiry = Annotated[
    datetime | None,
    _field(
        "The expiry time, which must be in the future and have a time zone. If null, the key does not expire.",
        "2030-01-31T12:00:00Z",
        format="date-time",
    ),
]


class RequestBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON body of a request. Its repr omits the values, because they include passwords."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class RegisterRequest(RequestBody, frozen=True, forbid_unknown_fields=False):
    """The body of ``POST /register-user``. Unknown fields are ignored, as in the legacy app."""

    username: Username
    password: Password
    email: Email


class LoginRequest(RequestBody, frozen=True, forbid_unknown_fields=False):
    """The JSON body of ``POST /token``. Unknown fields are ignored, as in the legacy app."""

    username: KnownUsername
    password: KnownPassword


class LoginForm(LoginRequest, frozen=True, forbid_unknown_fields=False):
    """The form of ``POST /token``: the password grant of OAuth 2.0 (RFC 6749, 4.3)."""

    grant_type: GrantType = ""
    scope: IgnoredField = ""
    client_id: IgnoredField = ""
    client_secret: IgnoredField = ""


class ChangePasswordRequest(RequestBody, frozen=True, forbid_unknown_fields=True):
    """The body of ``PUT /users/me/password``."""

    current: KnownPassword
    new: Password


class SetPasswordRequest(RequestBody, frozen=True, forbid_unknown_fields=True):
    """The body of ``PUT /users/<id>/password``."""

    password: Password


class AddApiKeyRequest(RequestBody, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /users/<id>/keys``."""

    name: ApiKeyName
    expires_at: Expiry = None


async def read_body(chunks: AsyncIterable[bytes]) -> bytes:
    """Return the whole body.

    Raises:
        BodyTooLargeError: as soon as more than `MAX_BODY_BYTES` bytes have arrived.
    """
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLargeError
    return bytes(body)


def decode(body: bytes, body_type: type[T]) -> T:
    """Decode a request body.

    Duplicate keys, NaN and lone surrogates are rejected, because JSON parsers interpret them differently.

    Raises:
        BodyTooLargeError: if the body is longer than `MAX_BODY_BYTES`.
        UnreadableBodyError: if the body is not strict JSON.
        InvalidFieldsError: if a field is missing, of the wrong type, or unknown (unless the type ignores unknown
            fields). The error lists all of them.
    """
    if len(body) > MAX_BODY_BYTES:
        raise BodyTooLargeError
    try:
        text = body.decode("utf-8")
        if text.startswith("\ufeff"):
            raise UnreadableBodyError("it starts with a byte order mark")
        value = _DECODER.decode(text)
        if "\\u" in text:  # only an escape sequence can produce a lone surrogate
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        raise UnreadableBodyError("it is not UTF-8") from None
    except UnicodeEncodeError:
        raise UnreadableBodyError("it contains a lone surrogate") from None
    except json.JSONDecodeError as error:
        raise UnreadableBodyError(
            f"{error.msg.removesuffix(' at')} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise UnreadableBodyError("it is nested too deeply") from None
    return _convert(value, body_type)


def decode_login_form(body: bytes) -> LoginForm:
    """Decode the form of a login.

    Raises:
        UnreadableBodyError: if the body is not a form, or repeats a field.
        InvalidFieldsError: if a field is missing.
        UnsupportedGrantTypeError: if the grant type is neither ``password`` nor empty.
    """
    fields = decode_form(body)
    if fields.get("grant_type", "") not in _GRANT_TYPES:  # other grant types have other fields
        raise UnsupportedGrantTypeError
    return _convert(fields, LoginForm)


def _convert(value: object, body_type: type[T]) -> T:
    try:
        return msgspec.convert(value, body_type)
    except msgspec.ValidationError:
        raise InvalidFieldsError(tuple(_find_field_errors(value, body_type))) from None


def parse_user_id(text: str) -> UserId:
    """Parse the user id in a path.

    An id that is too large for the database is accepted, and no user will be found.

    Raises:
        InvalidFieldsError: if the text does not consist of ASCII digits.
    """
    if not (text.isascii() and text.isdigit()):
        raise InvalidFieldsError((FieldError("user_id", "must be ASCII digits"),))
    digits = text.lstrip("0") or "0"
    return UserId(int(digits) if len(digits) <= _MAX_ID_DIGITS else 10**_MAX_ID_DIGITS)


def parse_permission(text: str) -> bool:
    """Parse the permission in a path.

    Raises:
        InvalidFieldsError: if the text is not ``0`` or ``1``.
    """
    if text not in {"0", "1"}:
        raise InvalidFieldsError((FieldError("permission", "must be 0 or 1"),))
    return text == "1"


def redact_credentials(path: str) -> str:
    """Return the path with tokens and API keys removed, for logging. Omit paths that are too long."""
    if len(path) > MAX_PATH_CHARS:
        return f"/{_REDACTED}"
    if TOKEN_PATH_PREFIX not in path and "eyJ" not in path and "mlapi_" not in path:
        return path
    head, separator, _ = path.partition(TOKEN_PATH_PREFIX)
    return _CREDENTIAL.sub(_REDACTED, head) + (f"{separator}{_REDACTED}" if separator else "")


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise UnreadableBodyError("it contains a duplicate key")
    return value


def _reject_constant(_name: str) -> NoReturn:
    raise UnreadableBodyError("NaN and Infinity are not JSON")


# One decoder for all bodies, because json.loads() would create a new one for every call. No field is an integer, so
# decode them as floats: Python rejects integers of more than 4300 digits, even in fields that are ignored.
_DECODER = json.JSONDecoder(object_pairs_hook=_reject_duplicate_keys, parse_constant=_reject_constant, parse_int=float)
_CREDENTIAL = re.compile(r"eyJ[^/]*|mlapi_[0-9a-f][^/]*")
_REDACTED = "redacted"
_MAX_ID_DIGITS = 19  # the maximum for a signed 64-bit integer


def _find_field_errors(value: object, body_type: type[Any]) -> list[FieldError]:
    """Return the errors of all fields. msgspec itself reports only the first error."""
    if not isinstance(value, dict):
        return [FieldError("body", "must be an object")]
    errors = []
    fields = {field.encode_name: field for field in msgspec.structs.fields(body_type)}
    for name, field in fields.items():
        if name not in value:
            if field.required:
                errors.append(FieldError(name, "is missing"))
            continue
        try:
            msgspec.convert(value[name], field.type)
        except msgspec.ValidationError:
            errors.append(FieldError(name, f"must be {_TYPE_NAMES[_without_annotation(field.type)]}"))
    if body_type.__struct_config__.forbid_unknown_fields and value.keys() - fields.keys():
        # Do not show unknown keys: if a client swaps keys and values, one of them is a password.
        errors.append(FieldError("body", f"must contain only {', '.join(fields)}"))
    return errors


def _without_annotation(annotation: Any) -> object:  # noqa: ANN401 - any type
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


_TYPE_NAMES: dict[object, str] = {str: "a string", datetime | None: "a time such as 2030-01-31T12:00:00Z, or null"}
