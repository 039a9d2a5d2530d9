"""What no file of the package does: the ways in which others are broken into, looked for in the source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "mlapi"
TREES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text("utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0] != "testing"
}

CRYPTOGRAPHY = {"argon2", "bcrypt", "cryptography", "hashlib", "hmac", "itsdangerous", "jwt", "secrets", "ssl"}


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importing(*modules: str) -> set[str]:
    """Return the files that import one of these modules or something of it."""
    return {
        file
        for file, tree in TREES.items()
        for name in imported(tree)
        if any(f"{name}.".startswith(f"{module}.") for module in modules)
    }


def calls(tree: ast.Module) -> Iterator[str]:
    """Yield what is called, as it is written."""
    return (ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))


def calling(pattern: str) -> set[str]:
    return {file for file, tree in TREES.items() if any(re.fullmatch(pattern, called) for called in calls(tree))}


def test_no_text_is_run_as_code() -> None:
    assert calling(r"eval|exec|compile|__import__|(builtins|code|importlib)\..*import_module|runpy\..*") == set()


def test_nothing_is_read_that_makes_objects_of_the_senders_choice() -> None:
    assert (
        importing("pickle", "marshal", "shelve", "dill", "jsonpickle", "xml", "lxml", "defusedxml", "tomllib") == set()
    )
    assert importing("yaml") == {"config/files.py", "secret_store.py"}
    assert re.findall(r"yaml\.(\w*[lL]oad\w*|\w*Loader)", (PACKAGE / "config" / "files.py").read_text("utf-8")) == [
        "load",
        "SafeLoader",
    ]


def test_processes_are_started_by_the_server_alone_and_never_through_a_shell() -> None:
    assert importing("subprocess", "multiprocessing", "pty") == {"entrypoints/server/supervisor.py"}
    assert calling(r"os\.(system|popen|fork|exec\w*|spawn\w*|posix_spawn\w*)") == {"entrypoints/cli/serve.py"}
    with_shell = [
        file
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "shell"
    ]
    assert with_shell == []


def test_nobody_is_connected_to_but_the_database() -> None:
    clients = [
        "urllib.request",
        "http.client",
        "requests",
        "httpx",
        "httpx2",
        "aiohttp",
        "ftplib",
        "smtplib",
        "imaplib",
    ]
    of_the_database = {file for file in TREES if file.startswith("adapters/sql/")}
    listeners = {"entrypoints/cli/serve.py", "entrypoints/server/supervisor.py", "entrypoints/server/worker.py"}

    assert importing(*clients, "telnetlib", "ldap3", "xmlrpc", "socketserver", "grpc", "pymemcache", "redis") == set()
    assert importing("socket") <= listeners | of_the_database
    assert calling(r".*\.(create_connection|connect_ex|sendto|open_connection)") == set()
    assert importing("psycopg", "sqlite3") <= of_the_database


def test_no_value_of_a_request_is_written_into_a_statement() -> None:
    outside = {file for file in importing("sqlalchemy", "alembic") if not file.startswith("adapters/sql/")}
    written_into = {
        ast.unparse(part.value)
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and re.fullmatch(r"(sqlalchemy\.)?text|.*\.(execute|executemany|exec_driver_sql)", ast.unparse(node.func))
        for argument in node.args[:1]
        for part in ast.walk(argument)
        if isinstance(part, ast.FormattedValue)
    }

    assert outside == set()
    # Settings, numbers and names of tables that are ours, for which SQL has no parameters.
    assert written_into == {"setting", "timeout_seconds * 1000", "VERSION_TABLE", "_MAX_DAMAGE_LINES", "notes.name"}


def test_templates_are_files_of_ours() -> None:
    assert calling(r".*from_string|.*\.Template|Template") == set()


def test_patterns_are_texts_of_ours() -> None:
    made_of_values = [
        f"{file}: {ast.unparse(node)}"
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and re.fullmatch(r"re\.\w+", ast.unparse(node.func))
        and ast.unparse(node.func) != "re.escape"
        and not isinstance(node.args[0], ast.Constant)
    ]

    # The paths of the operation table, which are constants.
    assert [found for found in made_of_values if not found.startswith("entrypoints/admin.py: ")] == []


def test_hashes_are_sha_256() -> None:
    used = {
        name
        for file in importing("hashlib")
        for name in re.findall(r"hashlib\.(\w+)", (PACKAGE / file).read_text("utf-8"))
    }

    assert used == {"sha256"}


def test_what_nobody_shall_guess_is_not_made_by_a_generator_that_can_be_foretold() -> None:
    assert importing("random", "numpy") == {"entrypoints/http/request_context.py"}  # the ids of requests


def test_log_lines_go_to_standard_error_and_to_no_file_or_host_of_our_choice() -> None:
    assert importing("logging.handlers", "syslog") == set()
    assert calling(r"logging\.(?!StreamHandler)\w*Handler|logging\.(basicConfig|captureWarnings)") == set()


def test_every_file_that_uses_cryptography_is_in_the_inventory() -> None:
    page = (ROOT / "SECURITY.md").read_text("utf-8")
    (inventory,) = re.findall(r"^### Cryptography in use\n(.*?)^#", page, re.MULTILINE | re.DOTALL)

    assert set(re.findall(r"`([\w/]+\.py)`", inventory)) == importing(*CRYPTOGRAPHY)
