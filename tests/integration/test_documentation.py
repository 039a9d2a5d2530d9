"""The examples in README.md, docs/ and docstrings run as shown."""

import doctest
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import click
import pytest
import requests
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from starlette.testclient import TestClient

from mlapi import ConfigurationError
from mlapi.bootstrap import open_guard, open_service, open_users
from mlapi.config import Settings, load_settings
from mlapi.entrypoints.cli import main
from mlapi.testing import assert_all_routes_guarded
from tests.e2e.server import MlapiServer, Server
from tests.postgres_server import free_port

ROOT = Path(__file__).parents[2]
ROOT_PAGES = [Path("CONTRIBUTING.md"), Path("CHANGELOG.md"), Path("RELIABILITY.md"), Path("SECURITY.md")]
PAGES = [Path("README.md"), *sorted(path.relative_to(ROOT) for path in ROOT.glob("docs/*.md"))]
README_MAX_LINES = 150
REPOSITORY = urlsplit(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"])
HOSTS = (REPOSITORY.netloc, "raw.githubusercontent.com")
REPOSITORY_LINK = re.compile(
    rf"https://(?:{HOSTS[0]}{REPOSITORY.path}/(?:blob|tree)|{HOSTS[1]}{REPOSITORY.path})/main/([^#]+).*"
)
ADA: dict[str, Any] = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}
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


def make_script(page: Path, folder: Path) -> str:
    """Return a shell script that runs the sh and Python blocks of a page from top to bottom.

    Servers run in the background, on free ports. Each curl command prints a line with the body and a line with the
    status. A Python block that starts with a file name is written to that file.
    """
    ports = {"8001": str(free_port()), "8002": str(free_port())}
    lines = ["set -e", "trap 'jobs -p | xargs -r kill; wait' EXIT"]
    for language, text in re.findall(r"^```(sh|python)\n(.*?)^```$", read_page(page), re.MULTILINE | re.DOTALL):
        block = re.sub(r"\b800[12]\b", lambda match: ports[match[0]], text)
        if language == "python" and (file := re.match(r"# (\w+\.py)\n", block)):
            (folder / file[1]).write_text(block, "utf-8")
        elif language == "python" and not block.startswith(">>>"):
            lines += [f"python - <<'END'\n{block}END"]
        elif language == "sh":
            lines += [make_command(line, ports) for line in block.replace("\\\n", " ").splitlines()]
    return "\n".join(lines)


def make_command(line: str, ports: dict[str, str]) -> str:
    command = line.partition("  # ")[0]
    if command.startswith(("git clone", "pip install")):  # everything is already installed for the tests
        return ""
    if command.startswith(("mlapi serve", "uvicorn")):
        is_service = command.startswith("mlapi")
        port = ports["8001" if is_service else "8002"]
        return (
            f"{command} {f'--port {port}' if is_service else ''} >> servers.log 2>&1 & "
            f"for _ in {{1..300}}; do curl -s -o /dev/null localhost:{port} && break; sleep 0.1; done"
        )
    return f"{command} -s -w '\\n%{{http_code}}\\n'" if command.startswith("curl") else command


