"""Secret stores for tests."""

from datetime import timedelta
from pathlib import Path

from mlapi.adapters.fernet import FernetCipher
from mlapi.adapters.jwt import JwtTokenIssuer
from mlapi.config import Settings
from mlapi.secret_store import SecretStore


def make_store(settings: Settings, file: Path | None) -> SecretStore[FernetCipher]:
    """Return a store that makes the cheap cipher."""
    return SecretStore(
        settings,
        file,
        make_cipher=lambda keys, salts: FernetCipher(keys, *salts),
        make_tokens=lambda keys: JwtTokenIssuer(keys, lifetime=timedelta(hours=1), issuer="mlapi", audience="mlapi"),
    )


def with_secrets(settings: Settings, file: Path | None) -> Settings:
    """Return the settings, completed with the secrets in a file."""
    return make_store(settings, file).with_secrets()
