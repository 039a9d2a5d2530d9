"""The files in deploy/ are valid for the programs that read them."""

import re
from pathlib import Path

import yaml
from click.testing import CliRunner

from mlapi.config import load_settings
from mlapi.entrypoints.cli import main

DEPLOY = Path(__file__).parents[2] / "deploy"
SECRETS = {
    "key": "fVJ0bZ0mF6Y4b2nXc1kq8b7s8o3vJ5yq1u9r7t6w5xE=",
    "salt": "a salt",
    "admin_token": "a-token-for-tests-only",
}


def test_systemd_unit_loads_configuration_and_secrets(tmp_path: Path) -> None:
    unit = (DEPLOY / "mlapi.service").read_text("utf-8")
    environ = dict(re.findall(r"^Environment=(\w+)=(.*)$", unit, re.MULTILINE))
    credentials = re.findall(r"^LoadCredential=(\w+):", unit, re.MULTILINE)
    url = "postgresql://mlapi@/mlapi?host=db1:5432&host=db2:5432&target_session_attrs=read-write"
    for name, value in {**SECRETS, "database_url": url}.items():
        (tmp_path / name).write_text(value)
        (tmp_path / name).chmod(0o400)

    settings = load_settings(
        environ={name: value.replace("%d", str(tmp_path)) for name, value in environ.items()}
        | {"MLAPI_CONFIG": str(DEPLOY / "config.yml")}
    )

    assert sorted(credentials) == sorted([*SECRETS, "database_url"])
    assert (settings.is_production, settings.database.url) == (True, url)
    assert (settings.secrets.key, settings.secrets.salt) == ((SECRETS["key"],), (SECRETS["salt"],))


def test_systemd_unit_uses_valid_command_line_options() -> None:
    (command,) = re.findall(r"^ExecStart=\S+/mlapi (.*)$", (DEPLOY / "mlapi.service").read_text("utf-8"), re.MULTILINE)

    result = CliRunner().invoke(main, [*command.split(), "--help"])

    assert result.exit_code == 0


def test_patroni_timeouts_are_consistent() -> None:
    dcs = yaml.safe_load((DEPLOY / "patroni.yml").read_text("utf-8"))["bootstrap"]["dcs"]

    assert dcs["loop_wait"] + 2 * dcs["retry_timeout"] <= dcs["ttl"]  # otherwise Patroni changes the values
    assert (dcs["synchronous_mode"], dcs["synchronous_node_count"]) == ("quorum", 1)
