"""``mlapi users import`` and ``export``: stored and rejected rows, reports, interruptions and resumed imports."""

import io
import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import attrs
import bcrypt
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import URL

from mlapi import Actor, User, Users
from mlapi.adapters.fernet import FernetCipher
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.adapters.sql.database import Database
from mlapi.application import secret_reload, user_import
from mlapi.application.user_import import Row, Summary, UserImport
from mlapi.bootstrap import open_service, open_users
from mlapi.config import load_settings
from mlapi.config.files import read_yaml
from mlapi.domain.audit import Action, AuditFilter
from mlapi.domain.errors import FieldError
from mlapi.entrypoints.cli import main
from mlapi.entrypoints.cli.operator import account_name
from mlapi.secret_store import new_key, update_secrets_file
from tests.conftest import KEY, SALT

CANARY = "c4n4ry"
HEADER = "username,email,password\n"
ADA = "ada,ada@example.com,difference engine\n"
BOB = "bob,bob@example.com,battery\n"


def audit_time(action: Action, user: User) -> datetime:
    """Return the time of the audit entry for an action on a user."""
    with open_users(load_settings()) as users:
        (entry,) = users.list_audit_page(matching=AuditFilter(user_id=user.id, action=action))
    return entry.at


@pytest.fixture(autouse=True)
def _sigint_handler() -> Iterator[None]:
    """Enable SIGINT, which is ignored if a shell started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", "fernet")
    monkeypatch.setattr(user_import, "BATCH_ROWS", 3)
    return tmp_path


def mlapi(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["users", *arguments], input=stdin)


def import_text(text: str | bytes, *options: str, name: str = "users.csv") -> Result:
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return mlapi("import", name, *options)


def all_users() -> list[User]:
    with open_users(load_settings()) as users:
        return list(users.iterate_users())


def all_names() -> list[str]:
    return [user.username for user in all_users()]


def read_rejects(name: str = "users.csv.rejects.jsonl") -> list[tuple[int, str | None, str, str]]:
    lines = [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]
    return [(line["line"], line["username"], line["field"], line["message"]) for line in lines]


def can_log_in(username: str, password: str) -> bool:
    with open_service(load_settings()) as service:
        found = service.users.find(username)
        return found is not None and service.users.cipher.matches(password, found.password)


@pytest.mark.parametrize("scheme", ["fernet", "argon2id"])
def test_imported_users_can_log_in(url: URL, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_DATABASE__URL", url.render_as_string(hide_password=False))
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", scheme)
    monkeypatch.setattr(user_import, "HASHES_PER_THREAD", 1)
    usernames = [f"user{number}" for number in range(7)]

    result = import_text(HEADER + "".join(f"{name},{name}@example.com,password of {name}\n" for name in usernames))

    assert (result.exit_code, result.stdout) == (0, "7 imported, 0 already present, 0 rejected\n")
    assert [(user.username, user.email, user.enabled) for user in all_users()] == [
        (name, f"{name}@example.com", True) for name in usernames
    ]
    assert can_log_in("user6", "password of user6")
    assert not Path("users.csv.rejects.jsonl").exists()


@pytest.mark.parametrize("scheme", ["fernet", "argon2id"])
def test_existing_users_are_recognized_by_name_and_email(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", scheme)
    import_text(HEADER + ADA + BOB)
    before = all_users()

    again = import_text(
        HEADER + BOB + "ADA,ada@example.com,another\nBob,b@example.com,x\n" + "eve,e@example.com,x\n" * 2
    )

    assert (again.exit_code, again.stdout) == (
        4,
        "1 imported, 3 already present, 1 rejected; see users.csv.rejects.jsonl\n",
    )
    taken = "belongs to another user with a different e-mail address"
    assert read_rejects() == [(4, "Bob", "username", taken)]
    assert all_users()[:2] == before
    assert all_names() == ["ada", "bob", "eve"]


def test_optional_columns_are_imported() -> None:
    result = import_text(
        '{"username": "ada", "email": "a@example.com", "password": "x", "enabled": false}\n\n'
        '{"username": "bob", "email": "b@example.com", "password": "\\"x\\n",'
        ' "created_datetime": "2024-02-29T12:00:00+02:00"}\n'
        '{"username": "cyd", "email": "c@example.com", "password": "x", "enabled": 1, "created_datetime": null}\n',
        name="users.jsonl",
    )

    ada, bob, cyd = all_users()
    assert (result.exit_code, result.stdout) == (0, "3 imported, 0 already present, 0 rejected\n")
    assert [user.enabled for user in (ada, bob, cyd)] == [False, True, True]
    assert bob.created_datetime.isoformat() == "2024-02-29T10:00:00+00:00"
    assert bob.updated_datetime == audit_time("register", bob) > bob.created_datetime
    assert cyd.created_datetime >= ada.created_datetime > bob.created_datetime
    assert can_log_in("bob", '"x\n')


def test_audit_trail_names_the_importer_for_new_users_only() -> None:
    for _ in range(2):
        import_text(HEADER + ADA)

    with open_users(load_settings()) as users:
        entries = users.repository.audit.list_page(limit=9)
    assert [(entry.actor, entry.action, entry.outcome) for entry in entries] == [
        (f"import by {account_name()}", "register", "done")
    ]


def test_entries_of_an_import_belong_to_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_import, "BATCH_ROWS", 2)
    import_text(HEADER + ADA)
    import_text(HEADER + ADA + BOB + "".join(f"user{number},a@example.com,battery\n" for number in range(3)))

    with open_users(load_settings()) as users:
        entries = users.list_audit_page()
    assert [entry.bulk_id != "" for entry in entries] == [True, True, True, False, False]
    assert [entry.bulk_id for entry in entries[:3]] == [entries[3].request_id] * 3
    assert entries[3].request_id != entries[4].request_id


@pytest.mark.parametrize("scheme", ["fernet", "argon2id"])
def test_users_with_imported_hashes_can_log_in(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", scheme)
    hashed = bcrypt.hashpw(b"battery", bcrypt.gensalt(4)).decode()

    result = import_text(f"username,email,password_hash\nbob,bob@example.com,{hashed}\neve,e@example.com,{CANARY}\n")

    assert result.exit_code == 4
    assert [line[:3] for line in read_rejects()] == [(3, "eve", "password_hash")]
    assert can_log_in("bob", "battery")
    assert not can_log_in("bob", "another")


def test_login_replaces_an_imported_hash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", "argon2id")
    password = "é" * 40
    hashed = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4)).decode()
    import_text(f"username,email,password_hash\nbob,bob@example.com,{hashed}\n")

    with open_service(load_settings()) as service:
        service.access.authenticator.log_in(username="bob", password=password)

    (bob,) = all_users()
    assert bob.password.value.endswith("|argon2id")
    assert [can_log_in("bob", attempt) for attempt in (password, "é" * 36)] == [True, False]


def test_stored_passwords_need_the_same_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_SECRETS__KEY", KEY)
    monkeypatch.setenv("MLAPI_SECRETS__SALT", SALT)
    valid, invalid = (FernetCipher([KEY], salt).encrypt("battery").value for salt in (SALT, "another"))

    result = import_text(
        f"username,email,stored_password\nbob,bob@example.com,{valid}\neve,eve@example.com,{invalid}\n"
    )

    assert result.exit_code == 4
    assert read_rejects() == [(3, "eve", "stored_password", "was made with a salt that is not in secrets.salt")]
    assert [user.password.value for user in all_users()] == [valid]


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
@pytest.mark.parametrize("scheme", ["fernet", "argon2id"])
def test_every_row_is_validated_like_a_registration(
    scheme: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", scheme)
    monkeypatch.setenv("MLAPI_PASSWORDS__MIN_LENGTH", "7")
    lines = [
        f" ada,ada@example.com,{CANARY}!,,",
        f"bell\a,ada@example.com,{CANARY}!,,",
        f"bob,nonsense,{CANARY},maybe,yesterday",
        f"cyd,cyd@example.com,{CANARY}!,TRUE,2026-01-31T12:00:00",
        f"cyd,cyd@example.com,{CANARY}!,,0001-01-01T00:00:00+14:00",
        "dan,dan@example.com,battery,0,2026-01-31",
    ]

    result = import_text("username,email,password,enabled,created_datetime\n" + "\n".join(lines), *options)

    time_error = "must be ISO 8601 with a time zone, such as 2026-01-31T12:00:00Z"
    assert result.exit_code == 4
    assert read_rejects() == [
        (2, " ada", "username", "must not begin or end with white space"),
        (3, "bell\a", "username", "must not contain control, invisible or unassigned characters"),
        (4, "bob", "email", "must look like name@example.com"),
        (4, "bob", "enabled", "must be true or false, also written 1/0, t/f, yes/no or on/off"),
        (4, "bob", "created_datetime", time_error),
        (4, "bob", "password", "must be at least 7 characters"),
        (5, "cyd", "created_datetime", time_error),
        (6, "cyd", "created_datetime", time_error),
        (7, "dan", "created_datetime", time_error),
    ]
    assert CANARY not in result.output + Path("users.csv.rejects.jsonl").read_text("utf-8")
    assert all_names() == []


def test_dry_run_reports_results_and_stores_nothing() -> None:
    import_text(HEADER + ADA)

    result = import_text(HEADER + ADA + BOB + "ADA,a@example.com,x\n", "--dry-run")

    assert (result.exit_code, result.stdout) == (
        4,
        "1 imported, 1 already present, 1 rejected (dry run: nothing was stored); see users.csv.rejects.jsonl\n",
    )
    assert all_names() == ["ada"]


TOO_LONG = b"x" * 10_000_000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (TOO_LONG, "must be shorter than 65536 bytes"),
        (b"caf\xe9,e@example.com,x", "must be UTF-8"),
        (
            b'"eve"x,e@example.com,x',
            "must have quotes only around whole cells; a quote inside a quoted cell must be doubled",
        ),
        (b"eve,e@example.com", "must have 3 cells to match the header, but has 2"),
        (b"eve,e@example.com,x,y", "must have 3 cells to match the header, but has 4"),
    ],
    ids=["too long", "Latin-1", "text after a quote", "missing cell", "extra cell"],
)
def test_malformed_csv_line_does_not_affect_other_lines(line: bytes, message: str) -> None:
    text = (
        b"\xef\xbb\xbf" + HEADER.encode() + line + b"\n" + ADA.encode() + b'"bo,b",b@example.com,"a ""b"", c"\r\n\r\n'
    )

    result = import_text(text)

    assert (result.exit_code, read_rejects()) == (4, [(2, None, "line", message)])
    assert all_names() == ["ada", "bo,b"]
    assert can_log_in("bo,b", 'a "b", c')


@pytest.mark.parametrize("name", [f'"{ADA}eve', f'"a\n{ADA}\n"x"y', f'x, "a\n{ADA}\n'])
def test_line_inside_a_quoted_cell_is_not_imported_as_a_user(name: str) -> None:
    result = import_text(f'username,email,password,enabled\n{name}",eve@example.com,x,0\nbob,bob@example.com,y,0\n')

    assert (result.exit_code, [number for number, *_ in read_rejects()]) == (4, [2])
    assert [(user.username, user.enabled) for user in all_users()] == [("bob", False)]


def test_password_with_line_breaks_is_imported_from_csv() -> None:
    result = import_text(HEADER + 'ada,ada@example.com,"a\nb\r\nc, ""d"""\n')

    assert result.exit_code == 0
    assert can_log_in("ada", 'a\nb\r\nc, "d"')


