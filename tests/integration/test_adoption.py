"""Tests of `mlapi db adopt`. The command adopts the legacy app's database completely or leaves it unchanged."""

import doctest
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import URL, inspect, text

from mlapi.adapters.sql.adoption import survey
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.revisions import HEAD, VERSION_TABLE
from mlapi.adapters.sql.schema import upgrade
from mlapi.bootstrap import open_adoption, open_service, open_users
from mlapi.config import load_settings
from mlapi.domain.errors import ConfigurationError, InvalidCredentialsError
from mlapi.domain.users import EncryptedPassword
from mlapi.entrypoints.cli import main
from tests.conftest import OLDER_KEY
from tests.legacy_database import (
    CREATE,
    LEGACY,
    ROWS,
    STORED,
    add,
    connected,
    create_legacy_database,
    describe_schema,
    execute,
    row,
    snapshot,
)

only_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
only_postgresql = pytest.mark.parametrize("url", ["postgres"], indirect=True)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, url: URL, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, with the settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment(url).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def environment(url: URL) -> dict[str, str]:
    return {
        "MLAPI_DATABASE__URL": url.render_as_string(hide_password=False),
        "MLAPI_SECRETS__KEY": LEGACY["key"],
        "MLAPI_SECRETS__SALT": LEGACY["salt"],
        "MLAPI_PASSWORDS__SCHEME": "fernet",  # fast
    }


def adopt(*options: str) -> Result:
    return CliRunner().invoke(main, ["db", "adopt", *options])


def adopt_all(*options: str) -> Result:
    result = adopt("--rename-duplicates", "--rename-invalid", "--lock-passwordless", *options)
    assert (result.exit_code, result.stderr) == (0, "")
    return result


def content(url: URL) -> list[dict[str, Any]]:
    with connected(url) as connection:
        return [dict(each) for each in connection.execute(text("SELECT * FROM users ORDER BY id")).mappings()]


def names(url: URL) -> dict[int, tuple[str, str]]:
    return {each["id"]: (each["username"], each["username_key"]) for each in content(url)}


def test_every_legacy_user_can_log_in_after_adoption(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    create_legacy_database(url)
    monkeypatch.delenv("MLAPI_PASSWORDS__SCHEME")

    result = adopt()

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == f"adopted 10 users; schema: revision {HEAD}"
    assert [each["password"] for each in content(url)] == [each["password"] for each in ROWS]
    with open_service(load_settings()) as service:
        for each in LEGACY["rows"]:
            enabled = service.users.set_enabled(user_id=each["id"], enabled=True)
            service.access.authenticator.log_in(username=each["username"].upper(), password=each["plaintext"])
            assert enabled.username == each["username"]
            with pytest.raises(InvalidCredentialsError):
                service.access.authenticator.log_in(
                    username=each["username"], password=each["plaintext"] + LEGACY["salt"]
                )
        stored = [user.password.value for user in service.users.iterate_users()]
    assert all(value.endswith("|argon2id") for value in stored)


def test_adoption_keeps_rows_with_their_ids_and_times(url: URL) -> None:
    create_legacy_database(url)

    adopt_all()

    with open_users(load_settings()) as users:
        found = [
            (
                user.id,
                user.username,
                user.password.value,
                user.email,
                user.enabled,
                user.created_datetime.isoformat(),
                user.updated_datetime.isoformat(),
            )
            for user in users.iterate_users()
        ]
        epochs = {user.token_epoch for user in users.iterate_users()}
    assert found == [
        (
            each["id"],
            each["username"],
            each["password"],
            each["email"],
            each["enabled"] is not False,
            f"{each['created_datetime']}+00:00",
            f"{each['updated_datetime']}+00:00",
        )
        for each in ROWS
    ]
    assert len(epochs) == len(ROWS)
    assert {len(epoch) for epoch in epochs} == {16}


@pytest.fixture
def second_url(url: URL, request: pytest.FixtureRequest) -> Iterator[URL]:
    """Yield the URL of a second empty database of the same kind."""
    if url.get_backend_name() == "sqlite":
        yield url.set(database=f"{url.database}.other")
    else:
        with request.getfixturevalue("postgres").new_database() as another:
            yield another


def test_adopted_and_new_databases_have_the_same_schema(url: URL, second_url: URL) -> None:
    with Database(second_url) as fresh:
        upgrade(fresh)
    create_legacy_database(url)

    adopt_all()

    with connected(second_url) as connection:
        expected = describe_schema(connection)
    with connected(url) as connection:
        adopted = describe_schema(connection)
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "f03cfd316fe4"
        assert connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}")) == HEAD
    del adopted["alembic_version"]
    for name in ("table alembic_version", "index sqlite_autoindex_alembic_version_1"):
        adopted.pop(name, None)
    assert adopted == expected


