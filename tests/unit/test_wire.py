"""What our HTTP says: how bodies and paths are read, and what is answered to what."""

import asyncio
import importlib
import json
import pkgutil
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from http import HTTPStatus

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlapi
from mlapi.domain import errors
from mlapi.domain.audit import AuditEntry, AuditId
from mlapi.domain.credentials import ApiKey, ApiKeyId, IssuedToken
from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    ConfigurationError,
    FieldError,
    InvalidCredentialsError,
    InvalidFieldsError,
    InvalidTokenError,
    MlapiError,
    PasswordChangedError,
    RepositoryUnavailableError,
    ServiceUnavailableError,
    TooManyAttemptsError,
    UserDisabledError,
    UserExistsError,
    UserNotFoundError,
)
from mlapi.domain.users import EncryptedPassword, User, UserId
from mlapi.entrypoints.wire import queries, requests, responses
from mlapi.entrypoints.wire.errors import (
    AdminAccessDeniedError,
    AdminTokenRequiredError,
    BodyTooLargeError,
    RequestError,
    UnreadableBodyError,
    UnsupportedMediaTypeError,
)
from mlapi.entrypoints.wire.headers import Headers, get_bearer_credential, validate_content_headers
from mlapi.entrypoints.wire.queries import AuditQuery, UsersQuery
from mlapi.entrypoints.wire.requests import (
    AddApiKeyRequest,
    ChangePasswordRequest,
    LoginRequest,
    RegisterRequest,
    RequestBody,
    SetPasswordRequest,
)
from mlapi.entrypoints.wire.responses import ERRORS, Response, error_response, http_error_response

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ADA = User(
    id=UserId(7),
    username="ada",
    password=EncryptedPassword("stored-password"),
    email="ada@example.com",
    enabled=True,
    created_datetime=NOON,
    updated_datetime=NOON,
    token_epoch="the-epoch",
)
SECRET = f"mlapi_0123456789abcdef_{'0' * 64}"
KEY = ApiKey(
    id=ApiKeyId("0123456789abcdef"),
    user_id=ADA.id,
    name="laptop",
    digest="the-digest",
    created_datetime=NOON,
    expires_datetime=NOON + timedelta(days=1),
    last_used_datetime=NOON + timedelta(microseconds=1),
)
ENTRY = AuditEntry(
    id=AuditId(9),
    at=NOON,
    actor="admin",
    action="add_api_key",
    user_id=ADA.id,
    api_key_id=KEY.id,
    outcome="done",
    request_id="request-7",
)
GOOD_BODY = b'{"username": "test", "password": "test", "email": "test@testmail.com"}'
NOTHING_ELSE = FieldError("body", "must contain only username, password, email")


# --- content type and length


def sent(types: list[str], lengths: list[str] | None = None) -> Headers:
    """Headers as they are sent, among others."""
    return [
        (b"host", b"localhost"),
        *((b"content-type", value.encode()) for value in types),
        *((b"content-length", value.encode()) for value in lengths or []),
    ]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON; charset=UTF-8",
        'application/json;charset="utf-8"',
        "application/json ; charset=utf-8",
        " application/json ",
    ],
)
def test_json_in_utf8_may_be_sent(content_type: str) -> None:
    validate_content_headers(sent([content_type]))


@pytest.mark.parametrize(
    "content_types",
    [
        pytest.param([], id="none"),
        pytest.param([""], id="empty"),
        pytest.param(["application/json", "application/json"], id="two"),
        pytest.param(["application/json, text/plain"], id="two in one"),
        pytest.param(["text/plain"], id="what a web page may send to anybody"),
        pytest.param(["application/x-www-form-urlencoded"], id="form"),
        pytest.param(["multipart/form-data; boundary=x"], id="multipart form"),
        pytest.param(["text/json"], id="text/json"),
        pytest.param(["application/jsonp"], id="jsonp"),
        pytest.param(["application/problem+json"], id="other JSON"),
        pytest.param(["application/json; charset=latin-1"], id="latin-1"),
        pytest.param(["application/json; charset=utf-16"], id="utf-16"),
        pytest.param(["application/json; charset=utf-8; charset=latin-1"], id="two charsets"),
        pytest.param(["application/json; boundary=x"], id="other parameter"),
        pytest.param(["application/j\u017fon"], id="long s"),
    ],
)
def test_other_content_is_refused(content_types: list[str]) -> None:
    with pytest.raises(UnsupportedMediaTypeError):
        validate_content_headers(sent(content_types))


@pytest.mark.parametrize(
    "lengths",
    [[], ["0"], ["16384"], [""], ["many"], ["-1"], ["1e9"], ["\u00b2"]],
    ids=["none", "zero", "limit", "empty", "word", "negative", "exponent", "superscript digit"],
)
def test_a_length_within_the_limit_or_none_at_all_is_for_the_body_to_show(lengths: list[str]) -> None:
    validate_content_headers(sent(["application/json"], lengths))


@pytest.mark.parametrize(
    "lengths",
    [["16385"], ["9" * 19], ["9" * 5000], ["5", "16385"]],
    ids=["one more", "19 digits", "5000 digits", "second of two"],
)
def test_a_length_beyond_the_limit_is_refused(lengths: list[str]) -> None:
    with pytest.raises(BodyTooLargeError):
        validate_content_headers(sent(["application/json"], lengths))


