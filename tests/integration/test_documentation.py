"""What the README and the docstrings show, runs."""

import doctest
import re
from pathlib import Path
from types import ModuleType

import pytest

import mlapi.access
import mlapi.bootstrap
import mlapi.service
import mlapi.testing.fakes

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/access.md", "docs/adapters.md"])
def test_the_documentation_does_what_it_shows(page: str) -> None:
    failed, tried = doctest.testfile(str(ROOT / page), module_relative=False, encoding="utf-8")

    assert tried > 3
    assert failed == 0


@pytest.mark.parametrize("module", [mlapi.service, mlapi.access, mlapi.bootstrap, mlapi.testing.fakes])
def test_docstrings_do_what_they_show(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)

    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize(
    "page", [Path("README.md"), *sorted(path.relative_to(ROOT) for path in ROOT.glob("docs/*.md"))]
)
def test_every_link_to_a_file_of_ours_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text("utf-8"))

    assert [link for link in links if not (ROOT / page.parent / link).exists()] == []
