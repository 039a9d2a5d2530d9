"""The commands of ``mlapi``. They report errors in one line, without a traceback."""

import errno
import json
import logging
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mlapi import __main__ as program
from mlapi import __version__
from mlapi.bootstrap import open_service, open_users
from mlapi.config import load_settings
from mlapi.domain.errors import ConfigurationError
from mlapi.entrypoints.cli import COMMANDS, main
from mlapi.entrypoints.cli import users as users_command
from mlapi.entrypoints.cli.output import OneLineGroup
from mlapi.entrypoints.cli.serve import open_standard_streams
from mlapi.entrypoints.logs import Format, JsonFormatter, TextFormatter, log_config
from mlapi.entrypoints.server.tcp_sockets import bind_hosts
from tests.command_line import Terminal, mlapi
from tests.conftest import KEY, SALT

PASSWORD = "difference engine"
CHEAP = {"MLAPI_PASSWORDS__SCHEME": "fernet"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, value in CHEAP.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def add_user(username: str) -> dict[str, object]:
    result = mlapi("users", "add", username, f"{username}@example.com", "--json", stdin=f"{PASSWORD}\n")
    assert (result.exit_code, result.stderr) == (0, "")
    user: dict[str, object] = json.loads(result.stdout)
    return user


def can_log_in(username: str, password: str) -> bool:
    with open_service(load_settings()) as service:
        found = service.users.find(username)
        assert found is not None
        return service.users.cipher.matches(password, found.password)


def test_added_user_can_log_in() -> None:
    user = add_user("ada")

    assert user == {
        "user_id": 1,
        "username": "ada",
        "email": "ada@example.com",
        "enabled": True,
        "created_datetime": user["created_datetime"],
        "updated_datetime": user["created_datetime"],
        "state": "active",
        "expires_at": None,
        "plan": None,
        "metadata": {},
    }
    assert can_log_in("ada", PASSWORD)


def test_password_from_stdin_keeps_spaces_but_not_the_newline() -> None:
    mlapi("users", "add", "ada", "ada@example.com", stdin="  spaces  \r\nanother line\n")

    assert can_log_in("ada", "  spaces  ")


def test_terminal_prompts_twice_for_a_hidden_password(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[tuple[str, bool, bool]] = []

    def prompt(text: str, *, hide_input: bool, confirmation_prompt: bool, err: bool) -> str:
        assert err  # standard output is only for the result
        prompts.append((text, hide_input, confirmation_prompt))
        return PASSWORD

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("click.prompt", prompt)

    assert users_command._read_password() == PASSWORD
    assert prompts == [("Password", True, True)]


def list_users(*options: str) -> list[str]:
    return mlapi("users", "list", "--json", *options).stdout.splitlines()


def test_user_list_is_filtered() -> None:
    for name in ("ada", "bob", "Adam"):
        add_user(name)
    mlapi("users", "disable", "BOB")

    lists = {
        options: [json.loads(line)["username"] for line in list_users(*options)]
        for options in [(), ("--enabled",), ("--disabled",), ("--containing", "ADA"), ("--containing", "example")]
    }

    assert lists == {
        (): ["ada", "bob", "Adam"],
        ("--enabled",): ["ada", "Adam"],
        ("--disabled",): ["bob"],
        ("--containing", "ADA"): ["ada", "Adam"],
        ("--containing", "example"): ["ada", "bob", "Adam"],
    }


def test_show_finds_a_user_by_name_and_by_id() -> None:
    user = add_user("Ada")

    by_name, by_id = mlapi("users", "show", "ADA", "--json"), mlapi("users", "show", "--id", "1", "--json")

    assert json.loads(by_name.stdout) == json.loads(by_id.stdout) == {**user, "last_seen": None}


def test_user_can_be_disabled_enabled_and_removed() -> None:
    add_user("ada")

    commands = [["disable", "ada"], ["enable", "1"], ["remove", "ADA", "--yes"]]
    lines = [mlapi("users", *command).stdout for command in commands]

    assert lines == ["disabled user 1 (ada)\n", "enabled user 1 (ada)\n", "removed user 1 (ada)\n"]
    with open_users(load_settings()) as users:
        assert users.find("ada") is None


def test_set_password_replaces_the_old_password() -> None:
    add_user("ada")

    result = mlapi("users", "set-password", "ada", stdin="analytical\n")

    assert result.exit_code == 0
    assert [can_log_in("ada", password) for password in (PASSWORD, "analytical")] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "stdin", "line"),
    [
        (["users", "show", "nobody"], None, "mlapi: user 'nobody' does not exist"),
        (["users", "show", "--id", "7"], None, "mlapi: user 7 does not exist"),
        (["users", "show", "--id", "x"], None, "mlapi: user_id must be ASCII digits"),
        (["users", "disable", "nobody"], None, "mlapi: user 'nobody' does not exist"),
        (["users", "remove", "nobody\n", "--yes"], None, "mlapi: user 'nobody\\n' does not exist"),
        (["users", "set-password", "nobody"], "x\n", "mlapi: user 'nobody' does not exist"),
        (
            ["users", "add", "ada", "nonsense"],
            "\n",
            "mlapi: password must not be empty; email must look like name@example.com",
        ),
        (["users", "add", "", "a@b.cd"], "c4n4ry\n", "mlapi: username must not be empty"),
    ],
)
def test_invalid_input_is_reported_in_one_line(arguments: list[str], stdin: str | None, line: str) -> None:
    assert mlapi("db", "upgrade").exit_code == 0

    result = mlapi(*arguments, stdin=stdin)

    assert (result.exit_code, result.stdout, result.stderr) == (3, "", f"{line}\n")


