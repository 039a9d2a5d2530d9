"""The plan of the house holds, and each of its rules fails when it is broken."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BROKEN_BY = [
    ("imports run one way", "service.py", "import mlapi.config"),
    ("imports run one way", "utils.py", "PLACE = None  # a module that the plan does not know"),
    ("inside the domain", "domain/model.py", "import mlapi.domain.changes"),
    ("inside the domain", "domain/credentials.py", "import mlapi.domain.changes"),
    ("domain, service and access know no database", "domain/changes.py", "import sqlalchemy"),
    ("domain, service and access know no database", "access.py", "import jwt"),
    ("no adapter imports another", "adapters/fernet/ciphers.py", "import mlapi.adapters.sql"),
    ("no adapter imports another", "adapters/rotation.py", "import mlapi.adapters.jwt"),
    ("what our HTTP says is free of any web framework", "entrypoints/wire/answers.py", "import starlette"),
    ("only the SQL adapter speaks SQL", "entrypoints/cli/users.py", "import sqlalchemy"),
]


def broken_contracts(folder: Path) -> str:
    """Return the names of the contracts that do not hold in a copy of the package."""
    lint_imports = Path(sys.executable).with_name("lint-imports")
    environ = {**os.environ, "PYTHONPATH": str(folder / "src"), "COLUMNS": "200"}
    result = subprocess.run(
        [lint_imports, "--no-cache"], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    broken = re.findall(r"^(.*) BROKEN$", result.stdout, re.MULTILINE)
    assert bool(result.returncode) == bool(broken), result.stdout + result.stderr
    return "; ".join(broken)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src")
    return tmp_path


def test_the_contracts_hold(copy: Path) -> None:
    assert broken_contracts(copy) == ""


def test_every_adapter_is_in_the_contract_about_them() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    folder = ROOT / "src" / "mlapi" / "adapters"

    (named,) = [contract["modules"] for contract in contracts if contract["name"] == "no adapter imports another"]
    there = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert sorted(named) == sorted(f"mlapi.adapters.{name}" for name in there - {"__init__"})


@pytest.mark.parametrize(("contract", "module", "line"), BROKEN_BY)
def test_a_contract_fails_when_it_is_broken(copy: Path, contract: str, module: str, line: str) -> None:
    with (copy / "src" / "mlapi" / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")

    assert contract in broken_contracts(copy)
