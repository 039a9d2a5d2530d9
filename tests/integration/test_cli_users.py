"""``mlapi users``: lists for people and programs, and changes to several users at once."""

import csv
import io
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import pytest
from click.testing import Result

from mlapi import User, UserId, Users
from mlapi.adapters.sql.repository import SqlUserRepository
from mlapi.bootstrap import open_users
from mlapi.config import load_settings
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.errors import RepositoryUnavailableError
from mlapi.entrypoints.cli import main, selection
from mlapi.entrypoints.cli.output import UsageError
from tests.command_line import create_users, mlapi

NAMES = ["ada", "Bob", "17", "漢字"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_users(tmp_path_factory.mktemp("original"), NAMES, "x")


@pytest.fixture(autouse=True)
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(original, tmp_path, dirs_exist_ok=True))
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", "fernet")
    return tmp_path


def find(name: str) -> User | None:
    with open_users(load_settings()) as users:
        return users.find(name)


def names_of(result: Result) -> list[str]:
    return [json.loads(line)["username"] for line in result.stdout.splitlines()]


# --- lists


def test_list_is_an_aligned_table_with_headings_and_times() -> None:
    with open_users(load_settings()) as users:
        user = users.list_page()[0]
    time = f"{user.created_datetime:%Y-%m-%d %H:%M}"

    result = mlapi("users", "list")

    assert result.stdout.splitlines() == [
        "ID  STATE   USERNAME  EMAIL             CREATED (UTC)     UPDATED (UTC)",
        f" 1  active  ada       ada@example.com   {time}  {time}",
        f" 2  active  Bob       Bob@example.com   {time}  {time}",
        f" 3  active  17        17@example.com    {time}  {time}",
        f" 4  active  漢字      漢字@example.com  {time}  {time}",
    ]


def test_csv_and_json_contain_every_field_of_every_user() -> None:
    as_json = [json.loads(line) for line in mlapi("users", "list", "--json").stdout.splitlines()]
    as_csv = list(csv.DictReader(mlapi("users", "list", "--csv").stdout.splitlines()))

    assert [user["username"] for user in as_json] == [user["username"] for user in as_csv] == NAMES
    assert list(as_csv[0]) == list(as_json[0])
    assert as_csv[0]["enabled"] == "true"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--limit", "2"], ["ada", "Bob"]),
        (["--sort", "name"], ["17", "ada", "Bob", "漢字"]),
        (["--sort", "created", "--reverse", "--limit", "1"], ["漢字"]),
        (["--sort", "updated", "--limit", "2"], ["Bob", "17"]),
        (["--reverse", "--containing", "b"], ["Bob"]),
    ],
)
def test_list_can_be_sorted_and_limited(options: list[str], expected: list[str]) -> None:
    mlapi("users", "disable", "ada")

    assert names_of(mlapi("users", "list", "--json", *options)) == expected


def test_empty_list_is_reported_on_standard_error_only() -> None:
    results = [mlapi("users", "list", "--disabled", *options) for options in ([], ["--json"], ["--csv"])]

    assert [result.exit_code for result in results] == [0, 0, 0]
    assert [result.stderr for result in results] == ["no users found\n", "", ""]
    assert [result.stdout.count("\n") for result in results] == [0, 0, 1]


def test_output_can_be_read_in_a_locale_without_unicode(folder: Path) -> None:
    environ = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command = [str(Path(sys.executable).with_name("mlapi")), "users", "show", "4"]

    process = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)

    assert "\\u6f22\\u5b57" in process.stdout


# --- several users


def test_several_users_are_changed_by_name_and_id() -> None:
    result = mlapi("users", "disable", "ADA", "4", "2", "bob")

    assert result.exit_code == 0
    assert result.stdout == "disabled user 1 (ada)\ndisabled user 4 (漢字)\ndisabled user 2 (Bob)\n"