def run_page(page: str, folder: Path, stdin: str = "") -> list[str]:
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = make_script(Path(page), folder)
    result = subprocess.run(
        ["bash", "-c", script], env=environ, cwd=folder, input=stdin, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_getting_started_runs_from_top_to_bottom(folder: Path) -> None:
    printed = run_page("docs/getting-started.md", folder, stdin=ADA["password"])

    documented = re.findall(r"print\(.*  # (.*)", read_page(Path("docs/getting-started.md")))
    assert printed[: len(documented)] == documented == ["ada", "User is disabled"]
    registered, heading, row, disabled = printed[2:]
    assert (registered, disabled) == ("registered user 2 (grace)", "disabled user 2 (grace)")
    assert (heading.split()[1:3], row.split()[1:3]) == (["STATE", "USERNAME"], ["active", "grace"])
    with open_users(load_settings()) as users:
        actions = [entry.action for entry in users.list_audit_page(limit=10)]
    assert actions == ["disable", "register", "remove", "disable", "register"]


def test_subscription_guide_runs_from_top_to_bottom(folder: Path) -> None:
    registered, status, first, heading, row, renewed = run_page("docs/subscriptions.md", folder)

    assert (json.loads(registered)["user_id"], status) == (1, "201")
    assert [line.partition(":")[0] for line in (first, renewed)] == ["updated user 1 (ada)"] * 2
    assert (heading.split()[1], row.split()[1:3]) == ("STATE", ["active", "ada"])
    with open_users(load_settings()) as users:
        (ada,) = users.list_page()
        entries = [entry.changes for entry in users.list_audit_page(limit=2)]
    assert ada.expires_datetime is not None
    assert ada.expires_datetime - ada.created_datetime > timedelta(days=58)
    assert all(entry is not None and set(json.loads(entry)) == {"expires_at"} for entry in entries)


def test_readme_runs_from_top_to_bottom_as_shown(folder: Path) -> None:
    printed = run_page("README.md", folder)

    documented = re.findall(r"^# ([1-5]\d\d) (.*?)(?:\s{3,}.*)?$", read_page(Path("README.md")), re.MULTILINE)
    assert list(zip(printed[1::2], printed[::2], strict=True)) == documented
    assert [int(status) for status, _ in documented] == [201, 200, 200, 403, 200]


def test_readme_has_at_most_150_lines() -> None:
    assert read_page(Path("README.md")).count("\n") <= README_MAX_LINES


@pytest.mark.parametrize("framework", ["starlette", "fastapi", "flask"])
def test_commands_in_guarded_examples_match_the_guide(framework: str) -> None:
    text = read_page(Path(f"examples/model_api/{framework}_app.py"))
    (command,) = re.findall(r"^    PYTHONPATH=~/mlapi (.*)", text, re.MULTILINE)
    (body,) = re.findall(r"-d '(.*)'", text)

    assert f"examples.model_api.{framework}_app" in command
    assert set(json.loads(body)) == set(import_module("examples.model_api.model").MEASUREMENTS)
    guide = read_page(Path("docs/guard.md"))
    assert f"PYTHONPATH=~/mlapi {command}\n" in guide
    assert f"-d '{body}'" in guide


def test_fastapi_application_in_the_guard_guide_works(folder: Path) -> None:
    blocks = [block for block in find_code_blocks(Path("docs/guard.md"), "python") if not block.startswith(">>>")]
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(block, namespace)
    app = namespace["app"]
    origin = {"Origin": "https://app.example.com"}
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}

    with open_service(load_settings()) as service, TestClient(app) as client:
        user = service.users.register(**ADA)
        token = service.access.authenticator.log_in(username="ada", password=ADA["password"]).token
        _, api_key = service.users.add_api_key(user_id=user.id, name="nightly job")

        def predict(credential: str) -> tuple[int, Any]:
            headers = {"Authorization": f"Bearer {credential}", **origin}
            response = client.post("/predict", json={"petal_length": 1.4}, headers=headers)
            assert response.headers["access-control-allow-origin"] == origin["Origin"]
            return response.status_code, response.json()

        assert predict(token) == (200, {"species": "setosa", "asked_by": "ada"})
        assert client.options("/predict", headers=origin | preflight).status_code == 200
        with client.websocket_connect("/chat", subprotocols=["bearer", token]) as socket:
            assert socket.receive_text() == "Hello ada"
        generated = client.post("/generate", headers={"Authorization": f"Bearer {token}"})
        assert generated.text == "Iris setosa is small."
        opened = [client.get(path).status_code for path in ("/health", "/docs", "/openapi.json", "/redoc")]
        service.users.set_enabled(user_id=user.id, enabled=False)
        assert predict(token)[0] == predict(api_key)[0] == 403
        service.users.set_enabled(user_id=user.id, enabled=True)
        assert (predict(token)[0], predict(api_key)[0]) == (401, 200)

    assert opened == [200, 200, 200, 401]
    with open_service(load_settings()) as service:  # the guard has written its usage when its lifespan ended
        assert sum(row.units for row in service.usage.list_page(user_id=user.id, limit=10)) == 4
    assert_all_routes_guarded(app, exempt=["/health", "/docs", "/docs/oauth2-redirect", "/openapi.json"])


