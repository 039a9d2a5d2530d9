"""Deliver mail to an SMTP server, with the standard library's client.

A server may be slow, hang or lie. Every session and every mail has a deadline, after which the connection is cut.
"""

import errno
import re
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import format_datetime, make_msgid
from typing import BinaryIO

from mlapi.domain.mail import Mail, MailDelayedError, MailError, MailRejectedError, MailServerError, SmtpServer
from mlapi.domain.rules import find_email_error
from mlapi.domain.users import utc_now

CONNECT_SECONDS = 10.0
"""Timeout for connecting to each address of the server."""
REPLY_SECONDS = 30.0
"""Timeout for each reply. Servers may check a mail for spam before they reply."""
DEADLINE_SECONDS = 45.0
"""Deadline for connecting and signing in, and for sending each mail."""
MAX_REPLY_BYTES = 100_000
_QUIT_SECONDS = 1.0
NOT_ENCRYPTED = "not encrypted"
_MAX_ERROR_CHARS = 200

_OK, _CLOSING, _ACCEPTED_RECIPIENT = 250, 421, frozenset({250, 251})
_NEEDS_SIGN_IN = frozenset({530, 534, 535, 538})  # RFC 4954, section 6
_AUTHENTICATIONS = frozenset({"CRAM-MD5", "PLAIN", "LOGIN"})
"""The authentication methods that the client supports."""
_PERMANENT, _INVALID = 500, 600
_ADDRESS = re.compile(r"<?[^\s<>]*@[^\s<>]*>?")
_LINK_TOKEN = re.compile(r"mlapi-link_\w+")
_UNPRINTABLE = re.compile(r"[^ -~]+")


