"""Parse and validate the settings of mail. Error messages never show ``mail.url``, which may contain a password."""

import re
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from mlapi.config.settings import MailSettings, Settings
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.mail import SmtpServer
from mlapi.domain.rules import find_email_error, has_invisible

if TYPE_CHECKING:
    from email.headerregistry import Address

_PORTS = {"smtp": 25, "smtps": 465}
_SUBMISSION_PORT = 587
_SENDER = re.compile(r'(?:"?([^"<>]*?)"?\s*<([^"<>]+)>|([^"<>]+))')
_FORM = "smtp://user:password@host:587 or smtps://user:password@host:465"


def parse_mail_url(url: str) -> SmtpServer:
    """Return the server in ``mail.url``.

    Raises:
        ConfigurationError: if the URL is invalid. The message does not contain it.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _url_error("percent-encode special characters in the user and password, and check the port") from None
    if (advice := _find_url_error(url, parts)) is not None:
        raise _url_error(advice)
    username, password = (None if text is None else unquote(text) for text in (parts.username, parts.password))
    default_port = _SUBMISSION_PORT if username and parts.scheme == "smtp" else _PORTS[parts.scheme]
    return SmtpServer(
        host=parts.hostname or "",
        port=port or default_port,
        is_tls=parts.scheme == "smtps",
        username=username or None,
        password=password,
    )


def _find_url_error(url: str, parts: SplitResult) -> str | None:
    credentials = unquote((parts.username or "") + (parts.password or ""))
    rules = (
        (parts.scheme not in _PORTS or not parts.hostname, "it needs a scheme and a host"),
        (url != url.strip() or has_invisible(url) or " " in url, "remove white space and control characters"),
        (bool(parts.path.strip("/") or parts.query or parts.fragment), "percent-encode / ? and # in the password"),
        (bool(parts.username) != bool(parts.password), "it needs both a user and a password, or neither"),
        (not credentials.isascii() or not credentials.isprintable(), "use only ASCII in the user and password"),
    )
    return next((advice for is_broken, advice in rules if is_broken), None)


def _url_error(advice: str) -> ConfigurationError:
    return ConfigurationError(f"mail.url must look like {_FORM}: {advice}")


def parse_sender(text: str) -> "Address":
    """Return the address in ``mail.from``, with its display name.

    Raises:
        ConfigurationError: if it is invalid.
    """
    match = _SENDER.fullmatch(text)
    name, address = ("", "") if match is None else (match[1] or "", match[2] or match[3])
    if not address.isascii() or find_email_error(address) is not None or has_invisible(text):
        raise ConfigurationError(
            "mail.from must be an address, such as mlapi@example.com or Model API <api@example.com>"
        )
    from email.headerregistry import Address  # noqa: PLC0415 - takes 8 ms, so import it only if mail is configured

    local, _, domain = address.rpartition("@")
    return Address(name, local, domain)


def validate_mail(settings: Settings) -> None:
    """Check the settings of mail.

    Raises:
        ConfigurationError: for the first invalid one.
    """
    mail = settings.mail
    if mail.per_recipient < 0:
        raise ConfigurationError("mail.per_recipient must be 1 or more, or 0 for no limit")
    if mail.url is not None:
        parse_mail_url(mail.url)
        if mail.from_ is None:
            raise ConfigurationError("mail.url is set, but mail.from is not: set it to the address that sends the mail")
        parse_sender(mail.from_)
        if settings.http.public_url is None:
            raise ConfigurationError(
                "mail.url is set, but http.public_url is not: set it to the address of this service that users can"
                " reach, such as https://api.example.com"
            )
    elif mail != MailSettings():
        raise ConfigurationError("the settings of mail have no effect without mail.url: set it or remove them")
    if settings.registration.verify_email and mail.url is None:
        raise ConfigurationError("registration.verify_email needs mail: set mail.url and mail.from")
