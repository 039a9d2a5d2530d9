"""Parse and validate request headers: content type, content length, message framing and credentials."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlapi.domain.credentials import API_KEY_PREFIX, MAX_CREDENTIAL_CHARS
from mlapi.domain.errors import InvalidTokenError
from mlapi.entrypoints.wire.errors import (
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_PATH_CHARS,
    MAX_QUERY_BYTES,
    BodyTooLargeError,
    HeadersTooLargeError,
    MissingCredentialError,
    UnsupportedContentEncodingError,
    UnsupportedMediaTypeError,
    UriTooLongError,
)

Headers = Sequence[tuple[bytes, bytes]]
"""Headers in the format of ASGI: lower-case names, with one pair for each header line."""

JSON = b"application/json"
FORM = b"application/x-www-form-urlencoded"
_CHARSETS = frozenset({b"utf-8", b"utf8", b"us-ascii", b"ascii"})  # UTF-8, its frequent misspelling, and a subset
_MAX_CONTENT_TYPE_BYTES = 1024
# A semicolon and a parameter, which may be missing (RFC 9110, 5.6.6). Every quantifier is possessive, so that
# each header takes linear time.
_PARAMETER = re.compile(
    rb"[ \t]*+;[ \t]*+"
    rb"(?:([!#$%&'*+.^_`|~0-9A-Za-z-]++)="
    rb'([!#$%&\'*+.^_`|~0-9A-Za-z-]++|"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t -\x7e\x80-\xff])*+"))?+'
)
_QUOTED_PAIR = re.compile(rb"\\(.)", re.DOTALL)
_CGI_HEADERS = frozenset({"CONTENT_TYPE", "CONTENT_LENGTH"})  # without the HTTP_ prefix: RFC 3875, 4.1
_FRAMING_HEADERS = frozenset({b"transfer-encoding", b"upgrade"})
_MAX_COOKIES = 300  # browsers store up to 180 for each host
_MAX_COOKIES_OF_SAME_NAME = 20  # for different paths and domains. Verifying each signature takes time
_WHITESPACE = b" \t"  # RFC 9110, 5.6.3
_API_KEY_PREFIX = API_KEY_PREFIX.encode()
# A JSON Web Token (its header is a JSON object in base64) or an API key.
_USER_CREDENTIAL = re.compile(rb"eyJ[\w-]+\.[\w-]+\.[\w-]+|mlapi_[0-9a-f]{16}_[0-9a-f]{64}")
_MAX_LENGTH_DIGITS = 19  # the maximum for a signed 64-bit integer


def header_values(headers: Headers, name: bytes) -> list[bytes]:
    """Return the value of each header line with this lower-case name."""
    return [value for header, value in headers if header == name]


def wsgi_headers(environ: Mapping[str, Any]) -> Headers:
    """Return the headers of a WSGI environ.

    WSGI servers join repeated headers with commas. The checks in this module reject such values.
    """
    names = {name: name.removeprefix("HTTP_") for name in environ if name.startswith("HTTP_") or name in _CGI_HEADERS}
    return [
        (name.replace("_", "-").lower().encode("latin-1"), environ[key].encode("latin-1"))
        for key, name in names.items()
    ]


def validate_content_headers(
    headers: Headers, accepted: Sequence[bytes] = (JSON,), *, max_bytes: int = MAX_BODY_BYTES
) -> bytes:
    """Check the headers that describe the body, before the body is read. Return the media type.

    Args:
        headers: of the request.
        accepted: the media types that the operation accepts.
        max_bytes: the maximum length of the body.

    Raises:
        UnsupportedMediaTypeError: unless there is exactly one Content-Type header, with an accepted media type and no
            charset other than UTF-8 or ASCII. Other parameters are ignored.
        UnsupportedContentEncodingError: if the body is compressed.
        BodyTooLargeError: if Content-Length exceeds ``max_bytes``.
    """
    media_types = []
    content_length = 0
    for name, value in headers:
        if name == b"content-type":
            media_types.append(value if value == JSON else _parse_media_type(value))
        elif name == b"content-encoding" and not _is_identity(value):
            raise UnsupportedContentEncodingError
        elif name == b"content-length" and value.isdigit():
            length = max_bytes + 1 if len(value) > _MAX_LENGTH_DIGITS else int(value)
            content_length = max(content_length, length)
    if len(media_types) != 1 or media_types[0] not in accepted:
        raise UnsupportedMediaTypeError(b" or ".join(accepted).decode("ascii"))
    if content_length > max_bytes:
        raise BodyTooLargeError(max_bytes)
    return media_types[0]


def _parse_media_type(content_type: bytes) -> bytes:
    """Return the lower-case media type, or nothing if the header is malformed or has another charset."""
    essence, separator, rest = content_type.strip(_WHITESPACE).partition(b";")
    rest = separator + rest
    if len(rest) > _MAX_CONTENT_TYPE_BYTES:
        return b""
    end = 0
    while end < len(rest):
        parameter = _PARAMETER.match(rest, end)
        if parameter is None:
            return b""
        name, value = parameter.groups(b"")
        if name.lower() == b"charset" and _unquote(value).lower() not in _CHARSETS:
            return b""
        end = parameter.end()
    return essence.rstrip(_WHITESPACE).lower()


def _unquote(value: bytes) -> bytes:
    """Return the content of a quoted string, or a token unchanged (RFC 9110, 5.6.4)."""
    return _QUOTED_PAIR.sub(rb"\1", value[1:-1]) if value.startswith(b'"') else value


def _is_identity(content_encoding: bytes) -> bool:
    codings = content_encoding.lower().replace(b"\t", b" ").split(b",")
    return all(coding.strip() in {b"", b"identity"} for coding in codings)


def validate_head(path: str, query: bytes, headers: Headers) -> None:
    """Check the sizes of a path, query and headers, before anything parses them.

    Servers accept 64 KiB or more. Parsing that much would take several milliseconds.

    Raises:
        UriTooLongError: if the path or the query is too long.
        HeadersTooLargeError: if there are too many headers, or one of them is too long.
    """
    if len(path) > MAX_PATH_CHARS or len(query) > MAX_QUERY_BYTES:
        raise UriTooLongError
    if len(headers) > MAX_HEADERS:
        raise HeadersTooLargeError
    for _, value in headers:
        if len(value) > MAX_HEADER_BYTES:
            raise HeadersTooLargeError


def has_framing_header(headers: Headers) -> bool:
    """Return whether a header other than Content-Length affects framing.

    Few requests have one, so use this quick check before calling `has_ambiguous_framing`.
    """
    for name, _ in headers:  # noqa: SIM110 - three times faster than any()
        if name in _FRAMING_HEADERS:
            return True
    return False


def has_ambiguous_framing(headers: Headers) -> bool:
    """Return whether servers and proxies may disagree on where the request ends (RFC 9112, 6.3 and 11.2).

    An attacker could hide a second request in the body of the first, to bypass the checks of a proxy (request
    smuggling). Two cases are known: h11 keeps the connection open after a request with both Transfer-Encoding and
    Content-Length, and httptools parses the body of a request with an Upgrade header as the next request.
    """
    names = {name for name, _ in headers}
    if b"transfer-encoding" in names and b"content-length" in names:
        return True
    if b"upgrade" not in names or not requests_upgrade(headers):
        return False
    lengths = map(bytes.strip, header_values(headers, b"content-length"))
    return b"transfer-encoding" in names or any(length != b"0" for length in lengths)


def requests_upgrade(headers: Headers) -> bool:
    """Return whether the client asks to switch protocols (RFC 9110, 7.8). The service never does."""
    connection = b",".join(header_values(headers, b"connection"))
    return b"upgrade" in connection.lower() and any(name == b"upgrade" for name, _ in headers)


def get_bearer_credential(headers: Headers, *, accept_bare: bool = False, offered: str = "") -> str:
    """Return the token or API key of a request, from ``Authorization: Bearer`` or ``X-API-Key``.

    Ignore an Authorization header with another scheme, and an X-API-Key that mlapi did not create, if the other header
    contains a credential: they may be meant for a proxy.

    Args:
        headers: of the request.
        accept_bare: whether to accept a token or API key in Authorization without a scheme, as the legacy app does.
        offered: a credential from elsewhere in the request, such as a WebSocket subprotocol.

    Raises:
        MissingCredentialError: if there is no credential.
        InvalidTokenError: if a header is repeated, if a credential is too long, or if there are different credentials.
    """
    authorization, api_key = _get_credential_headers(headers)
    credential = b"" if authorization is None else _parse_user_credential(authorization, accept_bare=accept_bare)
    other = offered.encode("utf-8", "replace")
    if credential and other not in {b"", credential}:
        raise InvalidTokenError
    credential = credential or other
    if api_key and (not credential or api_key.startswith(_API_KEY_PREFIX)):
        if credential not in {b"", api_key} or not api_key.startswith(_API_KEY_PREFIX):
            raise InvalidTokenError
        credential = api_key
    if not credential:
        raise MissingCredentialError
    if len(credential) > MAX_CREDENTIAL_CHARS or not credential.isascii():
        raise InvalidTokenError
    return credential.decode("ascii")


def looks_like_user_credential(credential: bytes) -> bool:
    """Return whether this has the form of a token or an API key, even if it is invalid."""
    return len(credential) <= MAX_CREDENTIAL_CHARS and _USER_CREDENTIAL.fullmatch(credential) is not None


def has_user_credential(headers: Headers) -> bool:
    """Return whether a header contains a user's token or API key, valid or not."""
    authorizations, api_keys = header_values(headers, b"authorization"), header_values(headers, b"x-api-key")
    values = [_split_scheme(value)[1] or value.strip(_WHITESPACE) for value in authorizations]
    values += [value.strip(_WHITESPACE) for value in api_keys]
    return any(map(looks_like_user_credential, values))


