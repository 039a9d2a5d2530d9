"""Ciphers and token issuers that reload changed secrets while the service runs.

During a rotation, a new key is first written to the secrets file and then used. A password or token that does not match
is therefore checked again with freshly loaded secrets before it is rejected. The secrets are also checked regularly, so
that removed keys stop working.
"""

import logging
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from mlapi.domain.credentials import IssuedToken, TokenClaims
from mlapi.domain.errors import ConfigurationError, InvalidTokenError
from mlapi.domain.ports import PasswordCipher, TokenIssuer, TokenVerifier, is_costly
from mlapi.domain.users import EncryptedPassword, User
from mlapi.forks import new_lock

RELOAD_CHECK_SECONDS = 1.0

_logger = logging.getLogger("mlapi")

T_co = TypeVar("T_co", covariant=True)


class Reloader(Generic[T_co]):
    """Holds a value made from the secrets, and makes a new one when they change.

    Args:
        make: makes the value. If it raises `ConfigurationError`, the previous value stays in use.
        signature: returns a value that changes when the secrets change.
    """

    def __init__(self, make: Callable[[], T_co], signature: Callable[[], object]) -> None:
        self._make = make
        self._signature = signature
        self._loaded_signature = signature()
        self._value = make()
        self._next_check = time.monotonic() + RELOAD_CHECK_SECONDS
        self._lock = new_lock()

    def get(self, *, check_now: bool = False) -> T_co:
        """Return the current value.

        Args:
            check_now: check the secrets even if they were checked within the last `RELOAD_CHECK_SECONDS`.
        """
        if check_now or time.monotonic() > self._next_check:
            with self._lock:
                self._next_check = time.monotonic() + RELOAD_CHECK_SECONDS
                signature = self._signature()
                if signature != self._loaded_signature:
                    self._loaded_signature = signature
                    self._reload()
        return self._value

    def _reload(self) -> None:
        try:
            self._value = self._make()
        except ConfigurationError as error:
            _logger.warning("the secrets changed but cannot be used, keeping the previous ones: %s", error)
        else:
            _logger.info("the secrets changed and were reloaded")


class SecretsInUse(Protocol):
    """The objects that use one version of the secrets."""

    @property
    def cipher(self) -> PasswordCipher:
        """Encrypts and verifies passwords."""

    @property
    def tokens(self) -> TokenIssuer:
        """Issues and verifies tokens."""


class ReloadingCipher:
    """A `PasswordCipher` that always uses the current secrets."""

    def __init__(self, reloader: Reloader[SecretsInUse]) -> None:
        self._reloader = reloader

    @property
    def is_costly(self) -> bool:
        return is_costly(self._reloader.get().cipher)

    def encrypt(self, password: str) -> EncryptedPassword:
        return self._reloader.get().cipher.encrypt(password)

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        cipher = self._reloader.get().cipher
        if cipher.matches(password, encrypted):
            return True
        newer = self._reloader.get(check_now=True).cipher
        return newer is not cipher and newer.matches(password, encrypted)

    def needs_upgrade(self, encrypted: EncryptedPassword) -> bool:
        return self._reloader.get().cipher.needs_upgrade(encrypted)

    def reencrypt(self, encrypted: EncryptedPassword) -> EncryptedPassword | None:
        return self._reloader.get().cipher.reencrypt(encrypted)


class TokenKeysInUse(Protocol):
    """The part of `SecretsInUse` that verifies tokens."""

    @property
    def tokens(self) -> TokenVerifier:
        """Verifies tokens."""


class ReloadingTokenVerifier:
    """A `TokenVerifier` that always uses the current token keys."""

    def __init__(self, reloader: Reloader[TokenKeysInUse]) -> None:
        self._reloader = reloader

    def verify(self, token: str) -> TokenClaims:
        issuer = self._reloader.get().tokens
        try:
            return issuer.verify(token)
        except InvalidTokenError:
            newer = self._reloader.get(check_now=True).tokens
            if newer is issuer:
                raise
        return newer.verify(token)


class ReloadingTokens(ReloadingTokenVerifier):
    """A `TokenIssuer` that always uses the current secrets."""

    def __init__(self, reloader: Reloader[SecretsInUse]) -> None:
        super().__init__(reloader)
        self._secrets = reloader

    def issue(self, user: User) -> IssuedToken:
        return self._secrets.get().tokens.issue(user)