def test_taken_username_is_reported_with_the_existing_user() -> None:
    add_user("ada")

    result = mlapi("users", "add", "ADA", "a@b.cd", stdin="x\n")

    assert (result.exit_code, result.stderr) == (3, "mlapi: user 1 already has this username\n")


def test_invalid_settings_are_reported_in_one_line(folder: Path) -> None:
    (folder / "config.yml").write_text("databse: {}\n")

    for command in (["users", "list"], ["secrets", "rotate"], ["secrets", "prune"], ["db", "upgrade"]):
        result = mlapi(*command)

        line = "mlapi: config.yml: databse is not a setting; did you mean database?\n"
        assert (result.exit_code, result.stderr) == (3, line)


@pytest.mark.parametrize("command", [["secrets", "new"], ["admin-token", "new"]])
def test_generated_secret_is_unique_and_valid(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = mlapi(*command).stdout.strip(), mlapi(*command).stdout.strip()

    assert first != second
    if command == ["secrets", "new"]:
        monkeypatch.setenv("MLAPI_SECRETS__KEY", first)
        monkeypatch.setenv("MLAPI_SECRETS__TOKEN_KEY", second)
    else:
        monkeypatch.setenv("MLAPI_SECRETS__ADMIN_TOKEN", first)
    load_settings()


# --- all commands


@pytest.mark.parametrize("name", ["new", "rotate", "prune"])
def test_renamed_command_is_rejected_with_its_new_name(name: str, folder: Path) -> None:
    result = mlapi("keys", name, "--json")

    line = f"mlapi: `mlapi keys {name}` is now `mlapi secrets {name}`\n"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", line)
    assert not list(folder.iterdir())


def test_short_help_option_works_everywhere() -> None:
    for path in [(), ("users",), *(path for path, _ in commands(main))]:
        assert mlapi(*path, "-h").stdout == mlapi(*path, "--help").stdout != ""


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["frob"], 2, "mlapi: No such command 'frob'; see `mlapi --help`"),
        (["--version=7"], 2, "mlapi: Option '--version' does not take a value; see `mlapi --help`"),
        (["users", "show"], 2, "mlapi: Missing argument 'USER...'; see `mlapi users show --help`"),
        (["secrets", "new", "7"], 2, "mlapi: Got unexpected extra argument (7); see `mlapi secrets new --help`"),
        (
            ["serve", "--port", "99999"],
            2,
            "mlapi: Invalid value for '--port': 99999 is not in the range 0<=x<=65535; see `mlapi serve --help`",
        ),
        (
            ["completion", "cmd"],
            2,
            "mlapi: Invalid value for '{bash|zsh|fish}': 'cmd' is not one of 'bash', 'zsh', 'fish'; see `mlapi completion --help`",  # noqa: E501 - one line
        ),
    ],
)
def test_wrong_usage_is_reported_in_one_line(arguments: list[str], code: int, line: str) -> None:
    result = mlapi(*arguments)

    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"{line}\n")


