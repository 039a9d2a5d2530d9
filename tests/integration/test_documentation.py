"""What the README and the docstrings show, runs."""

import doctest
from pathlib import Path
from types import ModuleType

import pytest

import mlapi.bootstrap
import mlapi.service

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_does_what_it_shows() -> None:
    failed, tried = doctest.testfile(str(README), module_relative=False, encoding="utf-8")

    assert tried > 10
    assert failed == 0


@pytest.mark.parametrize("module", [mlapi.service, mlapi.bootstrap])
def test_docstrings_do_what_they_show(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)

    assert tried > 0
    assert failed == 0
