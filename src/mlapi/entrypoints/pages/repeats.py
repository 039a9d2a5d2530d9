"""Recognize a form that a double click sends twice, and act on it once.

The first response also sets a cookie with the digest of the form and the redirect. For about a second, the same form
gets the same redirect without acting again, in every process. The browser may have dropped the first response, and the
cookie with it, to send the form again. Therefore, each process also remembers its responses for this time.

The forms on the next page are different ones: `mlapi.entrypoints.pages.notices` protects them.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated

import msgspec
from starlette.responses import Response

from mlapi.entrypoints.http.browser_sessions import cookie_name, set_cookie
from mlapi.entrypoints.http.signatures import MAX_COOKIE_CHARS, SignedValue
from mlapi.entrypoints.pages.notices import SETTLE_SECONDS
from mlapi.entrypoints.pages.request import PageRequest
from mlapi.entrypoints.wire.headers import get_cookies

_COOKIE = "done"
_COOKIE_SECONDS = 2
_MAX_SIGNED_CHARS = MAX_COOKIE_CHARS - 100

_Done = tuple[
    Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")],
    Annotated[int, msgspec.Meta(ge=0, le=2**50)],
    str,
    list[str],
]
"""The digest of a form, the time of its response in milliseconds since 1970, its Location, and its other cookies."""

Respond = Callable[[PageRequest], Awaitable[Response]]


class Repeats:
    """Calls a function that responds to a form, once for a double click.

    Args:
        clock: returns the current Unix timestamp.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._responses: dict[str, asyncio.Future[Response]] = {}
        """The responses that are being made or were sent less than `SETTLE_SECONDS` ago, by the digest of the form."""

    async def respond(self, request: PageRequest, respond: Respond) -> Response:
        """Return the response to a form. Forms without a session, such as those to sign in, are not compared."""
        if request.session is None:
            return await respond(request)
        digest = _digest(request)
        first = self._responses.get(digest)
        if first is not None:
            return await asyncio.shield(first)
        return self._find(request, digest) or await self._respond_first(request, respond, digest)

    async def _respond_first(self, request: PageRequest, respond: Respond, digest: str) -> Response:
        future = self._responses[digest] = asyncio.ensure_future(respond(request))
        has_acted = False
        try:
            response = await future
            has_acted = response.status_code == HTTPStatus.SEE_OTHER
        finally:
            seconds = SETTLE_SECONDS if has_acted else 0
            asyncio.get_running_loop().call_later(seconds, self._responses.pop, digest, None)
        if has_acted:
            cookies = response.headers.getlist("set-cookie")
            done = (digest, int(self._clock() * 1000), response.headers["location"], cookies)
            signed = self._signer(request).dump(done)
            if len(signed) <= _MAX_SIGNED_CHARS:
                name, path = _COOKIE, request.base
                response.headers.append("Set-Cookie", set_cookie(request.client, name, signed, path, _COOKIE_SECONDS))
        return response

    def _find(self, request: PageRequest, digest: str) -> Response | None:
        """Return the response again if the browser has just received it for the same form."""
        for cookie in get_cookies(request.client.headers, cookie_name(request.client, _COOKIE)):
            signed = self._signer(request).load(cookie, _COOKIE_SECONDS)
            if signed is None:
                continue
            (form, done_ms, location, cookies), _ = signed
            if form == digest and self._clock() - done_ms / 1000 < SETTLE_SECONDS:
                response = Response(status_code=HTTPStatus.SEE_OTHER, headers={"Location": location})
                for value in cookies:
                    response.headers.append("Set-Cookie", value)
                return response
        return None

    def _signer(self, request: PageRequest) -> SignedValue[_Done]:
        return SignedValue(_Done, request.admin_policy.session_key, b"mlapi done form", self._clock)


def _digest(request: PageRequest) -> str:
    """Return a digest of the path and the fields, one of which is the token of the session."""
    content = json.dumps([request.path_and_query, sorted(request.form.items())])
    return hashlib.sha256(content.encode("ascii")).hexdigest()
