"""Files that hold secrets: who may read them, what is in them, and how the first one is made."""

import logging
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from mlapi.config import SecretSettings, Settings, completed
from mlapi.domain.errors import ConfigurationError
from mlapi.secret_files import (
    make_secrets_file,
    open_to_others,
    read_value,
    read_yaml,
)

resource = pytest.importorskip("resource", reason="limits of a process are POSIX's")


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
    assert (open_to_others(written(tmp_path, "secret", mode)) is not None) is is_open


def test_a_file_that_is_open_to_others_is_told_with_what_to_do(tmp_path: Path) -> None:
    file = written(tmp_path, "secret", 0o644)

    assert open_to_others(file) == f"{file} holds secrets and others may read it: run `chmod 600 {file}`"


def test_a_value_that_is_no_secret_may_be_read_by_others(tmp_path: Path) -> None:
    file = written(tmp_path, "fernet", 0o644)

    assert read_value(file, "MLAPI_PASSWORDS__SCHEME_FILE", is_secret=False) == "fernet"


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, "key: a\nsalt: b\nkey: c\n")

    with pytest.raises(ConfigurationError) as refusal:
        read_yaml(file)

    assert str(refusal.value) == f"{file} is ambiguous, a key stands twice in line 1"


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
    assert read_value(written(tmp_path, content), "MLAPI_SECRETS__SALT_FILE", is_secret=True) == secret


def test_a_secret_is_read_through_a_link(tmp_path: Path) -> None:
    link = tmp_path / "link"  # as Kubernetes mounts its secrets
    link.symlink_to(written(tmp_path, "secret"))

    assert read_value(link, "MLAPI_SECRETS__SALT_FILE", is_secret=True) == "secret"


def test_a_missing_secret_is_refused_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        read_value(tmp_path / "missing", "MLAPI_SECRETS__SALT_FILE", is_secret=True)

    assert str(refusal.value) == (
        f"MLAPI_SECRETS__SALT_FILE: {tmp_path}/missing cannot be read: No such file or directory"
    )


@pytest.mark.parametrize("mode", [0o700, 0o755], ids=oct)
def test_a_folder_in_place_of_a_secret_is_refused_as_what_it_is(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(mode)

    with pytest.raises(ConfigurationError) as refusal:
        read_value(folder, "MLAPI_SECRETS__SALT_FILE", is_secret=True)

    assert str(refusal.value) == f"MLAPI_SECRETS__SALT_FILE: {folder} cannot be read: Is a directory"


def test_a_secret_that_is_not_utf8_is_refused_with_its_setting(tmp_path: Path) -> None:
    file = written(tmp_path, b"secret\xff")

    with pytest.raises(ConfigurationError) as refusal:
        read_value(file, "MLAPI_SECRETS__SALT_FILE", is_secret=True)

    assert str(refusal.value) == f"MLAPI_SECRETS__SALT_FILE: {file} is not UTF-8"


def test_a_secret_that_others_may_read_is_refused_with_its_setting(tmp_path: Path) -> None:
    file = written(tmp_path, "secret", 0o644)

    with pytest.raises(ConfigurationError) as refusal:
        read_value(file, "MLAPI_SECRETS__SALT_FILE", is_secret=True)

    assert str(refusal.value) == (
        f"MLAPI_SECRETS__SALT_FILE: {file} holds secrets and others may read it: run `chmod 600 {file}`"
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
        pytest.param("key: secret\nsalt: 'secret", "is not YAML in line 2", id="open quote"),
        pytest.param("key: secret\x00", "is not YAML", id="NUL, which YAML refuses without a line"),
        pytest.param(b"secret\xff", "is not UTF-8", id="not UTF-8"),
        pytest.param("secret", "must hold `key: value` lines", id="text"),
        pytest.param("[secret]", "must hold `key: value` lines", id="list"),
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
    make_secrets_file(file)
    made = read_yaml(file)

    assert completed(Settings(), file).secrets == SecretSettings(key=(made["key"],), salt=made["salt"])


def test_a_made_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "secrets.yml"
    make_secrets_file(file)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_made_file_says_what_it_is(tmp_path: Path) -> None:
    file = tmp_path / "secrets.yml"
    make_secrets_file(file)

    assert file.read_text().splitlines()[0] == (
        "# Made by mlapi at its first start. Keep a copy: without it no stored password can be checked again."
    )


def test_two_made_files_hold_two_secrets(tmp_path: Path) -> None:
    make_secrets_file(tmp_path / "one.yml")
    make_secrets_file(tmp_path / "other.yml")
    one, other = read_yaml(tmp_path / "one.yml"), read_yaml(tmp_path / "other.yml")

    assert one["key"] != other["key"]
    assert one["salt"] != other["salt"]


def test_a_made_file_is_named_in_the_log_without_its_content(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "secrets.yml"
    make_secrets_file(file)

    assert caplog.record_tuples == [
        ("mlapi", logging.WARNING, f"made a new key and salt in {file}; keep a copy of it with the database")
    ]


def test_a_file_that_is_there_already_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(tmp_path, "key: mine\n")
    make_secrets_file(file)

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
        make_secrets_file(file)
        return file.read_text()

    with ThreadPoolExecutor(8) as threads:
        contents = set(threads.map(start, range(8)))

    assert contents == {file.read_text()}
    assert list(tmp_path.iterdir()) == [file]
    assert len(caplog.messages) == 1


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "secrets.yml"

    with pytest.raises(ConfigurationError) as refusal:
        make_secrets_file(file)

    assert str(refusal.value) == f"{file} cannot be made: No such file or directory"


def test_a_full_disk_leaves_no_draft_behind(tmp_path: Path) -> None:
    file = tmp_path / "secrets.yml"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # from here on, no file can grow
    try:
        with pytest.raises(ConfigurationError) as refusal:
            make_secrets_file(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert str(refusal.value) == f"{file} cannot be made: File too large"
    assert list(tmp_path.iterdir()) == []
