"""The messages that the service sends, and the interfaces for writing and delivering them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal, Protocol, get_args

import attrs

from mlapi.domain.errors import MlapiError

MailKind = Literal["invitation", "password_reset", "verify_email", "change_email"]
"""Why a message is sent. Every kind contains a one-time link."""
MAIL_KINDS: tuple[MailKind, ...] = get_args(MailKind)


@attrs.frozen(kw_only=True)
class MailContent:
    """The values in a message.

    Attributes:
        link: the one-time link.
        username: the name of the user that the link is for. An attacker may have chosen it.
        service: the public address of the service, for example ``https://api.example.com``.
        hours: how many hours the link is valid.
    """

    link: str = attrs.field(repr=False)
    username: str = attrs.field(repr=False)
    service: str
    hours: int


@attrs.frozen(kw_only=True)
class Mail:
    """A message to one recipient. ``html`` is None for a message with text only."""

    recipient: str = attrs.field(repr=False)
    subject: str
    text: str = attrs.field(repr=False)
    html: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class SmtpServer:
    """How to connect to a mail server.

    Attributes:
        host: its name or address.
        port: its port.
        is_tls: whether the connection is encrypted from the start. Otherwise, STARTTLS encrypts it if the server offers
            it. With a password, a server that does not offer STARTTLS is rejected.
        username: the user to authenticate as, or None.
        password: the user's password, or None.
    """

    host: str
    port: int
    is_tls: bool
    username: str | None = attrs.field(default=None, repr=False)
    password: str | None = attrs.field(default=None, repr=False)


@attrs.frozen
class MailError(MlapiError):
    """Base class of the errors of a `MailTransport`. Not raised directly.

    ``reason`` says what failed and what to do, for operators. It contains no secret and no address of a recipient.
    ``code`` is the reply code of the server; None if there was no reply.
    """

    reason: str
    code: int | None = None

    def __str__(self) -> str:
        return self.reason


@attrs.frozen
class MailServerError(MailError):
    """No mail can be sent now: the server is unreachable, or rejects this client or its sender address."""


@attrs.frozen
class MailDelayedError(MailError):
    """The server does not accept this mail now. A retry may succeed."""


@attrs.frozen
class MailRejectedError(MailError):
    """The server will never accept this mail."""


class MailComposer(Protocol):
    """Writes messages."""

    def compose(self, kind: MailKind, content: MailContent, *, recipient: str) -> Mail:
        """Return the message of a kind."""
        ...


class MailSession(Protocol):
    """A connection to a mail server."""

    def send(self, recipient: str, compose: Callable[[], Mail]) -> None:
        """Send one mail. Return when the server has accepted it.

        Args:
            recipient: the address.
            compose: returns the mail. It is called only after the server has accepted the recipient, because each call
                makes a new one-time link.

        Raises:
            MailServerError: see its class.
            MailDelayedError: see its class.
            MailRejectedError: see its class.
        """
        ...


class MailTransport(Protocol):
    """Delivers mail."""

    def connect(self) -> AbstractContextManager[MailSession]:
        """Open a session in which mail can be sent. It ends after a fixed time, even if the server hangs.

        Raises:
            MailServerError: if the server cannot be used.
        """
        ...

    def abort(self) -> None:
        """End the running session of another thread at once. Its calls then raise an error."""
        ...
