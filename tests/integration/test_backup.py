"""``mlapi backup`` and ``mlapi restore``."""

import errno
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import Result
from cryptography.fernet import Fernet

from mlapi import Extension
from mlapi.adapters.sql import backups
from mlapi.adapters.sql.sqlite import replacing
from mlapi.adapters.sql.storage import SqlStorage
from mlapi.bootstrap import open_guard, open_service, open_users
from mlapi.config import load_settings
from mlapi.domain.commands import Remove
from mlapi.domain.errors import InvalidTokenError
from mlapi.domain.users import User, UserId, utc_now
from mlapi.testing.allowances import granted, request_draw
from mlapi.testing.samples import registered
from tests.command_line import Terminal, create_users, mlapi
from tests.conftest import KEY, SALT

PASSWORD = "difference engine"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the database, which is the current folder. Backups belong elsewhere."""
    folder = tmp_path / "service"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", "fernet")
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the folder of a service and a backup of its users, who are ada, bob and cyd. cyd is disabled."""
    parent = tmp_path_factory.mktemp("original")
    service = parent / "service"
    service.mkdir()
    create_users(service, ("ada", "bob", "cyd"), PASSWORD)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(service)
        with open_users(load_settings()) as users:
            users.set_enabled(user_id=UserId(3), enabled=False)
        assert mlapi("backup", str(parent / "backup.db")).exit_code == 0
    return parent


@pytest.fixture
def backup(original: Path, folder: Path) -> Path:
    """A backup of the users of the service."""
    shutil.copytree(original, folder.parent, dirs_exist_ok=True)
    return folder.parent / "backup.db"


def restore(file: Path, *options: str) -> Result:
    return mlapi("restore", str(file), "--yes", *options)


def register(*names: str) -> None:
    with open_users(load_settings()) as users:
        for name in names:
            users.register(username=name, password=PASSWORD, email=f"{name}@example.com")


def states() -> dict[str, bool]:
    with open_users(load_settings(), may_create=False) as users:
        return {user.username: user.enabled for user in users.iterate_users()}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlapi.entrypoints.cli.selection.sys", SimpleNamespace(stdin=Terminal()))


# --- back up


def test_backup_contains_users_and_their_secrets(folder: Path, tmp_path: Path) -> None:
    register("ada")
    file = tmp_path / "backup.db"

    result = mlapi("backup", str(file))

    secrets = tmp_path / "backup.db.secrets.yml"
    assert result.stdout == (
        f"backed up 1 user to {file}\n"
        f"copied the secrets to {secrets}: without this key, no password in the backup can be verified. Keep the two"
        " files in different places, because a thief who has both can guess passwords\n"
    )
    assert secrets.read_bytes() == (folder / "secrets.yml").read_bytes()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file, secrets)] == [0o600, 0o600]
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT username FROM users").fetchall() == [("ada",)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.db", "backup.db.secrets.yml", "service"]


def test_backup_includes_changes_in_the_log_of_a_running_service(tmp_path: Path) -> None:
    with open_users(load_settings()) as users:
        users.register(username="ada", password=PASSWORD, email="ada@example.com")

        assert mlapi("backup", str(tmp_path / "backup.db")).exit_code == 0

    with closing(sqlite3.connect(tmp_path / "backup.db")) as connection:
        assert connection.execute("SELECT username FROM users").fetchall() == [("ada",)]
        assert connection.execute("PRAGMA journal_mode").fetchall() == [("delete",)]


