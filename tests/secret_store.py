"""Secret stores for tests."""

from datetime import timedelta
from pathlib import Path

import attrs

from mlapi.adapters.fernet import FernetCipher
from mlapi.adapters.jwt import JwtTokenIssuer
from mlapi.adapters.memory import InMemoryTokens, PlainCipher
from mlapi.config import Settings
from mlapi.domain.ports import PasswordCipher, TokenIssuer
from mlapi.secret_store import SecretStore


@attrs.frozen(kw_only=True)
class FakeSecrets:
    """One version of the secrets, with only the parts that a test uses."""

    cipher: PasswordCipher = attrs.field(factory=PlainCipher)
    tokens: TokenIssuer = attrs.field(factory=InMemoryTokens)


def make_store(settings: Settings, file: Path | None) -> SecretStore[FernetCipher]:
    """Return a store that uses the cheap Fernet cipher."""
    return SecretStore(
        settings,
        file,
        make_cipher=lambda _settings, keys, salts: FernetCipher(keys, *salts),
        make_tokens=lambda _settings, keys: JwtTokenIssuer(
            keys, lifetime=timedelta(hours=1), issuer="mlapi", audience="mlapi"
        ),
    )


def with_secrets(settings: Settings, file: Path | None) -> Settings:
    """Return the settings with missing secrets read from a file."""
    return attrs.evolve(settings, secrets=make_store(settings, file).load())
