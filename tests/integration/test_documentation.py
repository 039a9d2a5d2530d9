"""The examples in README.md, docs/ and docstrings run as shown."""

import doctest
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import attrs
import click
import pytest
import requests

from mlapi.config import Settings
from mlapi.entrypoints.cli import main
from tests.e2e.server import MlapiServer, Server

ROOT = Path(__file__).parents[2]
ROOT_PAGES = [Path("CONTRIBUTING.md"), Path("CHANGELOG.md"), Path("RELIABILITY.md"), Path("SECURITY.md")]
PAGES = [Path("README.md"), *sorted(path.relative_to(ROOT) for path in ROOT.glob("docs/*.md"))]
BASE = "http://localhost:8001"
ADA = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}
MODULES = [
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    for path in sorted(ROOT.glob("src/mlapi/**/*.py"))
    if re.search(r">>> (?!.*\+SKIP)", path.read_text("utf-8"))
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_page(page: Path) -> str:
    return (ROOT / page).read_text("utf-8")


def log_in(base: str) -> str:
    credentials = {"username": ADA["username"], "password": ADA["password"]}
    token: str = requests.post(f"{base}/token", json=credentials, timeout=10).json()["token"]
    return token


def find_code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", read_page(page), re.MULTILINE | re.DOTALL)


def pages_with_doctests() -> list[Path]:
    # The example in adopting.md needs a legacy database: tests/integration/test_adoption.py runs it.
    return [page for page in PAGES if ">>> " in read_page(page) and "adopt" not in page.name]


def test_several_pages_have_doctests() -> None:
    assert len(pages_with_doctests()) >= 4
    assert Path("README.md") in pages_with_doctests()


@pytest.mark.parametrize("page", pages_with_doctests(), ids=str)
def test_doctests_in_pages_pass(page: Path) -> None:
    failed, tried = doctest.testfile(str(ROOT / page), module_relative=False, encoding="utf-8")

    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize("module", MODULES)
def test_doctests_in_docstrings_pass(module: str) -> None:
    failed, tried = doctest.testmod(import_module(module))

    assert tried > 0
    assert failed == 0


# The Python code on other pages is incomplete. tests/integration/test_testing_kit.py runs the test files in testing.md
# and adapters.md.
@pytest.mark.parametrize(
    ("page", "actions"), [("docs/getting-started.md", ["remove", "disable", "register"]), ("README.md", [])]
)
def test_python_code_on_the_first_pages_runs(page: str, actions: list[str], folder: Path) -> None:
    (block,) = [block for block in find_code_blocks(Path(page), "python") if not block.startswith(">>>")]

    with Server(folder) as server:
        exec(compile(block.replace(BASE, server.base), page, "exec"), {"predict": None})
        entries = requests.get(f"{server.base}/audit", timeout=10).json()["entries"]

    assert [entry["action"] for entry in entries] == actions


def iterate_commands(block: str) -> Iterator[tuple[str, str]]:
    """Yield each curl command in a block, and the comment below it."""
    lines = block.replace("\\\n", " ").splitlines()
    for number, line in enumerate(lines):
        if line.startswith("curl"):
            yield line.partition("  # ")[0], lines[number + 1].removeprefix("# ")


def test_readme_curl_commands_return_the_shown_responses(folder: Path) -> None:
    token = ""
    with Server(folder) as server:
        responses = []
        for block in find_code_blocks(Path("README.md"), "sh"):
            for command, documented in iterate_commands(block):
                actual = command.replace(BASE, server.base).replace("eyJ...", token)
                shell = [*("bash", "-c"), actual + " -s -w ' %{http_code}'"]
                body, _, status = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.rpartition(
                    " "
                )
                token = json.loads(body).get("token", token)
                shortened = body.replace(token, "eyJ...") if token else body
                responses.append((f"{status} {shortened}", documented))
            if "DELETE" in block:  # later blocks need the user ada
                requests.post(f"{server.base}/register-user", json=ADA, timeout=10)

    assert len(responses) == 5
    for response, documented in responses:
        assert documented.startswith(response)


def find_mentioned_commands() -> set[tuple[str, ...]]:
    """Return all mlapi commands on the pages. ``mlapi keys new | rotate`` counts as two commands."""
    groups = "|".join(name for name, command in main.commands.items() if isinstance(command, click.Group))
    word = "[a-z][a-z-]*"
    pattern = rf"(?:^|`|\$\()mlapi (?:({groups}) )?({word}(?: \| {word})*)"
    mentioned: set[tuple[str, ...]] = set()
    for page in PAGES:
        code = "\n".join(re.findall(r"^```.*?^```$|`[^`\n]+`", read_page(page), re.MULTILINE | re.DOTALL))
        for group, names in re.findall(pattern, code, re.MULTILINE):
            mentioned |= {(group, name) if group else (name,) for name in names.split(" | ")}
    return mentioned - {(group,) for group in groups.split("|")}


def test_pages_mention_all_commands_and_no_others() -> None:
    commands: set[tuple[str, ...]] = {(name,) for name in main.commands}
    for name, group in main.commands.items():
        commands |= {(name, inner) for inner in getattr(group, "commands", {})}

    assert find_mentioned_commands() - commands == set()
    assert {name for name in commands if len(name) == 2 or name[0] in {"serve", "doctor"}} <= find_mentioned_commands()


def test_commands_in_the_production_guide_work(folder: Path) -> None:
    (block,) = find_code_blocks(Path("docs/production.md"), "sh")
    *steps, _serve = block.replace(
        "postgresql://mlapi:…@db.example.com/mlapi", f"sqlite:///{folder}/mlapi.db"
    ).splitlines()
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    script = "\n".join(["set -e", *steps, "env"])
    result = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "problem" not in result.stdout

    settings = dict(line.split("=", 1) for line in result.stdout.splitlines() if line.startswith("MLAPI_"))
    with MlapiServer(folder, settings) as server:
        assert requests.get(f"{server.base}/health/ready", timeout=10).status_code == 200
        assert requests.get(f"{server.base}/users", timeout=10).status_code == 401


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs the sqlite3 command")
def test_commands_in_the_backup_guide_work(folder: Path) -> None:
    back_up, check, restore = find_code_blocks(Path("docs/backup.md"), "sh")
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    with Server(folder) as server:
        requests.post(f"{server.base}/register-user", json=ADA, timeout=10)
        script = f"umask 022\n{back_up}touch public\n{check}"
        subprocess.run(["bash", "-ec", script], env=environ, check=True)
        requests.post(f"{server.base}/register-user", json={**ADA, "username": "grace"}, timeout=10)
    subprocess.run(["bash", "-ec", f"umask 022\n{restore}"], env=environ, check=True)

    with Server(folder) as server:
        users = requests.get(f"{server.base}/users", timeout=10).json()["users"]
        log_in(server.base)
    assert [user["username"] for user in users] == ["ada"]
    assert not (folder / "check").exists()
    private = ["backup.db", "backup-secrets.yml", "mlapi.db", "secrets.yml"]
    assert [(folder / name).stat().st_mode & 0o777 for name in (*private, "public")] == [0o600] * 4 + [0o644]


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs the sqlite3 command")
def test_guard_that_runs_during_a_restore_sees_later_disables(folder: Path) -> None:
    back_up, _check, restore = find_code_blocks(Path("docs/backup.md"), "sh")
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    with Server(folder, app="tests.torture.guarded_app:app") as guarded:
        with Server(folder) as server:
            requests.post(f"{server.base}/register-user", json=ADA, timeout=10)
            headers = {"Authorization": f"Bearer {log_in(server.base)}"}
            assert requests.get(f"{guarded.base}/predict", headers=headers, timeout=10).status_code == 200
            subprocess.run(["bash", "-ec", back_up], env=environ, check=True)
        subprocess.run(["bash", "-ec", restore], env=environ, check=True)
        with Server(folder) as server:
            requests.put(f"{server.base}/toggle-user-permission/1/0", timeout=10)
            statuses = [
                requests.get(f"{guarded.base}/predict", headers=headers, timeout=10).status_code for _ in range(3)
            ]

    assert statuses[0] in {403, 503}
    assert statuses[1:] == [403, 403]


@pytest.mark.parametrize("page", [*PAGES, *ROOT_PAGES], ids=str)
def test_links_between_pages_resolve(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", read_page(page))

    targets = [(page.parent / file if file else page, anchor) for file, anchor in links]
    assert [str(target) for target, _ in targets if not (ROOT / target).exists()] == []
    assert [f"{target}#{anchor}" for target, anchor in targets if anchor and anchor not in find_anchors(target)] == []


def find_anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", read_page(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_table_of_contents_links_to_every_page() -> None:
    pages = [page.name for page in PAGES[1:] if page.name != "README.md"]

    assert [page for page in pages if f"({page})" not in read_page(Path("docs/README.md"))] == []
    assert "(docs/README.md)" in read_page(Path("README.md"))


def test_every_setting_is_documented() -> None:
    text = "".join(map(read_page, PAGES))
    sections = {field.name: field.type for field in attrs.fields(Settings) if field.type and attrs.has(field.type)}

    missing = [
        f"{section}.{field.name}"
        for section, kind in sections.items()
        for field in attrs.fields(kind)
        if f"{section}.{field.name}" not in text and f"`.{field.name}`" not in text
    ]
    assert missing == []
