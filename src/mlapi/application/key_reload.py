"""Ciphers and tokens that follow the secrets while the service runs: a new key is known before it is met.

Whoever turns a key over writes it down first and uses it afterwards. So before a password or a token is refused, the
secrets are looked at again; and in any case now and then, so that a key that was taken away ends.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from mlapi.domain.credentials import IssuedToken, TokenClaims
from mlapi.domain.errors import ConfigurationError, InvalidTokenError
from mlapi.domain.ports import PasswordCipher, TokenIssuer, is_costly
from mlapi.domain.users import EncryptedPassword, User

RELOAD_CHECK_SECONDS = 1.0
"""Seconds after which the secrets are looked at again, at the next use."""

_logger = logging.getLogger("mlapi")

T = TypeVar("T")


class Reloader(Generic[T]):
    """What is made of the secrets, made anew when they have changed.

    Args:
        make: raises `ConfigurationError` for secrets that are at fault; the former ones are used then.
        signature: tells whether the secrets have changed.
    """

    def __init__(self, make: Callable[[], T], signature: Callable[[], object]) -> None:
        self._make = make
        self._signature = signature
        self._made_of = signature()
        self._current = make()
        self._look_at = time.monotonic() + RELOAD_CHECK_SECONDS
        self._lock = threading.Lock()

    def get(self, *, at_once: bool = False) -> T:
        """Return the current one; ``at_once`` looks at the secrets however short ago that was done."""
        if at_once or time.monotonic() > self._look_at:
            with self._lock:
                self._look_at = time.monotonic() + RELOAD_CHECK_SECONDS
                signature = self._signature()
                if signature != self._made_of:
                    self._made_of = signature
                    self._renew()
        return self._current

    def _renew(self) -> None:
        try:
            self._current = self._make()
        except ConfigurationError as error:
            _logger.warning("the secrets have changed and cannot be used, the former ones are: %s", error)
        else:
            _logger.info("the secrets have changed; the new ones are used")


class ReloadingCipher:
    """A `PasswordCipher` that is always the current one."""

    def __init__(self, current: Reloader[PasswordCipher]) -> None:
        self._current = current

    @property
    def is_costly(self) -> bool:
        return is_costly(self._current.get())

    def encrypt(self, password: str) -> EncryptedPassword:
        return self._current.get().encrypt(password)

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        cipher = self._current.get()
        if cipher.matches(password, encrypted):
            return True
        newer = self._current.get(at_once=True)
        return newer is not cipher and newer.matches(password, encrypted)

    def needs_upgrade(self, encrypted: EncryptedPassword) -> bool:
        return self._current.get().needs_upgrade(encrypted)

    def reencrypt(self, encrypted: EncryptedPassword) -> EncryptedPassword | None:
        return self._current.get().reencrypt(encrypted)


class ReloadingTokens:
    """A `TokenIssuer` that is always the current one."""

    def __init__(self, current: Reloader[TokenIssuer]) -> None:
        self._current = current

    def issue(self, user: User) -> IssuedToken:
        return self._current.get().issue(user)

    def verify(self, token: str) -> TokenClaims:
        issuer = self._current.get()
        try:
            return issuer.verify(token)
        except InvalidTokenError:
            newer = self._current.get(at_once=True)
            if newer is issuer:
                raise
        return newer.verify(token)
