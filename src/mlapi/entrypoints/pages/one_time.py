"""Show a secret once, after the form that made it: an API key, a link or a generated password.

The form redirects to a page with `redirect_with_secret`. The page calls `take_secret`, shows the secret and deletes the
cookie with it. Reloading the page therefore neither shows the secret again nor makes a second one.
"""

import hashlib
from typing import Annotated

import msgspec
from starlette.responses import Response

from mlapi.entrypoints.http.browser_sessions import cookie_name, set_cookie
from mlapi.entrypoints.http.signatures import SignedValue
from mlapi.entrypoints.pages.notices import Notice
from mlapi.entrypoints.pages.rendering import redirect
from mlapi.entrypoints.pages.request import PageRequest
from mlapi.entrypoints.wire.headers import get_cookies

SECRET_SECONDS = 60
"""A secret that no page has shown after this time is lost."""
_COOKIE = "secret"
_Secret = tuple[
    Annotated[str, msgspec.Meta(max_length=100)], Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
]
"""What the secret belongs to, such as the id of an API key, and the secret."""


def redirect_with_secret(
    request: PageRequest, path: str, *, name: str, secret: str, notice: Notice | None = None
) -> Response:
    """Redirect to a page that shows a secret once. See `redirect`.

    Args:
        request: the request with the form. It has a session: no other session can read the secret.
        path: the path of the page, relative to the site.
        name: what the secret belongs to, at most 100 characters.
        secret: the secret.
        notice: what the form did.
    """
    response = redirect(request, path, notice=notice)
    response.headers.append("Set-Cookie", _set_cookie(request, _signer(request).dump((name, secret))))
    return response


def take_secret(request: PageRequest, name: str) -> tuple[str | None, list[str]]:
    """Return the secret of ``name`` for this page, or None, and Set-Cookie headers that delete it."""
    cookies = get_cookies(request.client.headers, cookie_name(request.client, _COOKIE))
    if not cookies or request.session is None:
        return None, []
    found = (_signer(request).load(cookie, SECRET_SECONDS) for cookie in cookies)
    secret = next((signed[0][1] for signed in found if signed is not None and signed[0][0] == name), None)
    return secret, [_set_cookie(request, "")]


def _signer(request: PageRequest) -> SignedValue[_Secret]:
    csrf_token = "" if request.session is None else request.session.csrf_token
    key = hashlib.sha256(csrf_token.encode("ascii")).digest()  # another session has another token
    return SignedValue(_Secret, key, b"mlapi one-time secret", request.notices.clock)


def _set_cookie(request: PageRequest, value: str) -> str:
    return set_cookie(request.client, _COOKIE, value, request.base, SECRET_SECONDS if value else 0)
