"""What requests say: bodies, paths, queries and headers, and what can be wrong with them before the core is asked."""

import json
import re
from collections.abc import AsyncIterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_origin

import attrs
import msgspec

from mlapi.domain.credentials import API_KEY_NAME_MAX
from mlapi.domain.errors import FieldError, InvalidFieldsError, InvalidTokenError, MlapiError
from mlapi.domain.rules import EMAIL_MAX, PASSWORD_MAX, USERNAME_MAX
from mlapi.domain.users import UserId

BODY_MAX = 16 * 1024
"""Bytes of a request body. Three fields at their longest take less than half of it in UTF-8."""

TOKEN_IN_PATH = "/token_status/"  # noqa: S105 - a path
"""What begins so goes on with a token."""

Headers = Sequence[tuple[bytes, bytes]]
"""As ASGI has them: names in lower case, each as often as it was sent."""

T = TypeVar("T")


def _described(what: str, example: str, **schema: object) -> msgspec.Meta:
    """Tell the description about a field. It is the core that checks, and names every field at fault at once."""
    return msgspec.Meta(description=what, examples=[example], extra_json_schema=schema)


Username = Annotated[
    str,
    _described(
        "Without control, invisible or unassigned characters, and without white space at its ends. "
        "Compared by NFKC and without case: `Ada` and `ADA` are one user.",
        "ada",
        format="username",
        minLength=1,
        maxLength=USERNAME_MAX,
    ),
]
Password = Annotated[
    str,
    _described(
        "Taken as it is. In production it has a least length; common ones, and names of this service, are refused.",
        "difference engine",
        minLength=1,
        maxLength=PASSWORD_MAX,
    ),
]
Email = Annotated[
    str,
    _described(
        "Checked for its form; users may share one.",
        "ada@example.com",
        format="idn-email",
        minLength=3,
        maxLength=EMAIL_MAX,
    ),
]
ApiKeyName = Annotated[
    str,
    _described(
        "What it is for. Without control or invisible characters, and not of white space alone.",
        "nightly job",
        format="visible-text",
        minLength=1,
        maxLength=API_KEY_NAME_MAX,
    ),
]
# What is compared may be anything: it is right or wrong.
KnownUsername = Annotated[str, _described("In whatever case or spelling.", "ada")]
KnownPassword = Annotated[str, _described("As it was set.", "difference engine")]
Expiry = Annotated[
    datetime | None,
    _described(
        "When it ends: in the future, and with a zone. Null for never.", "2030-01-31T12:00:00Z", format="date-time"
    ),
]


class RequestBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a request says. Never shown: there may be a password in it."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class RegisterRequest(RequestBody, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /register-user``."""

    username: Username
    password: Password
    email: Email


