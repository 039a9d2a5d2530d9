"""Open the secrets that belong to a storage, with the cipher and token issuer that the settings select."""

from collections.abc import Sequence

from mlapi.adapters.fernet import FernetCipher, HashingFernetCipher
from mlapi.bootstrap.tokens import make_tokens
from mlapi.config import PasswordSettings, Settings
from mlapi.config.secrets_file import locate_secrets_file
from mlapi.domain.storage import Storage
from mlapi.secret_store import SecretStore

StoredPasswordCipher = FernetCipher | HashingFernetCipher


def open_secrets(settings: Settings, storage: Storage) -> SecretStore[StoredPasswordCipher]:
    """Return the secrets that encrypt the passwords in a storage.

    Raises:
        ConfigurationError: if the secrets file is still at its former place, the current folder.
    """
    return SecretStore(
        settings,
        locate_secrets_file(settings, storage.secrets_folder),
        make_cipher=_make_cipher,
        make_tokens=make_tokens,
    )


def _make_cipher(settings: PasswordSettings, keys: Sequence[str], salts: Sequence[str]) -> StoredPasswordCipher:
    kind = FernetCipher if settings.scheme == "fernet" else HashingFernetCipher
    return kind(keys, *salts)
