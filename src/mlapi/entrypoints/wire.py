"""What our HTTP says, whatever framework carries it: how bodies and paths are read, and what is answered to what."""

import json
import re
from collections.abc import AsyncIterable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any, NoReturn, TypeVar

import attrs
import msgspec

from mlapi.domain.errors import (
    ConfigurationError,
    FieldProblem,
    InvalidFieldsError,
    MlapiError,
    RepositoryUnavailableError,
    UserExistsError,
    UserNotFoundError,
)
from mlapi.domain.model import User, UserId

BODY_MAX = 16 * 1024
"""Bytes of a request body. Three fields at their longest take less than half of it in UTF-8."""

Headers = Sequence[tuple[bytes, bytes]]
"""As ASGI has them: names in lower case, each as often as it was sent."""

T = TypeVar("T")


class RegisterUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /register-user``."""

    username: str
    password: str
    email: str

    def __repr__(self) -> str:
        return "RegisterUser(...)"  # a password is in it


@attrs.frozen
class Answer:
    """An answer to send: its body is JSON."""

    status: HTTPStatus
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


# --- what a request can get wrong before the core is asked


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


# --- reading


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


def registration(body: bytes) -> RegisterUser:
    """Return what a body asks to register. Raises as `decode` does."""
    if len(body) <= BODY_MAX and b"\\" not in body and body.count(b'"') == _QUOTES:
        # Three keys and three values in quotes, none of them escaped: there is no room for a key that stands twice,
        # which is all that msgspec would let pass and `decode` would not. Most bodies are such.
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            return _REGISTER_USER.decode(body)
    return decode(body, RegisterUser)


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
        raise InvalidFieldsError((FieldProblem("user_id", "must be ASCII digits"),))
    digits = text.lstrip("0") or "0"
    return UserId(int(digits) if len(digits) <= _DIGITS_MAX else 10**_DIGITS_MAX)


def permission(text: str) -> bool:
    """Return the flag in a path.

    Raises:
        InvalidFieldsError: unless it is ``0`` or ``1``.
    """
    if text not in {"0", "1"}:
        raise InvalidFieldsError((FieldProblem("permission", "must be 0 or 1"),))
    return text == "1"


# --- answering


def registered(user: User) -> Answer:
    return _answer(HTTPStatus.CREATED, "User created successfully", user_id=user.id)


def permission_updated(user: User) -> Answer:
    return _answer(HTTPStatus.OK, "User permission updated successfully", user_id=user.id)


def removed(_user: User) -> Answer:
    return _answer(HTTPStatus.OK, "User deleted successfully")


def alive() -> Answer:
    return _answer(HTTPStatus.OK, "Alive")


def ready() -> Answer:
    return _answer(HTTPStatus.OK, "Ready")


STATUS_OF: dict[type[MlapiError], HTTPStatus] = {
    InvalidFieldsError: HTTPStatus.UNPROCESSABLE_ENTITY,
    UserExistsError: HTTPStatus.CONFLICT,
    UserNotFoundError: HTTPStatus.NOT_FOUND,
    RepositoryUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    ConfigurationError: HTTPStatus.SERVICE_UNAVAILABLE,
    UnreadableBodyError: HTTPStatus.BAD_REQUEST,
    BodyTooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnsupportedMediaTypeError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    AdminTokenRequiredError: HTTPStatus.UNAUTHORIZED,
    ManagementRefusedError: HTTPStatus.FORBIDDEN,
}
"""The one table from what is raised to what is answered. Total: a test walks every subclass of `MlapiError`."""


def refused(error: MlapiError) -> Answer:
    """Return the answer to whatever our code raises on purpose."""
    message = str(error)
    headers: list[tuple[str, str]] = []
    more: dict[str, object] = {}
    match error:
        case InvalidFieldsError(problems=problems):
            message = "Invalid input"
            more["errors"] = [{"field": problem.field, "message": problem.message} for problem in problems]
        case UserExistsError(user_id=holder):
            message = "User already exists"
            more["user_id"] = holder
        case UserNotFoundError():
            message = "User not found"
        case RepositoryUnavailableError(retry_after=seconds):
            message = "Service unavailable, try again"
            headers.append(("Retry-After", str(seconds)))
        case ConfigurationError():  # a database that came after the start, and is not the right one
            message = "Service unavailable, see its log"
            headers.append(("Retry-After", "10"))
        case AdminTokenRequiredError():
            headers.append(("WWW-Authenticate", "Bearer"))
    return _answer(STATUS_OF[type(error)], message, headers=headers, **more)


def failed(status: int, headers: Sequence[tuple[str, str]] = ()) -> Answer:
    """Return the answer to what a framework refuses by itself: no such path, no such method, an error of ours."""
    return _answer(HTTPStatus(status), HTTPStatus(status).phrase, headers=headers)


_JSON = re.compile(rb'application/json(\s*;\s*charset=(utf-8|"utf-8"))?', re.IGNORECASE)
_REGISTER_USER = msgspec.json.Decoder(RegisterUser)
_CGI_HEADERS = frozenset({"CONTENT_TYPE", "CONTENT_LENGTH"})  # RFC 3875, 4.1: without the prefix of the others
_QUOTES = 12  # of three keys and three values
_DIGITS_MAX = 19  # of a signed 64-bit integer


def _answer(status: HTTPStatus, message: str, *, headers: Sequence[tuple[str, str]] = (), **more: object) -> Answer:
    return Answer(status, msgspec.json.encode({"message": message, **more}), tuple(headers))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise UnreadableBodyError("it has a key twice")
    return value


def _refuse_constant(_name: str) -> NoReturn:
    raise UnreadableBodyError("NaN and Infinity are not JSON")


def _field_problems(value: object, shape: type[Any]) -> list[FieldProblem]:
    """Name every field at fault, where msgspec names the first."""
    if not isinstance(value, dict):
        return [FieldProblem("body", "must be an object")]
    problems = []
    fields = {field.encode_name: field for field in msgspec.structs.fields(shape)}
    for name, field in fields.items():
        if name not in value:
            problems.append(FieldProblem(name, "is missing"))
            continue
        try:
            msgspec.convert(value[name], field.type)
        except msgspec.ValidationError:
            problems.append(FieldProblem(name, f"must be {_NAMES[field.type]}"))
    unknown = len(value.keys() - fields.keys())
    if unknown:
        # Not by name, which may be anything: the password, if a client has swapped key and value.
        problems.append(FieldProblem("body", f"must hold {', '.join(fields)} and nothing else"))
    return problems


_NAMES = {str: "a string"}
