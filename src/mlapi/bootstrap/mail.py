"""Compose the parts that send mail.

The libraries for mail are imported on first use, because most processes send none.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from mlapi.application.mail_sender import MailResult, MailSender
from mlapi.bootstrap.service import Service
from mlapi.bootstrap.storages import open_storage
from mlapi.config import Settings
from mlapi.config.mail import parse_mail_url, parse_sender
from mlapi.domain.errors import ConfigurationError, RepositoryUnavailableError
from mlapi.domain.mail import Mail, MailError
from mlapi.domain.outbox import OutboxStatus

if TYPE_CHECKING:
    from mlapi.adapters.mail_templates import TemplateComposer
    from mlapi.adapters.smtp import SmtpTransport

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_TEST_SUBJECT, _TEST_TEXT = "Test of mlapi", "mlapi can send mail.\n"


@contextmanager
def sending_mail(
    service: Service, on_result: Callable[[MailResult], None] = lambda _result: None
) -> Iterator[MailSender | None]:
    """Send mail in the background until the block ends. Yield None, and do nothing, if mail is not configured.

    Args:
        service: the service whose mail is sent.
        on_result: called with the result of each attempt.

    Raises:
        ConfigurationError: if a template is invalid.
    """
    settings = service.settings
    if service.mailing is None:
        yield None
        return
    sender = MailSender(
        service.outbox,
        service.users,
        make_transport(settings),
        _make_composer(settings),
        service=settings.http.public_url or "",
        admit=service.mailing.admit,
        on_result=on_result,
    )
    with closing(sender):
        sender.start()
        yield sender


def make_transport(settings: Settings) -> "SmtpTransport":
    """Return the connection to the configured mail server. It connects on first use.

    Raises:
        ConfigurationError: if mail is not configured.
    """
    if settings.mail.url is None:
        raise ConfigurationError("mail is not configured: set mail.url and mail.from")
    from mlapi.adapters.smtp import SmtpTransport  # noqa: PLC0415 - see the module's docstring

    return SmtpTransport(parse_mail_url(settings.mail.url), parse_sender(settings.mail.from_ or ""))


def _make_composer(settings: Settings) -> "TemplateComposer":
    from mlapi.adapters.mail_templates import TemplateComposer  # noqa: PLC0415 - see the module's docstring

    folder = settings.mail.templates
    return TemplateComposer(None if folder is None else Path(folder))


def send_test_mail(settings: Settings, recipient: str) -> None:
    """Send a mail without a link, at once.

    Raises:
        ConfigurationError: if mail is not configured.
        MailError: if the server does not accept the mail.
    """
    mail = Mail(recipient=recipient, subject=_TEST_SUBJECT, text=_TEST_TEXT)
    with make_transport(settings).connect() as session:
        session.send(recipient, lambda: mail)


@attrs.frozen(kw_only=True)
class MailCheck:
    """The state of mail.

    Attributes:
        server: the host and port of the server.
        connection: how the connection is protected; None if there is an error.
        is_exposed: whether mail travels to another machine without encryption.
        error: why no mail can be sent, or None.
        status: the numbers of mails in the outbox; None if they cannot be read.
    """

    server: str
    connection: str | None
    is_exposed: bool
    error: str | None
    status: OutboxStatus | None


def check_mail(settings: Settings) -> MailCheck:
    """Connect to the mail server and sign in, without sending anything. Check the templates, and read the outbox.

    Raises:
        ConfigurationError: if mail is not configured.
    """
    from mlapi.adapters.smtp import NOT_ENCRYPTED  # noqa: PLC0415 - see the module's docstring

    transport, server = make_transport(settings), parse_mail_url(settings.mail.url or "")
    connection, error = None, None
    try:
        _make_composer(settings)
        connection = transport.check()
    except (ConfigurationError, MailError) as problem:
        error = str(problem)
    return MailCheck(
        server=f"{server.host}:{server.port}",
        connection=connection,
        is_exposed=connection is not None and connection.startswith(NOT_ENCRYPTED) and server.host not in _LOOPBACK,
        error=error,
        status=_read_status(settings),
    )


def _read_status(settings: Settings) -> OutboxStatus | None:
    try:
        with closing(open_storage(settings, may_create=False)) as storage:
            return storage.outbox.read_status()
    except (ConfigurationError, RepositoryUnavailableError):  # reported elsewhere
        return None
