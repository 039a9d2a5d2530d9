"""Mail is delivered to a real SMTP server, which misbehaves in many ways."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.headerregistry import Address
from pathlib import Path
from typing import Any

import attrs
import pytest

from mlapi.adapters.smtp import MAX_REPLY_BYTES, SmtpTransport
from mlapi.domain.mail import Mail, MailDelayedError, MailError, MailRejectedError, MailServerError, SmtpServer
from tests.mail_server import PASSWORD, USERNAME, Behavior, MailServer
from tests.postgres_server import free_port

SENDER = Address("Modèle, API", "api", "example.com")
SOON = 0.5


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailServer]:
    with MailServer(tmp_path_factory.mktemp("plain")) as server:
        yield server


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailServer]:
    with MailServer(tmp_path_factory.mktemp("secure"), starttls=True, auth=True) as server:
        yield server


@pytest.fixture(autouse=True)
def well_behaved(request: pytest.FixtureRequest) -> None:
    for name in ("plain", "secure"):
        if name in request.fixturenames:
            server: MailServer = request.getfixturevalue(name)
            server.behave(Behavior())
            for file in server.folder.glob("*.mail"):
                file.unlink()


@pytest.fixture
def trust(secure: MailServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the certificate of the server."""
    monkeypatch.setenv("SSL_CERT_FILE", str(secure.certificate))


def transport(server: MailServer, **options: object) -> SmtpTransport:
    """Return a transport that does not wait long."""
    values = {"host": "localhost", "port": server.port, "is_tls": False, **options}
    return SmtpTransport(
        SmtpServer(**values),  # type: ignore[arg-type]  # the test passes the right types
        SENDER,
        connect_seconds=SOON,
        reply_seconds=SOON,
        deadline_seconds=4 * SOON,
    )


def mail(recipient: str = "ada@example.com", *, text: str = "Hello\n", html: str | None = None) -> Mail:
    return Mail(recipient=recipient, subject="Grüße", text=text, html=html)


def send(transport: SmtpTransport, *mails: Mail) -> None:
    with transport.connect() as session:
        for each in mails or [mail()]:
            session.send(each.recipient, lambda each=each: each)  # type: ignore[misc]  # mypy cannot infer it


def send_error(transport: SmtpTransport, *mails: Mail) -> MailError:
    with pytest.raises(MailError) as exc_info:
        send(transport, *mails)
    return exc_info.value


# --- success


def test_mail_has_text_html_and_headers(plain: MailServer) -> None:
    send(transport(plain), mail(text="Héllo\n", html="<p>Héllo</p>"))

    (delivery,) = plain.deliveries()
    message = delivery.message
    assert (delivery.sender, delivery.recipient, delivery.options) == ("api@example.com", "ada@example.com", [])
    assert (delivery.text, delivery.html) == ("Héllo\n", "<p>Héllo</p>\n")
    assert (message["To"], message["Subject"]) == ("ada@example.com", "Grüße")
    assert message["From"] == '"Modèle, API" <api@example.com>'
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Message-ID"].endswith("@example.com>")
    assert message["Date"] is not None
    assert delivery.content.isascii()


def test_mail_without_html_has_one_part(plain: MailServer) -> None:
    send(transport(plain))

    (delivery,) = plain.deliveries()
    assert not delivery.message.is_multipart()
    assert delivery.text == "Hello\n"


def test_lines_with_one_dot_do_not_end_the_mail(plain: MailServer) -> None:
    text = "a\n.\n..\nQUIT\n"

    send(transport(plain), mail(text=text))

    assert [delivery.text for delivery in plain.deliveries()] == [text]


def test_several_mails_share_a_session(plain: MailServer) -> None:
    send(transport(plain), mail("ada@example.com"), mail("bob@example.com"))

    assert [delivery.recipient for delivery in plain.deliveries()] == ["ada@example.com", "bob@example.com"]


# --- encryption and authentication


@pytest.mark.usefixtures("trust")
def test_mail_is_encrypted_and_the_client_signs_in(secure: MailServer) -> None:
    send(transport(secure, username=USERNAME, password=PASSWORD))

    (delivery,) = secure.deliveries()
    assert (delivery.is_encrypted, delivery.is_authenticated) == (True, True)
    assert transport(secure, username=USERNAME, password=PASSWORD).check() == "encrypted, signed in"


def test_implicit_tls_is_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MailServer(tmp_path, implicit_tls=True) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))

        send(transport(server, is_tls=True))

        assert [delivery.is_encrypted for delivery in server.deliveries()] == [True]


