"""A real SMTP server in its own process, which can misbehave on purpose.

Start it with `MailServer`. Run as a program, this module is the server.
"""

import asyncio
import base64
import datetime as dt
import email
import email.policy
import json
import ssl
import subprocess
import sys
import time
import warnings
from email.message import EmailMessage
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.postgres_server import free_port

USERNAME, PASSWORD = "mailer", "CANARY-mail-password"
HANG_SECONDS = 60.0


@attrs.frozen(kw_only=True)
class Behavior:
    """How the server behaves. It reads this again for each command.

    Attributes:
        mail: the reply to MAIL; None to accept it.
        rcpt: the reply to RCPT; None to accept it.
        data: the reply to the mail; None to accept it.
        greylist: whether to reject the first attempt for each recipient with 451.
        hang_at: the command that is never answered, or ``greeting``.
        dies_after_data: whether to store the mail, and exit instead of replying.
        closes_after_mails: after how many mails it closes the connection.
    """

    mail: str | None = None
    rcpt: str | None = None
    data: str | None = None
    greylist: bool = False
    hang_at: str | None = None
    dies_after_data: bool = False
    closes_after_mails: int | None = None


@attrs.frozen
class Delivery:
    """A mail that the server has accepted."""

    sender: str
    recipient: str
    options: list[str]
    is_encrypted: bool
    is_authenticated: bool
    content: bytes = attrs.field(repr=False)

    @property
    def message(self) -> EmailMessage:
        return email.message_from_bytes(self.content, policy=email.policy.default)

    @property
    def text(self) -> str:
        body = self.message.get_body(("plain",))
        assert body is not None
        return str(body.get_content()).replace("\r\n", "\n")

    @property
    def html(self) -> str | None:
        body = self.message.get_body(("html",))
        return None if body is None else str(body.get_content()).replace("\r\n", "\n")


class MailServer:
    """Runs an SMTP server until the block ends.

    Args:
        folder: an empty folder for its files.
        behavior: how it behaves; see `behave`.
        starttls: whether it offers STARTTLS.
        implicit_tls: whether connections are encrypted from the start.
        auth: whether clients must sign in as `USERNAME`.
        utf8: whether it offers SMTPUTF8.
        port: the port; None for a free one.
    """

    def __init__(
        self,
        folder: Path,
        behavior: Behavior = Behavior(),
        *,
        starttls: bool = False,
        implicit_tls: bool = False,
        auth: bool = False,
        utf8: bool = True,
        port: int | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port() if port is None else port
        self.certificate = folder / "certificate.pem"
        self._options = {
            "folder": str(folder),
            "port": self.port,
            "starttls": starttls,
            "implicit_tls": implicit_tls,
            "auth": auth,
            "utf8": utf8,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.behave(behavior)
        if (starttls or implicit_tls) and not self.certificate.exists():
            make_certificate(self.certificate)

    def behave(self, behavior: Behavior) -> None:
        """Change the behavior from the next command on."""
        new = self.folder / "behavior.new"
        new.write_text(json.dumps(attrs.asdict(behavior)))
        new.rename(self.folder / "behavior.json")

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mail_server", json.dumps(self._options)],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def deliveries(self) -> list[Delivery]:
        """Return the accepted mails, the oldest first."""
        found = []
        for file in sorted(self.folder.glob("*.mail")):
            values = json.loads(file.read_text())
            found.append(Delivery(**{**values, "content": base64.b64decode(values["content"])}))
        return found

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def make_certificate(file: Path) -> None:
    """Write a key and a self-signed certificate for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoded_key = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(encoded_key + certificate.public_bytes(serialization.Encoding.PEM))


@attrs.define(eq=False)
class _Handler:  # pragma: no cover - runs in the process of the server
    """Answers the commands of all sessions."""

    folder: Path
    implicit_tls: bool
    seen: set[str] = attrs.field(factory=set)

    @property
    def behavior(self) -> Behavior:
        return Behavior(**json.loads((self.folder / "behavior.json").read_text()))

    async def hang(self, command: str) -> None:
        if self.behavior.hang_at == command:
            await asyncio.sleep(HANG_SECONDS)

    async def handle_EHLO(self, _server: Any, session: Any, _envelope: Any, name: str, replies: list[str]) -> list[str]:  # noqa: N802 - the name that aiosmtpd calls
        session.host_name = name
        await self.hang("EHLO")
        return replies

    async def handle_MAIL(self, _server: Any, _session: Any, envelope: Any, address: str, options: list[str]) -> str:  # noqa: N802 - see above
        await self.hang("MAIL")
        if self.behavior.mail is not None:
            return self.behavior.mail
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(self, _server: Any, _session: Any, envelope: Any, address: str, _options: list[str]) -> str:  # noqa: N802 - see above
        await self.hang("RCPT")
        if self.behavior.rcpt is not None:
            return self.behavior.rcpt
        if self.behavior.greylist and address not in self.seen:
            self.seen.add(address)
            return f"451 4.7.1 <{address}>: greylisted, try again"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - see above
        await self.hang("DATA")
        if self.behavior.data is not None:
            return self.behavior.data
        self.store(session, envelope)
        session.mails = getattr(session, "mails", 0) + 1
        if self.behavior.dies_after_data:
            server.transport.abort()
        if self.behavior.closes_after_mails == session.mails:
            asyncio.get_running_loop().call_later(0.05, server.transport.abort)
        return "250 OK"

    def store(self, session: Any, envelope: Any) -> None:
        values = {
            "sender": envelope.mail_from,
            "recipient": envelope.rcpt_tos[0],
            "options": envelope.mail_options,
            "is_encrypted": session.ssl is not None or self.implicit_tls,
            "is_authenticated": bool(session.authenticated),
            "content": base64.b64encode(envelope.content).decode(),
        }
        file = self.folder / f"{time.monotonic_ns():020}.new"
        file.write_text(json.dumps(values))
        file.rename(file.with_suffix(".mail"))


def _run(options: dict[str, Any]) -> None:  # pragma: no cover - runs in the process of the server
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword  # noqa: PLC0415

    handler = _Handler(Path(options["folder"]), options["implicit_tls"])

    def authenticate(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> Any:
        is_right = isinstance(data, LoginPassword) and data == LoginPassword(USERNAME.encode(), PASSWORD.encode())
        return AuthResult(success=is_right, handled=is_right)

    context = None
    if options["starttls"] or options["implicit_tls"]:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(handler.folder / "certificate.pem")

    async def serve() -> None:
        loop = asyncio.get_running_loop()

        def protocol() -> Any:
            if handler.behavior.hang_at == "greeting":
                return asyncio.Protocol()
            return SMTP(
                handler,
                hostname="localhost",
                enable_SMTPUTF8=options["utf8"],
                tls_context=context if options["starttls"] else None,
                auth_required=options["auth"],
                auth_require_tls=False,
                auth_exclude_mechanism=() if options["auth"] else ("LOGIN", "PLAIN"),
                authenticator=authenticate if options["auth"] else None,
                loop=loop,
            )

        tls = context if options["implicit_tls"] else None
        server = await loop.create_server(protocol, "127.0.0.1", options["port"], ssl=tls)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    _run(json.loads(sys.argv[1]))
