"""What mlapi needs of a database server, no more, and what it believes of one: rights of its account, and TLS."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import URL

from mlapi import InvalidTokenError, RepositoryUnavailableError
from mlapi.adapters.sql import Database, database_url
from mlapi.bootstrap import open_service, upgrade_database
from mlapi.config import load_settings
from mlapi.secret_store import new_key
from tests.postgres_server import PostgresServer

ROLE, ROLE_PASSWORD = "mlapi_service", "a-password-of-the-service"
SSL_REQUEST = bytes.fromhex("0000000804d2162f")  # PostgreSQL's protocol, 54.2.10

# --- rights


@pytest.fixture
def with_few_rights(postgres: PostgresServer, postgres_url: URL) -> Iterator[URL]:
    """The URL of a database whose schema is there, for an account that may read and write its rows."""
    settings = load_settings(environ={"MLAPI_DATABASE__URL": postgres_url.render_as_string(hide_password=False)})
    upgrade_database(settings)
    name = postgres_url.database or ""
    postgres.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{ROLE_PASSWORD}'")
    for statement in (
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {ROLE}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {ROLE}",
    ):
        postgres.execute(statement, name)
    yield postgres_url.set(username=ROLE, password=ROLE_PASSWORD)
    postgres.execute(f"DROP OWNED BY {ROLE}", name)
    postgres.execute(f"DROP ROLE {ROLE}")


def test_account_that_may_read_and_write_rows_is_sufficient(
    with_few_rights: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {
        "MLAPI_PROFILE": "production",
        "MLAPI_DATABASE__URL": with_few_rights.render_as_string(hide_password=False),
        "MLAPI_SECRETS__KEY": new_key(),
        "MLAPI_SECRETS__SALT": "a salt of this test",
        "MLAPI_SECRETS__ADMIN_TOKEN": "an-admin-token-of-32-characters-",
    }
    with open_service(load_settings(environ=environ)) as opened:
        users, access = opened.users, opened.access
        ada = users.register(username="ada", password="difference engine", email="ada@example.com")
        token = access.authenticator.log_in(username="ada", password="difference engine", address="192.0.2.1").token
        key, shown = users.add_api_key(user_id=ada.id, name="job")
        admitted = [access.guard.check(credential).id for credential in (token, shown)]
        users.set_password(user_id=ada.id, password="analytical engine")
        with pytest.raises(InvalidTokenError):
            access.guard.check(token)
        users.remove_api_key(key.id)
        users.remove(user_id=ada.id)

        assert admitted == [ada.id, ada.id]
        assert [entry.action for entry in reversed(users.list_audit_page())] == [
            *("register", "add_api_key", "set_password", "remove_api_key", "remove"),
        ]
    own = with_few_rights.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(own) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("CREATE TABLE mine (id int)")


# --- TLS


@attrs.frozen
class Authority:
    """A certificate authority of this test, and a certificate of it for localhost."""

    certificate: Path
    chain: Path
    """The certificate for localhost, and its key."""


def authority(folder: Path, name: str) -> Authority:
    now, own_key, key = (
        datetime.now(UTC),
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])

    def builder(whose: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(whose)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
        )

    root = builder(issuer, own_key.public_key()).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    leaf = builder(subject, key.public_key()).add_extension(
        x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    made = Authority(folder / f"{name}.crt", folder / f"{name}-localhost.pem")
    made.certificate.write_bytes(root.sign(own_key, hashes.SHA256()).public_bytes(pem))
    made.chain.write_bytes(leaf.sign(own_key, hashes.SHA256()).public_bytes(pem) + secret)
    return made


class TlsServer:
    """What a PostgreSQL server does until it is told who is there; it closes then."""

    def __init__(self, chain: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(chain)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.told: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                asked = connection.recv(8)
                if asked != SSL_REQUEST:
                    self.told.append(b"in plain: " + asked)
                    continue
                connection.sendall(b"S")
                try:
                    with self._context.wrap_socket(connection, server_side=True) as encrypted:
                        self.told.append(encrypted.recv(1000))
                except OSError:
                    continue


@pytest.fixture
def serving() -> Iterator[Callable[[Path], TlsServer]]:
    started: list[TlsServer] = []

    def start(chain: Path) -> TlsServer:
        started.append(TlsServer(chain))
        return started[-1]

    yield start
    for server in started:
        server.close()


def ask(server: TlsServer, **options: str) -> None:
    """Ask a database something; nothing comes of it, as the server tells nothing."""
    query = "&".join(f"{name}={value}" for name, value in options.items())
    url = database_url(f"postgresql://ada:c4n4ry@localhost:{server.port}/mlapi?hostaddr=127.0.0.1&{query}")
    with Database(url, timeout_seconds=2) as database, pytest.raises(RepositoryUnavailableError):
        database.read(lambda connection: connection.exec_driver_sql("SELECT 1"))


def test_required_encryption_is_never_skipped(postgres: PostgresServer, postgres_url: URL) -> None:
    for mode in ("require", "verify-ca", "verify-full"):
        url = postgres_url.update_query_dict(
            {"sslmode": mode, "sslrootcert": "system" if mode == "verify-full" else ""}
        )
        with Database(url, timeout_seconds=2) as database, pytest.raises(RepositoryUnavailableError) as refusal:
            database.read(lambda connection: connection.exec_driver_sql("SELECT 1"))

        assert "SSL" in str(refusal.value.__cause__)


def test_server_with_an_untrusted_certificate_receives_nothing(
    tmp_path: Path, serving: Callable[[Path], TlsServer]
) -> None:
    ours, another = authority(tmp_path, "ours"), authority(tmp_path, "another")
    genuine, forged = serving(ours.chain), serving(another.chain)

    for server in (genuine, forged):
        ask(server, sslmode="verify-full", sslrootcert=str(ours.certificate))

    assert b"".join(forged.told) == b""
    assert all(b"user\0ada\0" in told and b"in plain" not in told for told in genuine.told)
    assert genuine.told


def test_server_with_another_name_receives_nothing(tmp_path: Path, serving: Callable[[Path], TlsServer]) -> None:
    ours = authority(tmp_path, "ours")
    server = serving(ours.chain)

    url = database_url(
        f"postgresql://ada:c4n4ry@127.0.0.1:{server.port}/mlapi?sslmode=verify-full&sslrootcert={ours.certificate}"
    )
    with Database(url, timeout_seconds=2) as database, pytest.raises(RepositoryUnavailableError):
        database.read(lambda connection: connection.exec_driver_sql("SELECT 1"))

    assert b"".join(server.told) == b""
