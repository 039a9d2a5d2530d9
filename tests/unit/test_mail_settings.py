"""The settings of mail are validated at startup, and never show the password."""

from pathlib import Path

import pytest

from mlapi.config import MailSettings, load_settings
from mlapi.config.mail import parse_mail_url, parse_sender
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.mail import SmtpServer
from tests.sample_settings import CANARY, load, load_error, write

COMPLETE = "http: {public_url: 'https://api.example.com'}\nmail: {url: 'smtp://u:p@mail.example', from: api@example.com"


def test_mail_is_configured_in_a_file(tmp_path: Path) -> None:
    settings = load(tmp_path, COMPLETE + ", templates: texts}\nregistration: {verify_email: true}")

    assert settings.mail == MailSettings(
        url="smtp://u:p@mail.example", from_="api@example.com", templates=str(tmp_path / "texts")
    )
    assert settings.registration.verify_email


def test_mail_is_configured_in_variables(tmp_path: Path) -> None:
    mounted = write(tmp_path, f"smtps://u:{CANARY}@mail.example\n", name="url")
    environ = {
        "MLAPI_HTTP__PUBLIC_URL": "http://localhost:8001/users",
        "MLAPI_MAIL__URL_FILE": str(mounted),
        "MLAPI_MAIL__FROM": "Model API <api@example.com>",
        "MLAPI_MAIL__TEMPLATES": "texts",
    }

    settings = load(tmp_path, "", environ)

    assert settings.mail.url == f"smtps://u:{CANARY}@mail.example"
    assert (settings.mail.from_, settings.mail.templates) == ("Model API <api@example.com>", "texts")
    assert CANARY not in repr(settings)


def test_mounted_url_must_be_private(tmp_path: Path) -> None:
    mounted = write(tmp_path, "smtp://u:p@mail.example", name="url", mode=0o644)

    assert "MLAPI_MAIL__URL_FILE: " in load_error(tmp_path, "", {"MLAPI_MAIL__URL_FILE": str(mounted)})


def test_file_with_the_password_must_be_private_in_production(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("profile: production\n" + COMPLETE + "}")
    (tmp_path / "config.yml").chmod(0o644)

    with pytest.raises(ConfigurationError, match="holds secrets, but other accounts can access it"):
        load_settings(tmp_path / "config.yml", {})


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("smtp://relay", SmtpServer(host="relay", port=25, is_tls=False)),
        ("smtp://relay:2525/", SmtpServer(host="relay", port=2525, is_tls=False)),
        ("smtp://u:p@relay", SmtpServer(host="relay", port=587, is_tls=False, username="u", password="p")),
        ("smtps://u:p%40%2F@relay", SmtpServer(host="relay", port=465, is_tls=True, username="u", password="p@/")),
        ("smtp://a%40b:p@[::1]:25", SmtpServer(host="::1", port=25, is_tls=False, username="a@b", password="p")),
    ],
)
def test_url_names_the_server(url: str, server: SmtpServer) -> None:
    assert parse_mail_url(url) == server
    assert "p@/" not in repr(parse_mail_url(url))


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        (f"{CANARY}.example", "it needs a scheme and a host"),
        (f"http://{CANARY}.example", "it needs a scheme and a host"),
        (f"smtp://u:{CANARY}@", "it needs a scheme and a host"),
        (f"smtp://u:{CANARY}@h:x", "percent-encode special characters in the user and password, and check the port"),
        (f"smtp://u:{CANARY}[@h", "percent-encode special characters in the user and password, and check the port"),
        (f"smtp://u:p/{CANARY}@h", "percent-encode special characters in the user and password, and check the port"),
        (f"smtp://h/{CANARY}", "percent-encode / ? and # in the password"),
        (f"smtp://h?{CANARY}", "percent-encode / ? and # in the password"),
        (f"smtp://{CANARY}@h", "it needs both a user and a password, or neither"),
        (f"smtp://u:{CANARY} @h", "remove white space and control characters"),
        (f"smtp://u:{CANARY}é@h", "use only ASCII in the user and password"),
        (f"smtp://u:{CANARY}%0A@h", "use only ASCII in the user and password"),
    ],
)
def test_invalid_url_is_not_shown(tmp_path: Path, url: str, advice: str) -> None:
    message = load_error(tmp_path, "", {"MLAPI_MAIL__URL": url})

    assert message == (
        "mail.url must look like smtp://user:password@host:587 or smtps://user:password@host:465: " + advice
    )


@pytest.mark.parametrize(
    "sender",
    [
        "",
        "api",
        "api@",
        "api@example.com\nBcc: x@example.com",
        "é@example.com",
        "a@b.c, d@e.f",
        "<>",
        "a@b.c>",
        "<a@b.c",
    ],
)
def test_sender_must_be_an_address(tmp_path: Path, sender: str) -> None:
    environ = {"MLAPI_MAIL__URL": "smtp://relay", "MLAPI_MAIL__FROM": sender}

    assert "mail.from must be an address" in load_error(tmp_path, "", environ)


def test_sender_can_have_any_display_name() -> None:
    assert parse_sender("Modèle, API <api@example.com>").display_name == "Modèle, API"
    assert parse_sender('"Modèle, API" <api@example.com>').display_name == "Modèle, API"
    assert parse_sender("api@example.com").addr_spec == "api@example.com"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("mail: {url: 'smtp://relay'}", "mail.url is set, but mail.from is not"),
        ("mail: {url: 'smtp://relay', from: a@b.c}", "mail.url is set, but http.public_url is not"),
        ("mail: {from: a@b.c}", "the settings of mail have no effect without mail.url"),
        ("mail: {per_recipient: -1}", "mail.per_recipient must be 1 or more, or 0 for no limit"),
        ("registration: {verify_email: true}", "registration.verify_email needs mail: set mail.url and mail.from"),
        ("mail: {from: 5}", "mail.from must be text: put it in quotes"),
        ("mail: {form: a@b.c}", "mail.form is not a setting; did you mean mail.from?"),
        ("mail: {from_: a@b.c}", "mail.from_ is not a setting; did you mean mail.from?"),
    ],
)
def test_incomplete_settings_are_errors(tmp_path: Path, content: str, message: str) -> None:
    assert message in load_error(tmp_path, content)


@pytest.mark.parametrize(
    "url",
    [
        "api.example.com",
        "ftp://x",
        "https://",
        "https://x/",
        "https://x?y",
        "https://u@x",
        "https://X.example",
        "https://x:0",
    ],
)
def test_public_url_must_be_an_address(tmp_path: Path, url: str) -> None:
    assert "http.public_url must be an address such as" in load_error(tmp_path, f"http: {{public_url: '{url}'}}")


def test_public_url_may_have_a_port_and_a_path(tmp_path: Path) -> None:
    assert load(tmp_path, "http: {public_url: 'http://[::1]:8001/a/b'}").http.public_url == "http://[::1]:8001/a/b"
