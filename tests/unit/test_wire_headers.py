"""Request headers: content type, content length and credentials."""

import time
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlapi.domain.errors import (
    InvalidTokenError,
)
from mlapi.entrypoints.wire.errors import (
    BodyTooLargeError,
    HeadersTooLargeError,
    MissingCredentialError,
    UnsupportedContentEncodingError,
    UnsupportedMediaTypeError,
    UriTooLongError,
)
from mlapi.entrypoints.wire.headers import (
    FORM,
    JSON,
    Headers,
    get_bearer_credential,
    has_user_credential,
    validate_content_headers,
    validate_head,
)

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlLV8"
SECRET = f"mlapi_0123456789abcdef_{'0' * 64}"


# --- content type and length


def headers(types: list[str], lengths: list[str] | None = None) -> Headers:
    """Return request headers with these content types and lengths."""
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
        "application/json;",
        "application/json ; ;; ",
        "application/json; boundary=x",
        "application/json;odata.metadata=minimal;IEEE754Compatible=true; charset=utf-8",
        'application/json; profile="https://example.com/a;b,c\\"d"; charset="utf\\-8"',
        "application/json; charset=utf-8; charset=UTF-8",
        "application/json; charset=utf8",
        "application/json; charset=US-ASCII",
    ],
)
def test_json_in_utf8_is_accepted(content_type: str) -> None:
    assert validate_content_headers(headers([content_type])) == b"application/json"


@pytest.mark.parametrize(
    "content_types",
    [
        pytest.param([], id="missing"),
        pytest.param([""], id="empty"),
        pytest.param(["application/json", "application/json"], id="two headers"),
        pytest.param(["application/json, text/plain"], id="two types in one header"),
        pytest.param(["text/plain"], id="text, which web pages can send cross-origin"),
        pytest.param(["application/x-www-form-urlencoded"], id="form"),
        pytest.param(["multipart/form-data; boundary=x"], id="multipart form"),
        pytest.param(["text/json"], id="text/json"),
        pytest.param(["application/jsonp"], id="jsonp"),
        pytest.param(["application/problem+json"], id="other JSON type"),
        pytest.param(["application/json; charset=latin-1"], id="latin-1"),
        pytest.param(["application/json; charset=utf-16"], id="utf-16"),
        pytest.param(["application/json; charset=utf-8; charset=latin-1"], id="two charsets"),
        pytest.param(["application/json; charset"], id="parameter without a value"),
        pytest.param(["application/json; charset="], id="parameter with an empty value"),
        pytest.param(["application/json; charset = utf-8"], id="spaces around an equals sign"),
        pytest.param(["application/json; a=b c=d"], id="no semicolon between parameters"),
        pytest.param(['application/json; a="b'], id="unclosed quote"),
        pytest.param(['application/json; charset="utf-8, latin-1"'], id="two quoted charsets"),
        pytest.param(["application/json charset=utf-8"], id="no semicolon"),
        pytest.param(["application/json; a=" + "b" * 1024], id="too long"),
        pytest.param([";application/json"], id="no media type"),
        pytest.param(["application/j\u017fon"], id="long s (U+017F)"),
    ],
)
def test_other_content_types_are_rejected(content_types: list[str]) -> None:
    with pytest.raises(UnsupportedMediaTypeError):
        validate_content_headers(headers(content_types))


def test_malformed_parameters_take_linear_time() -> None:
    started = time.perf_counter()
    for hostile in ('"' + "\\a" * 500, "; " * 500 + "=", " ;\t" * 340 + '"', "a" * 1000):
        with pytest.raises(UnsupportedMediaTypeError):
            validate_content_headers(headers([f"application/json; a={hostile}\x01"]))

    assert time.perf_counter() - started < 1


def test_form_is_accepted_only_where_it_is_expected() -> None:
    form = headers(["application/x-www-form-urlencoded; charset=UTF-8"])

    assert validate_content_headers(form, (JSON, FORM)) == FORM
    assert validate_content_headers(headers(["application/json;"]), (JSON, FORM)) == JSON
    with pytest.raises(UnsupportedMediaTypeError) as raised:
        validate_content_headers(headers(["application/json"]), (FORM,))
    assert "application/x-www-form-urlencoded" in str(raised.value)


@pytest.mark.parametrize("codings", [[""], ["identity"], ["IDENTITY, "], [" identity\t,identity"], ["", "identity"]])
def test_body_without_coding_is_accepted(codings: list[str]) -> None:
    validate_content_headers([*headers(["application/json"]), *((b"content-encoding", c.encode()) for c in codings)])


