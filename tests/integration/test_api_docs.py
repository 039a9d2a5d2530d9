"""What the README, the pages in docs/ and the docstrings show, runs."""

import doctest
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import attrs
import click
import pytest
import requests

import mlapi.application.guard
import mlapi.application.users
import mlapi.bootstrap.service
import mlapi.bootstrap.storages
import mlapi.testing.fakes
from mlapi.config import Settings
from mlapi.entrypoints.cli import main
from tests.e2e.server import MlapiServer, Server

ROOT = Path(__file__).parents[2]
PAGES = [Path("README.md"), *sorted(path.relative_to(ROOT) for path in ROOT.glob("docs/*.md"))]
BASE = "http://localhost:8001"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text_of(page: Path) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def with_doctests() -> list[Path]:
    # That of adopting needs a database to adopt: tests/integration/test_adoption.py runs it.
    return [page for page in PAGES if ">>> " in text_of(page) and page.name != "adopting.md"]


def test_the_guides_have_examples_that_run() -> None:
    assert {str(page) for page in with_doctests()} >= {
        "README.md",
        "docs/embed.md",
        "docs/guard.md",
        "docs/testing.md",
    }


@pytest.mark.parametrize("page", with_doctests(), ids=str)
def test_the_documentation_does_what_it_shows(page: Path) -> None:
    failed, tried = doctest.testfile(str(ROOT / page), module_relative=False, encoding="utf-8")

    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize(
    "module",
    [
        mlapi.application.users,
        mlapi.application.guard,
        mlapi.bootstrap.service,
        mlapi.bootstrap.storages,
        mlapi.testing.fakes,
    ],
)
def test_docstrings_do_what_they_show(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)

    assert tried > 0
    assert failed == 0


# The Python of other pages is not complete. tests/integration/test_testing_kit.py runs the test files of testing.md
# and adapters.md.
@pytest.mark.parametrize(
    ("page", "actions"), [("docs/getting-started.md", ["remove", "disable", "register"]), ("README.md", [])]
)
def test_python_of_the_first_pages_runs(page: str, actions: list[str], folder: Path) -> None:
    (block,) = [block for block in blocks(Path(page), "python") if not block.startswith(">>>")]

    with Server(folder) as server:
        exec(compile(block.replace(BASE, server.base), page, "exec"), {"predict": None})
        entries = requests.get(f"{server.base}/audit", timeout=10).json()["entries"]

    assert [entry["action"] for entry in entries] == actions


def commands_and_answers(block: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a block, and the comment that follows it."""
    lines = block.replace("\\\n", " ").splitlines()
    for number, line in enumerate(lines):
        if line.startswith("curl"):
            yield line.partition("  # ")[0], lines[number + 1].removeprefix("# ")


def test_the_calls_of_the_readme_answer_what_it_says(folder: Path) -> None:
    token = ""
    with Server(folder) as server:
        answers = []
        for block in blocks(Path("README.md"), "sh"):
            for command, promised in commands_and_answers(block):
                told = command.replace(BASE, server.base).replace("eyJ...", token)
                shell = [*("bash", "-c"), told + " -s -w ' %{http_code}'"]
                body, _, status = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.rpartition(
                    " "
                )
                token = json.loads(body).get("token", token)
                shown = body.replace(token, "eyJ...") if token else body
                answers.append((f"{status} {shown}", promised))
            if "DELETE" in block:  # what follows is about ada again
                requests.post(f"{server.base}/register-user", json=ADA, timeout=10)

    assert len(answers) == 5
    for answer, promised in answers:
        assert promised.startswith(answer)


ADA = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}


def synopses() -> set[tuple[str, ...]]:
    """Return every command that a page names: ``mlapi keys new | rotate`` is two."""
    groups = "|".join(name for name, command in main.commands.items() if isinstance(command, click.Group))
    name = "[a-z][a-z-]*"
    shown = rf"(?:^|`|\$\()mlapi (?:({groups}) )?({name}(?: \| {name})*)"
    found: set[tuple[str, ...]] = set()
    for page in PAGES:
        code = "\n".join(re.findall(r"^```.*?^```$|`[^`\n]+`", text_of(page), re.MULTILINE | re.DOTALL))
        for group, names in re.findall(shown, code, re.MULTILINE):
            found |= {(group, one) if group else (one,) for one in names.split(" | ")}
    return found - {(group,) for group in groups.split("|")}


def test_every_command_that_a_page_names_is_there() -> None:
    commands: set[tuple[str, ...]] = {(name,) for name in main.commands}
    for name, group in main.commands.items():
        commands |= {(name, inner) for inner in getattr(group, "commands", {})}

    assert synopses() - commands == set()
    assert {name for name in commands if len(name) == 2 or name[0] in {"serve", "doctor"}} <= synopses()


def test_the_way_into_production_is_as_it_is_written(folder: Path) -> None:
    (block,) = blocks(Path("docs/production.md"), "sh")
    *steps, _serve = block.replace(
        "postgresql://mlapi:…@db.example.com/mlapi", f"sqlite:///{folder}/mlapi.db"
    ).splitlines()
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    script = "\n".join(["set -e", *steps, "env"])
    done = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "problem" not in done.stdout

    settings = dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("MLAPI_"))
    with MlapiServer(folder, settings) as server:
        assert requests.get(f"{server.base}/health/ready", timeout=10).status_code == 200
        assert requests.get(f"{server.base}/users", timeout=10).status_code == 401


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_to_a_file_of_ours_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text_of(page))

    assert [link for link in links if not (ROOT / page.parent / link).exists()] == []


def test_table_of_contents_links_every_page() -> None:
    pages = [page.name for page in PAGES[1:] if page.name != "README.md"]

    assert [page for page in pages if f"({page})" not in text_of(Path("docs/README.md"))] == []
    assert "(docs/README.md)" in text_of(Path("README.md"))


def test_every_setting_is_documented_with_its_default() -> None:
    page = text_of(Path("docs/configuration.md"))
    sections = {field.name: field.type for field in attrs.fields(Settings) if field.type and attrs.has(field.type)}

    missing = [
        f"{section}.{field.name}"
        for section, kind in sections.items()
        for field in attrs.fields(kind)
        if f"{section}.{field.name}" not in page and f"`.{field.name}`" not in page
    ]
    assert missing == []
