"""Read a secrets file, and notice when it changes."""

from pathlib import Path

from mlapi.config.files import read_yaml
from mlapi.config.parsing import parse_secrets
from mlapi.config.settings import SecretSettings
from mlapi.domain.errors import ConfigurationError
from mlapi.file_access import find_secrets_error


def read_secrets_file(file: Path) -> SecretSettings:
    """Return the secrets in a file.

    Raises:
        ConfigurationError: if the file cannot be read, is invalid, or is accessible to other accounts.
    """
    if (error := find_secrets_error(file)) is not None:
        raise ConfigurationError(error)
    return parse_secrets(read_yaml(file), str(file))


def file_signature(file: Path) -> tuple[int, int, int] | None:
    """Return a value that changes whenever the file is written or replaced; None if the file does not exist."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