def test_password_is_not_sent_without_encryption(tmp_path: Path) -> None:
    with MailServer(tmp_path, auth=True) as server:  # as if an attacker had removed STARTTLS from the reply
        error = send_error(transport(server, username=USERNAME, password=PASSWORD))

    assert error == MailServerError(
        "it does not offer STARTTLS, so the password was not sent: use smtps://, or find out what removes STARTTLS"
    )


def test_mail_without_a_password_may_be_unencrypted(plain: MailServer) -> None:
    assert transport(plain).check() == "not encrypted, without a password"


def test_untrusted_certificate_is_rejected(secure: MailServer) -> None:
    error = send_error(transport(secure, username=USERNAME, password=PASSWORD))

    assert isinstance(error, MailServerError)
    assert error.reason.startswith("its certificate is not trusted (self-signed certificate): use the name")


@pytest.mark.usefixtures("trust")
def test_certificate_for_another_name_is_rejected(secure: MailServer) -> None:
    error = send_error(transport(secure, host="127.0.0.1", username=USERNAME, password=PASSWORD))

    assert "its certificate is not trusted (IP address mismatch" in error.reason


@pytest.mark.usefixtures("trust")
def test_wrong_password_is_reported_without_showing_it(secure: MailServer) -> None:
    error = send_error(transport(secure, username=USERNAME, password="CANARY wrong"))

    assert error == MailServerError("it rejects the user or the password in mail.url (535)", 535)


def test_server_without_accounts_is_reported(
    plain: MailServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with MailServer(tmp_path, starttls=True) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))

        error = send_error(transport(server, username=USERNAME, password=PASSWORD))

    assert "it does not let clients sign in on this port" in error.reason


@pytest.mark.usefixtures("trust")
def test_server_that_needs_a_password_keeps_the_mail_waiting(secure: MailServer) -> None:
    error = send_error(transport(secure))

    assert isinstance(error, MailServerError)
    assert error.code == 530


@pytest.mark.usefixtures("trust")
def test_tls_on_a_port_without_it_is_explained(secure: MailServer) -> None:
    error = send_error(transport(secure, is_tls=True))

    assert "smtps:// needs a port with TLS, often 465" in error.reason


# --- replies


@pytest.mark.parametrize(
    ("behavior", "kind", "reason"),
    [
        (
            Behavior(rcpt="550 5.1.1 <ada@example.com>: no such user"),
            MailRejectedError,
            "550 5.1.1 <address>: no such user",
        ),
        (Behavior(rcpt="450 4.2.2 mailbox full"), MailDelayedError, "450 4.2.2 mailbox full"),
        (Behavior(rcpt="530 5.7.0 sign in first"), MailServerError, "530 5.7.0 sign in first"),
        (Behavior(rcpt="421 4.3.2 closing"), MailServerError, "421 4.3.2 closing"),
        (Behavior(data="554 5.7.1 spam\x1b[31m\u00e9"), MailRejectedError, "554 5.7.1 spam [31m"),
        (Behavior(data="451 4.3.0 mlapi-link_0123_4567 later"), MailDelayedError, "451 4.3.0 <link> later"),
        (
            Behavior(mail="550 5.7.1 not your address"),
            MailServerError,
            "it rejects mail.from: 550 5.7.1 not your address",
        ),
        (Behavior(mail="451 4.3.0 later"), MailServerError, "it rejects mail.from: 451 4.3.0 later"),
    ],
)
def test_reply_decides_whether_mail_is_retried(
    plain: MailServer, behavior: Behavior, kind: type[MailError], reason: str
) -> None:
    plain.behave(behavior)

    error = send_error(transport(plain))

    assert (type(error), error.reason) == (kind, reason)
    assert plain.deliveries() == []


def test_greylisted_mail_is_accepted_at_the_second_attempt(plain: MailServer) -> None:
    plain.behave(Behavior(greylist=True))

    error = send_error(transport(plain))
    send(transport(plain))

    assert error == MailDelayedError("451 4.7.1 <address>: greylisted, try again", 451)
    assert len(plain.deliveries()) == 1


def test_session_continues_after_a_rejected_mail(plain: MailServer) -> None:
    smtp = transport(plain)
    with smtp.connect() as session:
        with pytest.raises(MailRejectedError):
            session.send("not an address", mail)
        plain.behave(Behavior(rcpt="550 no"))
        with pytest.raises(MailRejectedError):
            session.send("ada@example.com", mail)
        plain.behave(Behavior())

        session.send("bob@example.com", lambda: mail("bob@example.com"))

    assert [delivery.recipient for delivery in plain.deliveries()] == ["bob@example.com"]


