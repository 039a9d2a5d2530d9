"""Issue and verify JSON Web Tokens (RFC 7519) with PyJWT. The only algorithm is HMAC-SHA256.

New tokens are signed with the first key, and tokens signed with any of the keys are accepted. The ``kid`` in the header
identifies the key and is derived from it. A token is rejected before it is decoded unless its header is exactly the
header that we write for one of the keys. This rules out other algorithms, embedded and remote keys, and critical
extensions.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import jwt

from mlapi.domain.credentials import IssuedToken, TokenClaims
from mlapi.domain.errors import InvalidTokenError
from mlapi.domain.ports import Clock
from mlapi.domain.users import User, UserId, utc_now
from mlapi.forks import new_lock

ALGORITHM = "HS256"
_TOKEN = re.compile(r"([\w-]{1,200})\.[\w-]{1,2000}\.[\w-]{42}[AEIMQUYcgkosw048]", re.ASCII)
"""The last character of a signature encodes only four bits. Others decode to the same bytes, so reject them here."""
_REQUIRED_CLAIMS = ["exp", "iat", "sub", "iss", "aud", "jti", "epoch"]
_USER_ID = re.compile(r"[1-9][0-9]{0,18}")
_MAX_CLOCK_SKEW = timedelta(minutes=1)
"""How far another server's clock may be ahead of ours."""
_MAX_CACHED_TOKENS = 10_000
"""A cached token takes about 500 bytes."""


class JwtTokenIssuer:
    """A `TokenIssuer` for JSON Web Tokens.

    Args:
        keys: at least 32 bytes each (RFC 7518, 3.2: as long as the hash). The first signs new tokens.
        lifetime: how long a token is valid.
        issuer: the value of the ``iss`` claim.
        audience: the value of the ``aud`` claim.
        clock: returns the current time.
    """

    def __init__(
        self, keys: Sequence[bytes], *, lifetime: timedelta, issuer: str, audience: str, clock: Clock = utc_now
    ) -> None:
        self._newest = keys[0]
        self._headers = {"kid": _key_id(keys[0])}
        self._key_by_header = {_header(key): key for key in keys}
        self._lifetime = lifetime
        self._issuer = issuer
        self._audience = audience
        self._clock = clock
        self._verified: dict[str, TokenClaims] = {}
        self._eviction_lock = new_lock()

    def issue(self, user: User) -> IssuedToken:
        issued_at = int(self._clock().timestamp())
        expires_at = issued_at + round(self._lifetime.total_seconds())
        if user.expires_datetime is not None:
            expires_at = max(issued_at, min(expires_at, int(user.expires_datetime.timestamp())))
        payload = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": str(user.id),
            "iat": issued_at,
            "exp": expires_at,
            "jti": secrets.token_hex(16),
            "epoch": user.token_epoch,
        }
        token = jwt.encode(payload, self._newest, algorithm=ALGORITHM, headers=self._headers)
        return IssuedToken(token, expires_at - issued_at)

    def verify(self, token: str) -> TokenClaims:
        # Cache verified tokens: a valid signature stays valid.
        claims = self._verified.get(token)
        if claims is None:
            claims = self._verify(token)
            with self._eviction_lock:
                if len(self._verified) >= _MAX_CACHED_TOKENS:
                    del self._verified[next(iter(self._verified))]  # the oldest
                self._verified[token] = claims
        return claims

    def _verify(self, token: str) -> TokenClaims:
        match = _TOKEN.fullmatch(token)
        key = None if match is None else self._key_by_header.get(match[1])
        if key is None:
            raise InvalidTokenError
        try:
            payload = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                issuer=self._issuer,
                audience=self._audience,
                # `authenticate` checks the expiry. The issue time is checked against `self._clock` below.
                options={"require": _REQUIRED_CLAIMS, "strict_aud": True, "verify_exp": False, "verify_iat": False},
            )
            # PyJWT checks the types of registered claims only since version 2.10.
            subject, token_id, epoch = (_text(payload[name]) for name in ("sub", "jti", "epoch"))
            issued_at, expires_datetime = (
                datetime.fromtimestamp(_integer(payload[name]), UTC) for name in ("iat", "exp")
            )
        except (jwt.InvalidTokenError, TypeError, ValueError, OverflowError, OSError):
            raise InvalidTokenError from None
        if not _USER_ID.fullmatch(subject) or issued_at > self._clock() + _MAX_CLOCK_SKEW:
            raise InvalidTokenError
        return TokenClaims(
            user_id=UserId(int(subject)),
            token_epoch=epoch,
            expires_datetime=expires_datetime,
            token_id=token_id,
        )


def _key_id(key: bytes) -> str:
    return hmac.digest(key, b"mlapi token key id", hashlib.sha256).hex()[:16]


def _header(key: bytes) -> str:
    """Return the encoded header of tokens signed with this key."""
    return jwt.encode({}, key, algorithm=ALGORITHM, headers={"kid": _key_id(key)}).partition(".")[0]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _integer(number: object) -> int:
    if type(number) is not int:  # also rejects bool, which is a subclass of int
        raise TypeError
    return number