def registered_id() -> int:
    with open_users(load_settings()) as users:
        return users.register(username="a new user", password="p", email="a@example.com").id


def test_empty_table_starts_with_id_1(url: URL) -> None:
    create_legacy_database(url, [])

    assert adopt().stdout == f"users: 0\nadopted 0 users; schema: revision {HEAD}\n"
    assert registered_id() == 1


def test_ids_of_removed_users_are_not_reused(url: URL) -> None:
    create_legacy_database(url, [row(5, "ada"), row(7, "bob")])

    adopt()
    with open_users(load_settings()) as users:
        for user in list(users.iterate_users()):
            users.remove(user_id=user.id)

    assert registered_id() == 8


@only_postgresql
@pytest.mark.parametrize("owner", ["users.id", "NONE"])
def test_ids_continue_from_the_sequence(url: URL, owner: str) -> None:
    create_legacy_database(url, [row(5, "ada")])
    execute(url, f"ALTER SEQUENCE users_id_seq OWNED BY {owner}", "SELECT setval('users_id_seq', 9)")

    adopt()

    assert registered_id() == 10


@only_postgresql
@pytest.mark.parametrize("default", ["ADD GENERATED ALWAYS AS IDENTITY (START 9)", "SET DEFAULT 1", "DROP DEFAULT"])
def test_id_column_without_a_sequence_gets_an_identity(url: URL, default: str) -> None:
    create_legacy_database(url, [row(5, "ada")])
    execute(url, "ALTER TABLE users ALTER id DROP DEFAULT", "DROP SEQUENCE users_id_seq")
    execute(url, f"ALTER TABLE users ALTER id {default}")

    result = adopt()

    assert (result.exit_code, registered_id()) == (0, 6)


@only_sqlite
def test_ids_continue_after_sqlites_largest_id(url: URL) -> None:
    create = CREATE["sqlite"].replace("NOT NULL", "PRIMARY KEY AUTOINCREMENT")
    execute(url, create.replace(", PRIMARY KEY (id)", ", enabled BOOLEAN"))
    with connected(url) as connection:
        add(connection, [row(41, "ada")])
        connection.exec_driver_sql("DELETE FROM users")

    adopt()

    assert registered_id() == 42


def test_missing_values_get_defaults(url: URL) -> None:
    later = "2023-05-06 07:08:09.000010"
    nothing = {"email": None, "enabled": None, "created_datetime": None, "updated_datetime": None}
    rows = [
        row(1, "ada", created_datetime=None, updated_datetime=later),
        row(2, "bob", created_datetime=later, updated_datetime=None),
        row(3, "cyd", **nothing),
        row(4, "dan", email="nonsense"),
    ]
    create_legacy_database(url, rows)

    result = adopt()

    assert result.exit_code == 0
    with open_users(load_settings()) as users:
        ada, bob, cyd, dan = users.iterate_users()
    assert ada.created_datetime == ada.updated_datetime == bob.created_datetime == bob.updated_datetime
    assert ada.created_datetime.isoformat(" ") == f"{later}+00:00"
    assert (cyd.email, cyd.enabled, dan.email) == ("", True, "nonsense")
    assert cyd.created_datetime == cyd.updated_datetime > ada.created_datetime
    assert result.stdout.splitlines() == [
        "users: 4",
        "e-mail addresses that cannot be used to register: 1; kept unchanged",
        "       4 'dan' must look like name@example.com",
        "no e-mail address: 1; becomes empty",
        "       3 'cyd'",
        "neither enabled nor disabled: 1; becomes enabled",
        "       3 'cyd'",
        "no created_datetime: 2; set to updated_datetime, or to the time of this adoption",
        "       1 'ada'",
        "       3 'cyd'",
        "no updated_datetime: 2; set to created_datetime, or to the time of this adoption",
        "       2 'bob'",
        "       3 'cyd'",
        f"adopted 4 users; schema: revision {HEAD}",
    ]


