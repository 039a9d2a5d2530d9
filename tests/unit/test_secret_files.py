"""Files that hold secrets: who may read them, what is in them, and how the first one is made and changed."""

import logging
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlapi.config import SecretSettings, Settings
from mlapi.config.files import find_permission_error, read_mounted_value, read_yaml
from mlapi.domain.errors import ConfigurationError
from mlapi.secret_store import (
    create_secrets_file,
    file_signature,
    lock_secrets_file,
    new_key,
    new_salt,
    update_secrets_file,
)
from tests.secret_store import with_secrets

resource = pytest.importorskip("resource", reason="limits of a process are POSIX's")

NO_LINES = "must contain `key: value` lines"


def written(folder: Path, content: str | bytes, mode: int = 0o600) -> Path:
    file = folder / "secret"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    file.chmod(mode)
    return file


# --- who may read them


@pytest.mark.parametrize(
    ("mode", "is_open"),
    [
        (0o400, False),
        (0o600, False),
        (0o640, False),
        (0o660, False),
        (0o604, True),
        (0o602, True),
        (0o644, True),
        (0o666, True),
    ],
    ids=oct,
)
def test_a_file_is_open_when_others_may_read_or_write_it(tmp_path: Path, mode: int, is_open: bool) -> None:
    assert (find_permission_error(written(tmp_path, "secret", mode)) is not None) is is_open


def test_a_file_that_is_open_to_others_is_told_with_what_to_do(tmp_path: Path) -> None:
    file = written(tmp_path, "secret", 0o644)

    assert (
        find_permission_error(file) == f"{file} holds secrets, but other accounts can access it: run `chmod 600 {file}`"
    )


def test_a_value_that_is_no_secret_may_be_read_by_others(tmp_path: Path) -> None:
    file = written(tmp_path, "fernet", 0o644)

    assert read_mounted_value(file, "MLAPI_PASSWORDS__SCHEME_FILE", is_secret=False) == "fernet"


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, "key: a\nsalt: b\nkey: c\n")

    with pytest.raises(ConfigurationError) as refusal:
        read_yaml(file)

    assert str(refusal.value) == f"{file} contains the same key twice (line 1)"


# --- mounted secrets


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        pytest.param("secret", "secret", id="no line end"),
        pytest.param("secret\n", "secret", id="line end"),
        pytest.param("secret\r\n", "secret", id="line end of Windows"),
        pytest.param("secret\n\n", "secret", id="two line ends"),
        pytest.param(" secret \n", " secret ", id="spaces are of the secret"),
        pytest.param("two\nlines\n", "two\nlines", id="line end inside"),
        pytest.param("gehëim\n", "gehëim", id="beyond ASCII"),
        pytest.param("", "", id="empty"),
    ],
)
def test_a_secret_is_read_without_its_last_line_ends(tmp_path: Path, content: str, secret: str) -> None:
    assert read_mounted_value(written(tmp_path, content), "MLAPI_SECRETS__SALT_FILE", is_secret=True) == secret


def test_a_secret_is_read_through_a_link(tmp_path: Path) -> None:
    link = tmp_path / "link"  # as Kubernetes mounts its secrets
    link.symlink_to(written(tmp_path, "secret"))

    assert read_mounted_value(link, "MLAPI_SECRETS__SALT_FILE", is_secret=True) == "secret"


def test_a_missing_secret_is_refused_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        read_mounted_value(tmp_path / "missing", "MLAPI_SECRETS__SALT_FILE", is_secret=True)

    assert str(refusal.value) == (
        f"MLAPI_SECRETS__SALT_FILE: {tmp_path}/missing cannot be read: No such file or directory"
    )