# --- reading a body


def read_all(chunks: Iterable[bytes]) -> bytes:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return asyncio.run(requests.read_body(stream()))


@pytest.mark.parametrize(
    ("chunks", "body"),
    [
        pytest.param([], b"", id="none"),
        pytest.param([b"", b""], b"", id="empty ones"),
        pytest.param([b'{"user', b"", b'name"}'], b'{"username"}', id="several"),
        pytest.param([b"x" * 16384], b"x" * 16384, id="limit in one"),
        pytest.param([b"x"] * 16384, b"x" * 16384, id="limit byte by byte"),
    ],
)
def test_a_body_is_its_chunks(chunks: list[bytes], body: bytes) -> None:
    assert read_all(chunks) == body


def test_a_body_beyond_the_limit_is_refused() -> None:
    with pytest.raises(BodyTooLargeError):
        read_all([b"x" * 16384, b"x"])


def test_a_body_is_not_read_on_after_the_limit() -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 1024

    with pytest.raises(BodyTooLargeError):
        read_all(endless())

    assert taken == 17


# --- decoding a body


@pytest.mark.parametrize(
    ("body", "decoded"),
    [
        pytest.param(GOOD_BODY, RegisterRequest("test", "test", "test@testmail.com"), id="as requests sends it"),
        pytest.param(
            b' {"email":"e",\n"password":"p",\t"username":"u"} ',
            RegisterRequest("u", "p", "e"),
            id="order and white space",
        ),
        pytest.param(
            '{"username": "Ада", "password": "\U0001f600", "email": "é"}'.encode(),
            RegisterRequest("Ада", "\U0001f600", "é"),
            id="UTF-8",
        ),
        pytest.param(
            rb'{"username": "\u0410", "password": "\ud83d\ude00", "email": "\u0000"}',
            RegisterRequest("\u0410", "\U0001f600", "\x00"),
            id="escapes, a pair of surrogates among them",
        ),
        pytest.param(
            rb'{"username": "\\ud800", "password": "", "email": ""}',
            RegisterRequest("\\ud800", "", ""),
            id="a backslash",
        ),
        pytest.param(
            rb'{"\u0075sername": "u", "password": "p", "email": "e"}',
            RegisterRequest("u", "p", "e"),
            id="escape in a key",
        ),
    ],
)
def test_a_good_body_is_decoded(body: bytes, decoded: RegisterRequest) -> None:
    assert requests.decode(body, RegisterRequest) == decoded


def test_a_body_at_the_limit_is_decoded() -> None:
    body = GOOD_BODY.ljust(16384)

    assert requests.decode(body, RegisterRequest) == RegisterRequest("test", "test", "test@testmail.com")


def test_a_body_over_the_limit_is_not_decoded() -> None:
    with pytest.raises(BodyTooLargeError):
        requests.decode(GOOD_BODY.ljust(16385), RegisterRequest)


def test_three_fields_at_their_longest_fit() -> None:
    letter = "\U00020000"  # beyond the basic plane: four bytes
    email = f"{letter * 64}@{letter * 63}.{letter * 63}.{letter * 61}"
    fields = {"username": letter * 254, "password": letter * 1024, "email": email}
    body = json.dumps(fields, ensure_ascii=False).encode()

    assert requests.decode(body, RegisterRequest) == RegisterRequest(**fields)


SURROGATE = "it contains a lone surrogate"
TWICE = "it contains a duplicate key"
CONSTANT = "NaN and Infinity are not JSON"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"", "Expecting value at line 1, column 1", id="empty"),
        pytest.param(b"username=test", "Expecting value at line 1, column 1", id="form"),
        pytest.param(b"{}{}", "Extra data at line 1, column 3", id="two values"),
        pytest.param(b'{"username": "a\nb"}', "Invalid control character at line 1, column 16", id="line feed"),
        pytest.param(b'{"username": "\xff"}', "it is not UTF-8", id="not UTF-8"),
        pytest.param(b'{"username": "\xed\xa0\x80"}', "it is not UTF-8", id="surrogate in UTF-8"),
        pytest.param('{"username": "a"}'.encode("utf-16"), "it is not UTF-8", id="UTF-16"),
        pytest.param(rb'{"username": "\ud800"}', SURROGATE, id="surrogate"),
        pytest.param(rb'{"username": "\uDFFF"}', SURROGATE, id="low surrogate"),
        pytest.param(rb'{"username": "\ude00\ud83d"}', SURROGATE, id="surrogates in the wrong order"),
        pytest.param(rb'{"\ud800": "a"}', SURROGATE, id="surrogate in a key"),
        pytest.param(rb'{"username": [{"a": ["\ud800"]}]}', SURROGATE, id="surrogate deep inside"),
        pytest.param(rb'"\ud800"', SURROGATE, id="surrogate as a whole body"),
        pytest.param(b'{"username": "a", "username": "b"}', TWICE, id="key twice"),
        pytest.param(b'{"username": "a", "username": "a"}', TWICE, id="key twice with one value"),
        pytest.param(rb'{"username": "a", "\u0075sername": "b"}', TWICE, id="key twice, once escaped"),
        pytest.param(b'{"username": {"a": 1, "a": 2}}', TWICE, id="key twice inside"),
        pytest.param(b'[{"a": 1, "a": 2}]', TWICE, id="key twice in a list"),
        pytest.param(b'{"username": NaN}', CONSTANT, id="NaN"),
        pytest.param(b"[Infinity]", CONSTANT, id="Infinity"),
        pytest.param(b"-Infinity", CONSTANT, id="-Infinity"),
        pytest.param(b"1" * 5000, "it contains a number that is too long", id="integer of 5000 digits"),
        pytest.param(
            b'{"username": -' + b"1" * 5000 + b"}", "it contains a number that is too long", id="negative one"
        ),
    ],
)
def test_a_body_that_is_no_json_is_refused_with_its_reason(body: bytes, reason: str) -> None:
    with pytest.raises(UnreadableBodyError) as refusal:
        requests.decode(body, RegisterRequest)

    assert str(refusal.value) == f"The body is not valid JSON: {reason}"


