"""Find the default database, and resolve relative paths in a configuration file from its folder."""

import re
from pathlib import Path
from urllib.parse import quote, unquote

from mlapi.config.files import was_left_behind
from mlapi.config.settings import Settings

_DEFAULT_URL = "sqlite:///mlapi.db"
_SQLITE_URL = re.compile(r"(sqlite(?:\+pysqlite)?:///)(.+)", re.DOTALL)
# Options of libpq that name a file: https://www.postgresql.org/docs/current/libpq-connect.html
_PATH_OPTION = re.compile(r"(?<=[?&])(sslcert|sslkey|sslrootcert|sslcrl|sslcrldir|passfile)=([^&]+)")
_NOT_A_PATH = frozenset({"system"})  # sslrootcert=system: the certificates of the operating system


def database_url_of(settings: Settings) -> str:
    """Return ``database.url``, or the URL of the default database, which is in `Settings.folder`."""
    return settings.database.url or resolve_database_url(_DEFAULT_URL, settings.folder)


def resolve_database_url(url: str, folder: Path) -> str:
    """Return a database URL with absolute paths instead of those relative to a folder."""
    match = _SQLITE_URL.match(url)
    if match is None:
        return _PATH_OPTION.sub(lambda option: f"{option[1]}={_resolve_option(option[2], folder)}", url)
    if Path(match[2]).is_absolute() or match[2] == ":memory:":
        return url
    encoded = str(folder).replace("%", "%25").replace("?", "%3F")
    return f"{match[1]}{encoded}/{match[2]}"


def find_moved_error(url: str | None, folder: Path, config: Path) -> str | None:
    """Return an error if the database is still at its former place, the current folder.

    Earlier versions looked there. Without this error, they would start with a new, empty database.

    Args:
        url: from a configuration file; None if it is not set there.
        folder: the folder of the file.
        config: the file, for the message.
    """
    match = _SQLITE_URL.match(url or _DEFAULT_URL)
    if match is None or Path(match[2]).is_absolute():
        return None
    former, current = Path(match[2]), folder / match[2]
    if not was_left_behind(former, current):
        return None
    return (
        f"{current} does not exist, but {former.absolute()} does. Paths in {config} are relative to its folder: move"
        " the database and its secrets.yml there, or set database.url to the absolute path. For a new database, start"
        " mlapi in another folder"
    )


def _resolve_option(value: str, folder: Path) -> str:
    path = Path(unquote(value))
    return value if path.is_absolute() or value in _NOT_A_PATH else quote(str(folder / path))