class SmtpTransport:
    """A `MailTransport` to one SMTP server. Certificates of servers are verified.

    Args:
        server: the server.
        sender: the address that sends the mail.
        connect_seconds: see `CONNECT_SECONDS`.
        reply_seconds: see `REPLY_SECONDS`.
        deadline_seconds: see `DEADLINE_SECONDS`.
    """

    def __init__(
        self,
        server: SmtpServer,
        sender: Address,
        *,
        connect_seconds: float = CONNECT_SECONDS,
        reply_seconds: float = REPLY_SECONDS,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self._server = server
        self._sender = sender
        self._connect_seconds = connect_seconds
        self._reply_seconds = reply_seconds
        self._deadline_seconds = deadline_seconds
        self._connection: socket.socket | None = None
        self._is_cut = False

    @contextmanager
    def connect(self) -> Iterator["SmtpSession"]:
        """Open a session. See `mlapi.domain.mail.MailTransport.connect`."""
        with self._guarded():
            client = self._open()
        try:
            yield SmtpSession(client, self._sender, self._guarded)
        finally:
            client.leave()
            self._forget_connection()

    def abort(self) -> None:
        """Cut the connection. A thread that waits for the server then gets an error."""
        self._is_cut = True
        connection = self._connection
        if connection is not None:
            with suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)

    def _remember_connection(self, connected: socket.socket) -> None:
        """Keep a duplicate for `abort`: encryption takes over the original before the handshake.

        Raises:
            TimeoutError: if `abort` was called before there was a connection to cut.
        """
        self._connection = connected.dup()
        if self._is_cut:
            raise TimeoutError

    def _forget_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def check(self) -> str:
        """Connect and sign in without sending anything. Return a description of the connection.

        Raises:
            MailServerError: if the server cannot be used.
        """
        with self.connect() as session:
            return session.describe()

    def _open(self) -> "_Client":
        """Connect, encrypt the connection and sign in."""
        server, client = self._server, _Client(self._sender, self._remember_connection)
        try:
            client.start(server, self._connect_seconds)
            client.set_timeout(self._reply_seconds)
            client.ehlo_or_helo_if_needed()
            if not server.is_tls:
                _start_tls(client, server)
                client.ehlo_or_helo_if_needed()
            if server.username is not None and server.password is not None:
                _sign_in(client, server.username, server.password)
                client.is_signed_in = True
        except BaseException:
            client.close()
            self._forget_connection()
            raise
        return client

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Cut the connection if the block takes too long, and turn the errors of the client into those of the port."""
        self._is_cut = False
        timer = threading.Timer(self._deadline_seconds, self.abort)
        timer.daemon = True
        timer.start()
        try:
            with _translated(self._server):
                yield
        finally:
            timer.cancel()


class SmtpSession:
    """A `MailSession` with an SMTP server.

    Args:
        client: is connected.
        sender: the address that sends the mail.
        guarded: returns a context that limits the time for a mail, and turns the errors of the client into those of the
            port.
    """

    def __init__(self, client: "_Client", sender: Address, guarded: Callable[[], AbstractContextManager[None]]) -> None:
        self._client = client
        self._sender = sender
        self._guarded = guarded

    def describe(self) -> str:
        """Return how the connection is protected."""
        encryption = "encrypted" if isinstance(self._client.sock, ssl.SSLSocket) else NOT_ENCRYPTED
        return f"{encryption}, {'signed in' if self._client.is_signed_in else 'without a password'}"

    def send(self, recipient: str, compose: Callable[[], Mail]) -> None:
        """Send one mail. See `mlapi.domain.mail.MailSession.send`."""
        address, options = self._envelope(recipient)
        with self._guarded():
            try:
                self._send(address, options, compose)
            except MailServerError:
                raise
            except Exception:  # the server still waits for the rest of this mail
                with suppress(smtplib.SMTPException, OSError):
                    self._client.rset()
                raise

    def _send(self, address: Address, options: list[str], compose: Callable[[], Mail]) -> None:
        client, is_utf8 = self._client, bool(options)
        code, text = client.mail(self._sender.addr_spec, options)
        if code != _OK:
            raise MailServerError(f"it rejects mail.from: {_describe(code, text)}", code)
        code, text = client.docmd("RCPT", f"TO:<{address.addr_spec}>")
        if code not in _ACCEPTED_RECIPIENT:
            raise _reply_error(code, text)
        mail = compose()
        code, text = client.data(_encode(mail, self._sender, address, is_utf8=is_utf8))
        if code != _OK:
            raise _reply_error(code, text)

    def _envelope(self, recipient: str) -> tuple[Address, list[str]]:
        """Return the address as the server accepts it, and the options of the command MAIL."""
        if find_email_error(recipient) is not None:  # rows of other applications may contain anything
            raise MailRejectedError("the address is not valid: change it")
        local, _, domain = recipient.rpartition("@")
        if not recipient.isascii() and self._client.has_extn("smtputf8"):
            return Address("", local, domain), ["SMTPUTF8", "BODY=8BITMIME"]
        if not local.isascii():
            raise MailRejectedError("the mail server does not support SMTPUTF8, which this address needs")
        try:
            return Address("", local, domain.encode("idna").decode("ascii")), []
        except UnicodeError:
            raise MailRejectedError("the domain of the address cannot be written in ASCII") from None


class _Client(smtplib.SMTP):
    """An SMTP client that passes its connection to ``on_connected`` before it reads from it."""

    is_signed_in = False

    def __init__(self, sender: Address, on_connected: Callable[[socket.socket], None]) -> None:
        super().__init__(local_hostname=_local_name(sender))
        self._on_connected = on_connected
        self._is_tls = False

    def start(self, server: SmtpServer, timeout_seconds: float) -> None:
        """Connect to the server and read its greeting."""
        self._host, self.timeout, self._is_tls = server.host, timeout_seconds, server.is_tls
        code, text = self.connect(server.host, server.port)
        if code != 220:  # noqa: PLR2004 - RFC 5321, section 4.2
            raise smtplib.SMTPConnectError(code, text)

    def set_timeout(self, seconds: float) -> None:
        if self.sock is not None:
            self.sock.settimeout(seconds)

    def leave(self) -> None:
        """End the session. Do not wait long for the reply."""
        self.set_timeout(_QUIT_SECONDS)
        with suppress(smtplib.SMTPException, OSError):
            self.quit()
        self.close()

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        connected = socket.create_connection((host, port), timeout)
        try:
            self._on_connected(connected)
            if self._is_tls:
                connected = ssl.create_default_context().wrap_socket(connected, server_hostname=host)
        except BaseException:
            connected.close()
            raise
        return connected

    def getreply(self) -> tuple[int, bytes]:
        """Read a reply of a limited length. smtplib limits only its lines."""
        if self.file is None:
            assert self.sock is not None  # noqa: S101 - smtplib reads replies only while it is connected
            self.file = self.sock.makefile("rb")
        self.file = _LimitedReader(self.file)
        try:
            return super().getreply()
        finally:
            if isinstance(self.file, _LimitedReader):
                self.file = self.file.file


class _LimitedReader:
    """A file that limits the length of one reply."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._left_bytes = MAX_REPLY_BYTES

    def readline(self, size: int) -> bytes:
        line = self.file.readline(size)
        self._left_bytes -= len(line)
        if self._left_bytes < 0:
            raise OSError(errno.EMSGSIZE, "the reply is too long")
        return line

    def close(self) -> None:
        self.file.close()


