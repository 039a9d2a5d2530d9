"""Files that hold secrets: who may read them, what is in them, and how the first one is made."""

import base64
import fcntl
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from mlapi.domain.errors import ConfigurationError

KEY_BYTES = 32
"""Bytes of a Fernet key: 16 to sign and 16 to encrypt (Fernet specification, "Key Format")."""
_DRAFT = re.compile(r"[0-9a-f]{16}")
_ABANDONED = 60.0
"""Seconds after which whoever has begun to write a file is gone."""

_logger = logging.getLogger("mlapi")


def open_to_others(file: Path) -> str | None:
    """What is wrong if users of this machine who are neither owner nor group may read or write a file, or None."""
    if file.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
        return f"{file} holds secrets and others may read it: run `chmod 600 {file}`"
    return None


def read_value(file: Path, setting: str, *, is_secret: bool) -> str:
    """Return the content of a mounted file without its last line ends.

    Raises:
        ConfigurationError: naming the setting, if it cannot be read, or is a secret and others may read it too.
    """
    value = _read_text(file, f"{setting}: {file}").rstrip("\r\n")
    if is_secret and (problem := open_to_others(file)) is not None:
        raise ConfigurationError(f"{setting}: {problem}")
    return value


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; an empty file is an empty one.

    Raises:
        ConfigurationError: if it cannot be read. Never shows its content.
    """
    try:
        tree = yaml.load(_read_text(file, str(file)), _StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        # Its own words show the line, which may be the one with a secret.
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        what = str(error) if isinstance(error, _DuplicateKeyError) else "not YAML"
        raise ConfigurationError(f"{file} is {what}{line}") from None
    except (ValueError, RecursionError):  # a month 13, a number of thousands of digits, a thousand brackets
        raise ConfigurationError(f"{file} is not YAML that can be held") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{file} must hold `key: value` lines")
    return tree


class _DuplicateKeyError(yaml.YAMLError):
    def __init__(self, mark: yaml.Mark) -> None:
        super().__init__("ambiguous, a key stands twice")
        self.problem_mark = mark


class _StrictLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - its base's
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            raise _DuplicateKeyError(node.start_mark)
        return mapping


def _read_text(file: Path, name: str) -> str:
    """Return the content of a regular file that is durable by then.

    Whoever has just made or changed it may not have come to that yet, and what is encrypted with a key from it must not
    outlive the key.
    """
    try:
        with open(file, encoding="utf-8", opener=_open_at_once) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ConfigurationError(f"{name} is no regular file: put a copy of its content there")
            text = stream.read()
            with suppress(OSError):  # of a folder that is closed to us, or a file system without it
                os.fsync(stream.fileno())
                fsync_folder(file.resolve().parent)
            return text
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{name} is not UTF-8") from None


def _open_at_once(path: str, flags: int) -> int:
    """Wait for nobody: to open a FIFO waits for whoever writes to it, and may be for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def make_secrets_file(file: Path) -> None:
    """Make a new key and salt. Of several processes that start at once, one makes the file and all of them use it.

    Raises:
        ConfigurationError: if the folder cannot be written to.
    """
    try:
        with _draft(file, {"key": new_key(), "salt": new_salt()}) as draft:
            os.link(draft, file)  # unlike a rename, this never replaces what another process has made
    except FileExistsError:
        return
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be made: {error.strerror}") from None
    _logger.warning("made a new key and salt in %s; keep a copy of it with the database", file)


def change_secrets_file(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write what ``change`` makes of a secrets file's content: whole or not at all. Whoever calls holds its lock.

    Owner and mode stay as they were: whoever runs this, the service must read the file as before.

    Raises:
        ConfigurationError: if the file cannot be read or written.
    """
    file = file.resolve()  # or a link would be replaced, and what it points at keep the old ones
    try:
        tree = read_yaml(file)
        _remove_abandoned_drafts(file)
        status = file.stat()
        with _draft(file, change(tree), like=status) as draft:
            draft.replace(file)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be changed: {error.strerror}") from None


@contextmanager
def locked_secrets_file(file: Path) -> Iterator[None]:
    """Hold the lock of a secrets file, from the first look at it to the last change that follows from that.

    Raises:
        ConfigurationError: if another process holds it.
    """
    descriptor = os.open(file.resolve().parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigurationError(f"another command changes {file}: wait for it to end") from None
    finally:
        os.close(descriptor)


def new_key() -> str:
    """Return a new Fernet or token key."""
    return base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode("ascii")


def new_salt() -> str:
    return secrets.token_urlsafe(32)


def file_signature(file: Path) -> tuple[int, int, int] | None:
    """Return what changes whenever a file is written or replaced; None for one that is not there."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


@contextmanager
def _draft(file: Path, tree: dict[str, Any], *, like: os.stat_result | None = None) -> Iterator[Path]:
    """A durable file beside another one, with a tree in it; gone afterwards.

    Nobody else may read it, or with ``like`` whoever may by those owner and mode.
    """
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write("# Made by mlapi. Keep a copy: without it no stored password can be checked again.\n")
            yaml.safe_dump(tree, stream, sort_keys=False)
            stream.flush()
            if like is not None:
                os.fchown(descriptor, like.st_uid, like.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
            os.fsync(descriptor)
        yield draft
    finally:
        draft.unlink(missing_ok=True)
    fsync_folder(file.parent)


def _remove_abandoned_drafts(file: Path) -> None:
    """Remove what commands that were killed have left: there are keys in it."""
    for path in file.parent.iterdir():
        name, _, random = path.name.rpartition(".")
        is_draft = name == f".{file.name}" and _DRAFT.fullmatch(random) is not None
        # Whoever makes a first file holds no lock, and is done with its draft long before that.
        if is_draft and time.time() - path.lstat().st_mtime > _ABANDONED:
            path.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Make the name of a new file durable: users may be, a moment later, who are lost without it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
