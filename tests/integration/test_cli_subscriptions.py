"""The expiry, plan and metadata on the command line: changes, lists, imports and exports."""

import csv
import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import Result
from sqlalchemy import URL

from mlapi import User
from mlapi.adapters.sql.repository import SqlUserRepository
from mlapi.bootstrap import open_users
from mlapi.config import load_settings
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.errors import RepositoryUnavailableError
from mlapi.entrypoints.cli import selection
from tests.command_line import create_users, mlapi

NAMES = ["ada", "Bob", "cyd"]
PLANS = "plans: {free: {per_minute: 60}, pro: {per_minute: 600}}\ndefault_plan: free\n"
END = datetime(2099, 1, 31, tzinfo=UTC)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = create_users(tmp_path_factory.mktemp("original"), NAMES, "x")
    (folder / "config.yml").write_text(PLANS)
    return folder


@pytest.fixture(autouse=True)
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(original, tmp_path, dirs_exist_ok=True))
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", "fernet")
    return tmp_path


def all_users() -> dict[str, User]:
    with open_users(load_settings()) as users:
        return {user.username: user for user in users.iterate_users()}


def update(name: str, **changes: object) -> None:
    with open_users(load_settings()) as users:
        found = users.find(name)
        assert found is not None
        users.update(user_id=found.id, **changes)  # type: ignore[arg-type]  # the test passes the right types


def names_of(result: Result) -> list[str]:
    return [json.loads(line)["username"] for line in result.stdout.splitlines()]


# --- users set


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("2099-01-31", END),
        ("2099-01-31T12:00:00Z", END + timedelta(hours=12)),
        ("2099-01-31T12:00", END + timedelta(hours=12)),
        ("2099-01-31T01:00+01:00", END),
    ],
)
def test_expiry_is_set_to_a_time(text: str, end: datetime) -> None:
    result = mlapi("users", "set", "ada", "--expires", text, "--plan", "pro")

    assert result.stdout == f"updated user 1 (ada): access expires {end:%Y-%m-%d %H:%M} UTC, plan pro\n"
    assert (all_users()["ada"].expires_datetime, all_users()["ada"].plan) == (end, "pro")


def test_extension_starts_from_the_expiry_of_each_user() -> None:
    update("ada", expires=END)

    result = mlapi("users", "set", "ada", "BOB", "1", "--expires", "+1mo", "--plan", "none")

    users = all_users()
    bob_end = users["Bob"].expires_datetime
    assert bob_end is not None
    assert users["ada"].expires_datetime == datetime(2099, 2, 28, tzinfo=UTC)
    assert timedelta(days=27) < bob_end - datetime.now(UTC) < timedelta(days=32)
    assert result.stdout == (
        "updated user 1 (ada): access expires 2099-02-28 00:00 UTC, default plan\n"
        f"updated user 2 (Bob): access expires {bob_end:%Y-%m-%d %H:%M} UTC, default plan\n"
    )


def test_user_named_twice_is_extended_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_BATCH_USERS", 1)
    update("ada", expires=END)

    result = mlapi("users", "set", "-", "--expires", "+1d", stdin="ada\nBob\n1\nADA\n")

    assert all_users()["ada"].expires_datetime == END + timedelta(days=1)
    assert result.stdout.count("updated user 1") == 1


def test_expiry_in_the_past_is_pointed_out() -> None:
    result = mlapi("users", "set", "ada", "--expires", "2020-01-31")

    assert result.stdout == "updated user 1 (ada): access expired 2020-01-31 00:00 UTC\n"


def test_expiry_plan_and_metadata_can_be_removed() -> None:
    update("ada", expires=END, plan="pro", metadata={"customer": "cus_1"})

    result = mlapi("users", "set", "ada", "--expires", "never", "--plan", "none", "--metadata", "{}", "--json")

    shown = json.loads(result.stdout)
    assert [shown[name] for name in ("expires_at", "plan", "metadata", "state")] == [None, None, {}, "active"]