@pytest.mark.parametrize("mode", [0o700, 0o755], ids=oct)
def test_a_folder_in_place_of_a_secret_is_refused_as_what_it_is(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(mode)

    with pytest.raises(ConfigurationError) as refusal:
        read_mounted_value(folder, "MLAPI_SECRETS__SALT_FILE", is_secret=True)

    assert str(refusal.value) == f"MLAPI_SECRETS__SALT_FILE: {folder} cannot be read: Is a directory"


def test_a_secret_that_is_not_utf8_is_refused_with_its_setting(tmp_path: Path) -> None:
    file = written(tmp_path, b"secret\xff")

    with pytest.raises(ConfigurationError) as refusal:
        read_mounted_value(file, "MLAPI_SECRETS__SALT_FILE", is_secret=True)

    assert str(refusal.value) == f"MLAPI_SECRETS__SALT_FILE: {file} is not UTF-8"


def test_a_secret_that_others_may_read_is_refused_with_its_setting(tmp_path: Path) -> None:
    file = written(tmp_path, "secret", 0o644)

    with pytest.raises(ConfigurationError) as refusal:
        read_mounted_value(file, "MLAPI_SECRETS__SALT_FILE", is_secret=True)

    assert str(refusal.value) == (
        f"MLAPI_SECRETS__SALT_FILE: {file} holds secrets, but other accounts can access it: run `chmod 600 {file}`"
    )


# --- YAML


def test_a_mapping_is_read_as_it_is(tmp_path: Path) -> None:
    file = written(tmp_path, "key: [a, b]\nsalt: c\n")

    assert read_yaml(file) == {"key": ["a", "b"], "salt": "c"}


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path, "")) == {}


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        pytest.param("key: secret\nsalt: 'secret", "is not valid YAML (line 2)", id="open quote"),
        pytest.param("key: secret\x00", "is not valid YAML", id="NUL, which YAML refuses without a line"),
        pytest.param(b"secret\xff", "is not UTF-8", id="not UTF-8"),
        pytest.param("secret", "must contain `key: value` lines", id="text"),
        pytest.param("[secret]", "must contain `key: value` lines", id="list"),
    ],
)
def test_what_is_no_mapping_is_refused_without_its_content(tmp_path: Path, content: str | bytes, refusal: str) -> None:
    file = written(tmp_path, content)

    with pytest.raises(ConfigurationError) as refused:
        read_yaml(file)

    assert str(refused.value) == f"{file} {refusal}"


def test_a_folder_is_no_yaml_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        read_yaml(tmp_path)

    assert str(refusal.value) == f"{tmp_path} cannot be read: Is a directory"


# --- the first secrets


def test_a_made_file_completes_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "secrets.yml"
    create_secrets_file(file)
    made = read_yaml(file)

    assert with_secrets(Settings(), file).secrets == SecretSettings(key=(made["key"],), salt=(made["salt"],))


def test_a_made_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "secrets.yml"
    create_secrets_file(file)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_made_file_says_what_it_is(tmp_path: Path) -> None:
    file = tmp_path / "secrets.yml"
    create_secrets_file(file)

    assert file.read_text().splitlines()[0] == (
        "# Made by mlapi. Keep a copy: without it, no stored password can be verified."
    )


def test_two_made_files_hold_two_secrets(tmp_path: Path) -> None:
    create_secrets_file(tmp_path / "one.yml")
    create_secrets_file(tmp_path / "other.yml")
    one, other = read_yaml(tmp_path / "one.yml"), read_yaml(tmp_path / "other.yml")

    assert one["key"] != other["key"]
    assert one["salt"] != other["salt"]


