"""Reading mounted secrets and YAML files."""

import os
from pathlib import Path

import pytest

from mlapi.config.files import read_mounted_value, read_yaml
from mlapi.domain.errors import ConfigurationError
from tests.sample_settings import write


def test_non_secret_value_may_be_world_readable(tmp_path: Path) -> None:
    file = write(tmp_path, "fernet", name="secret", mode=0o644)

    assert read_mounted_value(file, "MLAPI_PASSWORDS__SCHEME_FILE", is_secret=False) == "fernet"


def test_duplicate_yaml_key_is_rejected(tmp_path: Path) -> None:
    file = write(tmp_path, "key: a\nsalt: b\nkey: c\n", name="secret")

    with pytest.raises(ConfigurationError) as exc_info:
        read_yaml(file)

    assert str(exc_info.value) == f"{file} contains the same key twice (line 1)"


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        pytest.param("secret", "secret", id="no newline"),
        pytest.param("secret\n", "secret", id="newline"),
        pytest.param("secret\r\n", "secret", id="Windows newline"),
        pytest.param("secret\n\n", "secret", id="two newlines"),
        pytest.param(" secret \n", " secret ", id="spaces are kept"),
        pytest.param("two\nlines\n", "two\nlines", id="newline inside"),
        pytest.param("gehëim\n", "gehëim", id="not ASCII"),
        pytest.param("", "", id="empty"),
    ],
)
def test_trailing_newlines_of_a_secret_are_removed(tmp_path: Path, content: str, secret: str) -> None:
    assert (
        read_mounted_value(write(tmp_path, content, name="secret"), "MLAPI_SECRETS__SALT_FILE", is_secret=True)
        == secret
    )


def test_secret_is_read_through_a_symbolic_link(tmp_path: Path) -> None:
    link = tmp_path / "link"  # Kubernetes mounts secrets as symbolic links
    link.symlink_to(write(tmp_path, "secret", name="secret"))

    assert read_mounted_value(link, "MLAPI_SECRETS__SALT_FILE", is_secret=True) == "secret"


def test_missing_file_error_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as exc_info:
        read_mounted_value(tmp_path / "missing", "MLAPI_SECRETS__SALT_FILE", is_secret=True)

    assert str(exc_info.value) == (
        f"MLAPI_SECRETS__SALT_FILE: {tmp_path}/missing cannot be read: No such file or directory"
    )


@pytest.mark.parametrize("mode", [0o700, 0o755], ids=oct)
def test_folder_instead_of_a_secret_is_rejected(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(mode)

    with pytest.raises(ConfigurationError) as exc_info:
        read_mounted_value(folder, "MLAPI_SECRETS__SALT_FILE", is_secret=True)

    assert str(exc_info.value) == f"MLAPI_SECRETS__SALT_FILE: {folder} cannot be read: Is a directory"


def test_non_utf8_secret_error_names_the_setting(tmp_path: Path) -> None:
    file = write(tmp_path, b"secret\xff", name="secret")

    with pytest.raises(ConfigurationError) as exc_info:
        read_mounted_value(file, "MLAPI_SECRETS__SALT_FILE", is_secret=True)

    assert str(exc_info.value) == f"MLAPI_SECRETS__SALT_FILE: {file} is not UTF-8"


def test_world_readable_secret_error_names_the_setting(tmp_path: Path) -> None:
    file = write(tmp_path, "secret", name="secret", mode=0o644)

    with pytest.raises(ConfigurationError) as exc_info:
        read_mounted_value(file, "MLAPI_SECRETS__SALT_FILE", is_secret=True)

    assert str(exc_info.value) == (
        f"MLAPI_SECRETS__SALT_FILE: {file} holds secrets, but other accounts can access it: run `chmod 600 {file}`"
        "; if that has no effect, move it to a file system that supports permissions"
    )


def test_yaml_mapping_is_returned_unchanged(tmp_path: Path) -> None:
    file = write(tmp_path, "key: [a, b]\nsalt: c\n", name="secret")

    assert read_yaml(file) == {"key": ["a", "b"], "salt": "c"}


def test_empty_yaml_file_is_an_empty_mapping(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, "", name="secret")) == {}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        pytest.param(
            "key: secret\nsalt: 'secret", "is not valid YAML (line 2): close every quote", id="unclosed quote"
        ),
        pytest.param("a:\n\tkey: secret", "is not valid YAML (line 2): indent with spaces instead of tabs", id="tab"),
        pytest.param(
            "salt: @secret",
            "is not valid YAML (line 1): put values that begin with a special character in quotes",
            id="special character",
        ),
        pytest.param(
            "salt: secret: more",
            "is not valid YAML (line 1): indent the lines of a section equally, and put values with a colon in quotes",
            id="colon",
        ),
        pytest.param("tokens: {<<: 5}", "is not valid YAML (line 1): `<<` can merge only mappings", id="merged number"),
        pytest.param("salt: *secret", "is not valid YAML (line 1): put values that begin with * in quotes", id="alias"),
        pytest.param("key: [secret", "is not valid YAML (line 1)", id="unclosed list"),
        pytest.param("key: secret\x00", "is not valid YAML", id="NUL, reported without a line number"),
        pytest.param(b"secret\xff", "is not UTF-8", id="not UTF-8"),
        pytest.param("secret", "must contain `key: value` lines", id="text"),
        pytest.param("[secret]", "must contain `key: value` lines", id="list"),
    ],
)
def test_invalid_yaml_is_rejected_without_showing_it(tmp_path: Path, content: str | bytes, error: str) -> None:
    file = write(tmp_path, content, name="secret")

    with pytest.raises(ConfigurationError) as exc_info:
        read_yaml(file)

    assert str(exc_info.value) == f"{file} {error}"


def test_folder_instead_of_a_yaml_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as exc_info:
        read_yaml(tmp_path)

    assert str(exc_info.value) == f"{tmp_path} cannot be read: Is a directory"


def test_fifo_instead_of_a_yaml_file_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "secret")

    with pytest.raises(ConfigurationError, match="is not a regular file"):
        read_yaml(tmp_path / "secret")
