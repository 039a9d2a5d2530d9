"""Files that hold secrets: who may read them, what is in them, and how the first one is made."""

import base64
import logging
import os
import secrets
import stat
from pathlib import Path
from typing import Any

import yaml

from mlapi.domain.errors import ConfigurationError

KEY_BYTES = 32
"""Bytes of a Fernet key: 16 to sign and 16 to encrypt (Fernet specification, "Key Format")."""

_logger = logging.getLogger("mlapi")


def is_open_to_others(file: Path) -> bool:
    """Whether users of this machine who are neither owner nor group may read or write it."""
    return bool(file.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH))


def open_to_others(file: Path) -> str:
    return f"{file} holds secrets and others may read it: run `chmod 600 {file}`"


def refuse_open_to_others(file: Path) -> None:
    """Raise `ConfigurationError` if others may read it."""
    if is_open_to_others(file):
        raise ConfigurationError(open_to_others(file))


def read_secret(file: Path, setting: str) -> str:
    """Return the content of a mounted secret without its last line ends.

    Raises:
        ConfigurationError: naming the setting, if it cannot be read or others may read it too.
    """
    try:
        refuse_open_to_others(file)
        return file.read_text("utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigurationError(f"{setting}: {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{setting}: {file} is not UTF-8") from None


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; an empty file is an empty one.

    Raises:
        ConfigurationError: if it cannot be read. Never shows its content.
    """
    try:
        tree = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{file} is not UTF-8") from None
    except yaml.YAMLError as error:
        # Its own words show the line, which may be the one with a secret.
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        raise ConfigurationError(f"{file} is not YAML{line}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{file} must hold `key: value` lines")
    return tree


def make_secrets_file(file: Path) -> None:
    """Make a new key and salt. Of several processes that start at once, one makes the file and all of them use it.

    Raises:
        ConfigurationError: if the folder cannot be written to.
    """
    key = base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode("ascii")
    content = (
        "# Made by mlapi at its first start. Keep a copy: without it no stored password can be checked again.\n"
        f"key: {key}\nsalt: {secrets.token_urlsafe(32)}\n"
    )
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(draft, file)  # unlike a rename, this never replaces what another process has made
        except FileExistsError:
            return
        finally:
            draft.unlink()
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be made: {error.strerror}") from None
    _logger.warning("made a new key and salt in %s; keep a copy of it with the database", file)