@pytest.mark.parametrize(("group", "command"), [([], "doctor"), (["users"], "set-password"), (["keys"], "add")])
def test_group_without_a_command_lists_its_commands(group: list[str], command: str) -> None:
    result = mlapi(*group)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: ")
    assert f"  {command} " in result.stderr


class Failing(click.Command):
    """A command that raises an error."""

    def __init__(self, error: BaseException) -> None:
        super().__init__("fail")
        self._error = error

    def invoke(self, ctx: click.Context) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "mlapi: interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "mlapi: output: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "users.csv"), 1, "mlapi: users.csv: Permission denied"),
        (click.ClickException("frob"), 1, "mlapi: frob"),
        (BrokenPipeError(), 1, ""),
        (ValueError("embedded null byte"), 1, "mlapi: an argument or the input is invalid (ValueError)"),
        (click.UsageError("frob"), 2, "mlapi: frob; see `mlapi --help`"),
    ],
)
def test_unexpected_error_is_reported_in_one_line(error: BaseException, code: int, line: str) -> None:
    group = OneLineGroup(commands=[Failing(error)])

    result = CliRunner().invoke(group, ["fail"], prog_name="mlapi")

    assert (result.exit_code, result.stderr.strip()) == (code, line)


def test_writing_to_a_closed_pipe_prints_no_error() -> None:
    command = [sys.executable, "-c", "from mlapi.entrypoints.cli import main; main(['completion', 'bash'])"]
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)

    assert (process.returncode, process.stderr) == (1, b"")


class InterruptingFinder(MetaPathFinder):
    """Simulates Ctrl-C while the command line is loading."""

    def find_spec(self, fullname: str, _path: object, _target: object = None) -> None:
        if fullname == "mlapi.entrypoints.cli":
            raise KeyboardInterrupt


def test_ctrl_c_while_loading_prints_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "meta_path", [InterruptingFinder(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "mlapi.entrypoints.cli")

    with pytest.raises(SystemExit) as exit_info:
        program.main()

    assert (exit_info.value.code, capsys.readouterr().err) == (130, "mlapi: interrupted\n")


def test_version_option_prints_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["mlapi", "--version"])

    with pytest.raises(SystemExit) as exit_info:
        program.main()

    assert (exit_info.value.code, capsys.readouterr().out) == (0, f"mlapi, version {__version__}\n")


def test_program_is_available_as_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    programs = [str(Path(sys.executable).with_name("mlapi"))], [sys.executable, "-m", "mlapi"]

    by_script, by_module = (
        subprocess.run([*program, "--help"], capture_output=True, text=True, check=True).stdout for program in programs
    )

    assert by_script.startswith("Usage: mlapi [OPTIONS] COMMAND")
    assert by_module == by_script


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str) -> None:
    result = mlapi("completion", shell)

    assert result.exit_code == 0
    assert f"_MLAPI_COMPLETE={shell}_complete" in result.stdout


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, (*path, name))
    else:
        yield path, command


def test_every_command_with_output_offers_json() -> None:
    without = {
        " ".join(path)
        for path, command in commands(main)
        if not any("--json" in parameter.opts for parameter in command.params)
    }

    assert without == {"serve", "completion", "mail test", "users export"}  # export writes JSON with --format jsonl