@pytest.mark.parametrize("codings", [["gzip"], ["x-gzip"], ["identity, br"], ["identity", "zstd"], ["identity;q=1"]])
def test_coded_body_is_rejected(codings: list[str]) -> None:
    with pytest.raises(UnsupportedContentEncodingError):
        validate_content_headers(
            [*headers(["application/json"]), *((b"content-encoding", c.encode()) for c in codings)]
        )


@pytest.mark.parametrize(
    "lengths",
    [[], ["0"], ["16384"], [""], ["many"], ["-1"], ["1e9"], ["\u00b2"]],
    ids=["none", "zero", "limit", "empty", "word", "negative", "exponent", "superscript digit"],
)
def test_content_length_up_to_the_limit_is_accepted(lengths: list[str]) -> None:
    validate_content_headers(headers(["application/json"], lengths))


@pytest.mark.parametrize(
    "lengths",
    [["16385"], ["9" * 19], ["9" * 5000], ["5", "16385"]],
    ids=["one byte over", "19 digits", "5000 digits", "second of two"],
)
def test_content_length_over_the_limit_is_rejected(lengths: list[str]) -> None:
    with pytest.raises(BodyTooLargeError):
        validate_content_headers(headers(["application/json"], lengths))


# --- credentials


@pytest.mark.parametrize(
    ("value", "credential"),
    [
        (b"Bearer abc.def-_~+/9==", "abc.def-_~+/9=="),
        (b"bearer abc", "abc"),
        (b"BEARER abc", "abc"),
        (b"Bearer    abc", "abc"),
        (b" \tBearer abc \t", "abc"),
        (f"Bearer {SECRET}".encode(), SECRET),
    ],
)
def test_bearer_credential_is_returned(value: bytes, credential: str) -> None:
    assert (
        get_bearer_credential([(b"host", b"localhost"), (b"authorization", value), (b"accept", b"*/*")]) == credential
    )


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="missing"),
        pytest.param([b""], id="empty"),
        pytest.param([b"abc"], id="no scheme"),
        pytest.param([TOKEN.encode()], id="token without a scheme"),
        pytest.param([b"Bearer"], id="no credential"),
        pytest.param([b"Bearer "], id="empty credential"),
        pytest.param([b" abc"], id="empty scheme"),
        pytest.param([b"Basic abc"], id="another scheme"),
        pytest.param([b"Bearerabc"], id="no space"),
        pytest.param([b"Bearer\tabc"], id="tab"),
        pytest.param([b"B\xe4arer abc"], id="non-ASCII scheme"),
    ],
)
def test_missing_credential_has_its_own_error(values: list[bytes]) -> None:
    with pytest.raises(MissingCredentialError):
        get_bearer_credential([(b"host", b"localhost"), *((b"authorization", value) for value in values)])


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([b"Bearer \xc3\xa4"], id="not ASCII"),
        pytest.param([b"Bearer " + b"a" * 4097], id="too long"),
        pytest.param([b"Bearer abc", b"Bearer abc"], id="two headers"),
        pytest.param([b"Bearer abc", b""], id="credential, then an empty header"),
        pytest.param([b"Basic abc", b"Bearer abc"], id="another scheme, then a credential"),
    ],
)
@pytest.mark.parametrize("others", [[], [(b"x-api-key", SECRET.encode())]], ids=["", "and an API key"])
def test_repeated_or_unusable_credential_is_rejected(values: list[bytes], others: Headers) -> None:
    with pytest.raises(InvalidTokenError) as raised:
        get_bearer_credential([*others, *((b"authorization", value) for value in values)])

    assert raised.type is InvalidTokenError


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param(None, id="no Authorization"),
        pytest.param("", id="empty Authorization"),
        pytest.param("Basic YWRhOng=", id="password for a proxy"),
        pytest.param(f"Bearer {SECRET}", id="the same key"),
    ],
)
def test_api_key_may_be_in_its_own_header(authorization: str | None) -> None:
    others = [] if authorization is None else [(b"authorization", authorization.encode())]

    assert get_bearer_credential([(b"x-api-key", f" {SECRET}\t".encode()), *others]) == SECRET


