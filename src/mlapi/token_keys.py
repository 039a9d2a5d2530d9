"""The keys that sign tokens. A guard needs no other secret: no password key, no salt and no admin token."""

import base64
import hashlib
import hmac
import logging
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import attrs

from mlapi.application.secret_reload import Reloader
from mlapi.config import SecretSettings, Settings, TokenSettings
from mlapi.config.secrets_file import file_signature, merge_secrets, read_secrets_file
from mlapi.domain.credentials import TokenClaims
from mlapi.domain.errors import InvalidTokenError
from mlapi.domain.ports import TokenVerifier

_MISSING = (
    "user tokens are rejected, and only API keys are accepted, because this guard has no token key: set"
    " secrets.token_key (MLAPI_SECRETS__TOKEN_KEY) to the token key of the service"
)

_logger = logging.getLogger("mlapi")


def get_token_keys(secrets: SecretSettings) -> list[str]:
    """Return the configured token keys, or keys derived from the password keys. Newest first, in base64."""
    return list(secrets.token_key) or [
        base64.urlsafe_b64encode(hmac.digest(key.encode(), b"mlapi token key", hashlib.sha256)).decode("ascii")
        for key in secrets.key
    ]


def decode_token_keys(secrets: SecretSettings) -> list[bytes]:
    """Return the keys from `get_token_keys`, decoded from base64."""
    return [base64.urlsafe_b64decode(key) for key in get_token_keys(secrets)]


@attrs.frozen
class LoadedTokenKeys:
    """The verifier for one version of the token keys."""

    tokens: TokenVerifier


class TokenKeys:
    """The token keys of a guard. Keys in the settings take precedence over those in the file.

    Args:
        settings: the loaded settings.
        file: the secrets file of the service, which does not have to exist, or None.
        make_tokens: creates a token verifier from the token settings and token keys, newest first.
    """

    def __init__(
        self,
        settings: Settings,
        file: Path | None,
        *,
        make_tokens: Callable[[TokenSettings, Sequence[bytes]], TokenVerifier],
    ) -> None:
        self._settings = settings
        self._file = file
        self._make_tokens = make_tokens

    @cached_property
    def reloader(self) -> Reloader[LoadedTokenKeys]:
        """The current token keys of a running guard. If the file becomes invalid, the previous ones are kept.

        Raises:
            ConfigurationError: if the file is invalid or accessible to other accounts.
        """
        return Reloader(self._load, self._signature)

    def _load(self) -> LoadedTokenKeys:
        stored, note = self._read_file()
        keys = decode_token_keys(merge_secrets(self._settings.secrets, stored))
        if keys:
            return LoadedTokenKeys(self._make_tokens(self._settings.tokens, keys))
        _logger.warning("%s%s", _MISSING, note)
        return LoadedTokenKeys(RejectedTokens())

    def _read_file(self) -> tuple[SecretSettings, str]:
        """Return the secrets in the file, and a note for the log if this account cannot read it."""
        if self._file is None or not self._file.exists():
            return SecretSettings(), ""
        if not os.access(self._file, os.R_OK):
            return SecretSettings(), f". This account cannot read {self._file}"
        return read_secrets_file(self._file), ""

    def _signature(self) -> object:
        return None if self._file is None else file_signature(self._file)


class RejectedTokens:
    """A `TokenVerifier` without a key. It rejects every token, and logs a warning for the first one."""

    def __init__(self) -> None:
        self._was_logged = False

    def verify(self, token: str) -> TokenClaims:  # noqa: ARG002 - part of the protocol
        if not self._was_logged:
            self._was_logged = True
            _logger.warning("a token was rejected: %s", _MISSING)
        raise InvalidTokenError
