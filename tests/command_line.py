"""Run the commands of ``mlapi`` in the process of the tests."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlapi.bootstrap import open_users
from mlapi.config import load_settings
from mlapi.entrypoints.cli import main


def mlapi(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=stdin)


class Terminal:
    """Replaces standard input where a command only asks whether it is a terminal."""

    @staticmethod
    def isatty() -> bool:
        return True


def create_users(folder: Path, names: Iterable[str], password: str) -> Path:
    """Create a database with users in a folder, and return the folder. Tests that change the users need a copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLAPI_PASSWORDS__SCHEME", "fernet")  # fast
        with open_users(load_settings()) as users:
            for name in names:
                users.register(username=name, password=password, email=f"{name}@example.com")
    return folder