@pytest.mark.parametrize("separator", [";", "\t"])
def test_cells_may_be_separated_by_semicolons_or_tabs(separator: str) -> None:
    quoted = f'"a{separator} ""b"""'
    rows = ["username,email,password,enabled", f"ada,ada@example.com,{quoted},t", "bob,bob@example.com,x,F"]

    result = import_text("".join(f"{row.replace(',', separator)}\r\n" for row in rows), name="users.tsv")

    assert (result.exit_code, [(user.username, user.enabled) for user in all_users()]) == (
        0,
        [("ada", True), ("bob", False)],
    )
    assert can_log_in("ada", f'a{separator} "b"')


def test_semicolons_in_a_column_name_do_not_separate_cells() -> None:
    import_text("username,email,password,notes;seen;by\nada,ada@example.com,a;b;c,x\n", "--ignore-columns")

    assert can_log_in("ada", "a;b;c")


def test_unknown_separators_are_reported() -> None:
    result = import_text(HEADER.replace(",", "|"))

    assert (result.exit_code, result.stdout) == (3, "")
    assert "separated by commas, semicolons or tabs" in result.stderr


@pytest.mark.parametrize(
    ("flag", "enabled"), [("T", True), (" yes ", True), ("on", True), ("f", False), ("N", False), ("off", False)]
)
def test_flags_of_other_systems_are_read(flag: str, enabled: bool) -> None:
    import_text(f"username,email,password,enabled\nada,ada@example.com,x,{flag}\n")

    assert [user.enabled for user in all_users()] == [enabled]