@pytest.mark.parametrize("api_key", [b"", b"a-key-for-a-gateway"])
def test_api_key_for_a_gateway_is_ignored_beside_a_token(api_key: bytes) -> None:
    headers = [(b"authorization", f"Bearer {TOKEN}".encode()), (b"x-api-key", api_key)]

    assert get_bearer_credential(headers) == TOKEN


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([b"a-key-for-a-gateway"], id="not an API key"),
        pytest.param([TOKEN.encode()], id="token"),
        pytest.param([f"Bearer {SECRET}".encode()], id="with a scheme"),
        pytest.param([SECRET.encode(), SECRET.encode()], id="two headers"),
        pytest.param([b"mlapi_" + b"a" * 4096], id="too long"),
        pytest.param([b"mlapi_\xc3\xa4"], id="not ASCII"),
    ],
)
def test_unusable_api_key_is_rejected(values: list[bytes]) -> None:
    with pytest.raises(InvalidTokenError) as raised:
        get_bearer_credential([(b"x-api-key", value) for value in values])

    assert raised.type is InvalidTokenError


@pytest.mark.parametrize("other", [TOKEN, SECRET.replace("0", "1")])
def test_two_different_credentials_are_rejected(other: str) -> None:
    with pytest.raises(InvalidTokenError):
        get_bearer_credential([(b"authorization", f"Bearer {other}".encode()), (b"x-api-key", SECRET.encode())])


@pytest.mark.parametrize("value", [TOKEN, SECRET, f" {TOKEN}\t", f"Bearer {TOKEN}"])
def test_token_without_a_scheme_may_be_accepted(value: str) -> None:
    credential = get_bearer_credential([(b"authorization", value.encode())], accept_bare=True)

    assert credential == value.strip().removeprefix("Bearer ")


@pytest.mark.parametrize(
    "value",
    [
        "abc",
        "an-admin-token-for-tests",
        "Basic YWRhOng=",
        "Basic",
        f"Token {TOKEN}",
        f"{TOKEN} ada",
        f"{TOKEN},{TOKEN}",
        f"{TOKEN}.e30",
        f"{SECRET}0",
        "eyJ" + "a" * 4096 + ".e30.c2ln",
    ],
)
def test_only_tokens_and_api_keys_are_accepted_without_a_scheme(value: str) -> None:
    with pytest.raises(MissingCredentialError):
        get_bearer_credential([(b"authorization", value.encode())], accept_bare=True)


def test_credential_in_another_header_is_missing() -> None:
    with pytest.raises(MissingCredentialError):
        get_bearer_credential([(b"x-authorization", b"Bearer abc"), (b"cookie", b"authorization=Bearer abc")])


@given(st.lists(st.binary(max_size=20) | st.binary(max_size=9).map(b"Bearer ".__add__), max_size=2))
def test_any_header_yields_a_credential_or_is_rejected(values: list[bytes]) -> None:
    try:
        credential = get_bearer_credential([(b"authorization", value) for value in values])
    except InvalidTokenError:
        return
    (value,) = values
    assert value.strip(b" \t")[7:].lstrip(b" ") == credential.encode()
    assert credential


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ((b"authorization", f"Bearer {TOKEN}".encode()), True),
        ((b"authorization", f"bearer  {SECRET}".encode()), True),
        ((b"authorization", TOKEN.encode()), True),
        ((b"x-api-key", SECRET.encode()), True),
        ((b"authorization", b"Bearer an-admin-token"), False),
        ((b"authorization", b"Bearer"), False),
        ((b"cookie", TOKEN.encode()), False),
    ],
)
def test_credential_of_a_user_is_recognized_by_its_form(header: tuple[bytes, bytes], *, expected: bool) -> None:
    assert has_user_credential([(b"host", b"localhost"), header]) is expected


@pytest.mark.parametrize(
    ("path", "query", "headers", "error"),
    [
        ("/" + "a" * 4_095, b"a" * 4_096, [(b"a", b"b" * 16_384)] * 100, None),
        ("/" + "a" * 4_096, b"", [], UriTooLongError),
        ("/", b"a" * 4_097, [], UriTooLongError),
        ("/", b"", [(b"a", b"")] * 101, HeadersTooLargeError),
        ("/", b"", [(b"a", b""), (b"b", b"c" * 16_385)], HeadersTooLargeError),
    ],
)
def test_head_above_a_limit_is_rejected(
    path: str, query: bytes, headers: list[tuple[bytes, bytes]], error: type[Exception] | None
) -> None:
    with nullcontext() if error is None else pytest.raises(error):
        validate_head(path, query, headers)