def test_secrets_that_are_not_copied_are_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register("ada")
    without = mlapi("backup", str(tmp_path / "a.db"), "--without-secrets")
    (folder / "mlapi.db").unlink()
    (folder / "secrets.yml").unlink()
    monkeypatch.setenv("MLAPI_SECRETS__KEY", KEY)
    monkeypatch.setenv("MLAPI_SECRETS__SALT", SALT)
    register("ada")
    configured = mlapi("backup", str(tmp_path / "b.db"), "--json")

    assert f"keep {folder}/secrets.yml, too: without the key" in without.stdout
    assert json.loads(configured.stdout) == {"file": str(tmp_path / "b.db"), "users": 1, "secrets": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.db", "b.db", "service"]


def test_backup_is_replaced_only_with_force(backup: Path) -> None:
    before = backup.read_bytes()
    register("dan")

    refused = mlapi("backup", str(backup))

    assert (refused.exit_code, refused.stderr) == (3, f"mlapi: {backup} exists: use --force to replace it\n")
    assert backup.read_bytes() == before
    assert "backed up 4 users" in mlapi("backup", str(backup), "--force").stdout


def test_only_secrets_of_the_replaced_backup_are_replaced(folder: Path, tmp_path: Path) -> None:
    """Without its secrets, a restored backup has no password that can be verified."""
    register("ada")
    copy = tmp_path / "backup.db.secrets.yml"
    others = {
        "other secrets": (f"key: {Fernet.generate_key().decode()}\nsalt: other\n", "contains other secrets, but there"),
        "another file": ("notes", "does not contain secrets"),
    }
    for content, error in others.values():
        copy.write_text(content)
        copy.chmod(0o600)

        result = mlapi("backup", str(tmp_path / "backup.db"), "--force")

        assert (result.exit_code, copy.read_text(), (tmp_path / "backup.db").exists()) == (3, content, False)
        assert error in result.stderr

    copy.write_bytes((folder / "secrets.yml").read_bytes())
    assert mlapi("backup", str(tmp_path / "backup.db"), "--force").exit_code == 0


@pytest.mark.parametrize("target", ["mlapi.db", "secrets.yml", "missing/secrets.yml", "notes.txt"])
def test_link_in_place_of_the_secrets_is_not_followed(folder: Path, tmp_path: Path, target: str) -> None:
    register("ada")
    (folder / "notes.txt").write_text("notes")
    (tmp_path / "backup.db.secrets.yml").symlink_to(folder / target)
    before = snapshot(folder)

    result = mlapi("backup", str(tmp_path / "backup.db"), "--force")

    assert (result.exit_code, snapshot(folder), (tmp_path / "backup.db").exists()) == (3, before, False)


def test_database_kept_by_a_restore_is_not_replaced(folder: Path, backup: Path) -> None:
    restore(backup)
    (kept,) = folder.glob("mlapi.db.before-restore-*")
    before = snapshot(folder)

    result = mlapi("backup", str(kept), "--force")

    assert result.exit_code == 3
    assert "is a database that a restore has kept, so --force does not replace it" in result.stderr
    assert snapshot(folder) == before


def test_secrets_of_another_backup_are_not_replaced(backup: Path) -> None:
    backup.unlink()

    result = mlapi("backup", str(backup))

    assert result.stderr == f"mlapi: {backup}.secrets.yml exists: use --force to replace it\n"
    assert not backup.exists()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("mlapi.db", "belongs to the service itself"),
        ("mlapi.db-wal", "belongs to the service itself"),
        ("mlapi.db-journal", "belongs to the service itself"),
        ("secrets.yml", "belongs to the service itself"),
        ("hard-link", "belongs to the service itself"),
        ("symbolic-link", "belongs to the service itself"),
        ("other.db-shm", "cannot be the name of a backup"),
        ("-", "cannot be the name of a backup"),
        (".", "cannot be the name of a backup"),
        ("..", "is not a regular file: add the name of a file, such as ../mlapi.db"),
        ("pipe", "is not a regular file: choose another name"),
        ("missing/backup.db", "does not exist: create it first"),
        ("notes.txt", "is not a backup, so --force does not replace it"),
        ("dashboards.db", "is not a backup, so --force does not replace it"),
        ("other-service.db", "is not a backup, so --force does not replace it"),
        ("damaged.db", "is not a backup, so --force does not replace it"),
        ("used.db", "is a database in use, so --force does not replace it"),
        (f"{'a' * 250}", "cannot be read or written: File name too long"),
    ],
)
def test_unsuitable_file_is_refused(folder: Path, name: str, error: str) -> None:
    register("ada")
    shutil.copy("mlapi.db", "other-service.db")
    with closing(sqlite3.connect("dashboards.db")) as connection:
        connection.execute("CREATE TABLE dashboards (name)")
    (folder / "notes.txt").write_text("notes")
    (folder / "damaged.db").write_bytes(b"SQLite format 3\0\x10\0\1\1" + b"?" * 4096)
    (folder / "used.db").touch()
    (folder / "used.db-wal").touch()
    (folder / "symbolic-link").symlink_to("mlapi.db")
    os.mkfifo(folder / "pipe")
    if name == "hard-link":
        os.link("mlapi.db", name)  # before a command opens the database: several names are an error themselves
    before = snapshot(folder)

    result = mlapi("backup", "--force", "--", name)

    assert result.exit_code == 3
    assert error in result.stderr or "has 2 names (hard links)" in result.stderr
    assert snapshot(folder) == before


