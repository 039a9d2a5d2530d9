"""``mlapi keys``, ``mlapi tokens`` and ``mlapi audit``."""

import csv
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mlapi import ApiKey, ApiKeyId, ApiKeyNotFoundError, Users
from mlapi.bootstrap import open_guard, open_users
from mlapi.config import load_settings
from mlapi.domain.commands import SetEnabled
from mlapi.domain.users import UserId, utc_now
from mlapi.entrypoints.cli import audit
from mlapi.entrypoints.cli.times import FutureTime, PastTime
from mlapi.entrypoints.cli.tokens import _read_credential
from tests.command_line import Terminal, create_users, mlapi


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_users(tmp_path_factory.mktemp("original"), ("ada", "bob"), "difference engine")


@pytest.fixture(autouse=True)
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(original, tmp_path, dirs_exist_ok=True))
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", "fernet")
    return tmp_path


def is_accepted(credential: str) -> bool:
    return mlapi("tokens", "check", stdin=f"{credential}\n").exit_code == 0


def list_keys(user: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in mlapi("keys", "list", user, "--json").stdout.splitlines()]


# --- API keys


def test_new_api_key_is_the_only_line_on_standard_output() -> None:
    result = mlapi("keys", "add", "ada", "--name", "nightly job", "--expires", "2100-01-31")

    key = result.stdout.removesuffix("\n")
    with open_guard(load_settings()) as guard:
        assert guard.check(key).username == "ada"
    key_id = key.split("_")[1]
    assert result.stderr == (
        f"added key {key_id} to user 1 (ada); it expires at 2100-01-31 00:00 UTC; it cannot be shown again\n"
    )


def test_new_api_key_is_printed_as_json() -> None:
    result = mlapi("keys", "add", "ada", "--name", "nightly job", "--json")

    added = json.loads(result.stdout)
    assert (added["name"], added["expires_at"], result.stderr) == ("nightly job", None, "")
    assert is_accepted(added["key"])


def test_api_keys_are_listed_without_their_secrets() -> None:
    secret = mlapi("keys", "add", "ada", "--name", "nightly job").stdout.strip()
    with open_users(load_settings()) as users:
        (key,) = users.list_api_keys(UserId(1))
    created = f"{key.created_datetime:%Y-%m-%d %H:%M}"

    results = [mlapi("keys", "list", "1", *options) for options in ([], ["--json"], ["--csv"])]

    assert not any(secret in result.stdout for result in results)
    assert results[0].exit_code == 0
    assert results[0].stdout.splitlines()[-1] == f"{key.id}  valid  nightly job  {created}  never          never"


def test_expired_api_key_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    mlapi("keys", "add", "ada", "--name", "nightly job", "--expires", "+1m")
    monkeypatch.setattr("mlapi.entrypoints.cli.api_keys.utc_now", lambda: utc_now() + timedelta(hours=1))

    assert mlapi("keys", "list", "ada").stdout.splitlines()[1].split()[1] == "expired"


def test_user_without_api_keys_is_reported_on_standard_error() -> None:
    result = mlapi("keys", "list", "ada")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "this user has no API keys\n")


def test_api_keys_are_removed_by_id() -> None:
    keys = [mlapi("keys", "add", "ada", "--name", f"job {number}").stdout.strip() for number in range(3)]
    ids = [key.split("_")[1] for key in keys]

    result = mlapi("keys", "remove", "ada", ids[0], ids[2], ids[0], "--yes")

    assert result.stdout == f"removed key {ids[0]} (job 0)\nremoved key {ids[2]} (job 2)\n"
    assert [key["key_id"] for key in list_keys("ada")] == [ids[1]]


def test_only_keys_of_the_named_user_are_removed() -> None:
    key = mlapi("keys", "add", "ada", "--name", "job").stdout.strip()
    key_id = key.split("_")[1]

    others = mlapi("keys", "remove", "bob", key_id, "--yes")
    some = mlapi("keys", "remove", "ada", key_id, "0" * 16, key, "--yes")

    assert (others.exit_code, others.stderr) == (3, f"mlapi: user 2 (bob) has no key with the id '{key_id}'\n")
    assert (some.exit_code, some.stdout) == (4, f"removed key {key_id} (job)\n")
    assert key not in some.stderr  # a key that was pasted by mistake must not be logged


def test_removal_of_api_keys_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    key_id = mlapi("keys", "add", "ada", "--name", "job").stdout.split("_")[1]
    without_terminal = mlapi("keys", "remove", "ada", key_id, stdin="y\n")
    monkeypatch.setattr("mlapi.entrypoints.cli.api_keys.require_terminal", lambda: None)

    declined = mlapi("keys", "remove", "ada", key_id, stdin="n\n")
    confirmed = mlapi("keys", "remove", "ada", key_id, stdin="y\n")

    assert [result.exit_code for result in (without_terminal, declined, confirmed)] == [2, 3, 0]
    assert f"  key {key_id} (job)\nRemove these API keys permanently? [y/N]" in confirmed.stderr
    assert confirmed.stdout.endswith(f"removed key {key_id} (job)\n")  # click 8.1 echoes the answer in tests