@pytest.mark.parametrize(
    "body", [b"\xef\xbb\xbf" + GOOD_BODY, b"[" * 16384, b'{"a":' * 3000], ids=["BOM", "brackets", "braces"]
)
def test_a_body_that_is_no_json_in_a_way_that_pythons_tell_differently_is_refused(body: bytes) -> None:
    with pytest.raises(UnreadableBodyError):
        requests.decode(body, RegisterRequest)


def test_a_body_that_is_nested_deeply_and_closed_is_refused() -> None:
    with pytest.raises((UnreadableBodyError, InvalidFieldsError)):
        requests.decode(b"[" * 8192 + b"]" * 8192, RegisterRequest)


def missing(*names: str) -> tuple[FieldError, ...]:
    return tuple(FieldError(name, "is missing") for name in names)


def no_string(*names: str) -> tuple[FieldError, ...]:
    return tuple(FieldError(name, "must be a string") for name in names)


NO_OBJECT = (FieldError("body", "must be an object"),)


@pytest.mark.parametrize(
    ("body", "problems"),
    [
        pytest.param(b"[]", NO_OBJECT, id="list"),
        pytest.param(b'["username", "password", "email"]', NO_OBJECT, id="list of names"),
        pytest.param(b'"username"', NO_OBJECT, id="string"),
        pytest.param(b"null", NO_OBJECT, id="null"),
        pytest.param(b"true", NO_OBJECT, id="true"),
        pytest.param(b"0", NO_OBJECT, id="number"),
        pytest.param(b"1e999", NO_OBJECT, id="number beyond all bounds"),
        pytest.param(b"{}", missing("username", "password", "email"), id="nothing"),
        pytest.param(b'{"username": "a", "email": "e"}', missing("password"), id="no password"),
        pytest.param(
            b'{"username": null, "password": 12345678, "email": ["e"]}',
            no_string("username", "password", "email"),
            id="all of other types",
        ),
        pytest.param(
            b'{"username": {"a": 1}, "password": true, "email": 1e999}',
            no_string("username", "password", "email"),
            id="all of further types",
        ),
        pytest.param(
            b'{"username": "a", "password": "p", "email": "e", "enabled": true}', (NOTHING_ELSE,), id="one too many"
        ),
        pytest.param(
            b'{"Username": "a", "password": 5, "x": 1, "y": 2}',
            (*missing("username"), *no_string("password"), *missing("email"), NOTHING_ELSE),
            id="everything at once",
        ),
    ],
)
def test_every_field_at_fault_is_named_at_once(body: bytes, problems: tuple[FieldError, ...]) -> None:
    with pytest.raises(InvalidFieldsError) as refusal:
        requests.decode(body, RegisterRequest)

    assert refusal.value.errors == problems


@pytest.mark.parametrize(
    "body",
    [
        b'{"username": "a", "password": ["CANARY"], "email": "e"}',
        b'{"username": "a", "CANARY": "password", "email": "e"}',
        b'{"username": "a", "password": "CANARY", "password": "CANARY"}',
        b'{"username": "a", "password": "CANARY"',
        rb'{"username": "a", "password": "CANARY\x"}',
        b'{"username": "a", "password": CANARY}',
        b'{"username": "a", "password": "CANARY\xff"}',
        rb'{"username": "a", "password": "CANARY\ud800"}',
        b'"CANARY"',
    ],
)
def test_no_answer_shows_a_password_of_a_bad_body(body: bytes) -> None:
    with pytest.raises(MlapiError) as refusal:
        requests.decode(body, RegisterRequest)

    assert b"CANARY" not in error_response(refusal.value).body
    assert "CANARY" not in str(refusal.value)


def test_a_decoded_body_shows_nothing() -> None:
    body = requests.decode(GOOD_BODY, RegisterRequest)

    assert repr(body) == "RegisterRequest(...)"
    assert f"{body} {body!s}" == "RegisterRequest(...) RegisterRequest(...)"


