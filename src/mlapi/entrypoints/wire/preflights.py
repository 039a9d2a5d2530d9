"""Recognize the preflight requests of browsers (CORS, Fetch Standard, 3.3)."""

import re

from mlapi.entrypoints.wire.headers import Headers

_METHOD = re.compile(rb"[A-Za-z]{1,32}")
# Browsers send no credentials and no body with a preflight. A request that overrides its method in a header is not a
# preflight.
_NEVER_SENT = frozenset(
    {
        b"authorization",
        b"proxy-authorization",
        b"x-api-key",
        b"cookie",
        b"transfer-encoding",
        b"content-type",
        b"expect",
    }
    | {b"upgrade", b"x-http-method", b"x-http-method-override", b"x-method-override"}
)


def is_preflight(method: str, headers: Headers) -> bool:
    """Return whether a browser sends this request to ask if a page of another origin may send another request.

    Any client can send a request that looks like a preflight, so the response must not depend on the user.
    """
    if method != "OPTIONS":
        return False
    origins, methods = [], []
    for name, value in headers:
        if name == b"origin":
            origins.append(value)
        elif name == b"access-control-request-method":
            methods.append(value)
        elif name in _NEVER_SENT or (name == b"content-length" and value != b"0"):
            return False
    return len(origins) == len(methods) == 1 and bool(origins[0]) and _METHOD.fullmatch(methods[0]) is not None
