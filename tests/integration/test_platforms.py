"""On a system without the Unix modules, such as Windows, mlapi says in one line what it needs."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlapi.__main__ import main

BLOCK_UNIX_MODULES = "import sys; sys.modules.update(dict.fromkeys(['fcntl', 'grp', 'pwd', 'resource', 'termios'])); "
ERROR = (
    "mlapi needs Linux or macOS: on Windows, run it in WSL (https://learn.microsoft.com/windows/wsl)."
    " Only `import mlapi` and the fakes in mlapi.testing work everywhere"
)


def run_without_unix_modules(code: str, folder: Path) -> tuple[int, str, str]:
    result = subprocess.run(
        [sys.executable, "-c", BLOCK_UNIX_MODULES + code], cwd=folder, capture_output=True, text=True, check=False
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("arguments", [[], ["serve"], ["users", "list"], ["--version"]], ids=" ".join)
def test_every_command_fails_with_one_line_on_windows(arguments: list[str], tmp_path: Path) -> None:
    code = f"from mlapi.__main__ import main; sys.argv[1:] = {arguments}; main()"

    assert run_without_unix_modules(code, tmp_path) == (1, "", f"mlapi: {ERROR}\n")


@pytest.mark.parametrize(
    "opening",
    [
        "from mlapi.bootstrap import open_users as run; from mlapi.config import *; run(load_settings()).__enter__()",
        "from mlapi.bootstrap import open_guard as run; from mlapi.config import Settings; run(Settings()).__enter__()",
    ],
    ids=["open_users", "open_guard"],
)
def test_opening_a_database_names_the_systems_that_work(opening: str, tmp_path: Path) -> None:
    status, _, error = run_without_unix_modules(opening, tmp_path)

    assert (status, error.splitlines()[-1]) == (1, f"mlapi.domain.errors.ConfigurationError: {ERROR}")
    assert list(tmp_path.iterdir()) == []


def test_imports_and_fakes_work_on_windows(tmp_path: Path) -> None:
    code = """
from mlapi import Users
from mlapi.entrypoints.guard import GuardMiddleware
from mlapi.entrypoints.http import app, create_app
from mlapi.testing import InMemoryUserRepository, PlainCipher

users = Users(InMemoryUserRepository(), PlainCipher())
create_app(users)
print(users.register(username="ada", password="difference engine", email="ada@example.com").id)
"""

    assert run_without_unix_modules(code.strip(), tmp_path) == (0, "1\n", "")


def test_command_reports_the_system_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # an import then fails

    with pytest.raises(SystemExit) as exc_info:
        main()

    assert (exc_info.value.code, capsys.readouterr().err) == (1, f"mlapi: {ERROR}\n")


def test_missing_packages_are_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "mlapi.entrypoints.cli", raising=False)
    monkeypatch.setitem(sys.modules, "click", None)

    with pytest.raises(SystemExit) as stopped:
        main()

    expected = "mlapi: the command line needs the package click: pip install mlapi-users\n"
    assert (stopped.value.code, capsys.readouterr().err) == (1, expected)