@pytest.mark.parametrize(
    ("body", "decoded", "shown"),
    [
        pytest.param(
            b'{"username": "ada", "password": "CANARY"}',
            LoginRequest("ada", "CANARY"),
            "LoginRequest(...)",
            id="log-in",
        ),
        pytest.param(
            b'{"current": "CANARY", "new": "CANARY2"}',
            ChangePasswordRequest("CANARY", "CANARY2"),
            "ChangePasswordRequest(...)",
            id="change of a password",
        ),
        pytest.param(
            b'{"password": "CANARY"}', SetPasswordRequest("CANARY"), "SetPasswordRequest(...)", id="another password"
        ),
        pytest.param(b'{"name": "CANARY"}', AddApiKeyRequest("CANARY", None), "AddApiKeyRequest(...)", id="API key"),
    ],
)
def test_each_body_is_decoded_and_shows_nothing(body: bytes, decoded: RequestBody, shown: str) -> None:
    found = requests.decode(body, type(decoded))

    assert found == decoded
    assert repr(found) == f"{found}" == shown


@pytest.mark.parametrize(
    ("shape", "names"),
    [(LoginRequest, "username, password"), (ChangePasswordRequest, "current, new"), (SetPasswordRequest, "password")],
    ids=["log-in", "change of a password", "another password"],
)
def test_each_body_names_every_field_at_fault(shape: type[RequestBody], names: str) -> None:
    fields = names.split(", ")

    with pytest.raises(InvalidFieldsError) as nothing:
        requests.decode(b"{}", shape)
    with pytest.raises(InvalidFieldsError) as wrong:
        requests.decode(json.dumps({**dict.fromkeys(fields, 5), "other": 5}).encode(), shape)

    assert nothing.value.errors == missing(*fields)
    assert wrong.value.errors == (
        *no_string(*fields),
        FieldError("body", f"must contain only {names}"),
    )


@pytest.mark.parametrize(
    ("text", "expires"),
    [
        pytest.param("null", None, id="never"),
        pytest.param('"2030-01-31T12:00:00Z"', datetime(2030, 1, 31, 12, tzinfo=UTC), id="UTC"),
        pytest.param(
            '"2030-01-31T12:00:00.123456+05:30"',
            datetime(2030, 1, 31, 12, 0, 0, 123456, timezone(timedelta(hours=5, minutes=30))),
            id="another zone",
        ),
        pytest.param('"2030-01-31 12:00:00Z"', datetime(2030, 1, 31, 12, tzinfo=UTC), id="space"),
        pytest.param(
            '"2030-01-31T12:00:00"',
            datetime(2030, 1, 31, 12),  # noqa: DTZ001 - for the domain to refuse
            id="no zone",
        ),
    ],
)
def test_an_api_key_may_have_its_end(text: str, expires: datetime | None) -> None:
    body = f'{{"name": "laptop", "expires_at": {text}}}'.encode()

    assert requests.decode(body, AddApiKeyRequest) == AddApiKeyRequest("laptop", expires)


def test_an_api_key_may_be_asked_for_without_its_end() -> None:
    assert requests.decode(b'{"name": "laptop"}', AddApiKeyRequest) == AddApiKeyRequest("laptop", None)


NO_TIME = FieldError("expires_at", "must be a time as in 2030-01-31T12:00:00Z, or null")


@pytest.mark.parametrize(
    "text",
    [
        *('""', '"never"', '"2030-01-31"', '"12:00:00Z"', '"2030-01-31T12:00"', '"2030-02-30T12:00:00Z"'),
        *('"2030-01-31T12:00:00+25:00"', '"2030-01-31T12:00:00 UTC"', '"10000-01-01T00:00:00Z"', '"1900000000"'),
        *("1900000000", "1.5", "true", "[]", "{}", '"2030-01-31T12:00:00Z\\u0000"'),
    ],
)
def test_what_is_no_time_is_no_end_of_an_api_key(text: str) -> None:
    with pytest.raises(InvalidFieldsError) as refusal:
        requests.decode(f'{{"name": "laptop", "expires_at": {text}}}'.encode(), AddApiKeyRequest)

    assert refusal.value.errors == (NO_TIME,)


@pytest.mark.parametrize(
    ("body", "problems"),
    [
        pytest.param(b"{}", missing("name"), id="nothing"),
        pytest.param(b'{"name": null, "expires_at": 5}', (*no_string("name"), NO_TIME), id="other types"),
        pytest.param(
            b'{"name": "laptop", "expires": null}',
            (FieldError("body", "must contain only name, expires_at"),),
            id="one too many",
        ),
    ],
)
def test_every_field_at_fault_of_an_api_key_is_named(body: bytes, problems: tuple[FieldError, ...]) -> None:
    with pytest.raises(InvalidFieldsError) as refusal:
        requests.decode(body, AddApiKeyRequest)

    assert refusal.value.errors == problems


@given(
    st.binary()
    | st.text().map(str.encode)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.datetimes().map(datetime.isoformat),
        lambda values: (
            st.lists(values)
            | st.dictionaries(
                st.sampled_from(["username", "password", "email", "name", "expires_at", "other"]) | st.text(), values
            )
        ),
    ).map(lambda value: json.dumps(value).encode()),
    st.sampled_from([RegisterRequest, LoginRequest, ChangePasswordRequest, SetPasswordRequest, AddApiKeyRequest]),
)
def test_any_body_is_decoded_or_refused(body: bytes, shape: type[RequestBody]) -> None:
    try:
        decoded = requests.decode(body, shape)
    except MlapiError as error:
        assert error_response(error).status in {400, 413, 422}  # noqa: PT017 - refused, or decoded
    else:
        assert isinstance(decoded, shape)


# --- credentials


