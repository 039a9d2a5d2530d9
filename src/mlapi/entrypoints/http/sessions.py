"""Values that the browsers of signed-in managers and users keep: session secrets, page tokens and docs cookies.

Page tokens and docs cookies name the session that they were made for, and end with it. They are signed, so that a
leaked database is not enough to forge them. In local mode there are no stored sessions: the cookie then only protects
forms, because it must match the form (double-submit cookie).
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Iterable
from typing import Annotated

import msgspec

from mlapi.domain.sessions import LIFETIME_SECONDS, SessionId, find_session_id
from mlapi.entrypoints.http.signatures import SignedValue

PAGE_TOKEN_SECONDS = 60
"""How long a page token is valid. The page asks for one before each of its requests."""

_Id = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class PageTokens:
    """Signs page tokens and docs cookies, and verifies them. The caller must check that the session is still open.

    Args:
        key: the signing key.
        clock: returns the current Unix timestamp.
    """

    def __init__(self, key: bytes, clock: Callable[[], float] = time.time) -> None:
        self._page_tokens: SignedValue[str] = SignedValue(_Id, key, b"mlapi page token", clock)
        self._docs_cookies: SignedValue[str] = SignedValue(_Id, key, b"mlapi docs cookie", clock)

    def page_token(self, session_id: SessionId) -> str:
        """Return a token that authenticates a request of this service's page to the API."""
        return self._page_tokens.dump(session_id)

    def find_by_page_token(self, text: str) -> SessionId | None:
        """Return the id of the session that a page token was made for, or None if it is invalid or has expired."""
        signed = self._page_tokens.load(text, PAGE_TOKEN_SECONDS)
        return None if signed is None else SessionId(signed[0])

    def docs_cookie(self, session_id: SessionId) -> str:
        """Return the value of a cookie that grants access to the documentation."""
        return self._docs_cookies.dump(session_id)

    def find_by_docs_cookies(self, cookies: Iterable[str]) -> SessionId | None:
        """Return the id of the session in the first valid docs cookie, or None."""
        found = (self._docs_cookies.load(cookie, LIFETIME_SECONDS) for cookie in cookies)
        return next((SessionId(signed[0]) for signed in found if signed is not None), None)


def csrf_token(secret: str) -> str:
    """Return the token that every form of a session contains. It does not reveal the secret of the session."""
    return hmac.digest(secret.encode("ascii"), b"mlapi csrf token", hashlib.sha256).hex()


def find_secrets(cookies: Iterable[str]) -> list[tuple[SessionId, str]]:
    """Return the ids and secrets of sessions in the values of cookies. Ignore cookies of other applications."""
    return [(session_id, cookie) for cookie in cookies if (session_id := find_session_id(cookie)) is not None]
