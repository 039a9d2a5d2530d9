"""The files of an SQLite database: names, links, mounts, and who may access them."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlapi.adapters.sql.sqlite import files
from mlapi.bootstrap import open_guard, open_users
from mlapi.config import DatabaseSettings, Settings
from mlapi.domain.errors import ConfigurationError

OTHER_USER = 54321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount files and give them away")

REGISTER = """
import sys
from mlapi.bootstrap import open_users
from mlapi.config import DatabaseSettings, Settings
from mlapi.domain.errors import ConfigurationError
try:
    with open_users(Settings(database=DatabaseSettings(url=f"sqlite:///{sys.argv[1]}"))) as users:
        users.register(username=sys.argv[2], password="difference engine", email="a@example.com")
except ConfigurationError as error:
    print(error)
"""


def settings_for(file: Path) -> Settings:
    return Settings(database=DatabaseSettings(url=f"sqlite:///{file}"))


def register(file: Path, name: str = "ada") -> None:
    with open_users(settings_for(file)) as users:
        users.register(username=name, password="difference engine", email="a@example.com")


def usernames(file: Path) -> list[str]:
    with open_users(settings_for(file)) as users:
        return [user.username for user in users.iterate_users()]


def mode_of(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder for the database, beside a folder for links to it."""
    (tmp_path / "links").mkdir()
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def test_dangling_link_creates_private_files_at_its_target(data: Path, tmp_path: Path) -> None:
    link = tmp_path / "links" / "users.db"
    link.symlink_to(data / "mlapi.db")
    previous_umask = os.umask(0)
    try:
        register(link)
    finally:
        os.umask(previous_umask)

    assert [path.name for path in (tmp_path / "links").iterdir()] == ["users.db"]
    assert {path.name: mode_of(path) for path in data.iterdir()} == {"mlapi.db": 0o600, "secrets.yml": 0o600}
    assert usernames(data / "mlapi.db") == usernames(link) == ["ada"]


def test_dangling_link_for_the_secrets_creates_its_target(data: Path, tmp_path: Path) -> None:
    (data / "secrets.yml").symlink_to(tmp_path / "links" / "keys.yml")

    register(data / "mlapi.db")

    assert (data / "secrets.yml").is_symlink()
    assert mode_of(tmp_path / "links" / "keys.yml") == 0o600


def test_secrets_that_link_to_themselves_are_rejected(data: Path) -> None:
    (data / "secrets.yml").symlink_to(data / "secrets.yml")

    with pytest.raises(ConfigurationError, match=r"secrets\.yml cannot be created"):
        register(data / "mlapi.db")


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def link_into_missing_folder(path: Path) -> None:
    path.symlink_to(path.parent / "missing" / "mlapi.db")


@pytest.mark.parametrize("make", [os.mkfifo, make_loop, link_into_missing_folder, Path.mkdir])
def test_path_that_is_not_a_file_is_rejected(data: Path, make: Callable[[Path], object]) -> None:
    make(data / "mlapi.db")

    with pytest.raises(ConfigurationError, match=r"mlapi\.db' must be a file in an existing folder"):
        register(data / "mlapi.db")


def test_device_is_rejected_as_a_database() -> None:
    with pytest.raises(ConfigurationError, match="'/dev/null' must be a file in an existing folder"):
        register(Path("/dev/null"))


def test_link_and_target_share_one_write_ahead_log(data: Path, tmp_path: Path) -> None:
    register(data / "mlapi.db")
    link = tmp_path / "links" / "users.db"
    link.symlink_to(data / "mlapi.db")

    with open_users(settings_for(link)) as through_link, open_users(settings_for(data / "mlapi.db")) as direct:
        through_link.register(username="grace", password="compiler", email="g@example.com")
        user = direct.find("grace")

    assert user is not None
    assert list((tmp_path / "links").iterdir()) == [link]