def test_unknown_users_are_reported_and_the_others_changed() -> None:
    some = mlapi("users", "disable", "ada", "nobody", "99", "Bob")
    none = mlapi("users", "disable", "nobody", "99")

    assert (some.exit_code, none.exit_code) == (4, 3)
    assert some.stdout == "disabled user 1 (ada)\ndisabled user 2 (Bob)\n"
    assert some.stderr == none.stderr == "mlapi: user 'nobody' does not exist\nmlapi: user 99 does not exist\n"


def test_names_are_read_from_standard_input_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_BATCH_USERS", 2)

    result = mlapi("users", "disable", "-", "漢字", stdin="\ufeffada\r\n\n 2 \nnobody\n3\n")

    assert result.exit_code == 4
    assert result.stderr == "mlapi: user 'nobody' does not exist\n"
    assert result.stdout.count("disabled") == 4


def test_several_users_are_shown(folder: Path) -> None:
    table, some = mlapi("users", "show", "ada", "--username", "17"), mlapi("users", "show", "ada", "nobody", "--json")

    assert [line.split()[2] for line in table.stdout.splitlines()] == ["USERNAME", "ada", "17"]
    assert (some.exit_code, names_of(some)) == (4, ["ada"])


def test_outage_between_batches_says_how_many_were_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = SqlUserRepository.apply

    def apply_first(repository: SqlUserRepository, commands: Sequence[Command]) -> list[Outcome]:
        if any(getattr(command, "user_id", None) == 2 for command in commands):
            raise RepositoryUnavailableError("simulated outage")
        return apply(repository, commands)

    monkeypatch.setattr(SqlUserRepository, "apply", apply_first)
    monkeypatch.setattr(selection, "_BATCH_USERS", 1)

    result = mlapi("users", "disable", "ada", "bob")

    assert (result.exit_code, result.stdout) == (3, "disabled user 1 (ada)\n")
    assert result.stderr == (
        "mlapi: the database is unavailable: simulated outage; users changed before: 1; run the command again\n"
    )


def test_user_removed_by_another_program_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Users.prepare_remove

    def remove_first(users: Users, *, user_id: UserId) -> object:
        users.apply(prepare(users, user_id=user_id))
        return prepare(users, user_id=user_id)

    monkeypatch.setattr(Users, "prepare_remove", remove_first)

    result = mlapi("users", "remove", "ada", "--yes")

    assert (result.exit_code, result.stdout, result.stderr) == (3, "", "mlapi: user 1 does not exist\n")


# --- numbers that may be names


@pytest.mark.parametrize("name", ["2", "99"])
def test_number_that_is_also_a_name_is_rejected_as_ambiguous(name: str) -> None:
    mlapi("users", "add", name, "a@b.cd", stdin="x\n")

    result = mlapi("users", "remove", name, "--yes")

    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == f"mlapi: {name} may be an id or the name of user 5: add --id or --username\n"
    assert mlapi("users", "remove", "--username", name, "--yes").stdout == f"removed user 5 ({name})\n"
    assert find("bob") is not None


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--username", "4"], "user '4' does not exist"),
        (["--id", "ada"], "user_id must be ASCII digits"),
        (["3"], "user 3 does not exist"),
        (["03"], "user '03' does not exist"),
        (["9" * 5000], f"user {10**19} does not exist"),
    ],
)
def test_reference_that_names_no_user_removes_none(arguments: list[str], line: str) -> None:
    mlapi("users", "remove", "--username", "17", "--yes")

    result = mlapi("users", "remove", "--yes", *arguments)

    assert (result.exit_code, result.stdout, result.stderr) == (3, "", f"mlapi: {line}\n")


def test_user_whose_name_is_the_own_id_is_not_ambiguous() -> None:
    mlapi("users", "add", "5", "a@b.cd", stdin="x\n")

    assert mlapi("users", "disable", "5").stdout == "disabled user 5 (5)\n"


# --- confirmation


@pytest.mark.parametrize(("arguments", "stdin"), [(["ada"], "y\n"), (["-"], "ada\n")])
def test_removal_without_a_terminal_needs_yes(arguments: list[str], stdin: str) -> None:
    result = mlapi("users", "remove", *arguments, stdin=stdin)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == ("mlapi: nothing was changed: there is no terminal to ask for confirmation, so add --yes\n")
    assert find("ada") is not None


