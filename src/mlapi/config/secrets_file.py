"""Locate and read a secrets file, and notice when it changes."""

from pathlib import Path

from mlapi.config.files import read_yaml, was_left_behind
from mlapi.config.parsing import parse_secrets
from mlapi.config.settings import SecretSettings, Settings
from mlapi.domain.errors import ConfigurationError
from mlapi.file_access import find_secrets_error

_FILE_NAME = "secrets.yml"


def locate_secrets_file(settings: Settings, folder: Path | None) -> Path | None:
    """Return the path of the secrets file, which does not have to exist. None keeps the secrets in memory.

    Args:
        settings: the settings.
        folder: the `Storage.secrets_folder`.

    Raises:
        ConfigurationError: if the secrets file is still at its former place, the current folder.
    """
    if folder is None:
        return None
    file, former = (settings.folder / folder).absolute() / _FILE_NAME, Path(_FILE_NAME)
    if not folder.is_absolute() and not settings.secrets.key and was_left_behind(former, file):
        raise ConfigurationError(
            f"{file} does not exist, but {former.absolute()} does: move it there, because the secrets belong beside the"
            " configuration file"
        )
    return file


def read_secrets_file(file: Path) -> SecretSettings:
    """Return the secrets in a file.

    Raises:
        ConfigurationError: if the file cannot be read, is invalid, or is accessible to other accounts.
    """
    if (error := find_secrets_error(file)) is not None:
        raise ConfigurationError(error)
    return parse_secrets(read_yaml(file), str(file))


def merge_secrets(configured: SecretSettings, stored: SecretSettings) -> SecretSettings:
    """Return the secrets in the settings, and those in the file for every kind that the settings do not contain."""
    return SecretSettings(
        key=configured.key or stored.key,
        salt=configured.salt or stored.salt,
        token_key=configured.token_key or stored.token_key,
        admin_token=stored.admin_token if configured.admin_token is None else configured.admin_token,
    )


def file_signature(file: Path) -> tuple[int, int, int] | None:
    """Return a value that changes whenever the file is written or replaced; None if the file does not exist."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