def test_hash_in_the_password_column_is_rejected_with_its_column() -> None:
    """If it were accepted, the hash would become the password. Django and the legacy app call both columns password."""
    stored = FernetCipher([KEY], SALT).encrypt("secret").value
    import_text(f"{HEADER}ada,ada@example.com,pbkdf2_sha256$1000$salt$aa==\nbob,bob@example.com,{stored}\n")

    message = "is already hashed or encrypted: name the column"
    assert read_rejects() == [
        (2, "ada", "password", f"{message} password_hash"),
        (3, "bob", "password", f"{message} stored_password"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 60_000, "must be a JSON object without duplicate keys"),
        ("[]", "must be a JSON object without duplicate keys"),
        ("{", "must be a JSON object without duplicate keys"),
        (
            '{"username": "\\ud800", "email": "e@example.com", "password": "x"}',
            "must be a JSON object without duplicate keys",
        ),
        (
            '{"username": "eve", "username": "x", "email": "e@example.com", "password": "x"}',
            "must be a JSON object without duplicate keys",
        ),
        ('{"username": "eve", "password": "x"}', "must have a key email"),
        (
            '{"username": "eve", "email": "e@example.com"}',
            "must have exactly one of password, password_hash, stored_password",
        ),
        (
            '{"username": "eve", "email": "e@example.com", "password": "x", "phone": 1, "$c4n4ry": 1}',
            "has unknown columns: phone, (hidden); use --ignore-columns to ignore them",
        ),
        ("\xe9".join(["x"] * 40_000), "must be shorter than 65536 bytes"),
    ],
    ids=[
        "brackets",
        "list",
        "incomplete",
        "surrogate",
        "duplicate key",
        "no e-mail",
        "no password",
        "unknown",
        "too long",
    ],
)
def test_malformed_json_line_does_not_affect_other_lines(line: str, message: str) -> None:
    result = import_text(
        f'{line}\n{{"username": "\\"a\\"", "email": "a@example.com", "password": "x"}}\n', name="users.jsonl"
    )

    assert (result.exit_code, read_rejects("users.jsonl.rejects.jsonl")) == (4, [(1, None, "line", message)])
    assert all_names() == ['"a"']


