"""Read configuration files, mounted secrets and YAML."""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from mlapi.atomic_files import fsync_folder
from mlapi.domain.errors import ConfigurationError
from mlapi.file_access import find_secrets_error


def read_mounted_value(file: Path, setting: str, *, is_secret: bool) -> str:
    """Return the content of a mounted file without trailing newlines.

    Args:
        file: path of the file.
        setting: the environment variable that names the file, for error messages.
        is_secret: whether to reject a file that other accounts can access.

    Raises:
        ConfigurationError: if the file cannot be read, or if it is secret and other accounts can access it.
    """
    shown = str(file) if _is_path(file) else "the file"
    value = _read_text(file, f"{setting}: {shown}").rstrip("\r\n")
    if is_secret and (error := find_secrets_error(file)) is not None:
        raise ConfigurationError(f"{setting}: {error}")
    return value


def _is_path(file: Path) -> bool:
    """Return False if this may be the secret itself instead of the path of its file."""
    folder = file.parent
    return os.path.lexists(file) or (file.is_absolute() and folder != folder.parent and folder.is_dir())


def was_left_behind(former: Path, current: Path) -> bool:
    """Return whether a file exists only at its former place. Earlier versions looked for it in the current folder."""
    try:
        return former.is_file() and not current.exists()
    except (OSError, ValueError):  # too long, inaccessible, or contains a NUL
        return False


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. An empty file yields an empty mapping.

    Raises:
        ConfigurationError: if the file cannot be read or is not a mapping. The message never shows the content.
    """
    try:
        tree = yaml.load(_read_text(file, str(file)), _StrictLoader)  # noqa: S506 - _StrictLoader is a SafeLoader
    except yaml.YAMLError as error:
        # PyYAML's own message quotes the line, which may hold a secret.
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark is not None else ""
        reason = str(error) if isinstance(error, _DuplicateKeyError) else "is not valid YAML"
        raise ConfigurationError(f"{file} {reason}{line}{_find_advice(error)}") from None
    except (ValueError, RecursionError):  # for example month 13, a number with thousands of digits, or deep nesting
        raise ConfigurationError(f"{file} is not valid YAML") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{file} must contain `key: value` lines")
    return tree


_ADVICE = {
    "found character '\\t'": "indent with spaces instead of tabs",
    "found character": "put values that begin with a special character in quotes",
    "mapping values are not allowed": "indent the lines of a section equally, and put values with a colon in quotes",
    "expected a mapping": "`<<` can merge only mappings",
    "found unexpected end of stream": "close every quote",
    "found undefined alias": "put values that begin with * in quotes",
    "could not determine a constructor": "put values that begin with ! in quotes",
}
"""Maps the beginning of PyYAML's description of a problem to our advice."""


def _find_advice(error: yaml.YAMLError) -> str:
    problem = str(getattr(error, "problem", ""))
    return next((f": {advice}" for beginning, advice in _ADVICE.items() if problem.startswith(beginning)), "")


class _DuplicateKeyError(yaml.YAMLError):
    def __init__(self, mark: yaml.Mark) -> None:
        super().__init__("contains the same key twice")
        self.problem_mark = mark


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader that rejects duplicate keys. A key beside ``<<`` overrides the same key of the merged mapping."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401 - types-PyYAML is wrong about it
        node = super().compose_mapping_node(anchor)
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) != len(keys):
            raise _DuplicateKeyError(node.start_mark)
        return node


def _read_text(file: Path, name: str) -> str:
    """Return the content of a regular file, after flushing it to disk.

    The process that wrote the file might not have flushed it yet. If a crash lost a key after passwords were encrypted
    with it, those passwords would be unrecoverable.
    """
    try:
        with open(file, encoding="utf-8", opener=_open_nonblocking) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ConfigurationError(f"{name} is not a regular file: replace it with a copy of its content")
            text = stream.read()
            with suppress(OSError):  # the folder may be unreadable, or the file system may not support fsync
                os.fsync(stream.fileno())
                fsync_folder(file.resolve().parent)
            return text
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{name} is not UTF-8") from None


def _open_nonblocking(path: str, flags: int) -> int:
    """Open a file with O_NONBLOCK: opening a FIFO would otherwise block until a process writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)