def test_guard_in_another_folder_needs_an_absolute_url(folder: Path) -> None:
    (url,) = re.findall(r"^export MLAPI_DATABASE__URL=(.*)", read_page(Path("docs/guard.md")), re.MULTILINE)
    (folder / "service").mkdir()
    absolute = {"MLAPI_DATABASE__URL": url.replace("/srv/mlapi", f"{folder}/service")}
    with open_service(load_settings(environ=absolute)) as service:
        service.users.register(**ADA)
        token = service.access.authenticator.log_in(username="ada", password=ADA["password"]).token

    with open_guard(load_settings(environ=absolute)) as guard:
        assert guard.check(token).username == "ada"
    assert not (folder / "mlapi.db").exists()
    with pytest.raises(ConfigurationError, match="there is no database at"), open_guard(load_settings(environ={})):
        pass


def subcommands(group: click.Command) -> dict[str, click.Command]:
    if not isinstance(group, click.Group):
        return {}
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def find_mentioned_commands() -> set[tuple[str, ...]]:
    """Return all mlapi commands on the pages. ``mlapi secrets new | rotate`` counts as two commands."""
    groups = "|".join(name for name, command in subcommands(main).items() if isinstance(command, click.Group))
    word = "[a-z][a-z-]*"
    pattern = rf"(?:^|`|\$\()mlapi (?:({groups}) )?({word}(?: \| {word})*)"
    mentioned: set[tuple[str, ...]] = set()
    for page in PAGES:
        code = "\n".join(re.findall(r"^```.*?^```$|`[^`\n]+`", read_page(page), re.MULTILINE | re.DOTALL))
        for group, names in re.findall(pattern, code, re.MULTILINE):
            mentioned |= {(group, name) if group else (name,) for name in names.split(" | ")}
    return mentioned - {(group,) for group in groups.split("|")}


def test_pages_mention_all_commands_and_no_others() -> None:
    commands: set[tuple[str, ...]] = {(name,) for name in subcommands(main)}
    for name, group in subcommands(main).items():
        commands |= {(name, inner) for inner in subcommands(group)}

    assert find_mentioned_commands() - commands == set()
    assert {name for name in commands if len(name) == 2 or name[0] in {"serve", "doctor"}} <= find_mentioned_commands()


