"""Check which accounts of this machine can access a file, before trusting its content.

The functions return an error message with a solution, or None. They check only the file itself, and ignore that other
accounts may be able to rename files in its folder.
"""

import os
import stat
from pathlib import Path

_NO_EFFECT = "if that has no effect, move it to a file system that supports permissions"


def find_secrets_error(file: Path) -> str | None:
    """Return an error if a file with secrets exists, and accounts outside its group can access it."""
    if _mode(file) & (stat.S_IROTH | stat.S_IWOTH):
        return f"{file} holds secrets, but other accounts can access it: run `chmod 600 {file}`; {_NO_EFFECT}"
    return _find_owner_error(file)


def find_database_error(file: Path) -> str | None:
    """Return an error if a file of a database exists, and accounts outside its group can change it."""
    if _mode(file) & stat.S_IWOTH:
        return f"every account can change {file}: run `chmod 600 {file}`; {_NO_EFFECT}"
    return _find_owner_error(file)


def find_database_warning(file: Path) -> str | None:
    """Return a warning if a file of a database exists, and accounts outside its group can read it."""
    if _mode(file) & stat.S_IROTH:
        return f"every account can read {file}: run `chmod 600 {file}`; {_NO_EFFECT}"
    return None


def _mode(file: Path) -> int:
    """Return the permissions of a file, or 0 if it does not exist: other processes may delete it at any time."""
    try:
        return stat.S_IMODE(file.stat().st_mode)
    except FileNotFoundError:
        return 0


def _find_owner_error(file: Path) -> str | None:
    """Return an error unless the file belongs to this account, to root, or to the owner of its folder.

    The owner of the folder can replace the file anyway. Commands may run as root while the service has an account of
    its own.
    """
    try:
        owner = file.stat().st_uid
    except FileNotFoundError:
        return None
    if owner in {os.geteuid(), 0, file.resolve().parent.stat().st_uid}:
        return None
    return (
        f"{file} belongs to another account (user id {owner}), which can change it: if its content is yours, run"
        f" `chown {os.geteuid()} {file}`; otherwise, delete it"
    )