def on_terminal(*arguments: str, answer: str, columns: int = 80) -> tuple[int, str]:
    """Run a command on a terminal. Return its exit code and everything that the terminal shows."""
    terminal, inner = pty.openpty()
    command = [str(Path(sys.executable).with_name("mlapi")), *arguments]
    environ = {**os.environ, "COLUMNS": str(columns)}
    process = subprocess.Popen(command, env=environ, stdin=inner, stdout=inner, stderr=inner)
    os.close(inner)
    os.write(terminal, answer.encode())
    shown = b""
    try:
        while chunk := os.read(terminal, 10_000):
            shown += chunk
    except OSError:  # Linux reports the end of a terminal's output as an error
        pass
    os.close(terminal)
    return process.wait(), shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(("answer", "code"), [("n\n", 3), ("\n", 3), ("y\n", 0)])
def test_removal_on_a_terminal_asks_first(answer: str, code: int) -> None:
    returned, shown = on_terminal("users", "remove", "ada", "2", answer=answer)

    assert returned == code
    question = "Remove these users and their API keys permanently? [y/N]: "
    assert f"  user 1 (ada), ada@example.com\n  user 2 (Bob), Bob@example.com\n{question}" in shown
    assert ("nothing was changed" in shown) == bool(code)
    assert [find("ada") is None, find("bob") is None] == [code == 0] * 2


@pytest.mark.parametrize(("answer", "code"), [("n\n", 3), ("y\n", 0)])
def test_only_confirmed_removals_are_carried_out(answer: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlapi.entrypoints.cli.users.require_terminal", lambda **_options: None)

    result = mlapi("users", "remove", "ada", "bob", stdin=answer)

    assert result.exit_code == code
    assert [find("ada") is None, find("bob") is None] == [code == 0] * 2


def test_removal_of_unknown_users_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlapi.entrypoints.cli.users.require_terminal", lambda **_options: None)

    result = mlapi("users", "remove", "nobody")

    assert (result.exit_code, result.stderr) == (3, "mlapi: user 'nobody' does not exist\n")


@pytest.mark.parametrize(
    ("is_terminal", "may_read", "is_accepted"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_question_needs_a_terminal_that_is_not_read_for_names(
    is_terminal: bool, may_read: bool, is_accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.StringIO()
    monkeypatch.setattr(stdin, "isatty", lambda: is_terminal)
    monkeypatch.setattr("sys.stdin", stdin)

    with nullcontext() if is_accepted else pytest.raises(UsageError, match="add --yes"):
        selection.require_terminal(may_read=may_read)


def test_outage_while_users_are_looked_up_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_users: Users, _username: str) -> User:
        raise RepositoryUnavailableError("simulated outage")

    monkeypatch.setattr(Users, "find", fail)

    result = mlapi("users", "disable", "ada", "bob")

    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (3, "", 1)


def test_output_can_be_captured_by_another_program() -> None:
    with redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit):
        main(["users", "list", "--limit", "1"])

    assert "ada" in output.getvalue()


def test_table_fits_a_narrow_terminal() -> None:
    mlapi("users", "add", "n" * 60, f"{'e' * 50}@example.com", stdin="x\n")

    _, shown = on_terminal("users", "list", answer="", columns=50)

    lines = [line for line in shown.splitlines() if "ID" in line or "active" in line]
    assert max(map(len, lines)) <= 50
    assert lines[0].split()[:5] == ["ID", "STATE", "USERNAME", "EMAIL", "CREATED"]
    assert lines[-1].count("…") == 2


def test_question_lists_at_most_twenty_items(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("click.confirm", lambda *_arguments, **_options: True)

    selection.confirm("Remove these?", [f"item {number}" for number in range(23)])

    assert capsys.readouterr().err.splitlines()[-2:] == ["  item 19", "  ... and 3 more"]