def test_name_address_and_metadata_are_changed() -> None:
    result = mlapi(
        *("users", "set", "ada", "--new-username", "Ada L", "--email", "l@example.com", "--metadata", '{"n": 12}')
    )

    user = all_users()["Ada L"]
    assert result.stdout == "updated user 1 (Ada L)\n"
    assert (user.email, user.metadata.as_dict()) == ("l@example.com", {"n": 12})


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        ([], 2, "nothing to change: add --expires, --plan, --new-username, --email or --metadata"),
        (["--expires", "30d"], 2, "'30d' is not a time such as 2030-01-31, 2030-01-31T12:00Z, +30d, +1mo or never"),
        (["--expires", "+30m"], 2, "'+30m' is not a time"),
        (["--expires", ""], 2, "'' is not a time"),
        (["--expires", "0001-01-01T00:00+10:00"], 2, "is not a time"),
        (["--plan", "gold"], 3, "plan must be one of the plans in the configuration: free, pro"),
        (["--plan", ""], 3, "plan must be one of the plans"),
        (
            ["--metadata", "[]"],
            3,
            'metadata must be a JSON object without repeated keys, such as {"customer": "cus_123"}',
        ),
        (["--metadata", '{"a": 1, "a": 2}'], 3, "metadata must be a JSON object"),
        (["--email", "ada"], 3, "email must look like name@example.com"),
        (["--new-username", "BOB"], 3, "user 2 already has this username"),
        (["cyd", "--new-username", "x"], 2, "--new-username changes one user: name one USER"),
        (["-", "--new-username", "x"], 2, "--new-username changes one user: name one USER"),
    ],
)
def test_invalid_change_is_rejected(arguments: Sequence[str], exit_code: int, message: str) -> None:
    before = all_users()

    result = mlapi("users", "set", "ada", *arguments)

    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert message in result.stderr
    assert all_users() == before


def test_outage_during_an_extension_warns_about_repeating_it(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = SqlUserRepository.apply
    calls = 0

    def fail_second(self: SqlUserRepository, commands: Sequence[Command], **options: float | None) -> list[Outcome]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RepositoryUnavailableError("simulated outage")
        return apply(self, commands, **options)

    monkeypatch.setattr(SqlUserRepository, "apply", fail_second)
    monkeypatch.setattr(selection, "_BATCH_USERS", 1)

    result = mlapi("users", "set", "ada", "bob", "--expires", "+1d")

    assert result.exit_code == 3
    advice = "run the command again, but only for users that `mlapi users show` reports as unchanged"
    assert f"users changed before: 1; {advice}" in result.stderr


def test_user_is_added_with_expiry_plan_and_metadata() -> None:
    options = ["--expires", "2099-01-31", "--plan", "pro", "--metadata", '{"customer": "cus_1"}']

    result = mlapi("users", "add", "dan", "dan@example.com", *options, stdin="x\n")

    user = all_users()["dan"]
    assert result.exit_code == 0
    assert (user.expires_datetime, user.plan, user.metadata.as_dict()) == (END, "pro", {"customer": "cus_1"})


# --- lists


def test_list_shows_expiry_and_plan_if_a_user_has_one() -> None:
    before = mlapi("users", "list").stdout.splitlines()
    update("Bob", expires=END, plan="pro")
    after = mlapi("users", "list").stdout.splitlines()

    headings = ["ID", "STATE", "USERNAME", "EMAIL", "CREATED", "(UTC)", "UPDATED", "(UTC)"]
    assert before[0].split() == headings
    assert after[0].split() == [*headings[:4], "PLAN", "ENDS", "(UTC)", *headings[4:]]
    assert after[2].split()[:7] == ["2", "active", "Bob", "Bob@example.com", "pro", "2099-01-31", "00:00"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--state", "active"], ["ada"]),
        (["--state", "expired"], ["Bob"]),
        (["--state", "disabled", "--disabled"], ["cyd"]),
        (["--expires-before", "+7d"], ["Bob"]),
        (["--expires-before", "2099-02-01"], ["ada", "Bob"]),
        (["--metadata", "customer=cus=1"], ["ada"]),
        (["--metadata", "customer=", "--state", "active"], []),
    ],
)
def test_lists_and_exports_are_filtered(options: list[str], names: list[str]) -> None:
    update("ada", expires=END, metadata={"customer": "cus=1"})
    update("Bob", expires=datetime(2020, 1, 1, tzinfo=UTC))
    mlapi("users", "disable", "cyd")

    assert names_of(mlapi("users", "list", "--json", *options)) == names
    assert names_of(mlapi("users", "export", "-", "--format", "jsonl", *options)) == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--state", "active", "--disabled"], "no user matches both --state active and --disabled"),
        (["--state", "disabled", "--enabled"], "no user matches both --state disabled and --enabled"),
        (["--metadata", "customer"], "--metadata must be KEY=VALUE"),
        (["--metadata", "=x"], "--metadata must be KEY=VALUE"),
        (["--expires-before", "7d"], "'7d' is not a time such as +7d, 2030-01-31 or 2030-01-31T12:00Z"),
        (["--state", "enabled"], "is not one of 'active', 'disabled', 'expired'"),
    ],
)
def test_invalid_filter_is_rejected(options: list[str], message: str) -> None:
    result = mlapi("users", "list", *options)

    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_audit_trail_shows_changes_without_personal_data() -> None:
    mlapi("users", "set", "ada", "--expires", "2099-01-31", "--plan", "pro", "--metadata", '{"card": "4711"}')
    mlapi("users", "set", "ada", "--expires", "never", "--email", "secret@example.com")

    table = mlapi("audit", "list", "--limit", "2").stdout.splitlines()
    rows = [json.loads(line) for line in mlapi("audit", "list", "--limit", "2", "--json").stdout.splitlines()]

    assert "  expires_at: 2099-01-31T00:00:00Z -> none; email  " in table[1]
    assert "  expires_at: none -> 2099-01-31T00:00:00Z; plan: none -> pro; metadata: card  " in table[2]
    assert rows[0]["changes"] == {"expires_at": ["2099-01-31T00:00:00Z", None], "email": None}
    assert "4711" not in table[2]