@pytest.mark.parametrize(
    ("line", "message"),
    [(TOO_LONG, "must be shorter than 65536 bytes"), (b'{"username": "caf\xe9"}', "must be UTF-8")],
    ids=["too long", "Latin-1"],
)
def test_unreadable_json_line_does_not_affect_other_lines(line: bytes, message: str) -> None:
    ada = b'{"username": "ada", "email": "ada@example.com", "password": "x"}'

    result = import_text(b"\xef\xbb\xbf" + ada + b"\n" + line + b"\n", name="users.jsonl")

    assert (result.exit_code, read_rejects("users.jsonl.rejects.jsonl")) == (4, [(2, None, "line", message)])
    assert all_names() == ["ada"]


def test_json_values_of_wrong_types_are_reported_by_field() -> None:
    import_text(
        '{"username": 7, "email": null, "password": ["x"], "enabled": 1.0, "created_datetime": []}\n',
        name="users.jsonl",
    )

    assert read_rejects("users.jsonl.rejects.jsonl") == [
        (1, None, "username", "must be a string"),
        (1, None, "email", "must be a string"),
        (1, None, "enabled", "must be true or false, also written 1/0, t/f, yes/no or on/off"),
        (1, None, "created_datetime", "must be ISO 8601 with a time zone, such as 2026-01-31T12:00:00Z"),
        (1, None, "password", "must be a string"),
    ]


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("", "the file is empty"),
        (f"ada,ada@example.com,{CANARY}", "the first line must be a header in UTF-8 with username, email and one of"),
        ("\xff\xfe".encode("latin-1"), "the first line must be a header in UTF-8"),
        ("username,email,password,email", "the header contains a duplicate column"),
        ("username,password", "the header has no column email"),
        ("username,email", "the header must have exactly one of password, password_hash, stored_password"),
        ("username,email,password,password_hash", "the header must have exactly one of password, password_hash"),
        (
            "username,email,password,phone,+",
            "the header has unknown columns: phone, (hidden); use --ignore-co",
        ),
    ],
)
def test_invalid_header_is_reported_in_one_line(header: str | bytes, line: str) -> None:
    result = import_text((header if isinstance(header, bytes) else header.encode()) + b"\n" * bool(header))

    assert (result.exit_code, result.stdout) == (3, "")
    assert f"mlapi: {line}" in result.stderr
    assert CANARY not in result.stderr