@pytest.mark.parametrize(
    ("value", "credential"),
    [
        (b"Bearer abc.def-_~+/9==", "abc.def-_~+/9=="),
        (b"bearer abc", "abc"),
        (b"BEARER abc", "abc"),
        (b" \tBearer abc \t", "abc"),
        (f"Bearer {SECRET}".encode(), SECRET),
    ],
)
def test_a_credential_is_what_a_bearer_shows(value: bytes, credential: str) -> None:
    assert (
        get_bearer_credential([(b"host", b"localhost"), (b"authorization", value), (b"accept", b"*/*")]) == credential
    )


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="none"),
        pytest.param([b""], id="empty"),
        pytest.param([b"abc"], id="no scheme"),
        pytest.param([b"Bearer"], id="no credential"),
        pytest.param([b"Bearer "], id="empty credential"),
        pytest.param([b" abc"], id="empty scheme"),
        pytest.param([b"Basic abc"], id="another scheme"),
        pytest.param([b"Bearerabc"], id="no space"),
        pytest.param([b"Bearer\tabc"], id="tab"),
        pytest.param([b"Bearer \xc3\xa4"], id="not ASCII"),
        pytest.param([b"B\xe4arer abc"], id="scheme that is not ASCII"),
        pytest.param([b"Bearer abc", b"Bearer abc"], id="twice"),
        pytest.param([b"Bearer abc", b""], id="and an empty one"),
        pytest.param([b"Basic abc", b"Bearer abc"], id="after another scheme"),
    ],
)
def test_what_shows_no_credential_or_two_is_refused(values: list[bytes]) -> None:
    with pytest.raises(InvalidTokenError):
        get_bearer_credential([(b"host", b"localhost"), *((b"authorization", value) for value in values)])


def test_a_credential_elsewhere_than_in_its_header_is_none() -> None:
    with pytest.raises(InvalidTokenError):
        get_bearer_credential([(b"x-authorization", b"Bearer abc"), (b"cookie", b"authorization=Bearer abc")])


@given(st.lists(st.binary(max_size=20) | st.binary(max_size=9).map(b"Bearer ".__add__), max_size=2))
def test_any_header_shows_a_credential_or_is_refused(values: list[bytes]) -> None:
    try:
        shown = get_bearer_credential([(b"authorization", value) for value in values])
    except InvalidTokenError:
        return
    (value,) = values
    assert value.strip(b" \t")[7:] == shown.encode()
    assert shown


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/register-user", "/token", "/token_status", "/users/1/keys", "/keys/0123456789abcdef"),
        *("/mlapi", "/mlapi_users", "/token_statuses/1", "/ey/J", "/Token_status/x", "/ключ"),
    ],
)
def test_a_path_without_credentials_is_logged_as_it_is(path: str) -> None:
    assert requests.redact_credentials(path) == path


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/token_status/", "/token_status/redacted"),
        ("/token_status/CANARY", "/token_status/redacted"),
        ("/token_status/CANARY/CANARY", "/token_status/redacted"),
        ("/token_status/token_status/CANARY", "/token_status/redacted"),
        ("/accounts/token_status/CANARY", "/accounts/token_status/redacted"),
        ("/eyJCANARY.eyJCANARY.CANARY", "/redacted"),
        ("/predict/eyJCANARY/now", "/predict/redacted/now"),
        ("/eyJCANARY/eyJCANARY", "/redacted/redacted"),
        ("/eyJCANARY/token_status/CANARY", "/redacted/token_status/redacted"),
        ("/token=eyJCANARY", "/token=redacted"),
        ("/keys/mlapi_0CANARY", "/keys/redacted"),
        ("/keys/mlapi_fCANARY/x", "/keys/redacted/x"),
        (f"/keys/{SECRET}", "/keys/redacted"),
        ("/mlapi_users/mlapi_0CANARY", "/mlapi_users/redacted"),
        ("/eyJ\nCANARY\nCANARY", "/redacted"),
        ("/token_status/\nCANARY", "/token_status/redacted"),
    ],
)
def test_a_path_with_credentials_is_logged_without_them(path: str, shown: str) -> None:
    assert requests.redact_credentials(path) == shown


# --- what stands in paths


@pytest.mark.parametrize(
    ("text", "user_id"),
    [
        ("1", 1),
        ("0", 0),
        ("007", 7),
        ("000", 0),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", 2**63),
        ("9999999999999999999", 10**19 - 1),
        ("0" * 5000 + "7", 7),
    ],
    ids=["one", "zero", "leading zeros", "zeros", "last of 64 bits", "one more", "19 digits", "5000 zeros"],
)
def test_an_id_is_ascii_digits(text: str, user_id: int) -> None:
    assert requests.parse_user_id(text) == user_id


