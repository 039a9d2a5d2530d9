"""Tokens as JSON Web Tokens (RFC 7519), signed with HMAC-SHA256 and nothing else, through PyJWT.

The keys are a list: the first signs, all of them verify. A token names its key by ``kid``, which follows from the key,
so that nobody has to choose one. Its header is known to the letter: whatever is not exactly a header that we write is
refused before any of it is decoded, and with it every other algorithm, embedded and remote keys, critical extensions.
"""

import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import jwt

from mlapi.domain.credentials import IssuedToken, TokenClaims
from mlapi.domain.errors import InvalidTokenError
from mlapi.domain.ports import Clock
from mlapi.domain.users import User, UserId, utc_now

ALGORITHM = "HS256"
_FORM = re.compile(r"([\w-]{1,200})\.[\w-]{1,2000}\.[\w-]{43}", re.ASCII)
_CLAIMS = ["exp", "iat", "sub", "iss", "aud", "jti", "epoch"]
_DIGITS = re.compile(r"[1-9][0-9]{0,18}")
_TOLERANCE = timedelta(minutes=1)
"""How far the clock of another machine that issues tokens may be before ours."""
_REMEMBERED = 10_000
"""Verified tokens, of some 500 bytes each."""


class JwtTokenIssuer:
    """A `TokenIssuer`.

    Args:
        keys: each at least 32 bytes (RFC 7518, 3.2: as long as the hash); the first signs.
        lifetime: of a token.
        issuer: of the tokens, their ``iss``.
        audience: whom they are for, their ``aud``.
        clock: by which they are issued and end.
    """

    def __init__(
        self, keys: Sequence[bytes], *, lifetime: timedelta, issuer: str, audience: str, clock: Clock = utc_now
    ) -> None:
        self._newest = keys[0]
        self._key_of_header = {_header(key): key for key in keys}
        self._lifetime = lifetime
        self._issuer = issuer
        self._audience = audience
        self._clock = clock
        self._verified: dict[str, TokenClaims] = {}
        self._forgetting = threading.Lock()

    def issue(self, user: User) -> IssuedToken:
        now = self._clock()
        payload = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": str(user.id),
            "iat": int(now.timestamp()),
            "exp": int(now.timestamp()) + round(self._lifetime.total_seconds()),
            "jti": secrets.token_hex(16),
            "epoch": user.token_epoch,
        }
        token = jwt.encode(payload, self._newest, algorithm=ALGORITHM, headers={"kid": _key_id(self._newest)})
        return IssuedToken(token, round(self._lifetime.total_seconds()))

    def verify(self, token: str) -> TokenClaims:
        # The signature of a token that was verified before is right for ever; its time is looked at each time.
        claims = self._verified.get(token)
        if claims is None:
            claims = self._verify(token)
            with self._forgetting:
                if len(self._verified) >= _REMEMBERED:
                    del self._verified[next(iter(self._verified))]  # the oldest
                self._verified[token] = claims
        if claims.expires_at <= self._clock():
            with self._forgetting:
                self._verified.pop(token, None)
            raise InvalidTokenError
        return claims

    def _verify(self, token: str) -> TokenClaims:
        form = _FORM.fullmatch(token)
        key = None if form is None else self._key_of_header.get(form[1])
        if key is None:
            raise InvalidTokenError
        try:
            payload = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                issuer=self._issuer,
                audience=self._audience,
                # Times are compared with our own clock, below and at each use.
                options={"require": _CLAIMS, "strict_aud": True, "verify_exp": False, "verify_iat": False},
            )
            subject, epoch = payload["sub"], payload["epoch"]
            issued_at, expires_at = (datetime.fromtimestamp(_whole(payload[name]), UTC) for name in ("iat", "exp"))
        except (jwt.InvalidTokenError, TypeError, ValueError, OverflowError, OSError):
            raise InvalidTokenError from None
        if not isinstance(epoch, str) or not _DIGITS.fullmatch(subject) or issued_at > self._clock() + _TOLERANCE:
            raise InvalidTokenError
        return TokenClaims(
            user_id=UserId(int(subject)), token_epoch=epoch, expires_at=expires_at, token_id=str(payload["jti"])
        )


def _key_id(key: bytes) -> str:
    return hmac.digest(key, b"mlapi token key id", hashlib.sha256).hex()[:16]


def _header(key: bytes) -> str:
    """Return the first part of the tokens that a key signs."""
    return jwt.encode({}, key, algorithm=ALGORITHM, headers={"kid": _key_id(key)}).partition(".")[0]


def _whole(number: object) -> int:
    if type(number) is not int:
        raise TypeError
    return number