# --- import and export


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_exported_users_can_be_imported_unchanged(url: URL, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    metadata = {"customer": 'cus "1", é', "nested": {"ids": [1, 2**70, 0.5]}, "=x": None}
    update("ada", expires=datetime(2099, 1, 31, 12, 30, 15, 123456, tzinfo=UTC), plan="pro", metadata=metadata)
    update("Bob", expires=datetime(2020, 1, 1, tzinfo=UTC))
    before = all_users()
    file = f"users.{suffix}"

    exported = mlapi("users", "export", file, "--with-stored-passwords")
    empty = "sqlite:///imported.db" if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=False)
    monkeypatch.setenv("MLAPI_DATABASE__URL", empty)
    imported = mlapi("users", "import", file)

    assert (exported.exit_code, imported.stdout) == (0, "3 imported, 0 already present, 0 rejected\n")
    after = all_users()
    fields = ("email", "enabled", "created_datetime", "expires_datetime", "plan", "metadata")
    assert {name: [getattr(user, field) for field in fields] for name, user in after.items()} == {
        name: [getattr(user, field) for field in fields] for name, user in before.items()
    }


def test_files_of_earlier_versions_can_be_imported() -> None:
    Path("old.csv").write_text(
        "user_id,username,email,enabled,created_datetime,updated_datetime,password\n"
        "7,dan,dan@example.com,true,2024-02-29T12:00:00+00:00,2024-02-29T12:00:00+00:00,x\n"
    )

    result = mlapi("users", "import", "old.csv")

    assert result.stdout == "1 imported, 0 already present, 0 rejected\n"
    dan = all_users()["dan"]
    assert (dan.expires_datetime, dan.plan, dan.metadata.as_dict()) == (None, None, {})


def test_empty_cells_set_no_expiry_and_no_plan() -> None:
    Path("users.csv").write_text("username,email,password,expires_datetime,plan,metadata\ndan,d@example.com,x,,,\n")
    Path("users.jsonl").write_text(
        '{"username": "eve", "email": "e@example.com", "password": "x", "expires_datetime": null, "plan": null,'
        ' "metadata": null}\n'
    )

    results = [mlapi("users", "import", name) for name in ("users.csv", "users.jsonl")]

    assert [result.exit_code for result in results] == [0, 0]
    access = [(user.expires_datetime, user.plan, user.metadata.as_dict()) for user in all_users().values()]
    assert access[-2:] == [(None, None, {})] * 2


def test_invalid_cells_are_reported_with_their_column() -> None:
    lines: list[dict[str, object]] = [
        {"expires_datetime": "2099-01-31"},
        {"plan": "gold"},
        {"plan": ["pro"]},
        {"metadata": [1]},
        {"metadata": "{"},
        {"metadata": {"x": "y" * 5000}, "expires_datetime": 7},
        {"plan": 0, "metadata": False, "expires_datetime": False},
    ]
    with Path("users.jsonl").open("w") as file:
        for number, line in enumerate(lines):
            body: dict[str, object] = {"username": f"user{number}", "email": "e@example.com", "password": "x", **line}
            file.write(json.dumps(body) + "\n")

    result = mlapi("users", "import", "users.jsonl")

    rejects = [json.loads(line) for line in Path("users.jsonl.rejects.jsonl").read_text().splitlines()]
    assert result.exit_code == 4
    assert [(line["line"], line["field"]) for line in rejects] == [
        (1, "expires_datetime"),
        (2, "plan"),
        (3, "plan"),
        (4, "metadata"),
        (5, "metadata"),
        (6, "expires_datetime"),
        (6, "metadata"),
        (7, "plan"),
        (7, "expires_datetime"),
        (7, "metadata"),
    ]
    assert "yyy" not in Path("users.jsonl.rejects.jsonl").read_text()


def test_metadata_is_shown_for_one_user() -> None:
    update("ada", metadata={"customer": "cus_1"})

    with_metadata, without = (mlapi("users", "show", name).stdout for name in ("ada", "Bob"))

    assert '  {"customer":"cus_1"}  ' in with_metadata
    assert ("METADATA" in with_metadata, "METADATA" in without) == (True, False)


def test_csv_list_contains_metadata_as_json() -> None:
    update("ada", metadata={"customer": "cus_1"})

    rows = list(csv.DictReader(mlapi("users", "list", "--csv").stdout.splitlines()))

    assert [row["metadata"] for row in rows] == ['{"customer":"cus_1"}', "{}", "{}"]
