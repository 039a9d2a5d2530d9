"""Resolve relative paths in a configuration file, which are relative to the folder of the file."""

import re
from pathlib import Path
from urllib.parse import quote, unquote

from mlapi.config.files import was_left_behind
from mlapi.config.settings import DEFAULT_DATABASE_FILE

_DEFAULT_URL = f"sqlite:///{DEFAULT_DATABASE_FILE}"
_SQLITE_URL = re.compile(r"(sqlite(?:\+pysqlite)?:///)(.+)", re.DOTALL)
# Options of libpq that name a file: https://www.postgresql.org/docs/current/libpq-connect.html
_PATH_OPTION = re.compile(r"(?<=[?&])(sslcert|sslkey|sslrootcert|sslcrl|sslcrldir|passfile)=([^&]+)")
_NOT_A_PATH = frozenset({"system"})  # sslrootcert=system: the certificates of the operating system


def resolve_database_url(url: str | None, folder: Path) -> str:
    """Return ``database.url``, or the default. Relative paths in it become absolute.

    Args:
        url: from a configuration file; None if it is not set there.
        folder: the folder of the file.
    """
    if url is not None and not _SQLITE_URL.match(url):
        return _PATH_OPTION.sub(lambda match: f"{match[1]}={_resolve_option(match[2], folder)}", url)
    match = _SQLITE_URL.match(_DEFAULT_URL if url is None else url)
    if match is None or Path(match[2]).is_absolute() or match[2] == ":memory:":
        return url or _DEFAULT_URL
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
