"""Sample secrets for tests, and functions to load settings from text."""

import base64
from collections.abc import Mapping
from pathlib import Path

import pytest

from mlapi.config import SecretSettings, Settings, load_settings
from mlapi.domain.errors import ConfigurationError


def fernet_key(first_byte: int) -> str:
    return base64.urlsafe_b64encode(bytes(range(first_byte, first_byte + 32))).decode()


KEY, OLD_KEY, TOKEN_KEY = fernet_key(0), fernet_key(100), fernet_key(200)
PUBLISHED_KEY = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="  # the Fernet specification's test vectors
SALT, OLD_SALT = "a salt, of many characters", "an older one"
TOKEN = "an-admin-token-of-32-characters."
ALL_SECRETS = SecretSettings(key=(KEY,), salt=(SALT,), token_key=(TOKEN_KEY,), admin_token=TOKEN)
CANARY = "CANARY"


def write(folder: Path, content: str | bytes, *, name: str = "config.yml", mode: int = 0o600) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    file.chmod(mode)
    return file


def load(folder: Path, content: str | bytes, environ: Mapping[str, str] | None = None) -> Settings:
    return load_settings(write(folder, content), environ or {})


def load_error(folder: Path, content: str | bytes, environ: Mapping[str, str] | None = None) -> str:
    """Return the error message for a configuration file, with FOLDER in place of the folder's path."""
    with pytest.raises(ConfigurationError) as exc_info:
        load(folder, content, environ)
    return str(exc_info.value).replace(str(folder), "FOLDER")