UNDECIDED_ROWS = [
    row(1, "alice"),
    row(2, "ALICE"),
    row(3, "José"),
    row(4, "Jose\u0301"),
    row(5, None),
    row(6, ""),
    row(7, " x\x1b[2J"),
    row(8, "x" * 255),
    row(9, "bob", password=None),
    row(10, "cyd", password=""),
]


def test_adoption_stops_at_findings_that_need_an_option(url: URL) -> None:
    create_legacy_database(url, UNDECIDED_ROWS)
    before = snapshot(url)

    result = adopt()

    assert snapshot(url) == before
    assert result.exit_code == 3
    assert result.stdout.splitlines() == [
        "users: 10",
        (
            "usernames that are equal except for case or spelling: 4; the first user keeps the name, the others get"
            " their id appended (--rename-duplicates)"
        ),
        "       1 'alice' keeps the name",
        "       2 'ALICE' -> 'ALICE-2'",
        "       3 'José' keeps the name",
        "       4 'Jose\u0301' -> 'Jose\u0301-4'",
        "invalid usernames: 4; replaced (--rename-invalid)",
        "       5 None is missing -> 'user-5'",
        "       6 '' must not be empty -> 'user-6'",
        "       7 ' x\\x1b[2J' must not contain control, invisible or unassigned characters -> 'user-7'",
        f"       8 '{'x' * 59}... must be at most 254 characters -> 'user-8'",
        (
            "no password: 2; kept; these users cannot log in until you run mlapi users set-password"
            " (--lock-passwordless)"
        ),
        "       9 'bob'",
        "      10 'cyd'",
    ]
    assert result.stderr == (
        "mlapi: nothing was changed: to proceed, add --rename-duplicates --rename-invalid --lock-passwordless\n"
    )


@pytest.mark.parametrize("option", ["--rename-duplicates", "--rename-invalid", "--lock-passwordless"])
def test_each_option_resolves_one_finding(url: URL, option: str) -> None:
    create_legacy_database(url, UNDECIDED_ROWS)

    result = adopt(option)

    assert result.exit_code == 3
    assert option not in result.stderr


def test_findings_are_resolved_as_chosen(url: URL) -> None:
    create_legacy_database(url, UNDECIDED_ROWS)

    adopt_all()

    assert names(url) == {
        1: ("alice", "alice"),
        2: ("ALICE-2", "alice-2"),
        3: ("José", "josé"),
        4: ("Jose\u0301-4", "josé-4"),
        5: ("user-5", "user-5"),
        6: ("user-6", "user-6"),
        7: ("user-7", "user-7"),
        8: ("user-8", "user-8"),
        9: ("bob", "bob"),
        10: ("cyd", "cyd"),
    }


def test_user_without_password_can_log_in_once_it_is_set(url: URL) -> None:
    create_legacy_database(url, [row(9, "bob", password=None)])
    adopt_all()

    with open_service(load_settings()) as service:
        users, authenticator = service.users, service.access.authenticator
        for guess in ("", "None"):
            with pytest.raises(InvalidCredentialsError):
                authenticator.log_in(username="bob", password=guess)
        (bob,) = users.iterate_users()
        users.set_password(user_id=bob.id, password="a new one")
        issued = authenticator.log_in(username="bob", password="a new one")

    assert service.secrets.current().cipher.is_readable(bob.password)  # an unreadable value would prevent key rotation
    assert issued.token


def test_generated_name_never_equals_an_existing_one(url: URL) -> None:
    create_legacy_database(
        url,
        [
            row(1, "alice"),
            row(2, "Alice"),
            row(3, "ALICE-2"),
            row(4, "alice-2-2"),
            row(5, None),
            row(6, "User-5"),
            row(7, "x-11"),
            row(11, "x-11"),
            row(12, "\N{LATIN SMALL LETTER SHARP S}" * 127),
            row(13, "s" * 254),
            row(14, "ſ" * 254),
            row(15, "ẞ" * 127),
        ],
    )

    adopt_all()

    assert {user_id: name for user_id, (name, _) in names(url).items()} == {
        1: "alice",
        2: "Alice-2-3",
        3: "ALICE-2",
        4: "alice-2-2",
        5: "user-5-2",
        6: "User-5",
        7: "x-11",
        11: "x-11-11",
        12: "ß" * 127,
        13: "s" * 251 + "-13",
        14: "ſ" * 251 + "-14",
        15: "ẞ" * 125 + "-15",
    }


