"""Open the secrets that belong to a storage, with the cipher and token issuer that the settings select."""

from collections.abc import Sequence
from datetime import timedelta

from mlapi.adapters.fernet import FernetCipher, HashingFernetCipher
from mlapi.adapters.jwt import JwtTokenIssuer
from mlapi.config import PasswordSettings, Settings, TokenSettings
from mlapi.domain.ports import TokenIssuer
from mlapi.domain.storage import Storage
from mlapi.secret_store import SecretStore

StoredPasswordCipher = FernetCipher | HashingFernetCipher


def open_secrets(settings: Settings, storage: Storage) -> SecretStore[StoredPasswordCipher]:
    """Return the secrets that encrypt the passwords in a storage."""
    folder = storage.secrets_folder
    return SecretStore(
        settings,
        None if folder is None else folder / "secrets.yml",
        make_cipher=_make_cipher,
        make_tokens=_make_tokens,
    )


def _make_cipher(settings: PasswordSettings, keys: Sequence[str], salts: Sequence[str]) -> StoredPasswordCipher:
    kind = FernetCipher if settings.scheme == "fernet" else HashingFernetCipher
    return kind(keys, *salts)


def _make_tokens(settings: TokenSettings, keys: Sequence[bytes]) -> TokenIssuer:
    return JwtTokenIssuer(
        keys,
        lifetime=timedelta(minutes=settings.minutes),
        issuer=settings.issuer,
        audience=settings.audience,
    )