def test_link_to_a_folder_is_followed(data: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(data)
    register(tmp_path / "current" / "mlapi.db")

    assert sorted(path.name for path in data.iterdir()) == ["mlapi.db", "secrets.yml"]


@pytest.mark.parametrize("open_one", [open_users, open_guard], ids=["service", "guard"])
def test_file_with_two_names_is_rejected(data: Path, open_one: Callable[[Settings], object]) -> None:
    file, other = data / "mlapi.db", data / "other.db"
    register(file)
    os.link(file, other)

    for name in (file, other):
        with pytest.raises(ConfigurationError) as exc_info, open_one(settings_for(name)):  # type: ignore[attr-defined]
            pass
        assert str(exc_info.value) == (
            f"{name} has 2 names (hard links), and programs that open different names damage it: stop them, then run"
            f" `cp -p {name} {name}.copy && mv {name}.copy {name}`. To share the database, share its folder"
        )
    assert sorted(path.name for path in data.iterdir()) == ["mlapi.db", "other.db", "secrets.yml"]


def test_suggested_copy_gives_the_file_a_single_name(data: Path) -> None:
    file = data / "my users.db"
    register(file)
    os.link(file, data / "other.db")
    with pytest.raises(ConfigurationError) as exc_info:
        register(file)

    _, command, _ = str(exc_info.value).split("`")
    subprocess.run(command, shell=True, check=True)

    assert usernames(file) == ["ada"]


def test_name_added_while_running_does_not_interrupt_the_service(data: Path) -> None:
    file = data / "mlapi.db"
    with open_users(settings_for(file)) as users:
        os.link(file, data / "backup.db")  # as some backup programs do for a moment
        user = users.register(username="ada", password="difference engine", email="a@example.com")
        (data / "backup.db").unlink()

    assert user.username == "ada"


@needs_root
def test_database_mounted_as_a_single_file_is_rejected(data: Path, tmp_path: Path) -> None:
    file = data / "my users.db"
    register(file)
    mounted = tmp_path / "links" / "a mounted.db"
    mounted.touch()
    script = f'mount --bind "$1" "$2" && exec "$3" -c \'{REGISTER}\' "$2" grace'
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(file), str(mounted), sys.executable]

    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if "permission" in run.stderr.lower() or "not permitted" in run.stderr:
        pytest.skip(f"not tested with a mounted file: {run.stderr.strip()}")

    assert run.stdout == (
        f"{mounted} is mounted as a single file, so changes in its write-ahead log stay outside the mount: mount the"
        " folder that contains it instead\n"
    )
    assert usernames(file) == ["ada"]


@needs_root
def test_mounted_folder_is_accepted(data: Path, tmp_path: Path) -> None:
    register(data / "mlapi.db")
    script = f'mount --bind "$1" "$2" && exec "$3" -c \'{REGISTER}\' "$2/mlapi.db" grace'
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(data), str(tmp_path / "links"), sys.executable]

    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if "permission" in run.stderr.lower() or "not permitted" in run.stderr:
        pytest.skip(f"not tested with a mounted folder: {run.stderr.strip()}")

    assert (run.stdout, usernames(data / "mlapi.db")) == ("", ["ada", "grace"])


def test_file_listed_as_a_mount_point_is_rejected(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    file = data / "my users.db"
    register(file)
    mounts = data.with_name("mountinfo")
    listed = str(file).replace(" ", r"\040")
    mounts.write_text(f"36 35 98:0 / / rw - ext4 /dev/root rw\n37 36 98:0 /users.db {listed} rw - ext4 /dev/root rw\n")
    monkeypatch.setattr(files, "_MOUNTS", mounts)

    with pytest.raises(ConfigurationError, match="is mounted as a single file"):
        register(file, "grace")


def test_mount_points_are_unknown_without_proc(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    monkeypatch.setattr(files, "_MOUNTS", Path("/proc/missing"))

    register(data / "mlapi.db")

    assert usernames(data / "mlapi.db") == ["ada"]


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal"], ids=["database", "write-ahead log", "rollback journal"])
def test_file_that_every_account_can_change_is_rejected(data: Path, suffix: str) -> None:
    register(data / "mlapi.db")
    file = data / f"mlapi.db{suffix}"
    file.touch()
    file.chmod(0o666)

    with pytest.raises(ConfigurationError) as exc_info:
        register(data / "mlapi.db", "grace")

    assert str(exc_info.value).startswith(f"every account can change {file}: run `chmod 600 {file}`")


def test_file_that_every_account_can_read_is_reported(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    register(data / "mlapi.db")
    (data / "mlapi.db").chmod(0o644)
    caplog.clear()

    register(data / "mlapi.db", "grace")

    assert [message for message in caplog.messages if message.startswith(f"every account can read {data}/mlapi.db")]


@needs_root
@pytest.mark.parametrize("name", ["mlapi.db", "secrets.yml"])
def test_files_of_another_account_are_rejected(data: Path, name: str) -> None:
    register(data / "mlapi.db")
    os.chown(data / name, OTHER_USER, -1)

    with pytest.raises(ConfigurationError) as exc_info:
        register(data / "mlapi.db", "grace")

    assert str(exc_info.value).startswith(f"{data / name} belongs to another account (user id {OTHER_USER})")


@needs_root
def test_root_may_use_the_files_of_the_service_account(data: Path) -> None:
    register(data / "mlapi.db")
    for path in (data, *data.iterdir()):
        shutil.chown(path, OTHER_USER)

    assert usernames(data / "mlapi.db") == ["ada"]