def test_api_key_removed_by_another_program_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    key_id = mlapi("keys", "add", "ada", "--name", "job").stdout.split("_")[1]

    def fail(_users: Users, key_id: ApiKeyId) -> ApiKey:
        raise ApiKeyNotFoundError(key_id)

    monkeypatch.setattr(Users, "remove_api_key", fail)

    result = mlapi("keys", "remove", "ada", key_id, "--yes")

    assert (result.exit_code, result.stderr) == (3, "mlapi: this API key does not exist\n")


# --- tokens


def test_issued_token_is_the_only_line_on_standard_output() -> None:
    result = mlapi("tokens", "issue", "ada", "--minutes", "5")

    assert result.stderr == "issued a token for user 1 (ada); it is valid for 5 minutes\n"
    assert is_accepted(result.stdout.removesuffix("\n"))
    as_json = json.loads(mlapi("tokens", "issue", "ada", "--json").stdout)
    assert as_json["expires_in"] == 3600
    assert is_accepted(as_json["token"])


def test_issued_token_is_in_the_audit_trail() -> None:
    mlapi("tokens", "issue", "bob")

    (entry,) = map(json.loads, mlapi("audit", "list", "--user", "bob", "--limit", "1", "--json").stdout.splitlines())

    assert (entry["action"], entry["user_id"]) == ("issue_token", 2)
    assert entry["actor"].startswith("command line of ")


def test_no_token_is_issued_for_a_disabled_user() -> None:
    mlapi("users", "disable", "ada")

    result = mlapi("tokens", "issue", "ada")

    assert (result.exit_code, result.stdout, result.stderr) == (3, "", "mlapi: user 1 is disabled\n")


def test_check_describes_an_accepted_token() -> None:
    token = mlapi("tokens", "issue", "ada").stdout.strip()

    result = mlapi("tokens", "check", stdin=f"bearer  {token}\n")

    assert result.stdout.startswith("accepted: token of user 1 (ada), valid until ")
    as_json = json.loads(mlapi("tokens", "check", "--json", stdin=token).stdout)
    assert (as_json["user"]["username"], as_json["key_id"]) == ("ada", None)


def test_check_does_not_record_a_use_of_an_api_key() -> None:
    key = mlapi("keys", "add", "ada", "--name", "job").stdout.strip()

    result = mlapi("tokens", "check", stdin=key)

    assert result.stdout == f"accepted: API key {key.split('_')[1]} of user 1 (ada)\n"
    assert list_keys("ada")[0]["last_used_at"] is None


@pytest.mark.parametrize(
    ("credential", "line"),
    [
        ("c4n4ry", "invalid, expired or revoked token or API key"),
        ("mlapi_0", "invalid, expired or revoked token or API key"),
        ("", "invalid, expired or revoked token or API key"),
        (None, "user 1 is disabled"),
    ],
)
def test_check_reports_a_rejected_credential(credential: str | None, line: str) -> None:
    if credential is None:
        credential = mlapi("keys", "add", "ada", "--name", "job").stdout.strip()
        mlapi("users", "disable", "ada")

    result = mlapi("tokens", "check", stdin=credential)

    assert (result.exit_code, result.stdout, result.stderr) == (3, "", f"mlapi: {line}\n")


def test_credential_is_prompted_for_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    token = mlapi("tokens", "issue", "ada").stdout.strip()
    monkeypatch.setattr("click.prompt", lambda *_arguments, **_options: token)
    monkeypatch.setattr("sys.stdin", Terminal())

    assert _read_credential() == token


def test_revoked_tokens_are_rejected_and_api_keys_stay_valid() -> None:
    tokens = [mlapi("tokens", "issue", user).stdout.strip() for user in ("ada", "bob")]
    key = mlapi("keys", "add", "ada", "--name", "job").stdout.strip()

    result = mlapi("tokens", "revoke", "-", stdin="ada\n")

    assert result.stdout == "revoked the tokens of user 1 (ada)\n"
    assert [is_accepted(credential) for credential in (*tokens, key)] == [False, True, True]


def test_tokens_of_every_user_are_revoked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [mlapi("tokens", "issue", user).stdout.strip() for user in ("ada", "bob")]
    without_terminal = mlapi("tokens", "revoke", "--all")
    monkeypatch.setattr("mlapi.entrypoints.cli.tokens.require_terminal", lambda: None)
    declined = mlapi("tokens", "revoke", "--all", stdin="n\n")
    assert is_accepted(tokens[0])

    confirmed = mlapi("tokens", "revoke", "--all", stdin="y\n")

    assert [result.exit_code for result in (without_terminal, declined, confirmed)] == [2, 3, 0]
    assert "Revoke the tokens of all 2 users?" in confirmed.stderr
    assert confirmed.stdout.endswith("revoked the tokens of 2 users\n")  # click 8.1 echoes the answer in tests
    assert [is_accepted(token) for token in tokens] == [False, False]
    assert json.loads(mlapi("tokens", "revoke", "--all", "--yes", "--json").stdout) == {"revoked": 2}