def _get_credential_headers(headers: Headers) -> tuple[bytes | None, bytes | None]:
    """Return the Authorization and X-API-Key headers without surrounding white space (RFC 9110, 5.5), or None.

    Raises:
        InvalidTokenError: if one is repeated. Proxies and applications may read different ones.
    """
    authorization = api_key = None
    for name, value in headers:
        if name == b"authorization":
            if authorization is not None:
                raise InvalidTokenError
            authorization = value.strip(_WHITESPACE)
        elif name == b"x-api-key":
            if api_key is not None:
                raise InvalidTokenError
            api_key = value.strip(_WHITESPACE)
    return authorization, api_key


def _parse_user_credential(authorization: bytes, *, accept_bare: bool) -> bytes:
    scheme, credential = _split_scheme(authorization)
    if scheme == b"bearer":
        return credential
    return authorization if accept_bare and looks_like_user_credential(authorization) else b""


def parse_authorization(headers: Headers) -> tuple[bytes, bytes]:
    """Return the lower-case scheme and the credential of the Authorization header.

    Both are empty if the header is missing or repeated.
    """
    values = header_values(headers, b"authorization")
    return _split_scheme(values[0]) if len(values) == 1 else (b"", b"")


def _split_scheme(authorization: bytes) -> tuple[bytes, bytes]:
    """Split an Authorization header at one or more spaces (RFC 9110, 11.4)."""
    scheme, _, credential = authorization.strip(_WHITESPACE).partition(b" ")
    return scheme.lower(), credential.lstrip(b" ")


def get_cookies(headers: Headers, name: str) -> list[str]:
    """Return the values of the cookies with this name, which may be repeated up to 20 times.

    Quoted values are not decoded: mlapi's cookies contain none, and Python's decoder takes quadratic time
    (CVE-2024-7592).
    """
    prefix = name.encode("ascii") + b"="
    pairs = b";".join(header_values(headers, b"cookie")).split(b";", _MAX_COOKIES)
    values = [pair.removeprefix(prefix) for pair in map(bytes.strip, pairs[:_MAX_COOKIES]) if pair.startswith(prefix)]
    return [value.decode("latin-1") for value in values[:_MAX_COOKIES_OF_SAME_NAME]]
