"""``mlapi users invite`` and ``mlapi users link``."""

import json
import re
from pathlib import Path

import pytest

from mlapi import User, Users
from mlapi.bootstrap import open_users
from mlapi.config import load_settings
from mlapi.domain.links import parse_link_token
from tests.command_line import mlapi

URL = "https://api.example.com"
_LINK = re.compile(rf"{URL}/links/(mlapi-link_\w+)\n")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", "fernet")
    return tmp_path


def find_user() -> User | None:
    with open_users(load_settings()) as users:
        return users.find("ada")


def has_link(users: Users, output: str) -> bool:
    match = _LINK.fullmatch(output)
    return match is not None and users.repository.links.find(parse_link_token(match[1]).id) is not None


def test_invitation_prints_only_the_link_on_standard_output() -> None:
    result = mlapi(
        "users", "invite", "ada", "ada@example.com", "--url", f"{URL}/", "--plan", "none", "--expires", "+30d"
    )

    with open_users(load_settings()) as users:
        ada = users.find("ada")
        assert has_link(users, result.stdout)
    assert ada is not None
    assert (ada.has_password, ada.expires_datetime is not None) == (False, True)
    assert re.fullmatch(
        r"(?s).*registered user 1 \(ada\); the link is valid until .* UTC and works once\n", result.stderr
    )
    assert "links" not in result.stderr


def test_configured_address_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_HTTP__PUBLIC_URL", URL)
    mlapi("users", "invite", "ada", "ada@example.com")

    result = mlapi("users", "link", "ada")

    with open_users(load_settings()) as users:
        assert has_link(users, result.stdout)
        assert [entry.action for entry in users.list_audit_page()] == ["add_link", "add_link", "register"]


def test_invitation_says_that_the_service_mails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HTTP__PUBLIC_URL": URL,
        "MAIL__URL": "smtp://localhost",
        "MAIL__FROM": "a@example.com",
    }.items():
        monkeypatch.setenv(f"MLAPI_{name}", value)

    result = mlapi("users", "invite", "ada", "ada@example.com")

    assert "registered user 1 (ada), and the service will mail an invitation; the link is valid" in result.stderr


def test_links_are_printed_as_json() -> None:
    invited = json.loads(mlapi("users", "invite", "ada", "ada@example.com", "--url", URL, "--json").stdout)
    made = json.loads(mlapi("users", "link", "ada", "--url", URL, "--json").stdout)

    assert (invited["user_id"], invited["username"]) == (1, "ada")
    assert set(made) == {"url", "expires_at"} == set(invited) - {"user_id", "username"}
    assert made["url"].startswith(f"{URL}/links/mlapi-link_")


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "set http.public_url, or add --url"), (["--url", "api.example.com"], "--url must be an address such as")],
)
def test_nothing_changes_without_an_address(options: list[str], message: str) -> None:
    result = mlapi("users", "invite", "ada", "ada@example.com", *options)

    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert find_user() is None


def test_disabled_user_gets_no_link() -> None:
    mlapi("users", "invite", "ada", "ada@example.com", "--url", URL)
    mlapi("users", "disable", "ada")

    result = mlapi("users", "link", "ada", "--url", URL)

    assert (result.exit_code, result.stdout) == (3, "")
    assert "user 1 is disabled: enable the user before you make a link" in result.stderr


def test_pending_users_are_listed_and_enabled() -> None:
    with open_users(load_settings()) as users:
        command = users.prepare_registration(username="ada", password="x", email="a@example.com", pending="approval")
        users.apply(command)

    listed = mlapi("users", "list", "--state", "pending", "--disabled", "--json")
    mlapi("users", "enable", "ada")

    assert json.loads(listed.stdout)["state"] == "pending"
    assert mlapi("users", "list", "--state", "pending", "--json").stdout == ""
    assert mlapi("users", "list", "--state", "pending", "--enabled").exit_code == 2


def test_export_keeps_pending_users_and_users_without_a_password() -> None:
    with open_users(load_settings()) as users:
        users.apply(users.prepare_registration(username="ada", password="x", email="a@example.com", pending="approval"))
        users.invite(username="bob", email="b@example.com")
        before = users.list_page()
    mlapi("users", "export", "users.csv", "--with-stored-passwords")
    mlapi("users", "remove", "ada", "bob", "--yes")

    result = mlapi("users", "import", "users.csv")

    with open_users(load_settings()) as users:
        after = users.list_page()
    assert "2 imported" in result.stdout
    assert [(user.pending, user.enabled, user.password) for user in after] == [
        (user.pending, user.enabled, user.password) for user in before
    ]


@pytest.mark.parametrize(
    ("enabled", "pending", "error"),
    [
        ("true", "approval", "must be empty unless enabled is false"),
        ("false", "x", "must be one of email, approval, email_then_approval"),
    ],
)
def test_import_rejects_invalid_pending_users(enabled: str, pending: str, error: str) -> None:
    Path("users.csv").write_text(
        f"username,email,password,enabled,pending\nada,a@example.com,x,{enabled},{pending}\n", "utf-8"
    )

    result = mlapi("users", "import", "users.csv")

    assert result.exit_code == 4
    assert error in Path("users.csv.rejects.jsonl").read_text("utf-8")