def test_one_minute_and_one_user_are_counted_in_the_singular() -> None:
    issued = mlapi("tokens", "issue", "ada", "--minutes", "1")
    mlapi("users", "remove", "bob", "--yes")
    revoked = mlapi("tokens", "revoke", "--all", "--yes")

    assert issued.stderr == "issued a token for user 1 (ada); it is valid for 1 minute\n"
    assert revoked.stdout == "revoked the tokens of 1 user\n"


@pytest.mark.parametrize("arguments", [[], ["ada", "--all"]])
def test_revocation_needs_users_or_all(arguments: list[str]) -> None:
    result = mlapi("tokens", "revoke", *arguments)

    assert (result.exit_code, result.stderr) == (
        2,
        "mlapi: name the users, or add --all; see `mlapi tokens revoke --help`\n",
    )


# --- the audit trail


def list_actions(*options: str) -> list[str]:
    return [json.loads(line)["action"] for line in mlapi("audit", "list", "--json", *options).stdout.splitlines()]


def test_audit_trail_is_filtered_by_user_even_after_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_PAGE_SIZE", 2)
    for command in (["disable", "ada", "bob"], ["enable", "ada"], ["remove", "ada", "--yes"]):
        mlapi("users", *command)

    assert list_actions() == ["remove", "enable", "disable", "disable", "register", "register"]
    assert list_actions("--user", "1") == ["remove", "enable", "disable", "register"]
    assert list_actions("--user", "BOB", "--limit", "1") == ["disable"]
    assert mlapi("audit", "list", "--user", "ada").stderr == "mlapi: user 'ada' does not exist\n"


def test_audit_trail_is_a_table_or_csv() -> None:
    with open_users(load_settings()) as users:
        time = users.list_audit_page()[0].at

    table, as_csv = mlapi("audit", "list", "--limit", "1"), mlapi("audit", "list", "--limit", "1", "--csv")

    assert table.stdout.splitlines() == [
        "TIME (UTC)           ACTION    USER ID  OUTCOME  ACTOR    KEY ID  REQUEST",
        f"{time:%Y-%m-%d %H:%M:%S}  register        2  done     library  -       -",
    ]
    (entry,) = csv.DictReader(as_csv.stdout.splitlines())
    assert (entry["action"], entry["user_id"], entry["at"]) == ("register", "2", time.isoformat())


def test_audit_trail_is_read_until_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_PAGE_SIZE", 1)
    with open_users(load_settings()) as users:
        for days, enabled in ((100, False), (101, True), (102, False)):
            at = datetime(2100, 1, 1, tzinfo=UTC) + timedelta(days=days)
            users.apply(SetEnabled(user_id=UserId(1), enabled=enabled, at=at))

    assert list_actions("--user", "1", "--since", "2100-04-12") == ["disable", "enable"]
    assert list_actions("--user", "1", "--since", "1h") == ["disable", "enable", "disable", "register"]
    assert mlapi("audit", "list", "--since", "2200-01-01").stderr == "no entries found\n"
    assert "no entries found: write the actor in full, such as 'manager alice'" in (
        mlapi("audit", "list", "--actor", "alice").stderr
    )


# --- times


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2100-01-31", datetime(2100, 1, 31, tzinfo=UTC)),
        ("2100-01-31T12:30+02:00", datetime(2100, 1, 31, 10, 30, tzinfo=UTC)),
        ("2100-01-31T12:30Z", datetime(2100, 1, 31, 12, 30, tzinfo=UTC)),
    ],
)
def test_dates_and_times_are_in_utc_by_default(text: str, expected: datetime) -> None:
    assert FutureTime().convert(text, None, None) == expected


@pytest.mark.parametrize(
    ("text", "distance"),
    [("+30m", timedelta(minutes=30)), ("2h", timedelta(hours=2)), ("+30d", timedelta(days=30)), ("+2w", timedelta(14))],
)
def test_time_can_be_given_as_a_distance(text: str, distance: timedelta) -> None:
    found = FutureTime().convert(text, None, None) - utc_now()
    past = utc_now() - PastTime().convert(text.replace("+", "-"), None, None)

    assert abs(found - distance) < timedelta(minutes=1)
    assert abs(past - distance) < timedelta(minutes=1)


@pytest.mark.parametrize("text", ["soon", "-30d", "999999w", "2026-13-01", "0001-01-01T00:00+14:00", "", "+1y"])
def test_invalid_time_is_rejected_with_an_example(text: str) -> None:
    result = mlapi("keys", "add", "ada", "--name", "job", "--expires", text)

    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{text!r} is not a time such as +30d, 2030-01-31 or 2030-01-31T12:00Z" in result.stderr


def test_expiry_in_the_past_is_rejected() -> None:
    result = mlapi("keys", "add", "ada", "--name", "job", "--expires", "2020-01-01")

    assert (result.exit_code, result.stderr) == (
        2,
        "mlapi: Invalid value for '--expires': '2020-01-01' is not in the future; see `mlapi keys add --help`\n",
    )
