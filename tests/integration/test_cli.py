"""The command line: every command, and what it says of wrong input, in one line and without a traceback."""

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
from click.testing import CliRunner, Result

from mlapi import __main__ as program
from mlapi import __version__
from mlapi.bootstrap import open_service, open_users
from mlapi.config import load_settings
from mlapi.entrypoints.cli import main
from mlapi.entrypoints.cli import users as cli
from mlapi.entrypoints.cli.output import OneLineGroup
from mlapi.entrypoints.logs import Format, JsonFormatter, TextFormatter, log_config

PASSWORD = "difference engine"
CHEAP = {"MLAPI_PASSWORDS__SCHEME": "fernet"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, value in CHEAP.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def mlapi(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=given)


def added(username: str) -> dict[str, object]:
    result = mlapi("users", "add", username, f"{username}@example.com", "--json", given=f"{PASSWORD}\n")
    assert (result.exit_code, result.stderr) == (0, "")
    user: dict[str, object] = json.loads(result.stdout)
    return user


def logs_in(username: str, password: str) -> bool:
    with open_service(load_settings()) as service:
        found = service.users.find(username)
        assert found is not None
        return service.users.cipher.matches(password, found.password)


def test_a_user_who_is_added_can_log_in() -> None:
    user = added("ada")

    assert user == {
        "user_id": 1,
        "username": "ada",
        "email": "ada@example.com",
        "enabled": True,
        "created_datetime": user["created_datetime"],
        "updated_datetime": user["created_datetime"],
    }
    assert logs_in("ada", PASSWORD)


def test_a_password_keeps_its_spaces_and_loses_its_line_end() -> None:
    mlapi("users", "add", "ada", "ada@example.com", given="  spaces  \r\nanother line\n")

    assert logs_in("ada", "  spaces  ")


def test_a_terminal_asks_for_the_password_twice_and_shows_it_never(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        @staticmethod
        def isatty() -> bool:
            return True

    asked: list[tuple[str, bool, bool]] = []

    def prompt(text: str, *, hide_input: bool, confirmation_prompt: bool) -> str:
        asked.append((text, hide_input, confirmation_prompt))
        return PASSWORD

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("click.prompt", prompt)

    assert cli._read_password() == PASSWORD
    assert asked == [("Password", True, True)]


def listed(*options: str) -> list[str]:
    return mlapi("users", "list", "--json", *options).stdout.splitlines()


def test_users_are_listed_by_page_and_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_PAGE_SIZE", 2)
    for name in ("ada", "bob", "Adam"):
        added(name)
    mlapi("users", "disable", "BOB")

    everybody = mlapi("users", "list")
    lists = {
        options: [json.loads(line)["username"] for line in listed(*options)]
        for options in [(), ("--enabled",), ("--disabled",), ("--containing", "ADA"), ("--containing", "example")]
    }

    assert everybody.stdout.splitlines()[1] == "       2  disabled  bob  <bob@example.com>"
    assert lists == {
        (): ["ada", "bob", "Adam"],
        ("--enabled",): ["ada", "Adam"],
        ("--disabled",): ["bob"],
        ("--containing", "ADA"): ["ada", "Adam"],
        ("--containing", "example"): ["ada", "bob", "Adam"],
    }


def test_a_user_is_shown_by_name_and_by_id() -> None:
    user = added("Ada")

    by_name, by_id = mlapi("users", "show", "ADA", "--json"), mlapi("users", "show", "--id", "1", "--json")

    assert json.loads(by_name.stdout) == json.loads(by_id.stdout) == user


def test_a_user_is_shut_out_let_in_and_removed() -> None:
    added("ada")

    said = [mlapi("users", command, "ada").stdout for command in ("disable", "enable", "remove")]

    assert [line.split()[1] for line in said] == ["disabled", "enabled", "enabled"]
    with open_users(load_settings()) as users:
        assert users.find("ada") is None


def test_a_new_password_replaces_the_old_one() -> None:
    added("ada")

    result = mlapi("users", "set-password", "ada", given="analytical\n")

    assert result.exit_code == 0
    assert [logs_in("ada", password) for password in (PASSWORD, "analytical")] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "given", "line"),
    [
        (["users", "show", "nobody"], None, "mlapi: there is no user 'nobody'"),
        (["users", "show", "--id", "7"], None, "mlapi: there is no user 7"),
        (["users", "show", "--id", "x"], None, "mlapi: user_id must be ASCII digits"),
        (["users", "disable", "nobody"], None, "mlapi: there is no user 'nobody'"),
        (["users", "remove", "nobody\n"], None, "mlapi: there is no user 'nobody\\n'"),
        (["users", "set-password", "nobody"], "x\n", "mlapi: there is no user 'nobody'"),
        (
            ["users", "add", "ada", "nonsense"],
            "\n",
            "mlapi: password must not be empty; email must look like name@example.com",
        ),
        (["users", "add", "", "a@b.cd"], "c4n4ry\n", "mlapi: username must not be empty"),
    ],
)
def test_wrong_input_is_told_in_one_line(arguments: list[str], given: str | None, line: str) -> None:
    result = mlapi(*arguments, given=given)

    assert (result.exit_code, result.stdout, result.stderr) == (3, "", f"{line}\n")