def test_link_is_made_only_for_an_accepted_recipient(plain: MailServer) -> None:
    plain.behave(Behavior(rcpt="450 later"))
    calls: list[str] = []

    def compose() -> Mail:
        calls.append("composed")
        return mail()

    with transport(plain).connect() as session, pytest.raises(MailDelayedError):
        session.send("ada@example.com", compose)

    assert calls == []


def test_error_while_composing_ends_the_mail_but_not_the_session(plain: MailServer) -> None:
    def fail() -> Mail:
        raise LookupError

    with transport(plain).connect() as session:
        with pytest.raises(LookupError):
            session.send("ada@example.com", fail)
        session.send("ada@example.com", mail)

    assert len(plain.deliveries()) == 1


# --- addresses


def test_international_address_uses_smtputf8(plain: MailServer) -> None:
    send(transport(plain), mail("ådå@exämple.com"))

    (delivery,) = plain.deliveries()
    assert (delivery.recipient, "SMTPUTF8" in delivery.options) == ("ådå@exämple.com", True)
    assert delivery.message["To"] == "ådå@exämple.com"


def test_international_domain_is_encoded_without_smtputf8(tmp_path: Path) -> None:
    with MailServer(tmp_path, utf8=False) as server:
        send(transport(server), mail("ada@exämple.com"))
        error = send_error(transport(server), mail("ådå@example.com"))

        assert [delivery.recipient for delivery in server.deliveries()] == ["ada@xn--exmple-cua.com"]
    assert error == MailRejectedError("the mail server does not support SMTPUTF8, which this address needs")


@pytest.mark.parametrize("local", ["a,b", "a;b", "a(b)", "a:b", 'a"b', "a<b>", "a\\b"])
def test_special_characters_in_an_address_are_quoted(plain: MailServer, local: str) -> None:
    smtp = transport(plain)
    try:
        send(smtp, mail(f"{local}@example.com"))
    except (MailRejectedError, MailServerError):
        assert plain.deliveries() == []  # the server cannot parse such an address
    else:
        escaped = local.replace("\\", "\\\\").replace('"', '\\"')
        assert [delivery.recipient for delivery in plain.deliveries()] == [f'"{escaped}"@example.com']


@pytest.mark.parametrize(
    "address",
    [
        "ada@example.com\r\nRCPT TO:<eve@example.com>",
        "ada@example.com\nBcc: eve@example.com",
        "ada@example.com> NOTIFY=SUCCESS",
        "eve@example.com, ada@example.com",
        "ada@\x00example.com",
        "ada",
        "",
    ],
)
def test_address_cannot_inject_commands_or_headers(plain: MailServer, address: str) -> None:
    assert send_error(transport(plain), mail(address)) == MailRejectedError("the address is not valid: change it")
    assert plain.deliveries() == []


# --- hanging and dying servers


