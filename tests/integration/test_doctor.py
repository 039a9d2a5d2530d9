"""``mlapi doctor`` finds problems, suggests solutions and changes nothing."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import URL, text, update

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.schema import downgrade
from mlapi.adapters.sql.tables import users as users_table
from mlapi.adapters.sql.urls import database_url
from mlapi.bootstrap import open_users
from mlapi.config import load_settings
from mlapi.domain.errors import RepositoryUnavailableError
from mlapi.domain.users import utc_now
from mlapi.entrypoints.cli import main
from mlapi.file_access import find_database_error, find_database_warning, find_secrets_error
from tests.conftest import KEY, OLDER_KEY, SALT
from tests.postgres_server import PostgresServer

SECRETS = {"MLAPI_SECRETS__KEY": KEY, "MLAPI_SECRETS__SALT": SALT}
PRODUCTION = {
    **SECRETS,
    "MLAPI_PROFILE": "production",
    "MLAPI_SECRETS__ADMIN_TOKEN": "c4n4ry-admin-token",
    "MLAPI_HTTP__TRUSTED_PROXIES": "10.0.0.1",
    "MLAPI_REGISTRATION__APPROVAL": "true",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def doctor(*options: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *options])


def find_checks(state: str) -> list[tuple[str, str]]:
    checks = json.loads(doctor("--json").stdout)["checks"]
    return [(check["about"], check["message"]) for check in checks if check["state"] == state]


def set_up(monkeypatch: pytest.MonkeyPatch, **environ: str) -> None:
    for name, value in (environ or SECRETS).items():
        monkeypatch.setenv(name, value)
    with open_users(load_settings()) as users:
        users.register(username="ada", password="difference engine", email="ada@example.com")


def test_empty_folder_has_no_problems_and_stays_empty(folder: Path) -> None:
    result = doctor()

    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ok", "ok", "ok", "warning", "ok", "ok"]
    assert f"none yet: mlapi creates {folder}/mlapi.db on first startup" in result.stdout
    assert list(folder.iterdir()) == []


def test_healthy_service_has_no_problems(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(monkeypatch, **PRODUCTION)

    result = doctor("--json")

    checks = json.loads(result.stdout)
    assert (result.exit_code, checks["state"]) == (0, "ok")
    assert ("database", f"{folder}/mlapi.db: users 1, schema at revision 0007, the key matches") in find_checks("ok")
    assert "c4n4ry" not in result.output


def test_healthy_postgresql_has_no_problems(
    postgres_database: Database, postgres_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres_url.render_as_string(hide_password=False)
    for name, value in {**SECRETS, "MLAPI_DATABASE__URL": url}.items():
        monkeypatch.setenv(name, value)

    assert find_checks("problem") == []
    assert ("database", "users 0, schema at revision 0007, the key matches") in find_checks("ok")


@pytest.mark.parametrize(
    ("environ", "about", "message"),
    [
        ({"MLAPI_FROB__X": "1"}, "configuration", "MLAPI_FROB__X: frob is not a setting"),
        ({"MLAPI_DATABASE__URL": "mysql://u:c4n4ry@h/d"}, "database", "database.url has the unsupported scheme mysql"),
        (
            {"MLAPI_DATABASE__URL": "postgresql://u:c4n4ry@127.0.0.1:1/d"},
            "database",
            "the connection was refused: check the host and port in database.url",
        ),
        ({"MLAPI_SECRETS__KEY": OLDER_KEY}, "database", "secrets.key or secrets.salt does not match"),
        ({"MLAPI_PROFILE": "production"}, "secrets", "secrets.admin_token is missing"),
    ],
)
def test_misconfiguration_is_reported_as_a_problem(
    environ: dict[str, str], about: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    result = doctor()
    assert result.exit_code == 3
    assert [name for name, _ in find_checks("problem")] == [about]
    assert message in find_checks("problem")[0][1]
    assert "c4n4ry" not in result.output


@pytest.mark.parametrize(
    ("environ", "about"),
    [
        ({"MLAPI_HTTP__TRUSTED_PROXIES": ""}, "proxies"),
        ({"MLAPI_PASSWORDS__SCHEME": "fernet"}, "passwords"),
        ({"MLAPI_METRICS__OPEN": "true"}, "metrics"),
        ({"MLAPI_REGISTRATION__APPROVAL": "false"}, "registration"),
    ],
)
def test_risky_setting_is_reported_as_a_warning(
    environ: dict[str, str], about: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch, **PRODUCTION)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    assert doctor().exit_code == 0
    assert [name for name, _ in find_checks("warning")] == [about]


def test_closed_registration_needs_no_approval(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(monkeypatch, **PRODUCTION)
    monkeypatch.setenv("MLAPI_REGISTRATION__APPROVAL", "false")
    monkeypatch.setenv("MLAPI_REGISTRATION__OPEN", "false")

    assert find_checks("warning") == []


def test_misspelled_variable_is_reported_as_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(monkeypatch)
    monkeypatch.setenv("MLAPI_DATABASE_URL", "sqlite:///users.db")

    doctor()

    assert ("configuration", "MLAPI_DATABASE_URL is not a setting: did you mean MLAPI_DATABASE__URL?") in find_checks(
        "warning"
    )


def test_world_readable_secrets_file_is_reported_once(folder: Path) -> None:
    with open_users(load_settings()):
        pass
    (folder / "secrets.yml").chmod(0o644)

    problems = find_checks("problem")

    assert problems[0] == (
        "secrets",
        find_secrets_error(folder / "secrets.yml"),
    )
    assert len(problems) == 1


def test_access_to_the_database_by_every_account_is_reported(folder: Path) -> None:
    with open_users(load_settings()):
        pass
    (folder / "mlapi.db").chmod(0o666)

    assert find_checks("problem") == [("database", find_database_error(folder / "mlapi.db"))]
    assert find_checks("warning") == [
        ("management", "behind a reverse proxy, set secrets.admin_token; make one with `mlapi admin-token new`"),
        ("database", find_database_warning(folder / "mlapi.db")),
    ]


def test_database_file_with_two_names_is_reported(folder: Path) -> None:
    with open_users(load_settings()):
        pass
    os.link(folder / "mlapi.db", folder / "other.db")

    ((about, problem),) = find_checks("problem")

    assert (about, problem.partition(",")[0]) == ("database", f"{folder}/mlapi.db has 2 names (hard links)")


def test_path_of_the_secrets_file_is_shown(folder: Path) -> None:
    with open_users(load_settings()):
        pass

    assert ("secrets", f"key and salt are in {folder}/secrets.yml") in find_checks("ok")


def test_outdated_schema_is_reported_as_a_problem(
    postgres_database: Database, postgres_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    downgrade(postgres_database, "0001")
    url = postgres_url.render_as_string(hide_password=False)
    for name, value in {**SECRETS, "MLAPI_DATABASE__URL": url}.items():
        monkeypatch.setenv(name, value)

    assert find_checks("problem") == [("database", "the schema is outdated: run `mlapi db upgrade`")]


def test_future_timestamp_is_reported_as_a_clock_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(monkeypatch)
    with Database(database_url(f"sqlite:///{folder}/mlapi.db")) as database, database.writing() as connection:
        connection.execute(update(users_table).values(updated_datetime=datetime.now(UTC) + timedelta(days=1)))

    ((about, message),) = find_checks("problem")

    assert about == "clock"
    assert message.endswith("set the clock")


def test_clock_skew_is_reported_as_a_problem(
    postgres_database: Database, postgres_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_clock = utc_now

    url = postgres_url.render_as_string(hide_password=False)
    for name, value in {**SECRETS, "MLAPI_DATABASE__URL": url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("mlapi.entrypoints.cli.doctor.utc_now", lambda: real_clock() - timedelta(hours=1))

    ((about, message),) = find_checks("problem")

    assert about == "clock"
    assert message.startswith("this clock and the database's differ by 3600 s: synchronize both with NTP")


def test_read_only_folder_is_reported_as_a_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(monkeypatch)
    monkeypatch.setattr("os.access", lambda *_arguments, **_options: False)  # root can write anywhere

    assert [message for _, message in find_checks("problem")] == [
        f"{folder}/mlapi.db or its folder is not writable: make the account that runs the service own both"
    ]


def test_nearly_full_disk_is_reported_as_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=300 * 1024**2))

    assert [message[:12] for about, message in find_checks("warning") if about == "disk"] == ["0.3 GiB free"]


def test_table_of_another_program_is_reported_as_a_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with Database(database_url(f"sqlite:///{folder}/mlapi.db")) as database, database.writing() as connection:
        connection.execute(text("CREATE TABLE users (frob TEXT)"))

    assert find_checks("problem") == [
        ("database", "the table `users` belongs to another program: point database.url at a different database")
    ]


def test_encoding_other_than_utf8_is_reported_as_a_problem(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.execute("CREATE DATABASE doctor_latin1 TEMPLATE template0 ENCODING 'LATIN1'")
    url = postgres.url("doctor_latin1").render_as_string(hide_password=False)
    for name, value in {**SECRETS, "MLAPI_DATABASE__URL": url}.items():
        monkeypatch.setenv(name, value)

    ((about, message),) = find_checks("problem")

    assert about == "database"
    assert message.startswith("the database's encoding is LATIN1")


@pytest.mark.parametrize(
    ("url", "reason", "solution"),
    [
        (
            "sqlite:///mlapi.db",
            "the database file is damaged",
            "; if it is damaged, restore mlapi.db from a backup, and",
        ),
        ("sqlite:///mlapi.db", "the database file is read-only: check its owner", ""),
        ("postgresql://u@127.0.0.1/d", "the server did not answer in time", "; check that the server is running and"),
    ],
)
def test_unavailable_database_is_reported_with_one_solution(
    folder: Path, url: str, reason: str, solution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_settings: object) -> None:
        raise RepositoryUnavailableError(reason)

    monkeypatch.setattr("mlapi.bootstrap.check_database", fail)
    monkeypatch.setenv("MLAPI_DATABASE__URL", url)
    (folder / "mlapi.db").touch(0o600)

    ((about, message),) = find_checks("problem")

    assert about == "database"
    assert message.startswith(f"{reason}{solution}")
    assert bool(solution) == (message != reason)


def test_lost_secrets_of_a_database_are_reported(folder: Path) -> None:
    with open_users(load_settings()):
        pass
    (folder / "secrets.yml").unlink()

    ((about, message),) = find_checks("problem")

    assert about == "database"
    assert message.startswith("secrets.key is missing")


def test_salt_without_a_key_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_SECRETS__SALT", SALT)

    ((about, message),) = find_checks("problem")

    assert about == "secrets"
    assert message.startswith("secrets.key is missing")


def test_memory_storage_has_no_problems(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_DATABASE__URL", "memory://")

    assert find_checks("problem") == []
    assert (
        "secrets",
        "none yet: mlapi generates them in memory on first startup, if the database is new",
    ) in find_checks("ok")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            "{plans: {free: {per_minute: 60, units_per_day: 9}, staff: {}}, default_plan: free}",
            "free (60 per minute, 9 units per day), staff (no limits); users without a plan have the plan free",
        ),
        (
            "plans: {pro: {per_hour: 5}}",
            "pro (5 per hour); users without a plan have no limits, because default_plan is not set",
        ),
    ],
)
def test_plans_are_listed(folder: Path, config: str, message: str) -> None:
    (folder / "config.yml").write_text(config)

    assert ("plans", message) in find_checks("ok")


_PLANS_SOLUTION = "add it to plans, or give them another plan with `mlapi users set NAME --plan PLAN`"


@pytest.mark.parametrize(
    ("config", "state", "effect"),
    [
        ("plans: {free: {per_day: 5}}", "problem", "so their requests get 503"),
        ("{plans: {free: {per_day: 5}}, default_plan: free}", "warning", "so the limits of free apply to them"),
        ("{}", "warning", "so no limits apply to them"),
    ],
)
def test_plan_that_is_not_configured_is_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, config: str, state: str, effect: str
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    (folder / "config.yml").write_text("plans: {free: {}, old: {}, older: {}}")
    with open_users(load_settings()) as users:
        for name, plan in (("ada", "old"), ("bob", "older"), ("eve", "older"), ("joe", "free")):
            users.register(username=name, password="difference engine", email="ada@example.com", plan=plan)

    (folder / "config.yml").write_text(config)

    found = [message for about, message in find_checks(state) if about == "plans"]
    if config == "{}":
        assert len(found) == 3
        found = found[1:]
    assert found == [
        f"1 user has the plan 'old', which the configuration does not contain, {effect}: {_PLANS_SOLUTION}",
        f"2 users have the plan 'older', which the configuration does not contain, {effect}: {_PLANS_SOLUTION}",
    ]