def find_commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its full name, such as ``users list``."""
    for name, command in subcommands(group).items():
        if isinstance(command, click.Group):
            yield from find_commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def test_command_line_reference_lists_every_option() -> None:
    commands = dict(find_commands(main))
    _, options, serve, _ = re.split(
        r"^## (?:Options|`mlapi serve`|Exit codes)$", read_page(Path("docs/cli.md")), flags=re.MULTILINE
    )
    documented = {("serve", option) for option in re.findall(r"`(--[a-z-]+)`(?=.* \| )", serve)}
    for first, second in re.findall(r"^\| (`--.*?) \| (.*?) \|", options, re.MULTILINE):
        names = set(re.findall(r"`([^`]+)`", second))
        assert names <= set(commands)
        for name in set(commands) - names if second.startswith("all except") else names:
            documented |= {(name, option) for option in re.findall(r"`(--[a-z-]+)", first)}

    actual = {
        (name, option)
        for name, command in commands.items()
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert documented == actual


def test_password_from_standard_input_registers_a_user(folder: Path) -> None:
    assert run_page("docs/cli.md", folder) == ["registered user 1 (grace)"]


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


def test_commands_in_the_backup_guide_work(folder: Path) -> None:
    back_up, restore, check = find_code_blocks(Path("docs/backup.md"), "sh")
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    with Server(folder) as server:
        requests.post(f"{server.base}/register-user", json=ADA, timeout=10)
        subprocess.run(["bash", "-ec", f"umask 022\n{back_up}{check}"], env=environ, check=True)
        requests.post(f"{server.base}/register-user", json={**ADA, "username": "grace"}, timeout=10)
    subprocess.run(["bash", "-ec", f"umask 022\n{restore}"], env=environ, check=True)

    with Server(folder) as server:
        users = requests.get(f"{server.base}/users", timeout=10).json()["users"]
        log_in(server.base)
    assert [user["username"] for user in users] == ["ada"]
    assert not (folder / "check").exists()
    private = ["backup.db", "backup.db.secrets.yml", "mlapi.db", "secrets.yml"]
    assert [(folder / name).stat().st_mode & 0o777 for name in private] == [0o600] * 4


def test_database_is_not_restored_under_a_running_guard(folder: Path) -> None:
    back_up, restore, _check = find_code_blocks(Path("docs/backup.md"), "sh")
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    with ExitStack() as stack:
        with Server(folder) as server:
            requests.post(f"{server.base}/register-user", json=ADA, timeout=10)
            guarded = stack.enter_context(Server(folder, app="tests.torture.guarded_app:app"))
            headers = {"Authorization": f"Bearer {log_in(server.base)}"}
            assert requests.get(f"{guarded.base}/predict", headers=headers, timeout=10).status_code == 200
            subprocess.run(["bash", "-ec", back_up], env=environ, check=True)
        refused = subprocess.run(["bash", "-ec", restore], env=environ, capture_output=True, text=True, check=False)
        assert requests.get(f"{guarded.base}/predict", headers=headers, timeout=10).status_code == 200

    assert (refused.returncode, refused.stdout) == (3, "")
    assert "mlapi.db is in use: stop the service, every application with the guard" in refused.stderr


def test_files_named_in_the_contributing_guide_exist() -> None:
    names = set(re.findall(r"`((?:src|tests)/[^`]*\.py)`", read_page(Path("CONTRIBUTING.md"))))

    new = "src/mlapi/adapters/sql/migrations/versions/0007_suspension.py"
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == [new]


def test_code_in_the_contributing_guide_works() -> None:
    field, migration = find_code_blocks(Path("CONTRIBUTING.md"), "python")
    assert field.replace("suspended_until", "expires_datetime") in read_page(Path("src/mlapi/domain/credentials.py"))

    with sa.create_engine("sqlite://").connect() as connection:
        connection.execute(sa.text("CREATE TABLE users (id INTEGER PRIMARY KEY)"))
        namespace: dict[str, Any] = {"sa": sa, "op": Operations(MigrationContext.configure(connection))}
        exec(migration, namespace)
        namespace["upgrade"]()
        assert [column["name"] for column in sa.inspect(connection).get_columns("users")] == ["id", "suspended_until"]
        namespace["downgrade"]()
        assert [column["name"] for column in sa.inspect(connection).get_columns("users")] == ["id"]


@pytest.mark.parametrize("page", [*PAGES, *ROOT_PAGES], ids=str)
def test_links_between_pages_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", read_page(page))

    targets = [(target, anchor) for file, anchor in links if (target := find_linked_file(page, file)) is not None]
    assert [str(target) for target, _ in targets if not (ROOT / target).exists()] == []
    assert [f"{target}#{anchor}" for target, anchor in targets if anchor and anchor not in find_anchors(target)] == []


def find_linked_file(page: Path, link: str) -> Path | None:
    """Return the file of this repository that a link leads to, or None if it leads to another site."""
    if (absolute := REPOSITORY_LINK.fullmatch(link)) is not None:
        return Path(absolute[1])
    if link.startswith(("http:", "https:")):
        return None
    return page.parent / link if link else page


def test_links_in_the_readme_work_on_the_package_index() -> None:
    links = re.findall(r"\]\(([^)]+)\)", read_page(Path("README.md")))

    assert len(links) > 20
    assert [link for link in links if not link.startswith("https://")] == []
    assert [link for link in links if urlsplit(link).netloc in HOSTS and not REPOSITORY_LINK.match(link)] == []
    assert all(link.startswith("https://raw.") for link in links if link.endswith((".png", ".svg")))


def find_anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", read_page(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_table_of_contents_links_to_every_page() -> None:
    pages = [page.name for page in PAGES[1:] if page.name != "README.md"]

    assert [page for page in pages if f"({page})" not in read_page(Path("docs/README.md"))] == []
    assert "blob/main/docs/README.md)" in read_page(Path("README.md"))


def test_every_setting_is_documented() -> None:
    text = "".join(map(read_page, PAGES))
    sections = {field.name: field.type for field in attrs.fields(Settings) if field.type and attrs.has(field.type)}

    missing = [
        f"{section}.{field.name.removesuffix('_')}"
        for section, kind in sections.items()
        for field in attrs.fields(kind)
        if f"{section}.{field.name.removesuffix('_')}" not in text and f"`.{field.name}`" not in text
    ]
    assert missing == []