def test_a_name_that_is_taken_is_told_with_its_holder() -> None:
    added("ada")

    result = mlapi("users", "add", "ADA", "a@b.cd", given="x\n")

    assert (result.exit_code, result.stderr) == (3, "mlapi: user 1 already has this username\n")


def test_wrong_settings_are_told_in_one_line(folder: Path) -> None:
    (folder / "config.yml").write_text("databse: {}\n")

    for command in (["users", "list"], ["keys", "rotate"], ["keys", "prune"], ["db", "upgrade"]):
        result = mlapi(*command)

        line = "mlapi: config.yml: databse is not a setting; did you mean database?\n"
        assert (result.exit_code, result.stderr) == (3, line)


@pytest.mark.parametrize("command", [["keys", "new"], ["admin-token", "new"]])
def test_what_is_new_is_new_each_time_and_fits_its_setting(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = mlapi(*command).stdout.strip(), mlapi(*command).stdout.strip()

    assert first != second
    if command == ["keys", "new"]:
        monkeypatch.setenv("MLAPI_SECRETS__KEY", first)
        monkeypatch.setenv("MLAPI_SECRETS__TOKEN_KEY", second)
    else:
        monkeypatch.setenv("MLAPI_SECRETS__ADMIN_TOKEN", first)
    load_settings()


# --- all commands


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["frob"], 2, "mlapi: No such command 'frob'; see `mlapi --help`"),
        (["--frob"], 2, "mlapi: No such option '--frob'; see `mlapi --help`"),
        (["users", "show"], 2, "mlapi: Missing argument 'USER'; see `mlapi users show --help`"),
        (["keys", "new", "7"], 2, "mlapi: Got unexpected extra argument (7); see `mlapi keys new --help`"),
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
def test_what_is_typed_wrongly_is_told_in_one_line(arguments: list[str], code: int, line: str) -> None:
    result = mlapi(*arguments)

    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"{line}\n")


def test_a_group_without_a_command_shows_its_commands() -> None:
    result = mlapi("users")

    assert result.exit_code == 2
    assert "set-password" in result.stderr


class Failing(click.Command):
    """A command that meets an error."""

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
def test_what_the_system_refuses_is_one_line(error: BaseException, code: int, line: str) -> None:
    group = OneLineGroup(commands=[Failing(error)])

    result = CliRunner().invoke(group, ["fail"], prog_name="mlapi")

    assert (result.exit_code, result.stderr.strip()) == (code, line)


def test_whoever_has_read_enough_is_told_nothing() -> None:
    command = [sys.executable, "-c", "from mlapi.entrypoints.cli import main; main(['completion', 'bash'])"]
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)

    assert (process.returncode, process.stderr) == (1, b"")


class Interrupted(MetaPathFinder):
    """Ctrl-C comes while the command line is loaded."""

    def find_spec(self, fullname: str, _path: object, _target: object = None) -> None:
        if fullname == "mlapi.entrypoints.cli":
            raise KeyboardInterrupt


def test_ctrl_c_is_one_line_from_the_beginning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "mlapi.entrypoints.cli")

    with pytest.raises(SystemExit) as ended:
        program.main()

    assert (ended.value.code, capsys.readouterr().err) == (130, "mlapi: interrupted\n")


def test_the_program_tells_its_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["mlapi", "--version"])

    with pytest.raises(SystemExit) as ended:
        program.main()

    assert (ended.value.code, capsys.readouterr().out) == (0, f"mlapi, version {__version__}\n")


def test_the_program_is_a_module_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    programs = [str(Path(sys.executable).with_name("mlapi"))], [sys.executable, "-m", "mlapi"]

    by_script, by_module = (
        subprocess.run([*program, "--help"], capture_output=True, text=True, check=True).stdout for program in programs
    )

    assert by_script.startswith("Usage: mlapi [OPTIONS] COMMAND")
    assert by_module == by_script


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete_our_commands(shell: str) -> None:
    result = mlapi("completion", shell)

    assert result.exit_code == 0
    assert f"_MLAPI_COMPLETE={shell}_complete" in result.stdout


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*path, name))
    else:
        yield path, command


