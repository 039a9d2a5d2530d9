"""The secrets file is created once, updated atomically, locked and checked for changes."""

import errno
import logging
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlapi.atomic_files import atomic_write, fsync_folder
from mlapi.config import SecretSettings, Settings
from mlapi.config.files import read_yaml
from mlapi.config.secrets_file import file_signature
from mlapi.domain.errors import ConfigurationError
from mlapi.secret_store import (
    create_secrets_file,
    lock_secrets_file,
    new_key,
    new_salt,
    update_secrets_file,
)
from tests.sample_settings import write
from tests.secret_store import with_secrets

resource = pytest.importorskip("resource", reason="resource limits need POSIX")

NOT_A_MAPPING = "must contain `key: value` lines"


def test_created_file_completes_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "secrets.yml"
    create_secrets_file(file)
    content = read_yaml(file)

    assert with_secrets(Settings(), file).secrets == SecretSettings(key=(content["key"],), salt=(content["salt"],))


def test_created_file_is_accessible_to_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "secrets.yml"
    create_secrets_file(file)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_created_file_starts_with_an_explanation(tmp_path: Path) -> None:
    file = tmp_path / "secrets.yml"
    create_secrets_file(file)

    assert file.read_text().splitlines()[0] == (
        "# Made by mlapi. Keep a copy: without it, no stored password can be verified."
    )


def test_every_created_file_has_new_secrets(tmp_path: Path) -> None:
    create_secrets_file(tmp_path / "one.yml")
    create_secrets_file(tmp_path / "other.yml")
    one, other = read_yaml(tmp_path / "one.yml"), read_yaml(tmp_path / "other.yml")

    assert one["key"] != other["key"]
    assert one["salt"] != other["salt"]


def test_creation_is_logged_without_the_secrets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "secrets.yml"
    create_secrets_file(file)

    assert caplog.record_tuples == [
        ("mlapi", logging.WARNING, f"generated a key and a salt in {file}; back it up together with the database")
    ]


def test_existing_file_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path, "key: mine\n", name="secret")
    create_secrets_file(file)

    assert file.read_text() == "key: mine\n"
    assert list(tmp_path.iterdir()) == [file]
    assert caplog.messages == []


def test_only_one_of_eight_concurrent_startups_creates_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "secrets.yml"
    barrier = Barrier(8)

    def start(_: int) -> str:
        barrier.wait()
        create_secrets_file(file)
        return file.read_text()

    with ThreadPoolExecutor(8) as threads:
        contents = set(threads.map(start, range(8)))

    assert contents == {file.read_text()}
    assert list(tmp_path.iterdir()) == [file]
    assert len(caplog.messages) == 1