class LoginRequest(RequestBody, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /token``."""

    username: KnownUsername
    password: KnownPassword


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


class RequestError(MlapiError):
    """A request that cannot be understood. Never raised itself."""


@attrs.frozen
class UnreadableBodyError(RequestError):
    reason: str

    def __str__(self) -> str:
        return f"The body is not valid JSON: {self.reason}"


class BodyTooLargeError(RequestError):
    def __str__(self) -> str:
        return f"The body is larger than {BODY_MAX} bytes"


class UnsupportedMediaTypeError(RequestError):
    def __str__(self) -> str:
        return "The Content-Type must be application/json, in UTF-8"


class AdminTokenRequiredError(RequestError):
    """Management in token mode, without the right token."""

    def __str__(self) -> str:
        return "This needs the admin token: send exactly one header Authorization: Bearer <admin token>"


@attrs.frozen
class ManagementRefusedError(RequestError):
    """Management in another mode. The reason names the setting that would open it."""

    reason: str

    def __str__(self) -> str:
        return self.reason


def check_content(headers: Headers) -> None:
    """Refuse a body by its headers, before it is read.

    Raises:
        UnsupportedMediaTypeError: unless there is one Content-Type, application/json, in UTF-8 if it says so.
        BodyTooLargeError: if it announces more than `BODY_MAX` bytes.
    """
    types = lengths = 0
    for name, value in headers:
        if name == b"content-type":
            types += 1
            if value != b"application/json" and not _JSON.fullmatch(value.strip()):
                raise UnsupportedMediaTypeError
        elif name == b"content-length" and value.isdigit():
            lengths = max(lengths, BODY_MAX + 1 if len(value) > _DIGITS_MAX else int(value))
    if types != 1:
        raise UnsupportedMediaTypeError
    if lengths > BODY_MAX:
        raise BodyTooLargeError


def may_be_uncertain(headers: Headers) -> bool:
    """Whether a request has a header that leaves more to ask than its length. Nearly none has, so this comes first."""
    for name, _ in headers:  # noqa: SIM110 - a third of the time
        if name in _FRAMING:
            return True
    return False


def length_is_certain(headers: Headers) -> bool:
    """Whether every server and proxy finds the end of a request where every other does (RFC 9112, 6.3 and 11.2).

    Else what one of them takes for the body of a request is another request to the next, that nobody has let through.
    Two are known: h11 goes on with a connection on which a length came both ways, and httptools takes no body where an
    upgrade is asked for, but what comes for it for the next request.
    """
    names = {name for name, _ in headers}
    if b"transfer-encoding" in names and b"content-length" in names:
        return False
    if b"upgrade" not in names or not asks_for_upgrade(headers):
        return True
    lengths = [value.strip() for name, value in headers if name == b"content-length"]
    return b"transfer-encoding" not in names and all(length == b"0" for length in lengths)


def asks_for_upgrade(headers: Headers) -> bool:
    """Whether another protocol is asked for (RFC 9110, 7.8), which is never spoken here."""
    connection = b",".join(value for name, value in headers if name == b"connection")
    return b"upgrade" in connection.lower() and any(name == b"upgrade" for name, _ in headers)


def wsgi_headers(environ: Mapping[str, Any]) -> Headers:
    """Return the headers of a WSGI environ. It has joined what was sent twice, which then is no valid value."""
    names = {name: name.removeprefix("HTTP_") for name in environ if name.startswith("HTTP_") or name in _CGI_HEADERS}
    return [
        (name.replace("_", "-").lower().encode("latin-1"), environ[key].encode("latin-1"))
        for key, name in names.items()
    ]


async def read_body(chunks: AsyncIterable[bytes]) -> bytes:
    """Return the whole body, or raise `BodyTooLargeError` as soon as it is more than `BODY_MAX` bytes."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > BODY_MAX:
            raise BodyTooLargeError
    return bytes(body)


def registration(body: bytes) -> RegisterRequest:
    """Return what a body asks to register. Raises as `decode` does."""
    if len(body) <= BODY_MAX and b"\\" not in body and body.count(b'"') == _QUOTES:
        # Three keys and three values in quotes, none of them escaped: there is no room for a key that stands twice,
        # which is all that msgspec would let pass and `decode` would not. Most bodies are such.
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            return _REGISTER_USER.decode(body)
    return decode(body, RegisterRequest)


def decode(body: bytes, shape: type[T]) -> T:
    """Return a request struct of a body.

    Stricter than JSON needs to be, as what it means must not depend on who reads it: no duplicate keys, no NaN, no lone
    surrogates.

    Raises:
        BodyTooLargeError: if it is more than `BODY_MAX` bytes.
        UnreadableBodyError: if it is not such JSON.
        InvalidFieldsError: naming every field that is missing, unknown or of another type.
    """
    if len(body) > BODY_MAX:
        raise BodyTooLargeError
    try:
        text = body.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if "\\u" in text:  # only an escape can have made a lone surrogate
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        raise UnreadableBodyError("it is not UTF-8") from None
    except UnicodeEncodeError:
        raise UnreadableBodyError("it holds a lone surrogate") from None
    except json.JSONDecodeError as error:
        raise UnreadableBodyError(
            f"{error.msg.removesuffix(' at')} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise UnreadableBodyError("it is nested too deeply") from None
    except ValueError:  # an integer of thousands of digits
        raise UnreadableBodyError("it holds a number that is too long") from None
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError:
        raise InvalidFieldsError(tuple(_field_problems(value, shape))) from None


def user_id(text: str) -> UserId:
    """Return the id in a path. One that no database can hold is still an id, that nobody has.

    Raises:
        InvalidFieldsError: unless it is ASCII digits.
    """
    if not (text.isascii() and text.isdigit()):
        raise InvalidFieldsError((FieldError("user_id", "must be ASCII digits"),))
    digits = text.lstrip("0") or "0"
    return UserId(int(digits) if len(digits) <= _DIGITS_MAX else 10**_DIGITS_MAX)


def bearer(headers: Headers) -> str:
    """Return the token or the API key that a request shows (RFC 6750, 2.1).

    Raises:
        InvalidTokenError: unless there is exactly one header Authorization, of the scheme Bearer.
    """
    scheme, credential = authorization(headers)
    if scheme != b"bearer" or not credential or not credential.isascii():
        raise InvalidTokenError
    return credential.decode("ascii")


def authorization(headers: Headers) -> tuple[bytes, bytes]:
    """Return the scheme, in lower case, and the credential of the one header Authorization; of several nothing."""
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) != 1:
        return b"", b""
    scheme, _, credential = values[0].strip(b" \t").partition(b" ")  # white space around is not of it: RFC 9110, 5.5
    return scheme.lower(), credential


def without_credentials(path: str) -> str:
    """Return a path as it may be written into a log: tokens and API keys in it are left out."""
    if TOKEN_IN_PATH not in path and "eyJ" not in path and "mlapi_" not in path:
        return path
    head, separator, _ = path.partition(TOKEN_IN_PATH)
    return _CREDENTIAL.sub(_LEFT_OUT, head) + (f"{separator}{_LEFT_OUT}" if separator else "")


def permission(text: str) -> bool:
    """Return the flag in a path.

    Raises:
        InvalidFieldsError: unless it is ``0`` or ``1``.
    """
    if text not in {"0", "1"}:
        raise InvalidFieldsError((FieldError("permission", "must be 0 or 1"),))
    return text == "1"


_JSON = re.compile(rb'application/json(\s*;\s*charset=(utf-8|"utf-8"))?', re.IGNORECASE)
_REGISTER_USER = msgspec.json.Decoder(RegisterRequest)
_CGI_HEADERS = frozenset({"CONTENT_TYPE", "CONTENT_LENGTH"})  # RFC 3875, 4.1: without the prefix of the others
_FRAMING = frozenset({b"transfer-encoding", b"upgrade"})
_LEFT_OUT = "left-out"
_CREDENTIAL = re.compile(r"eyJ[^/]*|mlapi_[0-9a-f][^/]*")
_QUOTES = 12  # of three keys and three values
_DIGITS_MAX = 19  # of a signed 64-bit integer


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise UnreadableBodyError("it has a key twice")
    return value


def _refuse_constant(_name: str) -> NoReturn:
    raise UnreadableBodyError("NaN and Infinity are not JSON")


def _field_problems(value: object, shape: type[Any]) -> list[FieldError]:
    """Name every field at fault, where msgspec names the first."""
    if not isinstance(value, dict):
        return [FieldError("body", "must be an object")]
    problems = []
    fields = {field.encode_name: field for field in msgspec.structs.fields(shape)}
    for name, field in fields.items():
        if name not in value:
            if field.required:
                problems.append(FieldError(name, "is missing"))
            continue
        try:
            msgspec.convert(value[name], field.type)
        except msgspec.ValidationError:
            problems.append(FieldError(name, f"must be {_NAMES[_bare(field.type)]}"))
    unknown = len(value.keys() - fields.keys())
    if unknown:
        # Not by name, which may be anything: the password, if a client has swapped key and value.
        problems.append(FieldError("body", f"must hold {', '.join(fields)} and nothing else"))
    return problems


def _bare(kind: Any) -> object:  # noqa: ANN401 - any type
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


_NAMES: dict[object, str] = {str: "a string", datetime | None: "a time as in 2030-01-31T12:00:00Z, or null"}
