"""Which accounts may access the files of a database and its secrets."""

import os
from pathlib import Path

import pytest

from mlapi.file_access import find_database_error, find_database_warning, find_secrets_error
from tests.sample_settings import write

OTHER_USER = 54321
MODES = {
    0o400: (False, False, False),
    0o600: (False, False, False),
    0o640: (False, False, False),
    0o660: (False, False, False),
    0o604: (True, False, True),
    0o602: (True, True, False),
    0o644: (True, False, True),
    0o666: (True, True, True),
    0o777: (True, True, True),
}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other accounts")


@pytest.mark.parametrize(("mode", "expected"), MODES.items(), ids=map(oct, MODES))
def test_access_by_other_accounts_is_detected(tmp_path: Path, mode: int, expected: tuple[bool, bool, bool]) -> None:
    file = write(tmp_path, "content", name="file", mode=mode)

    found = (find_secrets_error(file), find_database_error(file), find_database_warning(file))

    assert tuple(message is not None for message in found) == expected


def test_messages_suggest_chmod_and_an_alternative(tmp_path: Path) -> None:
    file = write(tmp_path, "secret", name="secret", mode=0o666)
    solution = f"run `chmod 600 {file}`; if that has no effect, move it to a file system that supports permissions"

    assert (find_secrets_error(file), find_database_error(file), find_database_warning(file)) == (
        f"{file} holds secrets, but other accounts can access it: {solution}",
        f"every account can change {file}: {solution}",
        f"every account can read {file}: {solution}",
    )


def test_missing_file_has_no_error(tmp_path: Path) -> None:
    file = tmp_path / "missing"

    assert (find_secrets_error(file), find_database_error(file), find_database_warning(file)) == (None, None, None)


@needs_root
def test_file_of_another_account_is_not_trusted(tmp_path: Path) -> None:
    file = write(tmp_path, "secret", name="secret", mode=0o600)
    os.chown(file, OTHER_USER, -1)

    expected = (
        f"{file} belongs to another account (user id {OTHER_USER}), which can change it: if its content is yours, run"
        f" `chown {os.geteuid()} {file}`; otherwise, delete it"
    )
    assert (find_secrets_error(file), find_database_error(file)) == (expected, expected)


@needs_root
def test_file_and_folder_of_a_service_account_are_trusted(tmp_path: Path) -> None:
    file = write(tmp_path, "secret", name="secret", mode=0o600)
    for path in (file, tmp_path):
        os.chown(path, OTHER_USER, -1)

    assert (find_secrets_error(file), find_database_error(file)) == (None, None)