def test_help_lists_commands_without_importing_them() -> None:
    code = "import sys; from mlapi.entrypoints.cli import main; main(['--help'], standalone_mode=False)"
    script = f"import atexit, sys\natexit.register(lambda: print(sorted(sys.modules)))\n{code}"

    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert "Manage the API keys of users." in printed
    assert "'mlapi.entrypoints.cli.users'" not in printed
    assert "'mlapi.bootstrap'" not in printed


def test_short_help_of_every_command_is_its_first_sentence() -> None:
    for name, (_, short_help) in COMMANDS.items():
        command = main.get_command(click.Context(main), name)
        assert command is not None
        assert command.get_short_help_str(limit=200) == short_help


@pytest.mark.parametrize(
    "command",
    [
        ["users", "list"],
        ["users", "add", "ada", "a@b.cd"],
        ["users", "remove", "ada", "--yes"],
        ["keys", "list", "ada"],
        ["tokens", "revoke", "ada"],
        ["audit", "list"],
        ["db", "upgrade"],
        ["db", "check"],
    ],
    ids=" ".join,
)
def test_command_without_database_prints_one_line(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_SECRETS__KEY", KEY)
    monkeypatch.setenv("MLAPI_SECRETS__SALT", SALT)
    monkeypatch.setenv("MLAPI_DATABASE__URL", "postgresql://u:p@127.0.0.1:1/d")

    result = mlapi(*command, stdin=f"{PASSWORD}\n")

    line = "mlapi: the database is unavailable: the connection was refused: check the host and port in database.url\n"
    assert (result.exit_code, result.stdout, result.stderr) == (3, "", line)


def test_every_command_has_help() -> None:
    for path, _ in commands(main):
        assert mlapi(*path, "--help").exit_code == 0


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["secrets", "new"], {"key"}),
        (["admin-token", "new"], {"admin_token"}),
        (["db", "upgrade"], {"before", "after"}),
        (["secrets", "prune"], {"left"}),
        (["secrets", "rotate", "--tokens"], {"added"}),
        (["secrets", "rotate", "--salt"], {"added"}),
    ],
)
def test_json_output_is_one_object(command: list[str], expected: set[str]) -> None:
    add_user("ada")

    result = mlapi(*command, "--json")

    assert result.exit_code == 0
    assert set(json.loads(result.stdout)) == expected


def test_audit_trail_names_the_account_that_ran_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    add_user("ada")
    monkeypatch.setattr("os.getuid", lambda: 12345)
    mlapi("users", "disable", "ada")

    with open_users(load_settings()) as users:
        by_number, by_name = users.list_audit_page()

    assert by_number.actor == "command line of 12345"
    assert by_name.actor == f"command line of {pwd.getpwuid(os.geteuid()).pw_name}"


# --- serve


