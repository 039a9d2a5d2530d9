"""``mlapi serve`` listens on this machine only while programs on this machine are admins without a token."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from mlapi.bootstrap import open_users
from mlapi.config import load_settings
from mlapi.entrypoints.cli import main
from mlapi.entrypoints.cli.serve import _validate_address

REFUSED = (
    "mlapi: without an admin token, mlapi does not listen on 0.0.0.0: to serve this machine only, leave out --host;"
    " otherwise, set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)\n"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("has_secrets_file", [True, False])
def test_local_mode_refuses_every_address(has_secrets_file: bool) -> None:
    if has_secrets_file:
        with open_users(load_settings()):
            pass

    result = CliRunner().invoke(main, ["serve", "--host", "0.0.0.0", "--port", "0"])

    assert (result.exit_code, result.stderr) == (3, REFUSED)


def test_local_mode_checks_every_host() -> None:
    result = CliRunner().invoke(main, ["serve", "--host", "::1", "--host", "0.0.0.0", "--port", "0"])

    assert (result.exit_code, result.stderr) == (3, REFUSED)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1"])
def test_local_mode_accepts_loopback_addresses(address: str) -> None:
    _validate_address(address, load_settings())


def test_admin_token_in_the_secrets_file_allows_every_address(folder: Path) -> None:
    with open_users(load_settings()):
        pass
    with (folder / "secrets.yml").open("a") as file:
        file.write(f"admin_token: {'a' * 32}\n")

    _validate_address("0.0.0.0", load_settings())


@pytest.mark.parametrize(("variable", "value"), [("SECRETS__ADMIN_TOKEN", "a" * 32), ("MANAGEMENT__LOCAL", "false")])
def test_other_modes_allow_every_address(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"MLAPI_{variable}", value)

    _validate_address("0.0.0.0", load_settings())