def test_example_file_in_the_documentation_can_be_imported() -> None:
    page = Path(__file__).parents[2] / "docs" / "importing.md"
    (example,) = re.findall(r"```\n(username,.*?)```", page.read_text("utf-8"), re.DOTALL)

    result = import_text(example)

    assert (result.exit_code, result.stdout) == (0, "2 imported, 0 already present, 0 rejected\n")
    assert can_log_in("bob", 'a, "b"')


def test_header_without_rows_imports_no_users() -> None:
    result = import_text(HEADER)

    assert (result.exit_code, result.stdout) == (0, "0 imported, 0 already present, 0 rejected\n")


@pytest.mark.parametrize("name", ["users.csv", "users.jsonl"])
def test_unknown_columns_can_be_ignored(name: str) -> None:
    text = {
        "users.csv": "phone,username,email,password\n1,ada,ada@example.com,x\n",
        "users.jsonl": '{"phone": 1, "username": "ada", "email": "ada@example.com", "password": "x"}\n',
    }

    result = import_text(text[name], "--ignore-columns", name=name)

    assert (result.exit_code, all_names()) == (0, ["ada"])


def test_standard_input_and_output_need_an_explicit_format() -> None:
    failed = mlapi("import", "-", stdin=HEADER + ADA)
    result = mlapi("import", "-", "--format", "csv", "--json", stdin=HEADER + ADA + "eve,e,x\n")
    exported = mlapi("export", "-", "--format", "csv")

    assert (failed.exit_code, "add --format csv or --format jsonl" in failed.stderr) == (2, True)
    assert (result.exit_code, json.loads(result.stdout)) == (
        4,
        {"imported": 1, "already_there": 0, "refused": 1, "rejects": "import.rejects.jsonl"},
    )
    assert read_rejects("import.rejects.jsonl")[0][:2] == (3, "eve")
    assert exported.stdout.splitlines()[0] == (
        "user_id,username,email,enabled,created_datetime,updated_datetime,expires_datetime,plan,pending,metadata"
    )
    assert exported.stdout.splitlines()[1].startswith("1,ada,ada@example.com,true,20")


def test_reject_report_of_an_earlier_import_is_cleared() -> None:
    import_text(HEADER + "eve,e,x\n")
    mode = stat.S_IMODE(Path("users.csv.rejects.jsonl").stat().st_mode)

    result = import_text(HEADER + ADA)

    assert (mode, result.exit_code, read_rejects()) == (0o600, 0, [])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["import", "folder.csv"], "folder.csv cannot be read: Is a directory"),
        (["import", "nowhere.csv"], "nowhere.csv cannot be read: No such file or directory"),
        (
            ["import", "users.csv", "--rejects", "users.csv"],
            "users.csv is the file to import: choose another name with --rejects",
        ),
        (["import", "users.csv", "--rejects", "folder.csv"], "folder.csv cannot be written: Is a directory"),
        (["import", "users.csv", "--rejects", "no/where"], "no/where cannot be written: No such file or directory"),
        (["import", "users.csv", "--rejects", "/dev/full"], "/dev/full cannot be written: No space left on device"),
        (["export", "users.csv"], "users.csv exists: use --force to replace it"),
        (
            ["export", "folder.csv", "--force"],
            "folder.csv is not a regular file: use - as the file and redirect the output",
        ),
        (["export", "/dev/null", "--format", "csv", "--force"], "/dev/null is not a regular file"),
        (["export", "no/where.csv"], "where.csv cannot be written: No such file or directory"),
    ],
)
def test_unusable_files_are_reported_in_one_line(folder: Path, arguments: list[str], line: str) -> None:
    (folder / "folder.csv").mkdir()
    (folder / "users.csv").write_text(HEADER + "eve,e,x\n")

    result = mlapi(*arguments)

    assert (result.exit_code, result.stdout) == (3, "")
    assert line in result.stderr
    assert (folder / "users.csv").read_text() == HEADER + "eve,e,x\n"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_import_stopped_by_a_locked_database_can_be_resumed(
    open_database: Callable[[URL], Database], sqlite_url: URL
) -> None:
    import_text(HEADER + ADA)

    with open_database(sqlite_url).writing():
        stopped = import_text(HEADER + ADA + BOB)
    result = mlapi("import", "users.csv")

    assert stopped.exit_code == 3
    assert (
        "the database is locked (SQLITE_BUSY); 0 imported, 0 already present, 0 rejected; run it again to continue"
        in stopped.stderr
    )
    assert (result.exit_code, result.stdout) == (0, "1 imported, 1 already present, 0 rejected\n")