def test_every_command_prints_json_where_a_program_may_read_it() -> None:
    without = {
        " ".join(path)
        for path, command in commands(main)
        if not any("--json" in parameter.opts for parameter in command.params)
    }

    assert without == {"serve", "completion", "users export"}  # of which the last writes it with --format jsonl


def test_every_command_says_what_it_does() -> None:
    for path, _ in commands(main):
        assert mlapi(*path, "--help").exit_code == 0


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["keys", "new"], {"key"}),
        (["admin-token", "new"], {"admin_token"}),
        (["db", "upgrade"], {"before", "after"}),
        (["keys", "prune"], {"left"}),
        (["keys", "rotate", "--tokens"], {"added"}),
        (["keys", "rotate", "--salt"], {"added"}),
    ],
)
def test_json_is_one_object(command: list[str], expected: set[str]) -> None:
    added("ada")

    result = mlapi(*command, "--json")

    assert result.exit_code == 0
    assert set(json.loads(result.stdout)) == expected


def test_what_a_command_changes_is_told_of_whoever_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    added("ada")
    monkeypatch.setattr("os.getuid", lambda: 12345)
    mlapi("users", "disable", "ada")

    with open_users(load_settings()) as users:
        nobody, somebody = users.list_audit_page()

    assert nobody.actor == "command line of 12345"
    assert somebody.actor == f"command line of {pwd.getpwuid(os.geteuid()).pw_name}"


# --- serve


@pytest.mark.parametrize("workers", ["1", "3"])
def test_serving_is_left_to_a_smaller_program_with_a_socket_for_each_worker(
    workers: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[str] = []
    listens: list[bool] = []
    addresses: set[object] = set()

    def execv(_program: str, arguments: list[str]) -> None:
        run.extend(arguments)
        for number, place in enumerate(json.loads(arguments[-1])["listeners"]):
            with socket.socket(fileno=place) as bound:
                listens.append(bool(bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)))
                addresses.add(bound.getsockname())
                assert bound.get_inheritable(), number

    monkeypatch.setattr("os.execv", execv)

    result = mlapi("serve", "--port", "0", "--workers", workers, "--connections", "50", "--no-access-log")

    assert (result.exit_code, result.stderr) == (0, "")
    assert run[:-1] == [sys.executable, "-P", "-m", "mlapi.entrypoints.server.supervisor"]
    assert listens == [True, *[False] * (int(workers) - 1)]  # until there is somebody who takes what comes
    assert len(addresses) == 1
    assert json.loads(run[-1]) | {"listeners": []} == {
        "listeners": [],
        "connections": 50,
        "access_log": False,
        "log_format": "text",
    }
    assert not (folder / "mlapi.db").exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_address_of_the_other_kind_can_be_had(workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: list[object] = []

    def execv(_program: str, arguments: list[str]) -> None:
        for place in json.loads(arguments[-1])["listeners"]:
            with socket.socket(fileno=place) as bound:
                addresses.append(bound.getsockname()[0])

    monkeypatch.setattr("os.execv", execv)

    assert mlapi("serve", "--host", "::1", "--port", "0", "--workers", workers).exit_code == 0
    assert set(addresses) == {"::1"}


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "cannot assign requested address"),  # RFC 5737: for documentation, nobody's
        ("x" * 300, "invalid host name"),
        ("nowhere.invalid", ""),  # RFC 6761: never a name. Each system says so in its own words
    ],
)
def test_an_address_that_cannot_be_had_is_refused(host: str, reason: str) -> None:
    result = mlapi("serve", "--host", host, "--port", "0")

    assert result.exit_code == 3
    assert result.stderr.startswith(f"mlapi: cannot listen on {host} port 0: {reason}")
    assert result.stderr.endswith("; change --host or --port\n")


@pytest.mark.parametrize(("form", "kind"), [("text", TextFormatter), ("json", JsonFormatter)])
def test_the_servers_lines_are_written_our_way(form: Format, kind: type[logging.Formatter]) -> None:
    config = log_config(form)

    assert config["formatters"]["mlapi"]["()"] is kind
    assert {name for name, logger in config["loggers"].items() if logger["handlers"] == ["stderr"]} == {
        "uvicorn",
        "uvicorn.access",
        "mlapi",
    }


def test_a_stream_that_is_closed_is_an_empty_one(folder: Path) -> None:
    mlapi_command = Path(sys.executable).with_name("mlapi")
    script = f"{mlapi_command} users add ada ada@example.com <&- ; {mlapi_command} keys new >&-"

    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False)

    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "mlapi: password must not be empty"
    assert "Traceback" not in done.stderr