def test_missing_folder_is_reported_when_creating_the_file(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "secrets.yml"

    with pytest.raises(ConfigurationError) as exc_info:
        create_secrets_file(file)

    assert str(exc_info.value) == f"{file} cannot be created: No such file or directory"


@pytest.fixture
def full_disk() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # every write now fails
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_no_temporary_file_behind(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    file = tmp_path / "secrets.yml"
    request.getfixturevalue("full_disk")

    with pytest.raises(ConfigurationError) as exc_info:
        create_secrets_file(file)

    assert str(exc_info.value) == f"{file} cannot be created: File too large"
    assert list(tmp_path.iterdir()) == []


def keep(tree: dict[str, Any]) -> dict[str, Any]:
    return tree


def with_salt(tree: dict[str, Any]) -> dict[str, Any]:
    return {**tree, "salt": "another"}


def test_update_writes_the_returned_content(tmp_path: Path) -> None:
    file = write(tmp_path, "key: [a, b]\nsalt: c\n", name="secret")

    update_secrets_file(file, lambda tree: {"before": tree, "key": ["d", *tree["key"]]})

    assert read_yaml(file) == {"before": {"key": ["a", "b"], "salt": "c"}, "key": ["d", "a", "b"]}
    assert list(tmp_path.iterdir()) == [file]


def test_update_removes_temporary_files_of_killed_commands(tmp_path: Path) -> None:
    file = write(tmp_path, "salt: a\n", name="secret")
    abandoned, recent, unrelated = (
        tmp_path / name for name in (".secret.0123456789abcdef", f".secret.{'0' * 16}", ".secret.copy")
    )
    for path in (abandoned, recent, unrelated):
        path.write_text("salt: b\n")
    an_hour_ago = time.time() - 3600
    os.utime(abandoned, (an_hour_ago, an_hour_ago))
    os.utime(unrelated, (an_hour_ago, an_hour_ago))

    update_secrets_file(file, keep)

    assert sorted(tmp_path.iterdir()) == sorted([file, recent, unrelated])


def test_updated_file_starts_with_an_explanation(tmp_path: Path) -> None:
    file = write(tmp_path, "salt: a\nkey: b\n", name="secret")

    update_secrets_file(file, keep)

    assert file.read_text() == (
        "# Made by mlapi. Keep a copy: without it, no stored password can be verified.\nsalt: a\nkey: b\n"
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_text_survives_a_round_trip(tmp_path: Path, salt: str, keys: list[str]) -> None:
    file = write(tmp_path, "", name="secret")

    update_secrets_file(file, lambda _: {"salt": salt, "key": keys})

    assert read_yaml(file) == {"salt": salt, "key": keys}


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o660, 0o644], ids=oct)
def test_update_keeps_the_mode(tmp_path: Path, mode: int) -> None:
    file = write(tmp_path, "salt: a\n", name="secret", mode=mode)

    update_secrets_file(file, with_salt)

    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert read_yaml(file) == {"salt": "another"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the owner")
def test_update_keeps_owner_and_group(tmp_path: Path) -> None:
    file = write(tmp_path, "salt: a\n", name="secret", mode=0o640)
    os.chown(file, 1234, 5678)

    update_secrets_file(file, with_salt)

    status = file.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 5678, 0o640)
    assert read_yaml(file) == {"salt": "another"}


def test_failed_write_leaves_the_file_unchanged(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    file = write(tmp_path, "salt: a\n", name="secret")
    request.getfixturevalue("full_disk")

    with pytest.raises(ConfigurationError) as exc_info:
        update_secrets_file(file, with_salt)

    assert str(exc_info.value) == f"{file} cannot be changed: File too large"
    assert file.read_text() == "salt: a\n"
    assert list(tmp_path.iterdir()) == [file]


def test_exception_in_an_update_keeps_the_file_and_unlocks_it(tmp_path: Path) -> None:
    file = write(tmp_path, "salt: a\n", name="secret")

    def fail(_tree: dict[str, Any]) -> dict[str, Any]:
        raise ConfigurationError("invalid change")

    with pytest.raises(ConfigurationError, match="invalid change"):
        update_secrets_file(file, fail)

    assert file.read_text() == "salt: a\n"
    assert list(tmp_path.iterdir()) == [file]
    update_secrets_file(file, with_salt)
    assert read_yaml(file) == {"salt": "another"}


@pytest.mark.parametrize(
    ("content", "error"),
    [(None, "cannot be read: No such file or directory"), ("[", "is not valid YAML (line 1)"), ("text", NOT_A_MAPPING)],
    ids=["missing", "not YAML", "text"],
)
def test_unreadable_file_is_not_updated(tmp_path: Path, content: str | None, error: str) -> None:
    file = tmp_path / "secret" if content is None else write(tmp_path, content, name="secret")
    before = [(path, path.read_text()) for path in tmp_path.iterdir()]

    with pytest.raises(ConfigurationError) as exc_info:
        update_secrets_file(file, keep)

    assert str(exc_info.value) == f"{file} {error}"
    assert [(path, path.read_text()) for path in tmp_path.iterdir()] == before


def test_missing_folder_is_reported_when_updating_the_file(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "secrets.yml"

    with pytest.raises(ConfigurationError) as exc_info:
        update_secrets_file(file, keep)

    assert str(exc_info.value) == f"{file} cannot be read: No such file or directory"


def update_with_lock(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> list[int]:
    """Wait for the lock, update a file, and return its keys."""
    while True:
        try:
            with lock_secrets_file(file):
                update_secrets_file(file, change)
                keys: list[int] = read_yaml(file)["key"]
                return keys
        except ConfigurationError:
            time.sleep(0.001)


def append_key(key: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tree: {"key": [*tree["key"], key]}


def test_concurrent_updates_by_threads_lose_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, "key: []\n", name="secret")
    barrier = Barrier(8)

    def add(number: int) -> list[list[int]]:
        barrier.wait()
        return [update_with_lock(file, append_key(number * 10 + turn)) for turn in range(5)]

    with ThreadPoolExecutor(8) as threads:
        observed = [keys for results in threads.map(add, range(8)) for keys in results]

    keys = read_yaml(file)["key"]
    assert sorted(keys) == sorted(number * 10 + turn for number in range(8) for turn in range(5))
    assert all(earlier == keys[: len(earlier)] for earlier in observed)
    assert list(tmp_path.iterdir()) == [file]


def test_concurrent_updates_by_processes_lose_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, "key: []\n", name="secret")
    script = (
        "import sys; from pathlib import Path; from tests.unit.test_secrets_file import update_with_lock\n"
        "for turn in range(5):\n"
        "    update_with_lock(Path(sys.argv[1]), lambda tree: {'key': [*tree['key'], f'{sys.argv[2]}{turn}']})\n"
    )

    root = Path(__file__).parents[2]
    processes = [subprocess.Popen([sys.executable, "-c", script, str(file), name], cwd=root) for name in "abc"]
    codes = [process.wait(timeout=60) for process in processes]

    assert codes == [0, 0, 0]
    assert sorted(read_yaml(file)["key"]) == [f"{name}{turn}" for name in "abc" for turn in range(5)]
    assert list(tmp_path.iterdir()) == [file]


def test_generated_secrets_are_valid_settings(tmp_path: Path) -> None:
    key, token_key, salt = new_key(), new_key(), new_salt()
    file = write(tmp_path, f"key: {key}\ntoken_key: {token_key}\nsalt: {salt}\n", name="secret")

    assert with_secrets(Settings(), file).secrets == SecretSettings(key=(key,), salt=(salt,), token_key=(token_key,))


def test_generated_secrets_are_unique() -> None:
    assert len({new_key() for _ in range(100)} | {new_salt() for _ in range(100)}) == 200


def test_missing_file_has_no_signature(tmp_path: Path) -> None:
    assert file_signature(tmp_path / "secrets.yml") is None
    assert file_signature(write(tmp_path, "salt: a\n", name="secret") / "secrets.yml") is None


def test_reading_a_file_keeps_its_signature(tmp_path: Path) -> None:
    file = write(tmp_path, "salt: a\n", name="secret")
    before = file_signature(file)

    read_yaml(file)

    assert file_signature(file) == before
    assert before is not None


def test_update_with_equal_content_changes_the_signature(tmp_path: Path) -> None:
    file = write(tmp_path, "salt: a\n", name="secret")
    signatures = [file_signature(file)]

    for _ in range(5):
        update_secrets_file(file, keep)
        signatures.append(file_signature(file))

    assert all(before != after for before, after in pairwise(signatures))


def test_writing_in_place_changes_the_signature(tmp_path: Path) -> None:
    file = write(tmp_path, "salt: a\n", name="secret")
    before = file_signature(file)

    file.write_text("salt: another\n")

    assert file_signature(file) != before


def test_restoring_a_file_changes_the_signature(tmp_path: Path) -> None:
    file = write(tmp_path, "salt: a\n", name="secret")
    before = file_signature(file)
    file.rename(tmp_path / "moved")

    write(tmp_path, "salt: a\n", name="secret")

    assert file_signature(file) != before


def test_update_replaces_the_target_of_a_symbolic_link(tmp_path: Path) -> None:
    target = write(tmp_path, "key: x\n", name="secret")
    link = tmp_path / "link.yml"
    link.symlink_to(target)

    update_secrets_file(link, lambda tree: {**tree, "salt": "y"})

    assert link.is_symlink()
    assert read_yaml(target) == {"key": "x", "salt": "y"}


# --- file systems without hard links or without fsync for folders, such as exFAT and some network file systems


@pytest.fixture
def _no_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_arguments: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("mlapi.atomic_files.os.link", link)


@pytest.mark.usefixtures("_no_hard_links")
def test_file_is_created_without_hard_links(tmp_path: Path) -> None:
    file = tmp_path / "secrets.yml"

    with atomic_write(file, replace=False) as stream:
        stream.write("key")

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"secrets.yml": "key"}
    with pytest.raises(FileExistsError), atomic_write(file, replace=False) as stream:
        stream.write("another")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"secrets.yml": "key"}


@pytest.mark.usefixtures("_no_hard_links")
def test_one_of_many_writers_wins_without_hard_links(tmp_path: Path) -> None:
    file = tmp_path / "secrets.yml"

    def write_number(number: int) -> int | None:
        try:
            with atomic_write(file, replace=False) as stream:
                stream.write(str(number))
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(16) as pool:
        winners = [number for number in pool.map(write_number, range(64)) if number is not None]

    assert winners == [int(file.read_text())]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.usefixtures("_no_hard_links")
def test_marker_of_a_killed_process_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlapi.atomic_files._MARKER_TIMEOUT_SECONDS", 0.05)
    marker = write(tmp_path, "", name=".secrets.yml.lock")

    with pytest.raises(ConfigurationError) as exc_info:
        create_secrets_file(tmp_path / "secrets.yml")

    assert str(exc_info.value) == (
        f"{tmp_path}/secrets.yml cannot be created: {marker} was left behind by a killed process: delete it"
    )


@pytest.mark.parametrize(
    ("error", "is_ignored"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)], ids=errno.errorcode.get
)
def test_folders_without_fsync_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, is_ignored: bool
) -> None:
    def fsync(_descriptor: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("mlapi.atomic_files.os.fsync", fsync)

    with nullcontext() if is_ignored else pytest.raises(OSError, match=os.strerror(error)):
        fsync_folder(tmp_path)


def test_other_errors_of_hard_links_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mlapi.atomic_files.os.link", link)

    with pytest.raises(ConfigurationError, match="No space left on device"):
        create_secrets_file(tmp_path / "secrets.yml")
