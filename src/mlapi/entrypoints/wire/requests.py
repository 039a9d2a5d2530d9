"""Types for request bodies, and functions that decode bodies and path parameters."""

import json
import re
from collections.abc import AsyncIterable, Callable
from datetime import datetime
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_origin

import msgspec
from msgspec import UNSET, UnsetType

from mlapi.application.command_factory import UserChanges, UserDetails
from mlapi.domain.errors import FieldError, InvalidFieldsError
from mlapi.domain.expiry import Extension
from mlapi.domain.users import UserId
from mlapi.entrypoints.wire.errors import (
    MAX_BODY_BYTES,
    MAX_PATH_CHARS,
    BodyTooLargeError,
    UnreadableBodyError,
    UnsupportedGrantTypeError,
)
from mlapi.entrypoints.wire.fields import (
    GRANT_TYPES,
    TYPE_NAMES,
    ApiKeyExpiry,
    ApiKeyName,
    Email,
    GrantType,
    IgnoredField,
    KnownPassword,
    KnownUsername,
    LinkToken,
    MetadataFields,
    NewExpiry,
    NullableNewExpiry,
    Password,
    PlanName,
    Username,
    decode_expiry,
)
from mlapi.entrypoints.wire.forms import decode_form
from mlapi.entrypoints.wire.paths import LINKS_PATH

TOKEN_PATH_PREFIX = "/token_status/"  # noqa: S105 - a path
"""The prefix of paths that contain a token."""
LINK_PATH_PREFIX = f"{LINKS_PATH}/"
"""The prefix of paths that contain the token of a one-time link."""

T = TypeVar("T")


class RequestBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON body of a request. Its repr omits the values, because they include passwords."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class RegisterRequest(RequestBody, frozen=True, forbid_unknown_fields=False):
    """The body of ``POST /register-user``. Unknown fields are ignored, as in the legacy app."""

    username: Username
    password: Password
    email: Email

    @property
    def details(self) -> UserDetails:
        """The fields that only admins may set."""
        return {}


class ManagedRegisterRequest(RegisterRequest, frozen=True, forbid_unknown_fields=False):
    """The body of ``POST /register-user`` from a client with admin access."""

    expires_at: NullableNewExpiry = None
    plan: PlanName = None
    metadata: MetadataFields = None

    @property
    def details(self) -> UserDetails:
        return {"expires": _get_value(self.expires_at), "plan": self.plan, "metadata": self.metadata}