@pytest.mark.parametrize("workers", ["1", "3"])
def test_serve_passes_a_socket_per_worker_to_the_supervisor(
    workers: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[str] = []
    is_listening: list[bool] = []
    addresses: set[object] = set()

    def execv(_program: str, arguments: list[str]) -> None:
        run.extend(arguments)
        for number, (descriptor,) in enumerate(json.loads(arguments[-1])["listener_fds"]):
            with socket.socket(fileno=descriptor) as bound:
                is_listening.append(bool(bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)))
                addresses.add(bound.getsockname())
                assert bound.get_inheritable(), number

    monkeypatch.setattr("os.execv", execv)
    per_address = ("--connections-per-address", "7")

    result = mlapi("serve", "--port", "0", "--workers", workers, "--connections", "50", *per_address, "--no-access-log")

    assert (result.exit_code, result.stderr) == (0, "")
    assert run[:-1] == [sys.executable, "-P", "-m", "mlapi.entrypoints.server.supervisor"]
    assert is_listening == [False] * int(workers)  # each socket listens once its worker is ready
    assert len(addresses) == 1
    assert json.loads(run[-1]) | {"listener_fds": []} == {
        "listener_fds": [],
        "socket_file": None,
        "log_format": "text",
        "worker": {
            "max_connections": 50,
            "connections_per_address": 7,
            "access_log": False,
            "keep_alive_seconds": 5,
            "root_path": "",
            "is_inherited": False,
        },
    }
    assert not (folder / "mlapi.db").exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_can_listen_on_ipv6(workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: list[object] = []

    def execv(_program: str, arguments: list[str]) -> None:
        for (descriptor,) in json.loads(arguments[-1])["listener_fds"]:
            with socket.socket(fileno=descriptor) as bound:
                addresses.append(bound.getsockname()[0])

    monkeypatch.setattr("os.execv", execv)

    assert mlapi("serve", "--host", "::1", "--port", "0", "--workers", workers).exit_code == 0
    assert set(addresses) == {"::1"}


def test_next_address_of_a_host_is_used_if_the_first_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    unavailable = socket.getaddrinfo("192.0.2.1", 0, type=socket.SOCK_STREAM)  # RFC 5737: for documentation
    available = socket.getaddrinfo("127.0.0.1", 0, type=socket.SOCK_STREAM)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **_options: unavailable + available)

    ((listener,),) = bind_hosts(["localhost"], 0, 1)

    assert listener.getsockname()[0] == "127.0.0.1"
    listener.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_address_is_reserved_before_the_service_listens(workers: int) -> None:
    (listeners,) = bind_hosts(["127.0.0.1"], 0, workers)

    with pytest.raises(ConfigurationError, match="address already in use"):
        bind_hosts(["127.0.0.1"], listeners[0].getsockname()[1], workers)

    for listener in listeners:
        listener.close()


def test_open_file_limit_that_is_too_low_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _which: (300, 300))

    result = mlapi("serve", "--port", "0", "--workers", "64")

    assert result.exit_code == 3
    assert result.stderr == (
        "mlapi: a process may open only 300 files, but 64 workers need 434: raise the limit (ulimit -n 434)\n"
    )


def test_closed_standard_streams_are_replaced() -> None:
    code = """
import os
from mlapi.entrypoints.cli.serve import open_standard_streams
os.close(0)
os.close(1)
open_standard_streams()
assert all(os.get_inheritable(descriptor) for descriptor in (0, 1, 2))
assert os.path.samestat(os.fstat(1), os.stat(os.devnull))
"""

    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_closed_standard_streams_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []

    def fstat(descriptor: int) -> None:
        if descriptor == 1:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    with monkeypatch.context() as patch:
        patch.setattr("os.fstat", fstat)
        patch.setattr("os.open", lambda *arguments: opened.append(arguments))
        open_standard_streams()

    assert opened == [(os.devnull, os.O_RDWR)]


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "cannot assign requested address"),  # RFC 5737: reserved for documentation
        ("x" * 300, "invalid host name"),
        ("nowhere.invalid", ""),  # RFC 6761: never resolves; the message depends on the system
    ],
)
def test_unavailable_address_is_reported(host: str, reason: str) -> None:
    result = mlapi("serve", "--host", host, "--port", "0")

    assert result.exit_code == 3
    assert result.stderr.startswith(f"mlapi: cannot listen on {host} port 0: {reason}")
    assert result.stderr.endswith("; change --host or --port\n")


@pytest.mark.parametrize(("form", "kind"), [("text", TextFormatter), ("json", JsonFormatter)])
def test_uvicorn_log_uses_the_configured_format(form: Format, kind: type[logging.Formatter]) -> None:
    config = log_config(form)

    assert config["formatters"]["mlapi"]["()"] is kind
    assert {name for name, logger in config["loggers"].items() if logger["handlers"] == ["stderr"]} == {
        "uvicorn",
        "uvicorn.access",
        "mlapi",
    }


def test_closed_standard_streams_are_treated_as_empty(folder: Path) -> None:
    mlapi_command = Path(sys.executable).with_name("mlapi")
    script = f"{mlapi_command} users add ada ada@example.com <&- ; {mlapi_command} secrets new >&-"

    process = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False)

    assert process.returncode == 0
    assert process.stderr.splitlines()[-1] == "mlapi: password must not be empty"
    assert "Traceback" not in process.stderr