def test_a_made_file_is_named_in_the_log_without_its_content(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "secrets.yml"
    create_secrets_file(file)

    assert caplog.record_tuples == [
        ("mlapi", logging.WARNING, f"generated a key and a salt in {file}; back it up together with the database")
    ]


def test_a_file_that_is_there_already_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(tmp_path, "key: mine\n")
    create_secrets_file(file)

    assert file.read_text() == "key: mine\n"
    assert list(tmp_path.iterdir()) == [file]
    assert caplog.messages == []


def test_of_eight_that_start_at_once_one_makes_the_file_and_all_read_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "secrets.yml"
    starts = Barrier(8)

    def start(_: int) -> str:
        starts.wait()
        create_secrets_file(file)
        return file.read_text()

    with ThreadPoolExecutor(8) as threads:
        contents = set(threads.map(start, range(8)))

    assert contents == {file.read_text()}
    assert list(tmp_path.iterdir()) == [file]
    assert len(caplog.messages) == 1


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "secrets.yml"

    with pytest.raises(ConfigurationError) as refusal:
        create_secrets_file(file)

    assert str(refusal.value) == f"{file} cannot be created: No such file or directory"


@pytest.fixture
def full_disk() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # from here on, no file can grow
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_no_draft_behind(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    file = tmp_path / "secrets.yml"
    request.getfixturevalue("full_disk")

    with pytest.raises(ConfigurationError) as refusal:
        create_secrets_file(file)

    assert str(refusal.value) == f"{file} cannot be created: File too large"
    assert list(tmp_path.iterdir()) == []


# --- changed secrets


def unchanged(tree: dict[str, Any]) -> dict[str, Any]:
    return tree


def with_salt(tree: dict[str, Any]) -> dict[str, Any]:
    return {**tree, "salt": "another"}


def test_a_change_is_given_what_is_in_the_file_and_leaves_what_it_returns(tmp_path: Path) -> None:
    file = written(tmp_path, "key: [a, b]\nsalt: c\n")

    update_secrets_file(file, lambda tree: {"was": tree, "key": ["d", *tree["key"]]})

    assert read_yaml(file) == {"was": {"key": ["a", "b"], "salt": "c"}, "key": ["d", "a", "b"]}
    assert list(tmp_path.iterdir()) == [file]


def test_a_change_removes_what_commands_that_were_killed_have_left(tmp_path: Path) -> None:
    file = written(tmp_path, "salt: a\n")
    abandoned, begun, other = (
        tmp_path / name for name in (".secret.0123456789abcdef", f".secret.{'0' * 16}", ".secret.copy")
    )
    for path in (abandoned, begun, other):
        path.write_text("salt: b\n")
    an_hour_ago = time.time() - 3600
    os.utime(abandoned, (an_hour_ago, an_hour_ago))
    os.utime(other, (an_hour_ago, an_hour_ago))

    update_secrets_file(file, unchanged)

    assert sorted(tmp_path.iterdir()) == sorted([file, begun, other])


def test_a_changed_file_says_what_it_is(tmp_path: Path) -> None:
    file = written(tmp_path, "salt: a\nkey: b\n")

    update_secrets_file(file, unchanged)

    assert file.read_text() == (
        "# Made by mlapi. Keep a copy: without it, no stored password can be verified.\nsalt: a\nkey: b\n"
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_text_is_written_as_it_is(tmp_path: Path, one: str, several: list[str]) -> None:
    file = written(tmp_path, "")

    update_secrets_file(file, lambda _: {"salt": one, "key": several})

    assert read_yaml(file) == {"salt": one, "key": several}


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o660, 0o644], ids=oct)
def test_a_changed_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    file = written(tmp_path, "salt: a\n", mode)

    update_secrets_file(file, with_salt)

    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert read_yaml(file) == {"salt": "another"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_changed_file_keeps_its_owner_and_group(tmp_path: Path) -> None:
    file = written(tmp_path, "salt: a\n", 0o640)
    os.chown(file, 1234, 5678)

    update_secrets_file(file, with_salt)

    status = file.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 5678, 0o640)
    assert read_yaml(file) == {"salt": "another"}


def test_a_change_that_cannot_be_written_leaves_the_file_as_it_was(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = written(tmp_path, "salt: a\n")
    request.getfixturevalue("full_disk")

    with pytest.raises(ConfigurationError) as refusal:
        update_secrets_file(file, with_salt)

    assert str(refusal.value) == f"{file} cannot be changed: File too large"
    assert file.read_text() == "salt: a\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_change_that_is_refused_leaves_the_file_as_it_was_and_others_their_turn(tmp_path: Path) -> None:
    file = written(tmp_path, "salt: a\n")

    def refuse(_tree: dict[str, Any]) -> dict[str, Any]:
        raise ConfigurationError("not this one")

    with pytest.raises(ConfigurationError, match="not this one"):
        update_secrets_file(file, refuse)

    assert file.read_text() == "salt: a\n"
    assert list(tmp_path.iterdir()) == [file]
    update_secrets_file(file, with_salt)
    assert read_yaml(file) == {"salt": "another"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot be read: No such file or directory"), ("[", "is not valid YAML (line 1)"), ("text", NO_LINES)],
    ids=["missing", "not YAML", "text"],
)
def test_a_file_that_cannot_be_read_is_not_changed(tmp_path: Path, content: str | None, reason: str) -> None:
    file = tmp_path / "secret" if content is None else written(tmp_path, content)
    before = [(path, path.read_text()) for path in tmp_path.iterdir()]

    with pytest.raises(ConfigurationError) as refusal:
        update_secrets_file(file, unchanged)

    assert str(refusal.value) == f"{file} {reason}"
    assert [(path, path.read_text()) for path in tmp_path.iterdir()] == before


def test_a_file_in_a_folder_that_is_not_there_is_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "secrets.yml"

    with pytest.raises(ConfigurationError) as refusal:
        update_secrets_file(file, unchanged)

    assert str(refusal.value) == f"{file} cannot be read: No such file or directory"


def changed_in_turn(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> list[int]:
    """Change a file when nobody else does, and return its keys."""
    while True:
        try:
            with lock_secrets_file(file):
                update_secrets_file(file, change)
                keys: list[int] = read_yaml(file)["key"]
                return keys
        except ConfigurationError:
            time.sleep(0.001)


def adding(key: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tree: {"key": [*tree["key"], key]}


def test_threads_that_change_a_file_at_once_lose_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, "key: []\n")
    starts = Barrier(8)

    def add(number: int) -> list[list[int]]:
        starts.wait()
        return [changed_in_turn(file, adding(number * 10 + turn)) for turn in range(5)]

    with ThreadPoolExecutor(8) as threads:
        seen = [keys for of_one in threads.map(add, range(8)) for keys in of_one]

    keys = read_yaml(file)["key"]
    assert sorted(keys) == sorted(number * 10 + turn for number in range(8) for turn in range(5))
    assert all(earlier == keys[: len(earlier)] for earlier in seen)
    assert list(tmp_path.iterdir()) == [file]


def test_processes_that_change_a_file_at_once_lose_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, "key: []\n")
    script = (
        "import sys; from pathlib import Path; from tests.unit.test_secret_files import changed_in_turn\n"
        "for turn in range(5):\n"
        "    changed_in_turn(Path(sys.argv[1]), lambda tree: {'key': [*tree['key'], f'{sys.argv[2]}{turn}']})\n"
    )

    root = Path(__file__).parents[2]
    processes = [subprocess.Popen([sys.executable, "-c", script, str(file), name], cwd=root) for name in "abc"]
    codes = [process.wait(timeout=60) for process in processes]

    assert codes == [0, 0, 0]
    assert sorted(read_yaml(file)["key"]) == [f"{name}{turn}" for name in "abc" for turn in range(5)]
    assert list(tmp_path.iterdir()) == [file]


# --- new secrets, and whether a file has changed


def test_a_new_key_and_a_new_salt_are_good_for_the_settings(tmp_path: Path) -> None:
    key, token_key, salt = new_key(), new_key(), new_salt()
    file = written(tmp_path, f"key: {key}\ntoken_key: {token_key}\nsalt: {salt}\n")

    assert with_secrets(Settings(), file).secrets == SecretSettings(key=(key,), salt=(salt,), token_key=(token_key,))


def test_no_two_new_keys_or_salts_are_equal() -> None:
    assert len({new_key() for _ in range(100)} | {new_salt() for _ in range(100)}) == 200


def test_a_file_that_is_not_there_has_no_signature(tmp_path: Path) -> None:
    assert file_signature(tmp_path / "secrets.yml") is None
    assert file_signature(written(tmp_path, "salt: a\n") / "secrets.yml") is None


def test_a_file_that_is_left_alone_or_read_keeps_its_signature(tmp_path: Path) -> None:
    file = written(tmp_path, "salt: a\n")
    before = file_signature(file)

    read_yaml(file)

    assert file_signature(file) == before
    assert before is not None


def test_a_change_of_a_file_changes_its_signature_whatever_it_says(tmp_path: Path) -> None:
    file = written(tmp_path, "salt: a\n")
    signatures = [file_signature(file)]

    for _ in range(5):
        update_secrets_file(file, unchanged)
        signatures.append(file_signature(file))

    assert all(before != after for before, after in pairwise(signatures))


def test_a_file_that_is_written_in_its_place_has_another_signature(tmp_path: Path) -> None:
    file = written(tmp_path, "salt: a\n")
    before = file_signature(file)

    file.write_text("salt: another\n")

    assert file_signature(file) != before


def test_a_file_that_is_put_back_has_another_signature(tmp_path: Path) -> None:
    file = written(tmp_path, "salt: a\n")
    before = file_signature(file)
    file.rename(tmp_path / "away")

    written(tmp_path, "salt: a\n")

    assert file_signature(file) != before


def test_of_a_link_it_is_the_target_that_is_changed(tmp_path: Path) -> None:
    target = written(tmp_path, "key: x\n")
    link = tmp_path / "link.yml"
    link.symlink_to(target)

    update_secrets_file(link, lambda tree: {**tree, "salt": "y"})

    assert link.is_symlink()
    assert read_yaml(target) == {"key": "x", "salt": "y"}
