"""The command line: every command, and what it says of wrong input, in one line and without a traceback."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlapi.bootstrap import open_service, open_users
from mlapi.config import load_settings
from mlapi.entrypoints.cli import main
from mlapi.entrypoints.cli import users as cli

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

    assert cli._password() == PASSWORD
    assert asked == [("Password", True, True)]


def listed(*options: str) -> list[str]:
    return mlapi("users", "list", "--json", *options).stdout.splitlines()


def test_users_are_listed_by_page_and_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_PAGE", 2)
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