def _local_name(sender: Address) -> str:
    """Return the name for EHLO: the name of this machine if it is complete, or else the domain of the sender."""
    name = socket.gethostname()
    return name if "." in name and name.isascii() else sender.domain


def _start_tls(client: smtplib.SMTP, server: SmtpServer) -> None:
    if client.has_extn("starttls"):
        client.starttls(context=ssl.create_default_context())
    elif server.password is not None:
        raise MailServerError(
            "it does not offer STARTTLS, so the password was not sent: use smtps://, or find out what removes STARTTLS"
        )


def _sign_in(client: smtplib.SMTP, username: str, password: str) -> None:
    if _AUTHENTICATIONS.isdisjoint(client.esmtp_features.get("auth", "").split()):
        raise MailServerError(
            "it does not let clients sign in on this port: use its submission port, often 587, or remove the user and"
            " password from mail.url"
        )
    try:
        client.login(username, password)
    except smtplib.SMTPAuthenticationError as error:
        is_wrong = error.smtp_code >= _PERMANENT
        reason = "rejects the user or the password in mail.url" if is_wrong else "cannot check the password now"
        raise MailServerError(f"it {reason} ({error.smtp_code})", error.smtp_code) from None


@contextmanager
def _translated(server: SmtpServer) -> Iterator[None]:
    """Turn the errors of the client into those of the port."""
    try:
        yield
    except MailError:
        raise
    except ssl.SSLCertVerificationError as error:
        raise MailServerError(
            f"its certificate is not trusted ({error.verify_message}): use the name in the certificate, or set"
            " SSL_CERT_FILE to the file with its authority"
        ) from None
    except ssl.SSLError as error:
        raise MailServerError(
            f"no encrypted connection to {server.host}:{server.port} ({error.reason}): smtps:// needs a port with TLS,"
            " often 465, and smtp:// one without, often 587"
        ) from None
    except smtplib.SMTPResponseException as error:
        raise _reply_error(
            error.smtp_code, error.smtp_error, is_about_mail=isinstance(error, smtplib.SMTPDataError)
        ) from None
    except smtplib.SMTPException:
        raise MailServerError("it closed the connection, or did not reply in time") from None
    except TimeoutError:
        raise MailServerError(f"{server.host}:{server.port} does not reply: check mail.url and the network") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise MailServerError(f"cannot connect to {server.host}:{server.port} ({reason}): check mail.url") from None


def _reply_error(code: int, text: bytes | str, *, is_about_mail: bool = True) -> MailError:
    """Return the error for a reply that is not a success."""
    described = _describe(code, text)
    if not is_about_mail or code == _CLOSING or code in _NEEDS_SIGN_IN or not _OK <= code < _INVALID:
        return MailServerError(described, code)
    return MailRejectedError(described, code) if code >= _PERMANENT else MailDelayedError(described, code)


def _describe(code: int, text: bytes | str) -> str:
    """Return a reply in one line, without addresses and tokens."""
    if code == -1:
        return "it does not answer like a mail server: check the host and port in mail.url"
    words = text if isinstance(text, str) else text.decode("ascii", "replace")
    words = _UNPRINTABLE.sub(" ", _LINK_TOKEN.sub("<link>", _ADDRESS.sub("<address>", words)))
    return f"{code} {words.strip()}"[:_MAX_ERROR_CHARS]


def _encode(mail: Mail, sender: Address, recipient: Address, *, is_utf8: bool) -> bytes:
    """Return the message as bytes. Without SMTPUTF8, they are ASCII."""
    message = EmailMessage(policy=SMTPUTF8 if is_utf8 else SMTP.clone(cte_type="7bit"))
    message["From"] = sender
    message["To"] = recipient
    message["Subject"] = mail.subject
    message["Date"] = format_datetime(utc_now())
    message["Message-ID"] = make_msgid(domain=sender.domain)
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no automatic replies
    message.set_content(mail.text)
    if mail.html is not None:
        message.add_alternative(mail.html, subtype="html")
    return message.as_bytes()