@pytest.mark.parametrize("name", ["users.csv", "users.jsonl"])
def test_export_can_be_imported_with_the_same_secrets(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import_text(
        "username,email,password,enabled\n" + "=1+1,a@example.com,x,0\n" + '"a,""b",b@example.com,x,1\n', name="a.csv"
    )
    before = all_users()
    exported = mlapi("export", name, "--with-stored-passwords")
    (folder / "elsewhere").mkdir()
    (folder / "secrets.yml").rename(folder / "elsewhere" / "secrets.yml")
    monkeypatch.chdir(folder / "elsewhere")

    result = mlapi("import", f"../{name}")

    assert (exported.exit_code, exported.stdout) == (0, "exported 2\n")
    assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert (result.exit_code, result.stdout) == (0, "2 imported, 0 already present, 0 rejected\n")
    after = all_users()
    assert [attrs.evolve(user, token_epoch="") for user in after] == [
        attrs.evolve(user, token_epoch="", updated_datetime=audit_time("register", imported))
        for user, imported in zip(before, after, strict=True)
    ]
    assert before[0].username == "=1+1"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["ada", "bob"]),
        (["--enabled"], ["ada"]),
        (["--disabled"], ["bob"]),
        (["--containing", "ADA"], ["ada"]),
    ],
)
def test_export_is_filtered_and_omits_passwords(options: list[str], expected: list[str]) -> None:
    import_text(HEADER + ADA + BOB)
    CliRunner().invoke(main, ["users", "disable", "bob"])
    Path("users.jsonl").write_text("username of an earlier export")

    result = mlapi("export", "users.jsonl", "--force", *options)

    written = [json.loads(line) for line in Path("users.jsonl").read_text("utf-8").splitlines()]
    ada = all_users()[0]
    assert result.stdout == f"exported {len(expected)}\n"
    assert [user["username"] for user in written] == expected
    assert {key for user in written for key in user} == {
        "user_id",
        "username",
        "email",
        "enabled",
        "created_datetime",
        "updated_datetime",
        "expires_datetime",
        "pending",
        "plan",
        "metadata",
    }
    assert expected != ["ada"] or datetime.fromisoformat(written[0]["created_datetime"]) == ada.created_datetime


def test_export_to_a_symbolic_link_replaces_its_target(folder: Path) -> None:
    import_text(HEADER + ADA)
    (folder / "real.csv").write_text("username of an earlier export")
    (folder / "link.csv").symlink_to("real.csv")

    mlapi("export", "link.csv", "--force")

    assert (folder / "link.csv").is_symlink()
    assert "ada@example.com" in (folder / "real.csv").read_text()


class NoRejects:
    """A reject report that raises an error for any rejected row."""

    def __init__(self, on_flush: Callable[[], None] = lambda: None) -> None:
        self.flush = on_flush

    def write(self, row: Row, errors: Iterable[FieldError]) -> None:
        raise AssertionError((row, errors))