def elapsed(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


@pytest.mark.parametrize("hang_at", ["greeting", "EHLO", "MAIL", "RCPT", "DATA"])
def test_server_that_hangs_does_not_hang_the_sender(plain: MailServer, hang_at: str) -> None:
    plain.behave(Behavior(hang_at=hang_at))

    assert elapsed(lambda: send_error(transport(plain))) < 20 * SOON


def test_server_that_sends_a_byte_at_a_time_reaches_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    while True:
                        connection.sendall(b"2")
                        time.sleep(SOON / 10)
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        server = SmtpServer(host="127.0.0.1", port=listener.getsockname()[1], is_tls=False)
        smtp = SmtpTransport(server, SENDER, connect_seconds=SOON, reply_seconds=SOON, deadline_seconds=SOON)

        error = send_error(smtp)
        thread.join()

    assert isinstance(error, MailServerError)


def test_server_that_dies_after_the_mail_keeps_it_waiting(plain: MailServer) -> None:
    plain.behave(Behavior(dies_after_data=True))

    error = send_error(transport(plain))

    assert error == MailServerError("it closed the connection, or did not reply in time")
    assert len(plain.deliveries()) == 1


def test_missing_server_is_reported() -> None:
    port = free_port()
    smtp = SmtpTransport(SmtpServer(host="127.0.0.1", port=port, is_tls=False), SENDER)

    assert send_error(smtp) == MailServerError(
        f"cannot connect to 127.0.0.1:{port} (Connection refused): check mail.url"
    )


def test_unknown_host_is_reported() -> None:
    smtp = SmtpTransport(SmtpServer(host="mail.invalid", port=25, is_tls=False), SENDER)

    assert "cannot connect to mail.invalid:25 (" in send_error(smtp).reason


def test_server_that_speaks_another_protocol_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")
                connection.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        error = send_error(
            SmtpTransport(SmtpServer(host="127.0.0.1", port=listener.getsockname()[1], is_tls=False), SENDER)
        )
        thread.join()

    assert error == MailServerError("it does not answer like a mail server: check the host and port in mail.url", -1)


def test_session_can_be_aborted_from_another_thread(plain: MailServer) -> None:
    plain.behave(Behavior(hang_at="DATA"))
    smtp = SmtpTransport(SmtpServer(host="127.0.0.1", port=plain.port, is_tls=False), SENDER)
    timer = threading.Timer(SOON, smtp.abort)
    timer.start()

    assert elapsed(lambda: send_error(smtp)) < 20 * SOON
    smtp.abort()  # does nothing without a session


@contextmanager
def scripted(talk: Callable[[socket.socket], object]) -> Iterator[SmtpServer]:
    """Run a server that talks to one client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                talk(connection)

        thread = threading.Thread(target=answer)
        thread.start()
        yield SmtpServer(host="127.0.0.1", port=listener.getsockname()[1], is_tls=False)
        thread.join()


def reply_each(*replies: bytes) -> Callable[[socket.socket], object]:
    """Return a function that sends these replies, and waits for a command after each."""

    def talk(connection: socket.socket) -> None:
        for reply in replies:
            connection.sendall(reply)
            connection.recv(1000)
        connection.recv(1000)

    return talk


def test_handshake_that_hangs_can_be_aborted() -> None:
    with scripted(reply_each(b"220 hello\r\n", b"250-x\r\n250 STARTTLS\r\n", b"220 go\r\n")) as server:
        smtp = SmtpTransport(server, SENDER)
        threading.Timer(SOON, smtp.abort).start()

        assert elapsed(lambda: send_error(smtp)) < 20 * SOON


def test_late_connection_is_cut_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.create_connection

    def connect_late(*arguments: Any) -> socket.socket:
        time.sleep(SOON)
        return connect(*arguments)

    with scripted(lambda connection: connection.recv(1000)) as server:
        monkeypatch.setattr(socket, "create_connection", connect_late)
        smtp = SmtpTransport(server, SENDER, deadline_seconds=SOON / 5)

        assert elapsed(lambda: send_error(smtp)) < 20 * SOON


def test_endless_reply_is_cut() -> None:
    sent_bytes = 0

    def talk(connection: socket.socket) -> None:
        nonlocal sent_bytes
        while True:
            sent_bytes += connection.send(b"220-" + b"x" * 1000 + b"\r\n")

    with scripted(talk) as server:
        error = send_error(SmtpTransport(server, SENDER))

    assert isinstance(error, MailServerError)
    assert sent_bytes < 100 * MAX_REPLY_BYTES


def test_busy_server_does_not_reject_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlapi.adapters.smtp._start_tls", lambda *_: None)
    with scripted(reply_each(b"220 hello\r\n", b"250-x\r\n250 AUTH PLAIN\r\n", b"454 later\r\n")) as server:
        error = send_error(SmtpTransport(attrs.evolve(server, username="ada", password="x"), SENDER))

    assert error == MailServerError("it cannot check the password now (454)", 454)


def test_server_that_breaks_the_protocol_is_reported() -> None:
    replies = iter([b"220 hello\r\n", b"250-x\r\n250 AUTH PLAIN\r\n", b"x" * 9000 + b"\r\n"])
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                for reply in replies:
                    connection.sendall(reply)
                    connection.recv(1000)

        thread = threading.Thread(target=answer)
        thread.start()
        server = SmtpServer(host="127.0.0.1", port=listener.getsockname()[1], is_tls=False)
        error = send_error(SmtpTransport(server, SENDER, reply_seconds=SOON))
        thread.join()

    assert isinstance(error, MailServerError)


def test_server_that_refuses_to_talk_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(b"220 hello\r\n")
                while connection.recv(1000):
                    connection.sendall(b"502 no\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        server = SmtpServer(host="127.0.0.1", port=listener.getsockname()[1], is_tls=False)
        error = send_error(SmtpTransport(server, SENDER, reply_seconds=SOON))
        thread.join()

    assert isinstance(error, MailServerError)


def test_host_that_does_not_answer_is_reported() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        server = SmtpServer(host="127.0.0.1", port=full.getsockname()[1], is_tls=False)

        error = send_error(SmtpTransport(server, SENDER, connect_seconds=SOON))

        for filler in fillers:
            filler.close()

    assert "does not reply: check mail.url and the network" in error.reason


def test_domain_that_cannot_be_encoded_is_rejected(tmp_path: Path) -> None:
    with MailServer(tmp_path, utf8=False) as server:
        error = send_error(transport(server), mail(f"ada@{'ü' * 60}.com"))

    assert error == MailRejectedError("the domain of the address cannot be written in ASCII")