def test_generated_names_are_unique(url: URL) -> None:
    create_legacy_database(url, [row(1, "x-5"), row(2, "X-5"), row(3, "x"), row(5, "X")])

    adopt_all()

    assert {user_id: name for user_id, (name, _) in names(url).items()} == {1: "x-5", 2: "X-5-2", 3: "x", 5: "X-5-3"}


def test_report_shows_20_users_per_finding_and_json_shows_all(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "BATCH_ROWS", 7)
    create_legacy_database(url, [row(number, "ädä", enabled=None) for number in range(1, 46)])

    text_report = adopt("--dry-run").stdout.splitlines()
    json_report = [json.loads(line) for line in adopt("--dry-run", "--json").stdout.splitlines()]

    assert len(text_report) == 1 + 2 * 22
    assert text_report[22] == "         ... and 25 more; --json lists all"
    assert len(json_report) == 45 + 45 + 1
    assert json_report[1] == {
        "finding": "duplicate_names",
        "user_id": 2,
        "username": "ädä",
        "becomes": "ädä-2",
        "first_user_id": 1,
    }
    assert json_report[-1] == {
        "adopted": False,
        "revision": None,
        "users": 45,
        "findings": {"duplicate_names": 45, "missing_flags": 45},
        "extra_columns": [],
        "references": [],
        "hindrances": [],
        "undecided": ["--rename-duplicates"],
    }


def test_duplicates_are_grouped_and_others_sorted_by_id(url: URL) -> None:
    flags = {2: None, 4: None, 5: None}
    rows = enumerate(["ada", "bob", "Bob", "Ada", "cyd"], start=1)
    create_legacy_database(url, [row(number, name, enabled=flags.get(number, True)) for number, name in rows])

    lines = [json.loads(line) for line in adopt("--json").stdout.splitlines()[:-1]]

    assert [(line["finding"], line["user_id"]) for line in lines] == [
        *(("duplicate_names", user_id) for user_id in (1, 4, 2, 3)),
        *(("missing_flags", user_id) for user_id in (2, 4, 5)),
    ]


def test_dry_run_changes_nothing_and_reports_success(url: URL) -> None:
    create_legacy_database(url, [row(1, "ada"), row(2, "ADA")])
    before = snapshot(url)

    undecided, decided = adopt("--dry-run"), adopt("--dry-run", "--rename-duplicates")

    assert snapshot(url) == before
    assert (undecided.exit_code, decided.exit_code) == (3, 0)
    assert decided.stdout.splitlines()[-1] == "nothing was changed"


def test_last_line_of_json_is_the_result(url: URL) -> None:
    create_legacy_database(url, [row(1, None), row(2, "\x1b", email="nonsense")])

    lines = [json.loads(line) for line in adopt_all("--json").stdout.splitlines()]

    assert lines == [
        {
            "finding": "invalid_names",
            "user_id": 1,
            "username": None,
            "becomes": "user-1",
            "problem": "is missing",
        },
        {
            "finding": "invalid_names",
            "user_id": 2,
            "username": "\x1b",
            "becomes": "user-2",
            "problem": "must not contain control, invisible or unassigned characters",
        },
        {
            "finding": "invalid_emails",
            "user_id": 2,
            "username": "\x1b",
            "becomes": "user-2",
            "problem": "must look like name@example.com",
        },
        {
            "adopted": True,
            "revision": HEAD,
            "users": 2,
            "findings": {"invalid_names": 2, "invalid_emails": 1},
            "extra_columns": [],
            "references": [],
            "hindrances": [],
            "undecided": [],
        },
    ]


