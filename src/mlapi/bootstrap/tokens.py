"""Create the token issuer that the settings select, and locate the file that may contain its keys."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from mlapi.config import Settings, TokenSettings
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.ports import TokenIssuer

_FILE_NAME = "secrets.yml"


def make_tokens(settings: TokenSettings, keys: Sequence[bytes]) -> TokenIssuer:
    """Return an issuer that signs with the first key and accepts tokens signed with any of them."""
    from mlapi.adapters.jwt import JwtTokenIssuer  # noqa: PLC0415 - a guard without token keys saves 10 MB of memory

    return JwtTokenIssuer(
        keys,
        lifetime=timedelta(minutes=settings.minutes),
        issuer=settings.issuer,
        audience=settings.audience,
    )


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
    file = (settings.folder / folder).absolute() / _FILE_NAME
    former = Path(_FILE_NAME).absolute()
    if not (folder.is_absolute() or settings.secrets.key or file.exists()) and former.exists():
        raise ConfigurationError(
            f"{file} does not exist, but {former} does: move it there, because the secrets belong beside the"
            " configuration file"
        )
    return file