@pytest.mark.parametrize("digits", [20, 21, 5000])
def test_an_id_that_no_database_can_hold_is_one_that_nobody_has(digits: int) -> None:
    assert requests.parse_user_id("9" * digits) > 2**63 - 1


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("x", id="letter"),
        pytest.param("+1", id="plus"),
        pytest.param("-1", id="minus"),
        pytest.param("1_0", id="underscore"),
        pytest.param("1.0", id="fraction"),
        pytest.param("1e3", id="exponent"),
        pytest.param("0x1", id="hex"),
        pytest.param(" 1", id="space before"),
        pytest.param("1 ", id="space after"),
        pytest.param("1\n", id="line feed after"),
        pytest.param("1\x00", id="NUL after"),
        pytest.param("\u0661", id="Arabic-Indic digit"),
        pytest.param("\u0967", id="Devanagari digit"),
        pytest.param("\uff11", id="full-width digit"),
        pytest.param("\u00b9", id="superscript digit"),
        pytest.param("\U0001d7cf", id="mathematical digit"),
    ],
)
def test_what_is_not_ascii_digits_is_no_id(text: str) -> None:
    with pytest.raises(InvalidFieldsError) as refusal:
        requests.parse_user_id(text)

    assert refusal.value.errors == (FieldError("user_id", "must be ASCII digits"),)


@given(st.text() | st.text("0123456789") | st.from_regex(r"\A\d+\Z"))
def test_any_text_is_an_id_or_refused(text: str) -> None:
    try:
        user_id = requests.parse_user_id(text)
    except MlapiError as error:
        assert isinstance(error, InvalidFieldsError)  # noqa: PT017 - refused, or an id
    else:
        assert user_id >= 0


@pytest.mark.parametrize(("text", "enabled"), [("1", True), ("0", False)])
def test_a_permission_is_0_or_1(text: str, enabled: bool) -> None:
    assert requests.parse_permission(text) is enabled


@pytest.mark.parametrize(
    "text",
    [
        *("", "2", "-1", "+1", "00", "01", "10", " 1", "1 ", "1\n", "1.0"),
        *("yes", "no", "on", "off", "t", "f", "true", "false", "True"),
        *("\u0661", "\uff11", "\u00b9", "\u0660"),
    ],
)
def test_what_is_not_0_or_1_is_no_permission(text: str) -> None:
    with pytest.raises(InvalidFieldsError) as refusal:
        requests.parse_permission(text)

    assert refusal.value.errors == (FieldError("permission", "must be 0 or 1"),)


# --- queries


def test_a_query_of_users_says_which() -> None:
    assert queries.parse_users_query(b"") == UsersQuery(enabled=None, containing="", limit=100, after=UserId(0))
    assert queries.parse_users_query(b"enabled=0&q=%C3%89va&limit=500&after=7") == UsersQuery(
        enabled=False, containing="Éva", limit=500, after=UserId(7)
    )


def test_a_query_of_the_audit_trail_says_which() -> None:
    assert queries.parse_audit_query(b"") == AuditQuery(user_id=None, limit=100, after=None)
    assert queries.parse_audit_query(b"user_id=7&limit=1&after=0") == AuditQuery(
        user_id=UserId(7), limit=1, after=AuditId(0)
    )


@pytest.mark.parametrize("read", [queries.parse_users_query, queries.parse_audit_query])
def test_every_parameter_at_fault_is_named_at_once(read: Callable[[bytes], object]) -> None:
    with pytest.raises(InvalidFieldsError) as refusal:
        read(b"limit=501&after=-1&after=1&x=CANARY")

    (limit, after, rest) = refusal.value.errors
    assert limit == FieldError("limit", "must be from 1 to 500")
    assert after == FieldError("after", "must be given once")
    assert (rest.field, rest.message.startswith("must contain only "), "CANARY" in rest.message) == (
        "query",
        True,
        False,
    )


@pytest.mark.parametrize("read", [queries.parse_users_query, queries.parse_audit_query])
@pytest.mark.parametrize("query", [b"q=%FF", b"q=\xe9", b"&".join([b"limit=1"] * 21)])
def test_a_query_that_cannot_be_read_is_refused(read: Callable[[bytes], object], query: bytes) -> None:
    with pytest.raises(InvalidFieldsError) as refusal:
        read(query)

    assert refusal.value.errors == (FieldError("query", "must be at most 20 parameters in UTF-8"),)


@pytest.mark.parametrize("query", [b"user_id=x", b"user_id=", b"user_id=%C2%B9", b"user_id=-1"])
def test_what_is_no_id_is_no_user_of_the_audit_trail(query: bytes) -> None:
    with pytest.raises(InvalidFieldsError) as refusal:
        queries.parse_audit_query(query)

    assert refusal.value.errors == (FieldError("user_id", "must be ASCII digits"),)


# --- answers


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        pytest.param(
            responses.user_registered(ADA), 201, b'{"message":"User created successfully","user_id":7}', id="registered"
        ),
        pytest.param(
            responses.permission_updated(ADA),
            200,
            b'{"message":"User permission updated successfully","user_id":7}',
            id="permission updated",
        ),
        pytest.param(responses.user_removed(ADA), 200, b'{"message":"User deleted successfully"}', id="removed"),
        pytest.param(responses.token_valid(ADA), 200, b'{"message":"Token is valid"}', id="token valid"),
        pytest.param(responses.password_changed(ADA), 204, b"", id="password changed"),
        pytest.param(
            responses.tokens_ended(ADA), 200, b'{"message":"Tokens ended successfully","user_id":7}', id="tokens ended"
        ),
        pytest.param(
            responses.api_key_removed(KEY), 200, b'{"message":"Key deleted successfully"}', id="API key removed"
        ),
        pytest.param(responses.alive(), 200, b'{"message":"Alive"}', id="alive"),
        pytest.param(responses.ready(), 200, b'{"message":"Ready"}', id="ready"),
        pytest.param(http_error_response(404), 404, b'{"message":"Not Found"}', id="no such path"),
        pytest.param(http_error_response(500), 500, b'{"message":"Internal Server Error"}', id="an error of ours"),
    ],
)
def test_what_is_done_is_answered(answer: Response, status: int, body: bytes) -> None:
    assert answer == Response(HTTPStatus(status), body)