@pytest.mark.parametrize(("setting", "value"), [("KEY", OLDER_KEY), ("SALT", "another salt")])
def test_wrong_secrets_are_rejected(
    url: URL, setting: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create_legacy_database(url)
    before = snapshot(url)
    monkeypatch.setenv(f"MLAPI_SECRETS__{setting}", value)

    result = adopt()

    assert snapshot(url) == before
    assert (result.exit_code, caplog.messages) == (3, [])
    assert result.stdout.splitlines()[1].startswith(
        "stored passwords that the configured secrets cannot decrypt: 10; set"
    )
    assert result.stderr == (
        "mlapi: nothing was changed: stored passwords that the configured secrets cannot decrypt: set secrets.key and"
        " secrets.salt to those of the legacy app, or to lists that include them\n"
    )


def test_unreadable_passwords_are_reported_and_kept(url: URL) -> None:
    create_legacy_database(url, [row(1, "ada"), row(2, "bob", password="damaged"), row(3, "cyd")])

    result = adopt()

    assert result.exit_code == 0
    assert result.stdout.splitlines()[1:3] == [
        "stored passwords that the configured secrets cannot decrypt: 1; kept; these users cannot log in",
        "       2 'bob' cannot be decrypted with secrets.key: it was made with a different key, or is damaged",
    ]
    assert content(url)[1]["password"] == "damaged"


def test_prune_keeps_a_key_that_adopted_passwords_need(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    create_legacy_database(url)
    monkeypatch.delenv("MLAPI_SECRETS__KEY")
    monkeypatch.delenv("MLAPI_SECRETS__SALT")
    Path("secrets.yml").write_text(f"key: [{OLDER_KEY}, {LEGACY['key']}]\nsalt: ['{LEGACY['salt']}']\n")
    Path("secrets.yml").chmod(0o600)
    adopt_all()

    pruned = CliRunner().invoke(main, ["secrets", "prune"])

    assert pruned.stdout.startswith("kept keys and salts: passwords may be stored under an older key")
    assert LEGACY["key"] in Path("secrets.yml").read_text()


def test_missing_secrets_are_not_created(url: URL, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_legacy_database(url)
    monkeypatch.delenv("MLAPI_SECRETS__KEY")

    result = adopt()

    assert result.exit_code == 3
    assert result.stderr.startswith("mlapi: secrets.key is missing: set it in config.yml")
    assert not (folder / "secrets.yml").exists()


def test_times_are_converted_from_the_given_time_zone(url: URL) -> None:
    at = {
        1: ("2022-01-02 14:04:26.751085", "2022-01-02T12:04:26.751085+00:00"),
        2: ("2022-07-02 14:04:26", "2022-07-02T11:04:26+00:00"),
        3: ("2022-03-27 03:30:00", "2022-03-27T01:30:00+00:00"),  # a local time that never occurred
        4: ("2022-10-30 03:30:00", "2022-10-30T01:30:00+00:00"),  # a local time that occurred twice
    }
    create_legacy_database(url, [row(each, f"user{each}", created_datetime=stored) for each, (stored, _) in at.items()])

    adopt_all("--timezone", "Europe/Vilnius")

    with open_users(load_settings()) as users:
        found = {user.id: user.created_datetime.isoformat() for user in users.iterate_users()}
    assert found == {each: instant for each, (_, instant) in at.items()}


@pytest.mark.parametrize("zone", ["Europe", "Nowhere/Land", "../UTC", "\x1b"])
def test_unknown_time_zone_is_rejected(url: URL, zone: str) -> None:
    create_legacy_database(url)

    result = adopt("--timezone", zone)

    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == f"mlapi: unknown time zone {zone!r}: use an IANA name, such as Europe/Vilnius\n"


def test_second_adoption_does_nothing(url: URL) -> None:
    create_legacy_database(url)
    adopt_all()
    before = content(url)

    result = adopt()

    assert content(url) == before
    line = f"nothing to do: the database already belongs to mlapi, at revision {HEAD}\n"
    assert (result.exit_code, result.stdout) == (0, line)
    assert json.loads(adopt("--json").stdout) == {"adopted": False, "revision": HEAD}


@pytest.mark.parametrize(
    ("statements", "line"),
    [
        ([], "the database has no table `users` to adopt; `mlapi db upgrade` creates an empty one"),
        (
            ["CREATE TABLE users (id INTEGER PRIMARY KEY, username VARCHAR, password VARCHAR, token_epoch VARCHAR)"],
            (
                "the table `users` belongs to another program (it has no column 'email', no column 'enabled', no column"
                " 'created_datetime', no column 'updated_datetime', a column 'token_epoch'): check database.url"
            ),
        ),
    ],
)
def test_other_tables_are_rejected(url: URL, statements: list[str], line: str) -> None:
    execute(url, "CREATE TABLE other (id INTEGER PRIMARY KEY)", *statements)
    before = snapshot(url)

    result = adopt()

    assert snapshot(url) == before
    assert (result.exit_code, result.stdout, result.stderr) == (3, "", f"mlapi: {line}\n")


@only_sqlite
def test_missing_file_is_not_created(folder: Path) -> None:
    result = adopt()

    assert result.exit_code == 3
    assert f"mlapi: there is no database at {folder}/mlapi.db: set MLAPI_CONFIG" in result.stderr
    assert list(folder.iterdir()) == []


def test_service_names_the_command_for_a_legacy_database(url: URL) -> None:
    create_legacy_database(url)

    with pytest.raises(ConfigurationError, match="run `mlapi db adopt` to keep its users"), open_users(load_settings()):
        pass


def test_extra_columns_are_kept(url: URL) -> None:
    create_legacy_database(url, [])
    execute(
        url,
        'ALTER TABLE users ADD COLUMN "full name: x" VARCHAR',
        "ALTER TABLE users ADD COLUMN tariff VARCHAR(19) NOT NULL DEFAULT 'it''s: free'",
    )
    with connected(url) as connection:
        add(connection, [row(1, "ada", tariff="paid"), row(2, "bob")])
    execute(url, "UPDATE users SET \"full name: x\" = 'Ada' WHERE id = 1")

    result = adopt_all()
    registered = registered_id()

    assert result.stdout.splitlines()[1:3] == [
        "column 'full name: x': kept; mlapi leaves it empty for new users",
        "column 'tariff': kept; mlapi leaves it empty for new users",
    ]
    assert registered == 3
    assert [(each["full name: x"], each["tariff"]) for each in content(url)] == [
        ("Ada", "paid"),
        (None, "it's: free"),
        (None, "it's: free"),
    ]


def test_foreign_keys_to_users_are_kept(url: URL) -> None:
    create_legacy_database(url, [row(1, "ada"), row(2, "Ädä", password=None)])
    execute(
        url,
        "CREATE TABLE orders (id INTEGER PRIMARY KEY,"
        " user_id INTEGER REFERENCES users (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED)",
        "INSERT INTO orders VALUES (1, 1), (2, 2), (3, 2)",
    )
    with connected(url) as connection:
        before = inspect(connection).get_foreign_keys("orders")

    result = adopt_all()

    assert result.stdout.splitlines()[1] == (
        "table 'orders' references users: kept; it may prevent users from being removed"
    )
    with connected(url) as connection:
        assert inspect(connection).get_foreign_keys("orders") == before
        assert connection.scalar(text("SELECT count(*) FROM orders")) == 3
    with open_users(load_settings()) as users:
        users.remove(user_id=next(users.iterate_users()).id)
    with connected(url) as connection:
        assert connection.scalars(text("SELECT id FROM orders ORDER BY id")).all() == [2, 3]


def test_non_unique_index_is_kept(url: URL) -> None:
    create_legacy_database(url)
    execute(url, "CREATE INDEX by_email ON users (email)")

    adopt_all()

    with connected(url) as connection:
        indexes = {each["name"]: each["column_names"] for each in inspect(connection).get_indexes("users")}
    assert indexes["by_email"] == ["email"]
    assert indexes["uq_users_username_key"] == ["username_key"]


@only_sqlite
def test_view_is_kept_on_sqlite(url: URL) -> None:
    create_legacy_database(url)
    execute(url, "CREATE VIEW people AS SELECT id, username FROM users", "CREATE VIEW broken AS SELECT 1 FROM nowhere")

    adopt_all()

    with connected(url) as connection:
        assert connection.scalar(text("SELECT count(*) FROM people")) == len(ROWS)


SQLITE_OBSTACLES = {
    "CREATE TABLE users (id BIGINT, username, password, email, enabled, created_datetime, updated_datetime)": (
        "column 'id' must have the type INTEGER, otherwise SQLite does not generate ids"
    ),
    "ALTER TABLE users ADD COLUMN code VARCHAR COLLATE NOCASE CHECK (code <> 'CONFLICT')": (
        "CHECK in its CREATE TABLE statement would be lost: recreate the table without it; COLLATE in its CREATE TABLE"
        " statement would be lost: recreate the table without it; the primary key must be id"
    ),
    "ALTER TABLE users ADD COLUMN Plan VARCHAR": (
        "column 'plan' has the name of a column of mlapi: rename it, for example to legacy_plan"
    ),
    "ALTER TABLE users ADD COLUMN tariff VARCHAR NOT NULL": (
        "column 'tariff' needs a default or must allow NULL, because mlapi does not fill it"
    ),
    "CREATE TRIGGER noted AFTER INSERT ON users BEGIN SELECT 1; END": "trigger 'noted' must be dropped",
    "CREATE UNIQUE INDEX one_address ON users (email)": "unique index 'one_address' must be dropped",
    "ALTER TABLE users ADD COLUMN team INTEGER REFERENCES teams (id)": "foreign key 'team' must be dropped",
    "ALTER TABLE users ADD COLUMN twice INTEGER AS (2 * id)": "generated column 'twice' must be dropped",
}
POSTGRESQL_OBSTACLES = {
    "ALTER TABLE users ALTER created_datetime TYPE timestamptz": (
        "column 'created_datetime' has the type TIMESTAMP, which differs from the legacy app's"
    ),
    "ALTER TABLE users ALTER enabled TYPE integer USING 1": (
        "column 'enabled' has the type INTEGER, which differs from the legacy app's"
    ),
    "ALTER TABLE users DROP CONSTRAINT users_pkey": "the primary key must be id",
    "ALTER TABLE users ADD COLUMN metadata json": (
        "column 'metadata' has the name of a column of mlapi: rename it, for example to legacy_metadata"
    ),
    "ALTER TABLE users ADD COLUMN tariff integer NOT NULL": (
        "column 'tariff' needs a default or must allow NULL, because mlapi does not fill it"
    ),
    "CREATE TRIGGER noted BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION nothing()": (
        "trigger 'noted' must be dropped"
    ),
    "CREATE RULE nothing AS ON DELETE TO users DO INSTEAD NOTHING": "rule 'nothing' must be dropped",
    "CREATE VIEW people AS SELECT id, username FROM users": "view 'people' must be dropped",
    "ALTER TABLE users ENABLE ROW LEVEL SECURITY": "row security of 'users' must be dropped",
    "CREATE UNIQUE INDEX one_address ON users (email)": "unique index 'one_address' must be dropped",
    "ALTER TABLE users ADD CONSTRAINT named CHECK (username <> '')": "constraint 'named' must be dropped",
    "ALTER TABLE users ADD COLUMN twice INTEGER GENERATED ALWAYS AS (2 * id) STORED": (
        "generated column 'twice' must be dropped"
    ),
    "CREATE TABLE more () INHERITS (users)": "inheritance of 'more' must be dropped",
}


def test_every_obstacle_is_reported(url: URL) -> None:
    create_legacy_database(url, [])
    if url.get_backend_name() == "sqlite":
        execute(url, "DROP TABLE users")
        obstacles = SQLITE_OBSTACLES
    else:
        function = "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
        execute(url, function)
        obstacles = POSTGRESQL_OBSTACLES
    execute(url, *obstacles)
    before = snapshot(url)

    result = adopt()

    assert snapshot(url) == before
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("mlapi: the table `users` cannot be adopted yet: ")
    assert sorted(result.stderr.strip().partition(" yet: ")[2].split("; ")) == sorted(
        obstacle for line in obstacles.values() for obstacle in line.split("; ")
    )


@only_sqlite
def test_check_constraint_added_by_sqlalchemy_is_ignored(url: URL) -> None:
    check = ", enabled BOOLEAN, CHECK (enabled IN (0, 1)), PRIMARY KEY (id))"
    execute(url, CREATE["sqlite"].replace(", PRIMARY KEY (id))", check))
    with connected(url) as connection:
        add(connection, ROWS)

    adopt_all()


@only_sqlite
def test_values_of_the_wrong_type_are_rejected(url: URL) -> None:
    rows = [
        row(0, "zero"),
        row(1, "ada", password=b"x"),
        row(2, "bob", email=b"x"),
        row(3, "cyd", enabled="perhaps"),
        row(4, b"dan"),
        row(5, "eve", created_datetime="yesterday"),
        row(6, "flo", updated_datetime=5),
    ]
    create_legacy_database(url, rows)
    execute(url, "UPDATE users SET email = CAST(x'ff' AS TEXT) WHERE id = 4")
    before = snapshot(url)

    result = adopt("--rename-invalid")
    as_json = [json.loads(line) for line in adopt("--json").stdout.splitlines()]

    assert snapshot(url) == before
    assert result.stdout.splitlines()[1:9] == [
        "invalid times: 2; set them to NULL or to a valid time first",
        "       5 'eve'",
        "       6 'flo'",
        (
            "ids below 1, or values of the wrong type in password, email or enabled: 5; set them to NULL or to a value"
            " of the column's type first"
        ),
        "       0 'zero'",
        "       1 'ada'",
        "       2 'bob'",
        "       3 'cyd'",
    ]
    assert result.stderr == (
        "mlapi: nothing was changed: invalid times: set them to NULL or to a valid time first; ids below 1, or values"
        " of the wrong type in password, email or enabled: set them to NULL or to a value of the column's type first\n"
    )
    assert [each["username"] for each in as_json if each.get("finding") == "invalid_names"] == ["b'dan'"]


@only_sqlite
def test_stored_time_zone_takes_precedence_over_the_option(url: URL) -> None:
    create_legacy_database(url, [row(1, "ada", created_datetime="2022-01-02 14:00:00+02:00")])

    adopt_all("--timezone", "Europe/Vilnius")

    assert content(url)[0]["created_datetime"] == "2022-01-02 12:00:00.000000"


@only_postgresql
def test_time_that_python_cannot_represent_is_rejected(url: URL) -> None:
    create_legacy_database(url, [row(1, "ada", created_datetime="infinity")])

    result = adopt()

    assert result.stdout.splitlines()[1].startswith("invalid times: 1")
    assert result.exit_code == 3


@only_sqlite
@pytest.mark.parametrize("lock", ["BEGIN IMMEDIATE", "BEGIN"])
def test_database_file_in_use_is_not_adopted(url: URL, lock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create_legacy_database(url)
    monkeypatch.setattr(Database.__init__, "__kwdefaults__", {"timeout_seconds": 0.2, "max_connections": 2})
    other = sqlite3.connect(str(url.database), isolation_level=None)
    other.execute(lock)
    other.execute("SELECT * FROM users").fetchone()

    result = adopt()
    other.close()

    in_use = "mlapi: the database is unavailable: another program is using the database: stop it, then run this again\n"
    assert (result.exit_code, result.stdout, result.stderr) == (3, "", in_use)
    assert adopt().exit_code == 0


@only_postgresql
def test_table_in_use_is_not_adopted(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    create_legacy_database(url)
    monkeypatch.setattr(Database.__init__, "__kwdefaults__", {"timeout_seconds": 0.2, "max_connections": 2})
    with connected(url) as other:
        other.exec_driver_sql("SELECT * FROM users")
        result = adopt()

    in_use = "mlapi: the database is unavailable: another program is using the database: stop it, then run this again\n"
    assert (result.exit_code, result.stdout, result.stderr) == (3, "", in_use)
    assert adopt().exit_code == 0


@only_sqlite
def test_file_that_is_not_a_database_is_reported_in_one_line(folder: Path) -> None:
    (folder / "mlapi.db").write_text("no database " * 100)

    result = adopt()

    line = "mlapi: the database is unavailable: the file is not a database (SQLITE_NOTADB)\n"
    assert (result.exit_code, result.stderr) == (3, line)


def test_failed_adoption_changes_nothing(url: URL) -> None:
    create_legacy_database(url)
    execute(url, "CREATE TABLE mlapi_audit (id INTEGER PRIMARY KEY)")  # a later migration creates it
    before = snapshot(url)

    result = adopt()

    assert snapshot(url) == before
    assert result.exit_code == 3
    assert "mlapi_audit" in result.stderr
    assert result.stderr.count("\n") == 1


@only_postgresql
def test_legacy_app_settings_are_sufficient(url: URL, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_legacy_database(url)
    for name in ("MLAPI_DATABASE__URL", "MLAPI_SECRETS__KEY", "MLAPI_SECRETS__SALT"):
        monkeypatch.delenv(name)
    settings = {
        "secrets": {"key": LEGACY["key"], "salt": LEGACY["salt"]},
        "connection": {
            "username": url.username,
            "password": url.password,
            "host": url.host,
            "port": url.port,
            "database": url.database,
        },
    }
    (folder / "config.yml").write_text(json.dumps(settings))  # JSON is valid YAML
    (folder / "config.yml").chmod(0o600)

    assert adopt().exit_code == 0


def test_library_can_inspect_a_plan_without_adopting(url: URL) -> None:
    create_legacy_database(url, [row(1, "ada"), row(2, "ADA")])
    before = content(url)

    with open_adoption(load_settings()) as adoption:
        undecided = adoption.find_undecided([])

    assert undecided == ["rename_duplicates"]
    assert content(url) == before
    assert EncryptedPassword(STORED).value not in repr(adoption.survey.findings)


@only_sqlite
def test_documentation_page_examples_work(url: URL) -> None:
    page = Path(__file__).parents[2] / "docs" / "adopting.md"

    failed, tried = doctest.testfile(str(page), module_relative=False, encoding="utf-8")

    assert (failed, tried) == (0, 9)
