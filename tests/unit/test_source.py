"""The source code calls no dangerous functions and uses cryptography only in the listed files."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "mlapi"
MAX_TEST_NAME_LENGTH = 60

CRYPTOGRAPHY = {"argon2", "bcrypt", "cryptography", "hashlib", "hmac", "itsdangerous", "jwt", "secrets", "ssl"}


@cache
def trees() -> dict[str, ast.Module]:
    """Return the parsed source files by path. Not a constant, because each test worker imports this module."""
    return {
        str(path.relative_to(PACKAGE)): ast.parse(path.read_text("utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "testing"
    }


def iterate_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_importing(*modules: str) -> set[str]:
    """Return the files that import any of these modules, or names from them."""
    return {
        file
        for file, tree in trees().items()
        for name in iterate_imports(tree)
        if any(f"{name}.".startswith(f"{module}.") for module in modules)
    }


def iterate_calls(tree: ast.Module) -> Iterator[str]:
    """Yield the source code of the function in every call."""
    return (ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))


def files_calling(pattern: str) -> set[str]:
    return {file for file, tree in trees().items() if any(re.fullmatch(pattern, call) for call in iterate_calls(tree))}


def test_strings_are_never_executed_as_code() -> None:
    assert files_calling(r"eval|exec|compile|__import__|(builtins|code|importlib)\..*import_module|runpy\..*") == set()


def test_unsafe_deserialization_is_not_used() -> None:
    assert (
        files_importing("pickle", "marshal", "shelve", "dill", "jsonpickle", "xml", "lxml", "defusedxml", "tomllib")
        == set()
    )
    assert files_importing("yaml") == {"config/files.py", "secret_store.py"}
    assert re.findall(r"yaml\.(\w*[lL]oad\w*|\w*Loader)", (PACKAGE / "config" / "files.py").read_text("utf-8")) == [
        "load",
        "SafeLoader",
    ]


def test_only_the_server_starts_processes_and_uses_no_shell() -> None:
    children = {"forks.py"}  # to notice the end of a process that its host started with multiprocessing
    assert files_importing("subprocess", "multiprocessing", "pty") == {"entrypoints/server/processes.py"} | children
    assert files_calling(r"os\.(system|popen|fork|exec\w*|spawn\w*|posix_spawn\w*)") == {"entrypoints/cli/serve.py"}
    with_shell = [
        file
        for file, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "shell"
    ]
    assert with_shell == []


def test_only_the_sql_and_smtp_adapters_open_connections() -> None:
    clients = [
        "urllib.request",
        "http.client",
        "requests",
        "httpx",
        "httpx2",
        "aiohttp",
        "ftplib",
        "imaplib",
    ]
    database_files = {file for file in trees() if file.startswith("adapters/sql/")}
    server_files = {file for file in trees() if file.startswith("entrypoints/server/")}
    listeners = {"entrypoints/cli/serve.py", *server_files}
    mail_files = {"adapters/smtp.py"}
    kernel_clients = {"entrypoints/local_peers.py"}

    assert (
        files_importing(*clients, "telnetlib", "ldap3", "xmlrpc", "socketserver", "grpc", "pymemcache", "redis")
        == set()
    )
    assert files_importing("smtplib") == mail_files
    assert files_importing("socket") <= listeners | kernel_clients | database_files | mail_files
    assert files_calling(r".*\.(create_connection|connect_ex|sendto|open_connection)") == mail_files
    assert files_importing("psycopg", "sqlite3") <= database_files


def test_no_request_value_is_interpolated_into_sql() -> None:
    outside = {file for file in files_importing("sqlalchemy", "alembic") if not file.startswith("adapters/sql/")}
    interpolated = {
        ast.unparse(part.value)
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and re.fullmatch(
            r"(sqlalchemy\.)?text|.*\.(execute|executemany|exec_driver_sql|fetch_last)", ast.unparse(node.func)
        )
        for argument in node.args[:1]
        for part in ast.walk(argument)
        if isinstance(part, ast.FormattedValue)
    }

    assert outside == set()
    # SQL allows no parameters in these places. The values are settings, numbers and table names from our own code.
    assert interpolated == {
        *("setting", "timeout_seconds * 1000", "VERSION_TABLE", "_MAX_DAMAGE_LINES", "notes.name"),
        *("_assignments('SET', settings)", "quote(name)", "query", "MAX_EXAMPLES", "month", "requests"),
    }


def test_only_dialect_and_url_modules_check_the_database_type() -> None:
    comparing = {
        file
        for file, tree in trees().items()
        if not file.startswith("adapters/sql/migrations/")  # a migration must not change when the dialects do
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        for operand in (node.left, *node.comparators)
        if isinstance(operand, ast.Constant) and operand.value in {"sqlite", "postgresql"}
    }

    assert comparing == {"adapters/sql/adoption/dialect.py", "adapters/sql/dialect.py", "adapters/sql/urls.py"}


def test_templates_are_never_built_from_strings() -> None:
    assert files_calling(r".*from_string|.*\.Template|Template") == set()


def test_regular_expressions_are_constants() -> None:
    dynamic_patterns = Counter(
        file
        for file, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and re.fullmatch(r"re\.\w+", ast.unparse(node.func))
        and ast.unparse(node.func) != "re.escape"
        and not isinstance(node.args[0], ast.Constant)
    )

    # The paths in the operation table, separators of CSV files, endings of drafts and units of times are constants too.
    assert dynamic_patterns == {
        "atomic_files.py": 2,
        "entrypoints/admin.py": 2,
        "entrypoints/cli/csv_records.py": 2,
        "entrypoints/cli/times.py": 1,
        "entrypoints/http/cors.py": 1,
    }


def test_only_sha256_hashes_are_used_for_own_values() -> None:
    used = {
        name
        for file in files_importing("hashlib") - {"adapters/fernet/kdf_hashes.py"}  # verifies other systems' hashes
        for name in re.findall(r"hashlib\.(\w+)", (PACKAGE / file).read_text("utf-8"))
    }

    assert used == {"sha256"}


def test_secrets_are_not_generated_with_weak_randomness() -> None:
    assert files_importing("random", "numpy") == {"entrypoints/logs.py"}  # request ids


def test_log_lines_go_only_to_standard_error() -> None:
    assert files_importing("logging.handlers", "syslog") == set()
    assert files_calling(r"logging\.(?!StreamHandler)\w*Handler|logging\.(basicConfig|captureWarnings)") == set()


def test_every_use_of_cryptography_is_documented() -> None:
    page = (ROOT / "SECURITY.md").read_text("utf-8")
    (inventory,) = re.findall(r"^### Cryptography in use\n(.*?)^#", page, re.MULTILINE | re.DOTALL)

    assert set(re.findall(r"`([\w/]+\.py)`", inventory)) == files_importing(*CRYPTOGRAPHY)


def test_modules_that_wait_for_a_call_use_the_deadline() -> None:
    waits = r"(asyncio\.)?(wait|wait_for|sleep|timeout|timeout_at|to_thread)|run_in_threadpool|.*\.run_in_executor"
    in_requests = {
        file
        for file in files_calling(waits)
        if file.startswith(("application/", "entrypoints/")) and not file.startswith("entrypoints/server/")
    } - {"application/deadlines.py"}
    outside_requests = {"application/charges.py", "entrypoints/guard/rechecks.py", "entrypoints/http/lifespans.py"}
    short = {"entrypoints/http/user_counts.py"}  # waits for at most 100 ms

    assert in_requests - files_importing("mlapi.application.deadlines.remaining_seconds") == outside_requests | short
    assert "entrypoints/http/thread_pool.py" in in_requests


def test_names_of_tests_are_short() -> None:
    names = {
        name
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text("utf-8"))
    }

    assert len(names) > 1000
    assert {name for name in names if len(name) > MAX_TEST_NAME_LENGTH} == set()