def test_slow_batch_is_encrypted_with_the_newest_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Key rotation assumes that a few seconds after a key is added, no password is stored under the old one."""
    monkeypatch.setattr(secret_reload, "RELOAD_CHECK_SECONDS", 0.0)
    monkeypatch.setattr(user_import, "COMMIT_TIMEOUT_SECONDS", 1.0)

    def rows() -> Iterator[Row]:
        for number in range(6):
            if number == 5:  # the first batch is encrypted, but not stored yet
                update_secrets_file(folder / "secrets.yml", lambda tree: {**tree, "key": [new_key(), tree["key"]]})
                time.sleep(0.51)
            values = {"username": f"user{number}", "email": "a@example.com", "password": "battery"}
            yield Row(number, number, values)

    with open_users(load_settings()) as users:
        importing = UserImport(users, lambda: FernetCipher([KEY], SALT), NoRejects(), actor=Actor(), threads=2)
        offsets = list(importing.run(rows()))
        stored = [user.password for user in users.iterate_users()]

    secrets = read_yaml(folder / "secrets.yml")
    newest_cipher = FernetCipher([secrets["key"][0]], secrets["salt"])
    assert offsets == [2, 5]
    assert importing.summary == Summary(imported=6)
    assert [newest_cipher.matches("battery", value) for value in stored] == [True] * 6


def test_slow_batch_keeps_users_without_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=time.monotonic)
    monkeypatch.setattr(user_import, "time", clock)

    def rows() -> Iterator[Row]:
        for number in range(6):
            if number == 5:  # the first batch is prepared, but not stored yet
                clock.monotonic = lambda: time.monotonic() + user_import.COMMIT_TIMEOUT_SECONDS
            yield Row(number, number, {"username": f"user{number}", "email": "a@example.com", "stored_password": ""})

    users = Users(InMemoryUserRepository(), FernetCipher([new_key(), KEY], SALT))
    importing = UserImport(users, lambda: FernetCipher([KEY], SALT), NoRejects(), actor=Actor(), threads=1)
    list(importing.run(rows()))

    assert [user.has_password for user in users.iterate_users()] == [False] * 6


class InterruptedInput(io.BytesIO):
    """Simulates Ctrl-C at the end of the input."""

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        if not line:
            raise KeyboardInterrupt
        return line


def test_interrupted_import_reports_its_progress() -> None:
    stdin = InterruptedInput(HEADER.encode() + b"".join(b"user%d,a@example.com,x\n" % number for number in range(7)))

    result = CliRunner().invoke(main, ["users", "import", "-", "--format", "csv"], input=stdin)

    assert (result.exit_code, result.stdout) == (130, "")
    assert "mlapi: interrupted; 3 imported, 0 already present, 0 rejected; run it again to continue" in result.stderr
    assert all_names() == ["user0", "user1", "user2"]


def test_interrupt_is_delayed_until_the_batch_is_counted() -> None:
    values = {"username": "ada", "email": "a@example.com", "password": "battery"}
    interrupting_report = NoRejects(lambda: signal.raise_signal(signal.SIGINT))
    users = Users(InMemoryUserRepository(), PlainCipher())
    importing = UserImport(users, lambda: FernetCipher([KEY], SALT), interrupting_report, actor=Actor(), threads=2)

    with pytest.raises(KeyboardInterrupt):
        list(importing.run([Row(1, 1, values)]))

    assert (importing.summary, users.count()) == (Summary(imported=1), 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_terminal_shows_a_progress_bar(folder: Path, sqlite_url: URL) -> None:
    (folder / "users.csv").write_text(HEADER + ADA)
    terminal, child_terminal = pty.openpty()
    command = [sys.executable, "-c", "from mlapi.entrypoints.cli import main; main()", "users", "import", "users.csv"]

    process = subprocess.run(command, stderr=child_terminal, stdout=subprocess.PIPE, check=True)
    os.close(child_terminal)
    output = os.read(terminal, 10_000).decode()
    os.close(terminal)

    assert process.stdout == b"1 imported, 0 already present, 0 rejected\n"
    assert "importing" in output
    assert "100%" in output


@pytest.mark.parametrize("file", ["mlapi.db", "secrets.yml"])
def test_report_and_export_never_replace_other_files(folder: Path, file: str) -> None:
    import_text("username,email,password\nada,ada@example.com,x\n")
    before = (folder / file).read_bytes()
    (folder / "bad.csv").write_text("username,email,password\n,bad,x\n")

    report, export = mlapi("import", "bad.csv", "--rejects", file), mlapi("export", file, "--format", "csv", "--force")

    assert (report.exit_code, export.exit_code) == (3, 3)
    assert (folder / file).read_bytes() == before