def test_an_answer_with_a_token_is_not_stored() -> None:
    assert responses.token_issued(IssuedToken("the.token", 3600)) == Response(
        HTTPStatus.OK,
        b'{"token":"the.token","token_type":"bearer","expires_in":3600}',
        (("Cache-Control", "no-store"),),
    )


def test_an_answer_with_an_api_key_is_not_stored_and_shows_no_digest() -> None:
    assert responses.api_key_added(attrs.evolve(KEY, last_used_datetime=None), SECRET) == Response(
        HTTPStatus.CREATED,
        f'{{"message":"Key created successfully","key":"{SECRET}","key_id":"0123456789abcdef","name":"laptop",'
        '"created_at":"2026-03-01T12:00:00Z","expires_at":"2026-03-02T12:00:00Z","last_used_at":null}'.encode(),
        (("Cache-Control", "no-store"),),
    )


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        pytest.param(
            responses.api_keys([KEY, attrs.evolve(KEY, name="é", expires_datetime=None, last_used_datetime=None)]),
            b'{"keys":[{"key_id":"0123456789abcdef","name":"laptop","created_at":"2026-03-01T12:00:00Z",'
            b'"expires_at":"2026-03-02T12:00:00Z","last_used_at":"2026-03-01T12:00:00.000001Z"},'
            b'{"key_id":"0123456789abcdef","name":"\xc3\xa9","created_at":"2026-03-01T12:00:00Z",'
            b'"expires_at":null,"last_used_at":null}]}',
            id="API keys",
        ),
        pytest.param(responses.api_keys([]), b'{"keys":[]}', id="no API keys"),
        pytest.param(responses.users_page([], more=False), b'{"users":[],"next":null}', id="no users"),
        pytest.param(
            responses.users_page([ADA], more=True),
            b'{"users":[{"user_id":7,"username":"ada","email":"ada@example.com","enabled":true,'
            b'"created_datetime":"2026-03-01T12:00:00Z","updated_datetime":"2026-03-01T12:00:00Z"}],"next":7}',
            id="a page of users",
        ),
        pytest.param(
            responses.user(ADA),
            b'{"user_id":7,"username":"ada","email":"ada@example.com","enabled":true,'
            b'"created_datetime":"2026-03-01T12:00:00Z","updated_datetime":"2026-03-01T12:00:00Z"}',
            id="user",
        ),
        pytest.param(
            responses.audit_page([attrs.evolve(ENTRY, id=AuditId(10)), ENTRY], more=True),
            b'{"entries":[{"audit_id":10,"at":"2026-03-01T12:00:00Z","actor":"admin","action":"add_api_key",'
            b'"user_id":7,"key_id":"0123456789abcdef","outcome":"done","request_id":"request-7"},'
            b'{"audit_id":9,"at":"2026-03-01T12:00:00Z","actor":"admin","action":"add_api_key",'
            b'"user_id":7,"key_id":"0123456789abcdef","outcome":"done","request_id":"request-7"}],"next":9}',
            id="a page of the audit trail",
        ),
        pytest.param(
            responses.audit_page([attrs.evolve(ENTRY, user_id=None, api_key_id=None, request_id=None)], more=False),
            b'{"entries":[{"audit_id":9,"at":"2026-03-01T12:00:00Z","actor":"admin","action":"add_api_key",'
            b'"user_id":null,"key_id":null,"outcome":"done","request_id":null}],"next":null}',
            id="the last page of the audit trail",
        ),
        pytest.param(responses.audit_page([], more=False), b'{"entries":[],"next":null}', id="no entries"),
    ],
)
def test_what_is_somebodys_is_for_nobodys_cache(answer: Response, body: bytes) -> None:
    assert answer == Response(HTTPStatus.OK, body, (("Cache-Control", "no-store"),))


def test_a_framework_may_add_headers_to_what_it_refuses() -> None:
    answer = http_error_response(405, [("Allow", "POST")])

    assert answer == Response(HTTPStatus.METHOD_NOT_ALLOWED, b'{"message":"Method Not Allowed"}', (("Allow", "POST"),))