class InviteRequest(RequestBody, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /users``: a user without a password, who sets it with a one-time link."""

    username: Username
    email: Email
    expires_at: NullableNewExpiry = None
    plan: PlanName = None
    metadata: MetadataFields = None

    @property
    def details(self) -> UserDetails:
        return {"expires": _get_value(self.expires_at), "plan": self.plan, "metadata": self.metadata}


class PasswordLinkRequest(RequestBody, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /password-link``."""

    token: LinkToken
    password: Password


class PasswordResetRequest(RequestBody, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /password-reset``: a username or an e-mail address."""

    username: Username


class UpdateUserRequest(RequestBody, frozen=True, forbid_unknown_fields=True):
    """The body of ``PATCH /users/<id>``. Missing fields are not changed."""

    username: Username | UnsetType = UNSET
    email: Email | UnsetType = UNSET
    expires_at: NullableNewExpiry | UnsetType = UNSET
    plan: PlanName | UnsetType = UNSET
    metadata: MetadataFields | UnsetType = UNSET

    def get_changes(self) -> UserChanges:
        """Return the fields that the body contains.

        Raises:
            InvalidFieldsError: if it contains none.
        """
        changes: UserChanges = {}
        if self.username is not UNSET:
            changes["username"] = self.username
        if self.email is not UNSET:
            changes["email"] = self.email
        if self.expires_at is not UNSET:
            changes["expires"] = _get_value(self.expires_at)
        if self.plan is not UNSET:
            changes["plan"] = self.plan
        if self.metadata is not UNSET:
            changes["metadata"] = self.metadata
        if not changes:
            raise InvalidFieldsError(
                (FieldError("body", f"must contain at least one of {', '.join(self.__struct_fields__)}"),)
            )
        return changes


def _get_value(expiry: NewExpiry | None) -> datetime | Extension | None:
    return None if expiry is None else expiry.value


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
    expires_at: ApiKeyExpiry = None


async def read_body(chunks: AsyncIterable[bytes], *, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Return the whole body.

    Raises:
        BodyTooLargeError: as soon as more than ``max_bytes`` bytes have arrived.
    """
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLargeError(max_bytes)
    return bytes(body)


def decode(body: bytes, body_type: type[T], *, max_bytes: int = MAX_BODY_BYTES) -> T:
    """Decode a request body.

    Duplicate keys, NaN and lone surrogates are rejected, because JSON parsers interpret them differently.

    Raises:
        BodyTooLargeError: if the body is longer than ``max_bytes``.
        UnreadableBodyError: if the body is not strict JSON.
        InvalidFieldsError: if a field is missing, of the wrong type, or unknown (unless the type ignores unknown
            fields). The error lists all of them.
    """
    return _convert(_parse(body, max_bytes), body_type)


def decode_registration(body: bytes, *, is_admin: Callable[[], bool]) -> RegisterRequest:
    """Decode the body of a registration. Only admins may set the fields of `ManagedRegisterRequest`.

    In requests of other clients, these fields are ignored like unknown ones.

    Args:
        body: the request body.
        is_admin: returns whether the client has admin access. Called only if the body contains such a field.

    Raises: see `decode`.
    """
    value = _parse(body)
    has_managed_fields = isinstance(value, dict) and not _MANAGED_FIELDS.isdisjoint(value)
    return _convert(value, ManagedRegisterRequest if has_managed_fields and is_admin() else RegisterRequest)


def _parse(body: bytes, max_bytes: int = MAX_BODY_BYTES) -> object:
    if len(body) > max_bytes:
        raise BodyTooLargeError(max_bytes)
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
    return value


def decode_login_form(body: bytes) -> LoginForm:
    """Decode the form of a login.

    Raises:
        UnreadableBodyError: if the body is not a form, or repeats a field.
        InvalidFieldsError: if a field is missing.
        UnsupportedGrantTypeError: if the grant type is neither ``password`` nor empty.
    """
    fields = decode_form(body)
    if fields.get("grant_type", "") not in GRANT_TYPES:  # other grant types have other fields
        raise UnsupportedGrantTypeError
    return _convert(fields, LoginForm)


def _convert(value: object, body_type: type[T]) -> T:
    try:
        return msgspec.convert(value, body_type, dec_hook=decode_expiry)
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
    if (  # written out, because this is called for every request
        TOKEN_PATH_PREFIX not in path and LINK_PATH_PREFIX not in path and "eyJ" not in path and "mlapi" not in path
    ):
        return path
    head, separator, _ = path.partition(TOKEN_PATH_PREFIX)
    if not separator:
        head, separator, rest = path.partition(LINK_PATH_PREFIX)
        if _STATIC_FILE.fullmatch(rest):
            return path
    return _CREDENTIAL.sub(_REDACTED, head) + (f"{separator}{_REDACTED}" if separator else "")


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise UnreadableBodyError("it contains a duplicate key")
    return value


def _reject_constant(_name: str) -> NoReturn:
    raise UnreadableBodyError("NaN and Infinity are not JSON")


def _parse_int(text: str) -> int | float:
    """Return an integer. Python rejects very long ones, even in fields that are ignored, so return them as a float."""
    return int(text) if len(text) <= _MAX_INT_CHARS else float(text)


_MAX_INT_CHARS = 4096  # as many as metadata may have
# One decoder for all bodies, because json.loads() would create a new one for every call.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_reject_duplicate_keys, parse_constant=_reject_constant, parse_int=_parse_int
)
_MANAGED_FIELDS = set(ManagedRegisterRequest.__struct_fields__) - set(RegisterRequest.__struct_fields__)
_CREDENTIAL = re.compile(r"eyJ[^/]*|mlapi(-manager|-link)?(_|%5[Ff])[0-9a-f][^/]*")
_STATIC_FILE = re.compile(r"static/[0-9a-f]{1,32}/[a-z]+(\.[a-z]+){1,2}")
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
            msgspec.convert(value[name], field.type, dec_hook=decode_expiry)
        except msgspec.ValidationError:
            errors.append(FieldError(name, f"must be {TYPE_NAMES[_without_annotation(field.type)]}"))
    if body_type.__struct_config__.forbid_unknown_fields and value.keys() - fields.keys():
        # Do not show unknown keys: if a client swaps keys and values, one of them is a password.
        errors.append(FieldError("body", f"must contain only {', '.join(fields)}"))
    return errors


def _without_annotation(annotation: Any) -> object:  # noqa: ANN401 - any type
    """Return the type of a field without its description, and without `UnsetType`."""
    arguments = get_args(annotation)
    if UnsetType in arguments:
        return _without_annotation(arguments[0])
    return arguments[0] if get_origin(annotation) is Annotated else annotation
