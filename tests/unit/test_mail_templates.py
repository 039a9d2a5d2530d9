"""The templates of mail, and their replacement by a folder."""

from pathlib import Path

import pytest

from mlapi.adapters.mail_templates import TemplateComposer
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.mail import MAIL_KINDS, MailContent, MailDelayedError, MailKind

LINK = "https://api.example.com/links/mlapi-link_0123_4567"


def content(username: str = "ada") -> MailContent:
    return MailContent(link=LINK, username=username, service="https://api.example.com", hours=24)


def error(folder: Path) -> str:
    with pytest.raises(ConfigurationError) as exc_info:
        TemplateComposer(folder)
    return str(exc_info.value).replace(str(folder), "FOLDER")


@pytest.mark.parametrize("kind", MAIL_KINDS)
def test_default_mail_contains_the_link_and_its_lifetime(kind: MailKind) -> None:
    mail = TemplateComposer().compose(kind, content(), recipient="ada@example.com")

    assert mail.recipient == "ada@example.com"
    assert mail.subject.endswith("https://api.example.com")
    assert f"\n{LINK}\n" in mail.text
    assert "24 hours" in mail.text
    assert mail.html is not None
    assert f'href="{LINK}"' in mail.html
    assert "24 hours" in mail.html
    assert "{{" not in mail.text + mail.html
    assert len(mail.text.splitlines()) < 20


def test_mail_to_unverified_addresses_does_not_contain_the_name() -> None:
    composer = TemplateComposer()
    texts = [composer.compose(kind, content("ada-lovelace"), recipient="a@b.c") for kind in MAIL_KINDS]

    assert [mail.text.count("ada-lovelace") for mail in texts] == [1, 1, 0, 0]


@pytest.mark.parametrize("name", ["see http://evil.example", "win money", "x" * 65, "<b>ada</b>", "a\nb", "a/b"])
def test_name_that_may_be_an_advertisement_is_left_out(name: str) -> None:
    mail = TemplateComposer().compose("password_reset", content(name), recipient="ada@example.com")

    assert name not in mail.text + (mail.html or "")
    assert "for your account at https://api.example.com" in mail.text


def test_templates_can_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "password_reset.txt").write_text("Subject: Grüße,\t{{ username }}\n\n{{ link }} ({{ hours }} h)\n")
    (tmp_path / "invitation.txt").write_text("Subject: Hi\n{{ link }}")
    (tmp_path / "invitation.html").write_text('<a href="{{ link }}">{{ username }}</a>')
    composer = TemplateComposer(tmp_path)

    reset = composer.compose("password_reset", content(), recipient="a@b.c")
    invitation = composer.compose("invitation", content(), recipient="a@b.c")
    verification = composer.compose("verify_email", content(), recipient="a@b.c")

    assert (reset.subject, reset.text, reset.html) == ("Grüße, ada", f"{LINK} (24 h)\n", None)
    assert (invitation.text, invitation.html) == (f"{LINK}\n", f'<a href="{LINK}">ada</a>')
    assert verification.html is not None


def test_templates_can_include_others(tmp_path: Path) -> None:
    (tmp_path / "footer.txt").write_text("The team")
    (tmp_path / "invitation.txt").write_text("Subject: Hi\n{{ link }}\n{% include 'footer.txt' %}")

    assert TemplateComposer(tmp_path).compose("invitation", content(), recipient="a@b.c").text == f"{LINK}\nThe team\n"


def test_values_are_escaped_in_html(tmp_path: Path) -> None:
    (tmp_path / "invitation.txt").write_text("Subject: Hi\n{{ link }}")
    (tmp_path / "invitation.html").write_text("{{ link }} {{ service }}")
    hostile = MailContent(link=LINK, username="ada", service="<script>", hours=24)

    mail = TemplateComposer(tmp_path).compose("invitation", hostile, recipient="a@b.c")

    assert mail.html == f"{LINK} &lt;script&gt;"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"invitation.txt": "Hello {{ link }}"}, "invitation.txt: begin the first line with `Subject: ` and a text"),
        ({"invitation.txt": "Subject: \n{{ link }}"}, "invitation.txt: begin the first line with `Subject: `"),
        ({"invitation.txt": f"Subject: {'x' * 201}\n{{{{ link }}}}"}, "invitation.txt: begin the first line"),
        ({"invitation.txt": "Subject: Hi\nHello"}, "invitation.txt does not contain {{ link }}: add it"),
        ({"invitation.txt": "Subject: {{ link }}\nHello"}, "invitation.txt does not contain {{ link }}: add it"),
        ({"invitation.html": "{{ link }}"}, "FOLDER/invitation.html has no text: add invitation.txt"),
        (
            {"invitation.txt": "Subject: Hi\n{{ link }}", "invitation.html": "Hello"},
            "invitation.html does not contain {{ link }}: add it",
        ),
        ({"invitation.txt": "Subject: Hi\n{{ link }}\n{{ name }}"}, "invitation in FOLDER: 'name' is undefined"),
        ({"invitation.txt": "Subject: Hi\n{{ link }}\n{{ link.x.y }}"}, "invitation in FOLDER: "),
        ({"invitation.txt": "Subject: Hi\n{{ link }}\n{{ 1 // 0 }}"}, "invitation in FOLDER: "),
        ({"invitation.txt": "Subject: Hi\n\n{% if %}"}, "FOLDER/invitation.txt: Expected an expression"),
    ],
)
def test_invalid_templates_are_found_at_startup(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    assert error(tmp_path).startswith("mail.templates: ")
    assert message in error(tmp_path)


def test_template_must_be_utf8(tmp_path: Path) -> None:
    (tmp_path / "invitation.txt").write_bytes(b"Subject: \xff\n{{ link }}")

    assert "mail.templates: FOLDER/invitation.txt: " in error(tmp_path)


def test_missing_folder_of_templates_is_an_error(tmp_path: Path) -> None:
    assert error(tmp_path / "missing") == "mail.templates: there is no folder FOLDER"


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("missing", "'missing' is undefined"),
        ("username | int(default=None) + 1", "TypeError"),  # the message of this error may quote the name
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_template_that_fails_for_a_user_delays_the_mail(tmp_path: Path, expression: str, reason: str) -> None:
    text = f"Subject: x\n{{{{ link }}}}{{% if username == 'bob' %}}{{{{ {expression} }}}}{{% endif %}}"
    (tmp_path / "invitation.txt").write_text(text)
    composer = TemplateComposer(tmp_path)

    with pytest.raises(MailDelayedError) as exc_info:
        composer.compose("invitation", content("bob"), recipient="bob@example.com")

    assert str(exc_info.value) == f"mail.templates: invitation cannot be rendered: {reason}"