REFUSALS: list[tuple[MlapiError, Response]] = [
    (
        InvalidFieldsError((FieldError("username", "must not be empty"), FieldError("email", "is missing"))),
        Response(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            b'{"message":"Invalid input","errors":[{"field":"username","message":"must not be empty"},'
            b'{"field":"email","message":"is missing"}]}',
        ),
    ),
    (UserExistsError(7), Response(HTTPStatus.CONFLICT, b'{"message":"User already exists","user_id":7}')),
    (UserNotFoundError(7), Response(HTTPStatus.NOT_FOUND, b'{"message":"User not found"}')),
    (
        PasswordChangedError(7),
        Response(HTTPStatus.CONFLICT, b'{"message":"The password was changed meanwhile, log in again"}'),
    ),
    (ApiKeyNotFoundError("0123456789abcdef"), Response(HTTPStatus.NOT_FOUND, b'{"message":"Key not found"}')),
    (
        InvalidCredentialsError(),
        Response(HTTPStatus.UNAUTHORIZED, b'{"message":"Invalid credentials"}', (("WWW-Authenticate", "Bearer"),)),
    ),
    (
        InvalidTokenError(),
        Response(HTTPStatus.UNAUTHORIZED, b'{"message":"Invalid token"}', (("WWW-Authenticate", "Bearer"),)),
    ),
    (UserDisabledError(7), Response(HTTPStatus.FORBIDDEN, b'{"message":"User is disabled"}')),
    (
        TooManyAttemptsError(30),
        Response(
            HTTPStatus.TOO_MANY_REQUESTS,
            b'{"message":"Too many attempts, try again later"}',
            (("Retry-After", "30"),),
        ),
    ),
    (
        ServiceUnavailableError("too many requests are waiting"),
        Response(
            HTTPStatus.SERVICE_UNAVAILABLE,
            b'{"message":"Service unavailable, try again"}',
            (("Retry-After", "1"),),
        ),
    ),
    (
        RepositoryUnavailableError("the disk is full", retry_after=3),
        Response(
            HTTPStatus.SERVICE_UNAVAILABLE,
            b'{"message":"Service unavailable, try again"}',
            (("Retry-After", "3"),),
        ),
    ),
    (
        RepositoryUnavailableError("the connection was lost while committing", may_be_done=True),
        Response(
            HTTPStatus.SERVICE_UNAVAILABLE,
            b'{"message":"Service unavailable, try again: this may have been done already"}',
            (("Retry-After", "1"),),
        ),
    ),
    (
        ConfigurationError("the database is somebody else's"),
        Response(
            HTTPStatus.SERVICE_UNAVAILABLE,
            b'{"message":"Service unavailable, see its log"}',
            (("Retry-After", "10"),),
        ),
    ),
    (
        UnreadableBodyError("it is not UTF-8"),
        Response(HTTPStatus.BAD_REQUEST, b'{"message":"The body is not valid JSON: it is not UTF-8"}'),
    ),
    (
        BodyTooLargeError(),
        Response(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b'{"message":"The body is larger than 16384 bytes"}'),
    ),
    (
        UnsupportedMediaTypeError(),
        Response(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            b'{"message":"The Content-Type must be application/json, in UTF-8"}',
        ),
    ),
    (
        AdminTokenRequiredError(),
        Response(
            HTTPStatus.UNAUTHORIZED,
            b'{"message":"This needs the admin token: send exactly one header Authorization: Bearer <admin token>"}',
            (("WWW-Authenticate", "Bearer"),),
        ),
    ),
    (
        AdminAccessDeniedError("Management is locked"),
        Response(HTTPStatus.FORBIDDEN, b'{"message":"Management is locked"}'),
    ),
]


@pytest.mark.parametrize(("error", "answer"), REFUSALS, ids=[type(error).__name__ for error, _ in REFUSALS])
def test_what_is_refused_is_answered(error: MlapiError, answer: Response) -> None:
    assert error_response(error) == answer


def subclasses(error: type[MlapiError]) -> set[type[MlapiError]]:
    return {error}.union(*(subclasses(narrower) for narrower in error.__subclasses__()))


def test_every_error_that_is_raised_has_its_status_and_its_answer() -> None:
    for module in pkgutil.walk_packages(mlapi.__path__, "mlapi."):
        importlib.import_module(module.name)  # so that no subclass is overlooked

    raised = subclasses(MlapiError) - {MlapiError, RequestError}

    assert set(ERRORS) == raised
    assert {type(error): answer.status for error, answer in REFUSALS} == {
        error: entry.status for error, entry in ERRORS.items()
    }


def test_the_tree_of_errors_names_each_of_them() -> None:
    named = re.findall(r"[├└]── (\w+)  ", errors.__doc__ or "", re.MULTILINE)

    assert sorted(named) == sorted(
        error.__name__ for error in subclasses(MlapiError) - {MlapiError} if error.__module__ == errors.__name__
    )


@given(st.binary(max_size=200) | st.from_regex(rb'\\{("[a-z"\\\\ :,]{0,9}"[:,} ]{0,2}){0,8}\\}?', fullmatch=True))
def test_decoded_bodies_mean_the_same_to_msgspec(body: bytes) -> None:
    try:
        decoded = requests.decode(body, RegisterRequest)
    except MlapiError:
        return

    assert decoded == msgspec.json.decode(body, type=RegisterRequest)


@given(st.lists(st.sampled_from(["username", "password", "email", "id"]), max_size=5), st.text(max_size=3))
def test_keys_may_be_in_any_order_but_not_repeated(keys: list[str], value: str) -> None:
    body = ("{" + ", ".join(f'"{key}": {json.dumps(value, ensure_ascii=False)}' for key in keys) + "}").encode()
    expected: type[MlapiError] | None = None
    if len(set(keys)) < len(keys):
        expected = UnreadableBodyError
    elif set(keys) != {"username", "password", "email"}:
        expected = InvalidFieldsError

    try:
        decoded = requests.decode(body, RegisterRequest)
    except MlapiError as error:
        assert type(error) is expected  # noqa: PT017 - which error depends on the keys
    else:
        assert expected is None
        assert decoded == RegisterRequest(value, value, value)