def test_database_without_access_is_named_by_a_restore(
    folder: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("mlapi.atomic_files.os.open", fail)

    result = restore(backup)

    assert result.stderr == f"mlapi: {folder}/mlapi.db cannot be read or written: Read-only file system\n"


def test_drafts_of_killed_backups_are_removed(folder: Path, tmp_path: Path) -> None:
    register("ada")
    for ending in ("", "-wal", "-shm", "-journal"):
        for name in ("backup.db", "backup.db.secrets.yml"):
            draft = tmp_path / f".{name}.0123456789abcdef{ending}"
            draft.touch()
            os.utime(draft, (0, 0))

    mlapi("backup", str(tmp_path / "backup.db"))

    assert list(tmp_path.glob(".*")) == []


def damage_tables(file: Path) -> None:
    """Overwrite the first page of every table and index. The schema stays readable."""
    with closing(sqlite3.connect(file)) as connection:
        pages = connection.execute("SELECT rootpage FROM sqlite_master WHERE rootpage > 0").fetchall()
        ((size,),) = connection.execute("PRAGMA page_size").fetchall()
    with file.open("r+b") as stream:
        for (page,) in pages:
            stream.seek((page - 1) * size)
            stream.write(b"\xff" * size)


def damage_schema(file: Path) -> None:
    """Overwrite every page of a database except the first. The schema needs more pages."""
    with file.open("r+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(4096)
        stream.write(b"\xff" * (size - 4096))


Damage = Callable[[Path], object]


@pytest.mark.parametrize("damage", [damage_tables, damage_schema])
def test_damaged_database_is_not_backed_up(folder: Path, tmp_path: Path, damage: Damage) -> None:
    register("ada")
    damage(folder / "mlapi.db")

    result = mlapi("backup", str(tmp_path / "backup.db"))

    assert result.exit_code == 3
    assert "damaged" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["service"]


def test_missing_database_is_named(folder: Path, tmp_path: Path) -> None:
    result = mlapi("backup", str(tmp_path / "backup.db"))

    assert result.exit_code == 3
    assert f"there is no database at {folder}/mlapi.db" in result.stderr
    assert list(folder.iterdir()) == []


def test_storage_without_files_cannot_be_backed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_DATABASE__URL", "memory://")

    for command in (["backup", str(tmp_path / "b.db")], ["restore", str(tmp_path / "b.db"), "--yes"]):
        result = mlapi(*command)
        assert result.exit_code == 3
        assert "mlapi cannot back up or restore this kind of database" in result.stderr


@pytest.mark.parametrize("command", [["backup"], ["restore", "--yes"]])
def test_commands_for_postgresql_are_printed(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_DATABASE__URL", "postgresql://ada:c4n4ry@db.example:5433/users?connect_timeout=3")
    monkeypatch.setenv("MLAPI_DATABASE__SCHEMA", "people")

    result = mlapi(*command, "my backup.db")

    target = "--host=db.example --port=5433 --username=ada --dbname=users"
    assert result.exit_code == 3
    assert f"`pg_dump --format=custom --schema=people --file=mlapi.dump {target}`" in result.stderr
    assert f"`pg_restore --clean --if-exists --no-owner --schema=people {target} mlapi.dump`" in result.stderr
    assert "c4n4ry" not in result.output


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("postgresql:///users", "--dbname=users"),
        ("postgresql://a@/users?host=h1:1&host=h2:2", "--host=h1,h2 --port=1,2 --username=a --dbname=users"),
        ("postgresql:///users?host=/run/postgresql", "--host=/run/postgresql --dbname=users"),
        ("postgresql:///?host=h1&port=1&user=a&dbname=users", "--host=h1 --port=1 --username=a --dbname=users"),
        ("postgresql://a@/users?host=%3A%3A1", "--host=::1 --username=a --dbname=users"),
        ("postgresql:///users?host=h1&password=c4n4ry", "--host=h1 --dbname=users"),
    ],
)
def test_commands_for_postgresql_name_its_hosts(url: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_DATABASE__URL", url)

    result = mlapi("backup", "b.dump")

    assert f"`pg_dump --format=custom --file=mlapi.dump {target}`" in result.stderr
    assert "c4n4ry" not in result.output


@pytest.mark.skipif(sys.platform != "linux", reason="other systems only allow names in UTF-8 or UTF-16")
def test_folder_may_have_a_name_that_is_not_utf8(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_folder = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9"))
    other_folder.mkdir()
    monkeypatch.chdir(other_folder)
    monkeypatch.setenv("MLAPI_SECRETS__KEY", KEY)  # pytest-xdist cannot report a log line that contains the path
    monkeypatch.setenv("MLAPI_SECRETS__SALT", SALT)
    register("ada")

    commands = ["db", "check"], ["backup", "backup.db"], ["restore", "backup.db", "--yes"]
    assert [mlapi(*command).exit_code for command in commands] == [0, 0, 0]
    with open_guard(load_settings()) as guard:
        (ada,) = guard.repository.find_principals([UserId(1)])
    assert isinstance(ada, User)


# --- restore


def test_restore_reports_and_reverts_later_changes(folder: Path, backup: Path) -> None:
    with open_users(load_settings()) as users:
        users.set_enabled(user_id=UserId(1), enabled=False)
        users.remove(user_id=UserId(2))
        users.set_enabled(user_id=UserId(3), enabled=True)
    register("dan")

    result = restore(backup)

    (kept,) = folder.glob("mlapi.db.before-restore-*Z")
    assert result.stdout == (
        f"{backup} contains 3 users. Restoring it changes {folder}/mlapi.db:\n"
        "  users enabled again: they were disabled after the backup: 1 (ada)\n"
        "  users disabled again: they were enabled after the backup: 1 (cyd)\n"
        "  users restored: they were removed after the backup: 1 (bob)\n"
        "  users lost: they were registered after the backup: 1 (dan)\n"
        "  users with tokens that are valid again, although they were revoked after the backup: 2 (ada, bob)\n"
        f"restored 3 users to {folder}/mlapi.db\n"
        f"the replaced database is kept in {kept}: delete it when you no longer need it\n"
        "tokens were kept; --end-tokens revokes them\n"
    )
    assert states() == {"ada": True, "bob": True, "cyd": False}
    with closing(sqlite3.connect(kept)) as connection:
        assert connection.execute("SELECT username FROM users").fetchall() == [("ada",), ("cyd",), ("dan",)]
    files = [folder / "mlapi.db", kept]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600, 0o600]


def test_restore_reports_lost_renewals_and_plans(backup: Path) -> None:
    with open_users(load_settings()) as users:
        users.update(user_id=UserId(1), expires=Extension(months=1))
        users.update(user_id=UserId(2), metadata={"customer": "cus_123"})

    result = restore(backup)

    effect = "  users with their earlier expiry, plan, metadata, name or e-mail address: changed after the backup"
    assert f"{effect}: 2 (ada, bob)\n" in result.stdout
    with open_users(load_settings()) as users:
        assert users.get(UserId(1)).expires_datetime is None


def test_restore_reports_api_keys(backup: Path) -> None:
    with open_service(load_settings()) as service:
        service.users.add_api_key(user_id=UserId(1), name="laptop")
    mlapi("backup", str(backup), "--force")
    with open_service(load_settings()) as service:
        (key,) = service.users.list_api_keys(user_id=UserId(1))
        service.users.remove_api_key(key_id=key.id)
        service.users.add_api_key(user_id=UserId(2), name="ci")

    result = restore(backup)

    assert "API keys that work again: they were removed after the backup: 1 (ada: laptop)\n" in result.stdout
    assert "API keys lost: they were added after the backup: 1 (bob: ci)\n" in result.stdout


def test_restore_reports_managers(backup: Path) -> None:
    with open_service(load_settings()) as service:
        for name in ("alice", "bob", "eve"):
            service.managers.add(name=name, role="viewer")
    mlapi("backup", str(backup), "--force")
    with open_service(load_settings()) as service:
        service.managers.remove("alice")
        service.managers.rotate("bob")
        service.managers.add(name="joe", role="admin")

    result = restore(backup)

    assert (
        "managers whose tokens work again: they were removed or rotated after the backup: 2 (alice, bob)\n"
        in result.stdout
    )
    assert (
        "managers whose tokens stop working: they were added or rotated after the backup: 2 (bob, joe)\n"
        in result.stdout
    )


def test_unchanged_database_can_be_restored(backup: Path) -> None:
    result = restore(backup, "--json")

    report = json.loads(result.stdout)
    assert "  no user, API key or token is affected\n" in result.stderr
    assert set(report.pop("effects").values()) == {0}
    assert report.pop("kept") is not None
    assert report == {
        "users": 3,
        "database": f"{Path.cwd()}/mlapi.db",
        "secrets": None,
        "tokens_ended": False,
    }


def test_restore_can_end_all_tokens(backup: Path) -> None:
    with open_service(load_settings()) as service:
        token = service.access.authenticator.log_in(username="ada", password=PASSWORD).token

    restore(backup)
    with open_service(load_settings()) as service:
        assert service.access.guard.check(token).username == "ada"

    with open_users(load_settings()) as users:
        users.remove(user_id=UserId(2))
    assert "users with tokens that are valid again" in restore(backup).stdout
    with open_users(load_settings()) as users:
        users.remove(user_id=UserId(2))
    output = restore(backup, "--end-tokens").stdout
    assert "all tokens were revoked\n" in output
    assert "users with tokens that are valid again" not in output
    with open_service(load_settings()) as service, pytest.raises(InvalidTokenError):
        service.access.guard.check(token)


def test_ids_of_lost_users_are_not_used_again(backup: Path) -> None:
    register("dan")
    restore(backup)

    register("eve")

    with open_users(load_settings()) as users:
        assert users.get(UserId(5)).username == "eve"


def test_requests_since_the_backup_still_count(folder: Path, backup: Path) -> None:
    with closing(SqlStorage.from_url(f"sqlite:///{folder}/mlapi.db")) as storage:
        storage.users.apply([Remove(user_id=UserId(2), at=utc_now())])
        eve = registered(storage.users, "eve").id
        storage.allowances.draw([request_draw(UserId(1), 7), request_draw(eve, 7)])

    result = restore(backup)

    assert result.exit_code == 0
    with closing(SqlStorage.from_url(f"sqlite:///{folder}/mlapi.db")) as storage:
        drawn = storage.allowances.draw([request_draw(user_id, 5) for user_id in (UserId(1), UserId(2), eve)])
    assert granted(drawn) == [3, 5, None]


def test_ids_are_not_used_again_after_a_backup_without_users(folder: Path) -> None:
    mlapi("db", "upgrade")
    mlapi("backup", "empty-backup.db")
    register("ada")
    restore(folder / "empty-backup.db")

    register("bob")

    with open_users(load_settings()) as users:
        assert users.get(UserId(2)).username == "bob"


@pytest.mark.parametrize(
    ("answers", "states_after", "line"),
    [
        ("n\n", {"ada": False}, None),
        ("y\nn\n", {"ada": True, "bob": True, "cyd": False}, "tokens were kept"),
        ("y\n\n", {"ada": True, "bob": True, "cyd": False}, "all tokens were revoked"),
    ],
)
def test_terminal_asks_before_restoring(
    answers: str,
    states_after: dict[str, bool],
    line: str | None,
    backup: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open_users(load_settings()) as users:
        users.set_enabled(user_id=UserId(1), enabled=False)
        users.remove(user_id=UserId(2))
        users.remove(user_id=UserId(3))
    terminal(monkeypatch)

    result = mlapi("restore", str(backup), stdin=answers)

    assert states() == states_after
    assert result.exit_code == (3 if line is None else 0)
    assert line is None or line in result.stdout


@pytest.mark.parametrize(("answers", "expected"), [("y\ny\n", 0), ("y\nn\n", 1)])
def test_json_counts_tokens_valid_again_after_the_answers(
    answers: str, expected: int, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_users(load_settings()) as users:
        users.remove(user_id=UserId(2))
    terminal(monkeypatch)

    result = mlapi("restore", str(backup), "--json", stdin=answers)

    report = json.loads(result.stdout.splitlines()[-1])  # click 8.1 echoes the answers in tests
    assert (report["tokens_ended"], report["effects"]["revived_tokens"]) == (expected == 0, expected)


def test_restore_without_a_terminal_needs_yes(folder: Path, backup: Path) -> None:
    before = snapshot(folder)

    result = mlapi("restore", str(backup))

    assert result.exit_code == 2
    assert "add --yes" in result.stderr
    assert snapshot(folder) == before


@pytest.mark.parametrize("open_one", [open_users, open_service], ids=["users", "service"])
def test_database_in_use_is_not_replaced(open_one: Callable[..., object], folder: Path, backup: Path) -> None:
    with open_users(load_settings()) as users:
        users.count()
        result = restore(backup)
        users.set_enabled(user_id=UserId(1), enabled=False)

    assert result.exit_code == 3
    assert f"{folder}/mlapi.db is in use: stop the service" in result.stderr
    assert states() == {"ada": False, "bob": True, "cyd": False}
    assert list(folder.glob(".*")) == []


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda file: file.write_text("username,email\n"), "is not an SQLite database"),
        (lambda file: file.write_bytes(b""), "is not an SQLite database"),
        (lambda file: os.truncate(file, 8192), "is damaged"),
        (damage_tables, "is damaged"),
        (damage_schema, "is damaged"),
        (lambda file: execute(file, "DROP TABLE mlapi_key_check; DROP TABLE mlapi_alembic_version"), "not a backup of"),
        (
            lambda file: execute(file, "UPDATE mlapi_alembic_version SET version_num = '9999'"),
            "a newer version of mlapi",
        ),
        (lambda file: file.unlink(), "does not exist"),
        (lambda file: (file.unlink(), file.mkdir()), "is not a file"),
    ],
    ids=["text", "empty", "truncated", "tables", "schema", "other program", "newer", "missing", "folder"],
)
def test_unusable_backup_changes_nothing(
    make: Callable[[Path], object], error: str, folder: Path, backup: Path
) -> None:
    make(backup)
    before = snapshot(folder)

    result = restore(backup)

    assert (result.exit_code, result.stdout) == (3, "")
    assert error in result.stderr
    assert snapshot(folder) == before


def execute(file: Path, script: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(script)


def test_database_cannot_be_restored_from_itself(folder: Path, backup: Path) -> None:
    result = restore(folder / "mlapi.db")

    assert f"{folder}/mlapi.db is the database itself" in result.stderr


def test_backup_of_an_older_version_is_upgraded(backup: Path) -> None:
    from mlapi.adapters.sql.backups import _opened  # noqa: PLC0415 - only this test needs another schema
    from mlapi.adapters.sql.schema import downgrade  # noqa: PLC0415

    with _opened(backup) as database:
        downgrade(database, "0003")

    assert restore(backup).exit_code == 0
    assert states() == {"ada": True, "bob": True, "cyd": False}


def test_copy_made_with_a_log_beside_it_is_restored(folder: Path, tmp_path: Path, backup: Path) -> None:
    with open_users(load_settings()) as users:
        users.remove(user_id=UserId(3))
        for ending in ("", "-wal"):
            shutil.copy(folder / f"mlapi.db{ending}", tmp_path / f"copy.db{ending}")

    assert restore(tmp_path / "copy.db").exit_code == 0
    assert states() == {"ada": True, "bob": True}


def test_database_and_secrets_are_restored_on_a_new_machine(folder: Path, backup: Path) -> None:
    for path in folder.iterdir():
        path.unlink()

    result = restore(backup)

    assert f"  the secrets are restored from {backup}.secrets.yml\n  there is no database yet\n" in result.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["mlapi.db", "secrets.yml"]
    with open_service(load_settings()) as service:
        service.access.authenticator.log_in(username="ada", password=PASSWORD)


def test_backup_with_other_secrets_is_refused(folder: Path, backup: Path) -> None:
    beside = Path(f"{backup}.secrets.yml")
    for path in folder.iterdir():
        path.unlink()
    register("eve")

    with_secrets = restore(backup)
    beside.unlink()
    without_secrets = restore(backup)
    (folder / "secrets.yml").unlink()
    without_any = restore(backup)

    assert f"replace them by {beside}, and run this again" in with_secrets.stderr
    assert "the key and the salt that were in use at the time of the backup" in without_secrets.stderr
    assert "they cannot be loaded (secrets.key is missing" in without_any.stderr
    assert [path.name for path in folder.iterdir()] == ["mlapi.db"]
    with closing(sqlite3.connect(folder / "mlapi.db")) as connection:
        assert connection.execute("SELECT username FROM users").fetchall() == [("eve",)]


def test_damaged_database_is_replaced_and_kept(folder: Path, backup: Path) -> None:
    (folder / "mlapi.db").write_bytes(b"damaged" * 1000)

    result = restore(backup)

    (kept,) = folder.glob("mlapi.db.before-restore-*")
    assert "  the current database cannot be compared with it\n" in result.stdout
    assert kept.read_bytes() == b"damaged" * 1000
    assert states() == {"ada": True, "bob": True, "cyd": False}


def test_log_of_a_damaged_database_is_kept(folder: Path) -> None:
    (folder / "mlapi.db-wal").write_bytes(b"recent changes")

    replacing._keep_logs(folder / "mlapi.db", folder / "kept")

    assert (folder / "kept-wal").read_bytes() == b"recent changes"


def test_damaged_database_in_use_is_not_replaced(folder: Path, backup: Path) -> None:
    (folder / "mlapi.db").write_bytes(b"damaged" * 1000)
    lock = "import fcntl, sys; file = open('mlapi.db', 'r+b'); fcntl.lockf(file, fcntl.LOCK_SH, 1, 0x40000002)"
    command = [sys.executable, "-c", f"{lock}; print(flush=True); sys.stdin.read()"]

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        result = restore(backup)
        process.communicate()

    assert f"{folder}/mlapi.db is in use" in result.stderr
    assert (folder / "mlapi.db").read_bytes() == b"damaged" * 1000


def test_full_disk_leaves_no_part_of_a_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register("ada")

    def copy(source: object, file: Path, *, name: str) -> None:
        file.write_bytes(b"a part")
        raise full

    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode, full.sqlite_errorname = sqlite3.SQLITE_FULL, "SQLITE_FULL"
    monkeypatch.setattr(backups, "copy_database", copy)

    result = mlapi("backup", str(tmp_path / "backup.db"))

    assert (result.exit_code, result.stderr) == (
        3,
        "mlapi: the database is unavailable: the disk is full (SQLITE_FULL)\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["service"]


def test_terminal_can_revoke_tokens_without_a_question(backup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)

    assert "all tokens were revoked" in mlapi("restore", str(backup), "--end-tokens", stdin="y\n").stdout


@pytest.mark.parametrize("damage", [damage_tables, damage_schema])
def test_damaged_pages_do_not_prevent_a_restore(folder: Path, backup: Path, damage: Damage) -> None:
    damage(folder / "mlapi.db")

    assert restore(backup).exit_code == 0
    assert states() == {"ada": True, "bob": True, "cyd": False}


def test_database_of_another_program_is_not_replaced(folder: Path, backup: Path) -> None:
    (folder / "mlapi.db").unlink()
    execute(folder / "mlapi.db", "CREATE TABLE users (id INTEGER)")

    result = restore(backup)

    assert result.exit_code == 3
    assert "the current database does not belong to mlapi: check database.url" in result.stderr


def test_link_to_the_database_is_kept(folder: Path, tmp_path: Path, backup: Path) -> None:
    target = tmp_path / "elsewhere.db"
    (folder / "mlapi.db").rename(target)
    (folder / "mlapi.db").symlink_to(target)
    shutil.copy(folder / "secrets.yml", tmp_path / "secrets.yml")
    with open_users(load_settings()) as users:
        users.remove(user_id=UserId(1))

    assert restore(backup).exit_code == 0
    assert (folder / "mlapi.db").is_symlink()
    assert states() == {"ada": True, "bob": True, "cyd": False}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other accounts")
@pytest.mark.parametrize("exists", [True, False])
def test_restored_files_belong_to_the_account_of_the_service(exists: bool, folder: Path, backup: Path) -> None:
    database = folder / "mlapi.db"
    os.chown(folder, 65534, 65534)
    os.chown(database, 65534, 65534)
    os.chown(folder / "secrets.yml", 65534, 65534)
    if not exists:
        database.unlink()
        (folder / "secrets.yml").unlink()

    restore(backup)

    owners = [(file.stat().st_uid, file.stat().st_gid) for file in (database, folder / "secrets.yml")]
    assert owners == [(65534, 65534)] * 2


def test_running_process_continues_with_the_restored_database(folder: Path, backup: Path) -> None:
    """A process without an open connection is not detected, but notices the new file."""
    with open_service(load_settings()) as service:
        service.users.remove(user_id=UserId(1))
        service.storage.close()
        assert restore(backup).exit_code == 0

        assert service.users.get(UserId(1)).username == "ada"
