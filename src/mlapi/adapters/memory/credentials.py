"""A cipher that does not encrypt, and tokens in memory."""

import hmac
import secrets
from datetime import timedelta

from mlapi.domain.credentials import IssuedToken, TokenClaims
from mlapi.domain.errors import (
    InvalidTokenError,
)
from mlapi.domain.ports import Clock
from mlapi.domain.users import EncryptedPassword, User, utc_now


class PlainCipher:
    """A fast `PasswordCipher` for tests that stores passwords in plain text."""

    is_costly = False

    def encrypt(self, password: str) -> EncryptedPassword:
        # The contract requires a random part, so that equal passwords have different stored values.
        return EncryptedPassword(f"plain:{secrets.token_hex(4)}:{password}")

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        if encrypted is None:
            return False
        scheme, _, salted = encrypted.value.partition(":")
        _, _, stored = salted.partition(":")
        return scheme == "plain" and hmac.compare_digest(_encoded(stored), _encoded(password))

    def needs_upgrade(self, encrypted: EncryptedPassword) -> bool:
        return not encrypted.value.startswith("plain:")

    def reencrypt(self, encrypted: EncryptedPassword) -> EncryptedPassword | None:  # noqa: ARG002 - part of the port
        return None  # plain text is not encrypted with a key


class InMemoryTokens:
    """A `TokenIssuer` for a single process that keeps its random tokens in memory.

    Args:
        lifetime: how long a token is valid.
        clock: returns the current time.
    """

    def __init__(self, *, lifetime: timedelta = timedelta(hours=1), clock: Clock = utc_now) -> None:
        self._lifetime = lifetime
        self._clock = clock
        self._issued: dict[str, TokenClaims] = {}

    def issue(self, user: User) -> IssuedToken:
        token = secrets.token_urlsafe(32)
        now = self._clock()
        end = now + self._lifetime
        if user.expires_datetime is not None:
            end = min(end, user.expires_datetime)
        self._issued[token] = TokenClaims(
            user_id=user.id, token_epoch=user.token_epoch, expires_datetime=end, token_id=secrets.token_hex(8)
        )
        return IssuedToken(token, max(0, int((end - now).total_seconds())))

    def verify(self, token: str) -> TokenClaims:
        claims = self._issued.get(token)
        if claims is None:
            raise InvalidTokenError
        return claims


def _encoded(text: str) -> bytes:
    # A password with a lone surrogate matches nothing, but it must not raise an error.
    return text.encode("utf-8", "surrogatepass")
