"""Open the secrets that belong to a storage, with the cipher and token issuer that the settings select."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from mlapi.adapters.fernet import FernetCipher, HashingFernetCipher
from mlapi.adapters.jwt import JwtTokenIssuer
from mlapi.config import PasswordSettings, Settings, TokenSettings
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.ports import TokenIssuer
from mlapi.domain.storage import Storage
from mlapi.secret_store import SecretStore

_FILE_NAME = "secrets.yml"

StoredPasswordCipher = FernetCipher | HashingFernetCipher


def open_secrets(settings: Settings, storage: Storage) -> SecretStore[StoredPasswordCipher]:
    """Return the secrets that encrypt the passwords in a storage.

    Raises:
        ConfigurationError: if the secrets file was left at its former place: in the current folder.
    """
    file = _find_file(settings, storage)
    return SecretStore(
        settings,
        file,
        make_cipher=_make_cipher,
        make_tokens=_make_tokens,
    )


def _find_file(settings: Settings, storage: Storage) -> Path | None:
    folder = storage.secrets_folder
    if folder is None:
        return None
    file = (settings.folder / folder).absolute() / _FILE_NAME
    former = Path(_FILE_NAME).absolute()
    if not (folder.is_absolute() or settings.secrets.key or file.exists()) and former.exists():
        raise ConfigurationError(
            f"{file} does not exist, but {former} does: move it there, because the secrets belong beside the"
            " configuration file"
        )
    return file


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
