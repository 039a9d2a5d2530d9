"""Request bodies, path parameters and queries: parsing, limits and error reports."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlapi.domain.audit import AuditFilter, AuditId
from mlapi.domain.errors import (
    FieldError,
    InvalidFieldsError,
    MlapiError,
)
from mlapi.domain.rules import UserFilter
from mlapi.domain.users import UserId
from mlapi.entrypoints.wire import queries, requests
from mlapi.entrypoints.wire.error_responses import error_response
from mlapi.entrypoints.wire.errors import (
    BodyTooLargeError,
    UnreadableBodyError,
)
from mlapi.entrypoints.wire.queries import AuditQuery, UsersQuery
from mlapi.entrypoints.wire.requests import (
    AddApiKeyRequest,
    ChangePasswordRequest,
    LoginRequest,
    RegisterRequest,
    RequestBody,
    SetPasswordRequest,
)

SECRET = f"mlapi_0123456789abcdef_{'0' * 64}"
GOOD_BODY = b'{"username": "test", "password": "test", "email": "test@testmail.com"}'


# --- reading a body


def read_all(chunks: Iterable[bytes]) -> bytes:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return asyncio.run(requests.read_body(stream()))


@pytest.mark.parametrize(
    ("chunks", "body"),
    [
        pytest.param([], b"", id="no chunks"),
        pytest.param([b"", b""], b"", id="empty chunks"),
        pytest.param([b'{"user', b"", b'name"}'], b'{"username"}', id="several chunks"),
        pytest.param([b"x" * 16384], b"x" * 16384, id="body at the limit in one chunk"),
        pytest.param([b"x"] * 16384, b"x" * 16384, id="body at the limit in chunks of one byte"),
    ],
)
def test_body_is_joined_from_its_chunks(chunks: list[bytes], body: bytes) -> None:
    assert read_all(chunks) == body


def test_body_over_the_limit_is_rejected() -> None:
    with pytest.raises(BodyTooLargeError):
        read_all([b"x" * 16384, b"x"])


def test_reading_stops_at_the_limit() -> None:
    chunks_read = 0

    def chunks() -> Iterator[bytes]:
        nonlocal chunks_read
        while True:
            chunks_read += 1
            yield b"x" * 1024

    with pytest.raises(BodyTooLargeError):
        read_all(chunks())

    assert chunks_read == 17


# --- decoding a body


@pytest.mark.parametrize(
    ("body", "decoded"),
    [
        pytest.param(GOOD_BODY, RegisterRequest("test", "test", "test@testmail.com"), id="plain"),
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
            id="escapes, with a surrogate pair",
        ),
        pytest.param(
            rb'{"username": "\\ud800", "password": "", "email": ""}',
            RegisterRequest("\\ud800", "", ""),
            id="escaped backslash",
        ),
        pytest.param(
            rb'{"\u0075sername": "u", "password": "p", "email": "e"}',
            RegisterRequest("u", "p", "e"),
            id="escape in a key",
        ),
        pytest.param(
            b'{"username": "u", "id": 1, "password": "p", "x": [null, {"username": "y"}], "email": "e", "": 1e999}',
            RegisterRequest("u", "p", "e"),
            id="unknown fields",
        ),
        pytest.param(
            GOOD_BODY[:-1] + b', "ignored": ' + b"1" * 5000 + b"}",
            RegisterRequest("test", "test", "test@testmail.com"),
            id="unknown field with an integer of 5000 digits",
        ),
    ],
)
def test_valid_body_is_decoded(body: bytes, decoded: RegisterRequest) -> None:
    assert requests.decode(body, RegisterRequest) == decoded


def test_body_at_the_limit_is_decoded() -> None:
    body = GOOD_BODY.ljust(16384)

    assert requests.decode(body, RegisterRequest) == RegisterRequest("test", "test", "test@testmail.com")


def test_body_over_the_limit_is_not_decoded() -> None:
    with pytest.raises(BodyTooLargeError):
        requests.decode(GOOD_BODY.ljust(16385), RegisterRequest)


def test_longest_valid_fields_fit_in_the_body_limit() -> None:
    letter = "\U00020000"  # four bytes in UTF-8
    email = f"{letter * 64}@{letter * 63}.{letter * 63}.{letter * 61}"
    fields = {"username": letter * 254, "password": letter * 1024, "email": email}
    body = json.dumps(fields, ensure_ascii=False).encode()

    assert requests.decode(body, RegisterRequest) == RegisterRequest(**fields)


LONE_SURROGATE = "it contains a lone surrogate"
DUPLICATE_KEY = "it contains a duplicate key"
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
        pytest.param(rb'{"username": "\ud800"}', LONE_SURROGATE, id="surrogate"),
        pytest.param(rb'{"username": "\uDFFF"}', LONE_SURROGATE, id="low surrogate"),
        pytest.param(rb'{"username": "\ude00\ud83d"}', LONE_SURROGATE, id="surrogates in the wrong order"),
        pytest.param(rb'{"\ud800": "a"}', LONE_SURROGATE, id="surrogate in a key"),
        pytest.param(rb'{"username": [{"a": ["\ud800"]}]}', LONE_SURROGATE, id="nested surrogate"),
        pytest.param(rb'"\ud800"', LONE_SURROGATE, id="body that is only a surrogate"),
        pytest.param(b'{"username": "a", "username": "b"}', DUPLICATE_KEY, id="duplicate key"),
        pytest.param(b'{"username": "a", "username": "a"}', DUPLICATE_KEY, id="duplicate key with equal values"),
        pytest.param(rb'{"username": "a", "\u0075sername": "b"}', DUPLICATE_KEY, id="duplicate key, one escaped"),
        pytest.param(b'{"username": {"a": 1, "a": 2}}', DUPLICATE_KEY, id="nested duplicate key"),
        pytest.param(b'[{"a": 1, "a": 2}]', DUPLICATE_KEY, id="duplicate key in a list"),
        pytest.param(b'{"username": NaN}', CONSTANT, id="NaN"),
        pytest.param(b"[Infinity]", CONSTANT, id="Infinity"),
        pytest.param(b"-Infinity", CONSTANT, id="-Infinity"),
    ],
)
def test_invalid_json_is_rejected_with_the_reason(body: bytes, reason: str) -> None:
    with pytest.raises(UnreadableBodyError) as raised:
        requests.decode(body, RegisterRequest)

    assert str(raised.value) == f"The body is not valid JSON: {reason}"


@pytest.mark.parametrize(
    "body", [b"\xef\xbb\xbf" + GOOD_BODY, b"[" * 16384, b'{"a":' * 3000], ids=["BOM", "brackets", "braces"]
)
def test_json_whose_error_depends_on_python_version_is_rejected(body: bytes) -> None:
    with pytest.raises(UnreadableBodyError):
        requests.decode(body, RegisterRequest)


def test_deeply_nested_body_is_rejected() -> None:
    with pytest.raises((UnreadableBodyError, InvalidFieldsError)):
        requests.decode(b"[" * 8192 + b"]" * 8192, RegisterRequest)


def missing(*names: str) -> tuple[FieldError, ...]:
    return tuple(FieldError(name, "is missing") for name in names)


def not_a_string(*names: str) -> tuple[FieldError, ...]:
    return tuple(FieldError(name, "must be a string") for name in names)


NOT_AN_OBJECT = (FieldError("body", "must be an object"),)


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        pytest.param(b"[]", NOT_AN_OBJECT, id="list"),
        pytest.param(b'["username", "password", "email"]', NOT_AN_OBJECT, id="list of names"),
        pytest.param(b'"username"', NOT_AN_OBJECT, id="string"),
        pytest.param(b"null", NOT_AN_OBJECT, id="null"),
        pytest.param(b"true", NOT_AN_OBJECT, id="true"),
        pytest.param(b"0", NOT_AN_OBJECT, id="number"),
        pytest.param(b"1e999", NOT_AN_OBJECT, id="infinite number"),
        pytest.param(b"{}", missing("username", "password", "email"), id="empty object"),
        pytest.param(b'{"username": "a", "email": "e"}', missing("password"), id="no password"),
        pytest.param(
            b'{"username": null, "password": 12345678, "email": ["e"]}',
            not_a_string("username", "password", "email"),
            id="wrong types",
        ),
        pytest.param(
            b'{"username": {"a": 1}, "password": true, "email": 1e999}',
            not_a_string("username", "password", "email"),
            id="more wrong types",
        ),
        pytest.param(
            b'{"Username": "a", "password": 5, "x": 1, "y": 2}',
            (*missing("username"), *not_a_string("password"), *missing("email")),
            id="everything at once",
        ),
    ],
)
def test_all_invalid_fields_are_reported_together(body: bytes, errors: tuple[FieldError, ...]) -> None:
    with pytest.raises(InvalidFieldsError) as raised:
        requests.decode(body, RegisterRequest)

    assert raised.value.errors == errors


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
def test_errors_never_repeat_the_password(body: bytes) -> None:
    with pytest.raises(MlapiError) as raised:
        requests.decode(body, RegisterRequest)

    assert b"CANARY" not in error_response(raised.value).body
    assert "CANARY" not in str(raised.value)


def test_repr_of_a_registration_omits_its_values() -> None:
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
            id="login",
        ),
        pytest.param(
            b'{"current": "CANARY", "new": "CANARY2"}',
            ChangePasswordRequest("CANARY", "CANARY2"),
            "ChangePasswordRequest(...)",
            id="user's own password",
        ),
        pytest.param(
            b'{"password": "CANARY"}',
            SetPasswordRequest("CANARY"),
            "SetPasswordRequest(...)",
            id="password set by an admin",
        ),
        pytest.param(b'{"name": "CANARY"}', AddApiKeyRequest("CANARY", None), "AddApiKeyRequest(...)", id="API key"),
    ],
)
def test_repr_of_every_body_omits_its_values(body: bytes, decoded: RequestBody, shown: str) -> None:
    found = requests.decode(body, type(decoded))

    assert found == decoded
    assert repr(found) == f"{found}" == shown


@pytest.mark.parametrize(
    ("body_type", "names"),
    [(ChangePasswordRequest, "current, new"), (SetPasswordRequest, "password")],
    ids=["user's own password", "password set by an admin"],
)
def test_every_body_type_reports_all_invalid_fields(body_type: type[RequestBody], names: str) -> None:
    fields = names.split(", ")

    with pytest.raises(InvalidFieldsError) as empty:
        requests.decode(b"{}", body_type)
    with pytest.raises(InvalidFieldsError) as invalid:
        requests.decode(json.dumps({**dict.fromkeys(fields, 5), "other": 5}).encode(), body_type)

    assert empty.value.errors == missing(*fields)
    assert invalid.value.errors == (
        *not_a_string(*fields),
        FieldError("body", f"must contain only {names}"),
    )


def test_login_ignores_unknown_fields_but_not_invalid_ones() -> None:
    ignored = {"email": "ada@example.com", "x": None, "y": [1, {}]}

    assert requests.decode(
        json.dumps({"username": "ada", "password": "p", **ignored}).encode(), LoginRequest
    ) == LoginRequest("ada", "p")
    with pytest.raises(InvalidFieldsError) as raised:
        requests.decode(json.dumps({"username": 5, **ignored}).encode(), LoginRequest)
    assert raised.value.errors == (*not_a_string("username"), *missing("password"))


@pytest.mark.parametrize(
    ("text", "expires"),
    [
        pytest.param("null", None, id="never"),
        pytest.param('"2030-01-31T12:00:00Z"', datetime(2030, 1, 31, 12, tzinfo=UTC), id="UTC"),
        pytest.param(
            '"2030-01-31T12:00:00.123456+05:30"',
            datetime(2030, 1, 31, 12, 0, 0, 123456, timezone(timedelta(hours=5, minutes=30))),
            id="different time zone",
        ),
        pytest.param('"2030-01-31 12:00:00Z"', datetime(2030, 1, 31, 12, tzinfo=UTC), id="space instead of T"),
        pytest.param(
            '"2030-01-31T12:00:00"',
            datetime(2030, 1, 31, 12),  # noqa: DTZ001 - the domain rejects it
            id="no time zone",
        ),
    ],
)
def test_api_key_expiry_is_decoded(text: str, expires: datetime | None) -> None:
    body = f'{{"name": "laptop", "expires_at": {text}}}'.encode()

    assert requests.decode(body, AddApiKeyRequest) == AddApiKeyRequest("laptop", expires)


def test_api_key_expiry_is_optional() -> None:
    assert requests.decode(b'{"name": "laptop"}', AddApiKeyRequest) == AddApiKeyRequest("laptop", None)


NOT_A_TIME = FieldError("expires_at", "must be a time such as 2030-01-31T12:00:00Z, or null")


@pytest.mark.parametrize(
    "text",
    [
        *('""', '"never"', '"2030-01-31"', '"12:00:00Z"', '"2030-01-31T12:00"', '"2030-02-30T12:00:00Z"'),
        *('"2030-01-31T12:00:00+25:00"', '"2030-01-31T12:00:00 UTC"', '"10000-01-01T00:00:00Z"', '"1900000000"'),
        *("1900000000", "1.5", "true", "[]", "{}", '"2030-01-31T12:00:00Z\\u0000"'),
    ],
)
def test_invalid_api_key_expiry_is_rejected(text: str) -> None:
    with pytest.raises(InvalidFieldsError) as raised:
        requests.decode(f'{{"name": "laptop", "expires_at": {text}}}'.encode(), AddApiKeyRequest)

    assert raised.value.errors == (NOT_A_TIME,)


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        pytest.param(b"{}", missing("name"), id="empty object"),
        pytest.param(b'{"name": null, "expires_at": 5}', (*not_a_string("name"), NOT_A_TIME), id="wrong types"),
        pytest.param(
            b'{"name": "laptop", "expires": null}',
            (FieldError("body", "must contain only name, expires_at"),),
            id="unknown field",
        ),
    ],
)
def test_all_invalid_fields_of_an_api_key_are_reported(body: bytes, errors: tuple[FieldError, ...]) -> None:
    with pytest.raises(InvalidFieldsError) as raised:
        requests.decode(body, AddApiKeyRequest)

    assert raised.value.errors == errors


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
def test_any_body_is_decoded_or_rejected(body: bytes, body_type: type[RequestBody]) -> None:
    try:
        decoded = requests.decode(body, body_type)
    except MlapiError as error:
        assert error_response(error).status in {400, 413, 422}  # noqa: PT017 - either outcome is valid
    else:
        assert isinstance(decoded, body_type)


@given(st.binary(max_size=200) | st.from_regex(rb'\{("[a-z"\\ :,]{0,9}"[:,} ]{0,2}){0,8}\}?', fullmatch=True))
def test_bodies_are_decoded_to_the_same_values_as_by_msgspec(body: bytes) -> None:
    try:
        decoded = requests.decode(body, RegisterRequest)
    except MlapiError:
        return

    assert decoded == msgspec.json.decode(body, type=RegisterRequest)


@given(st.lists(st.sampled_from(["username", "password", "email", "id"]), max_size=5), st.text(max_size=3))
def test_keys_may_be_in_any_order_but_must_be_unique(keys: list[str], value: str) -> None:
    body = ("{" + ", ".join(f'"{key}": {json.dumps(value, ensure_ascii=False)}' for key in keys) + "}").encode()
    expected: type[MlapiError] | None = None
    if len(set(keys)) < len(keys):
        expected = UnreadableBodyError
    elif not set(keys) >= {"username", "password", "email"}:
        expected = InvalidFieldsError

    try:
        decoded = requests.decode(body, RegisterRequest)
    except MlapiError as error:
        assert type(error) is expected  # noqa: PT017 - the keys determine which error is raised
    else:
        assert expected is None
        assert decoded == RegisterRequest(value, value, value)


# --- path parameters


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
    ids=[
        "one",
        "zero",
        "leading zeros",
        "zeros",
        "largest 64-bit integer",
        "beyond 64 bits",
        "19 digits",
        "5000 zeros",
    ],
)
def test_user_id_consists_of_ascii_digits(text: str, user_id: int) -> None:
    assert requests.parse_user_id(text) == user_id


@pytest.mark.parametrize("digits", [20, 21, 5000])
def test_user_id_too_large_for_the_database_is_parsed(digits: int) -> None:
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
        pytest.param(" 1", id="leading space"),
        pytest.param("1 ", id="trailing space"),
        pytest.param("1\n", id="trailing line feed"),
        pytest.param("1\x00", id="trailing NUL"),
        pytest.param("\u0661", id="Arabic-Indic digit"),
        pytest.param("\u0967", id="Devanagari digit"),
        pytest.param("\uff11", id="full-width digit"),
        pytest.param("\u00b9", id="superscript digit"),
        pytest.param("\U0001d7cf", id="mathematical digit"),
    ],
)
def test_malformed_user_id_is_rejected(text: str) -> None:
    with pytest.raises(InvalidFieldsError) as raised:
        requests.parse_user_id(text)

    assert raised.value.errors == (FieldError("user_id", "must be ASCII digits"),)


@given(st.text() | st.text("0123456789") | st.from_regex(r"\A\d+\Z"))
def test_any_text_is_parsed_as_a_user_id_or_rejected(text: str) -> None:
    try:
        user_id = requests.parse_user_id(text)
    except MlapiError as error:
        assert isinstance(error, InvalidFieldsError)  # noqa: PT017 - either outcome is valid
    else:
        assert user_id >= 0


@pytest.mark.parametrize(("text", "enabled"), [("1", True), ("0", False)])
def test_permission_is_0_or_1(text: str, enabled: bool) -> None:
    assert requests.parse_permission(text) is enabled


@pytest.mark.parametrize(
    "text",
    [
        *("", "2", "-1", "+1", "00", "01", "10", " 1", "1 ", "1\n", "1.0"),
        *("yes", "no", "on", "off", "t", "f", "true", "false", "True"),
        *("\u0661", "\uff11", "\u00b9", "\u0660"),
    ],
)
def test_invalid_permission_is_rejected(text: str) -> None:
    with pytest.raises(InvalidFieldsError) as raised:
        requests.parse_permission(text)

    assert raised.value.errors == (FieldError("permission", "must be 0 or 1"),)


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/register-user", "/token", "/token_status", "/users/1/keys", "/keys/0123456789abcdef"),
        *("/mlapi", "/mlapi_users", "/token_statuses/1", "/ey/J", "/Token_status/x", "/ключ"),
        *("/links", "/links/static/0123456789abcdef/pages.css", "/links/static/0123456789abcdef/htmx.min.js"),
    ],
)
def test_path_without_credentials_is_not_redacted(path: str) -> None:
    assert requests.redact_credentials(path) == path


@pytest.mark.parametrize(
    ("path", "redacted"),
    [
        ("/token_status/", "/token_status/redacted"),
        ("/token_status/CANARY", "/token_status/redacted"),
        ("/token_status/CANARY/CANARY", "/token_status/redacted"),
        ("/token_status/token_status/CANARY", "/token_status/redacted"),
        ("/accounts/token_status/CANARY", "/accounts/token_status/redacted"),
        ("/eyJCANARY.eyJCANARY.CANARY", "/redacted"),
        ("/links/mlapi-link_0CANARY", "/links/redacted"),
        ("/links/static/CANARY", "/links/redacted"),
        ("/links/static/mlapi-link_0CANARY/pages.css", "/links/redacted"),
        (f"/links/static/{SECRET}/pages.css", "/links/redacted"),
        ("/links/static/0123456789abcdef/mlapi-link_0CANARY", "/links/redacted"),
        ("/users/links/static/CANARY", "/users/links/redacted"),
        ("/link/mlapi-link%5F0CANARY%5FCANARY", "/link/redacted"),
        ("/mlapi-manager_0CANARY_CANARY", "/redacted"),
        ("/users/mlapi-manager_fCANARY/keys", "/users/redacted/keys"),
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
def test_credentials_in_a_path_are_redacted(path: str, redacted: str) -> None:
    assert requests.redact_credentials(path) == redacted


# --- queries


def test_users_query_is_parsed() -> None:
    assert queries.parse_users_query(b"") == UsersQuery(matching=UserFilter(), limit=100, after=UserId(0))
    assert queries.parse_users_query(b"enabled=0&q=%C3%89va&limit=500&after=7") == UsersQuery(
        matching=UserFilter(enabled=False, containing="Éva"), limit=500, after=UserId(7)
    )


def test_audit_query_is_parsed() -> None:
    assert queries.parse_audit_query(b"") == AuditQuery(limit=100, after=None)
    assert queries.parse_audit_query(b"user_id=7&limit=1&after=0") == AuditQuery(
        matching=AuditFilter(user_id=UserId(7)), limit=1, after=AuditId(0)
    )
    noon = datetime(2026, 11, 23, 12, tzinfo=UTC)
    query = b"action=remove&actor=manager%20alice&since=2026-11-23T12:00:00Z&until=2026-11-23T14:00:00%2B01:00"
    matching = AuditFilter(action="remove", actor="manager alice", since=noon, until=noon + timedelta(minutes=60))
    assert queries.parse_audit_query(query) == AuditQuery(matching=matching)
    assert queries.parse_audit_query(query).is_search


@pytest.mark.parametrize("query", [b"action=removed", b"actor=", b"since=2026-11-23", b"until=now"])
def test_invalid_audit_filter_is_rejected(query: bytes) -> None:
    with pytest.raises(InvalidFieldsError):
        queries.parse_audit_query(query)


@pytest.mark.parametrize("parse", [queries.parse_users_query, queries.parse_audit_query])
def test_all_invalid_parameters_are_reported_together(parse: Callable[[bytes], object]) -> None:
    with pytest.raises(InvalidFieldsError) as raised:
        parse(b"limit=501&after=-1&after=1&x=CANARY")

    (limit, after, rest) = raised.value.errors
    assert limit == FieldError("limit", "must be from 1 to 500")
    assert after == FieldError("after", "must be given once")
    assert (rest.field, rest.message.startswith("must contain only "), "CANARY" in rest.message) == (
        "query",
        True,
        False,
    )


@pytest.mark.parametrize("parse", [queries.parse_users_query, queries.parse_audit_query])
@pytest.mark.parametrize("query", [b"q=%FF", b"q=\xe9", b"&".join([b"limit=1"] * 21)])
def test_unreadable_query_is_rejected(parse: Callable[[bytes], object], query: bytes) -> None:
    with pytest.raises(InvalidFieldsError) as raised:
        parse(query)

    assert raised.value.errors == (FieldError("query", "must have at most 20 parameters, in UTF-8"),)


@pytest.mark.parametrize("parse", [queries.parse_users_query, queries.parse_audit_query])
def test_long_query_is_rejected(parse: Callable[[bytes], object]) -> None:
    with pytest.raises(InvalidFieldsError) as raised:
        parse(b"q=" + b"a" * 4_095)

    assert raised.value.errors == (FieldError("query", "must be at most 4096 bytes"),)


@pytest.mark.parametrize("query", [b"user_id=x", b"user_id=", b"user_id=%C2%B9", b"user_id=-1"])
def test_invalid_user_id_in_an_audit_query_is_rejected(query: bytes) -> None:
    with pytest.raises(InvalidFieldsError) as raised:
        queries.parse_audit_query(query)

    assert raised.value.errors == (FieldError("user_id", "must be ASCII digits"),)
