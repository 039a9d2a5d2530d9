"""The privileges that mlapi needs in a database, and its TLS connections to the database server."""

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

from mlapi import ConfigurationError, InvalidTokenError, RepositoryUnavailableError
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.urls import database_url
from mlapi.bootstrap import open_service, upgrade_database
from mlapi.config import load_settings
from mlapi.secret_store import new_key
from tests.postgres_server import PostgresServer

ROLE, ROLE_PASSWORD = "mlapi_service", "a-password-of-the-service"
SSL_REQUEST = bytes.fromhex("0000000804d2162f")  # PostgreSQL 18, chapter 54.2.10

# --- privileges


@pytest.fixture
def limited_account_url(
    postgres: PostgresServer, postgres_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[URL]:
    """Yield the URL of a prepared database, with an account that may only read and write rows."""
    monkeypatch.chdir(tmp_path)  # the secrets are generated here
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


def test_privileges_to_read_and_write_rows_are_sufficient(limited_account_url: URL) -> None:
    environ = {
        "MLAPI_PROFILE": "production",
        "MLAPI_DATABASE__URL": limited_account_url.render_as_string(hide_password=False),
        "MLAPI_SECRETS__KEY": new_key(),
        "MLAPI_SECRETS__SALT": "a salt of this test",
        "MLAPI_SECRETS__ADMIN_TOKEN": "an-admin-token-of-32-characters-",
    }
    with open_service(load_settings(environ=environ)) as service:
        users, access = service.users, service.access
        ada = users.register(username="ada", password="difference engine", email="ada@example.com")
        token = access.authenticator.log_in(username="ada", password="difference engine", address="192.0.2.1").token
        key, api_key = users.add_api_key(user_id=ada.id, name="job")
        admitted = [access.guard.check(credential).id for credential in (token, api_key)]
        users.set_password(user_id=ada.id, password="analytical engine")
        with pytest.raises(InvalidTokenError):
            access.guard.check(token)
        users.remove_api_key(key.id)
        users.remove(user_id=ada.id)

        assert admitted == [ada.id, ada.id]
        assert [entry.action for entry in reversed(users.list_audit_page())] == [
            *("register", "add_api_key", "set_password", "remove_api_key", "remove"),
        ]
    url = limited_account_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("CREATE TABLE mine (id int)")


# --- TLS


@attrs.frozen
class Authority:
    """A certificate authority for a test."""

    certificate: Path
    localhost_chain: Path
    """A certificate for localhost, issued by the authority, and its private key."""


def create_authority(folder: Path, name: str) -> Authority:
    now = datetime.now(UTC)
    authority_key, localhost_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    localhost = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])

    def certificate_builder(subject: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
        )

    root = certificate_builder(issuer, authority_key.public_key()).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    leaf = certificate_builder(localhost, localhost_key.public_key()).add_extension(
        x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False
    )
    pem = serialization.Encoding.PEM
    private_key = localhost_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    authority = Authority(folder / f"{name}.crt", folder / f"{name}-localhost.pem")
    authority.certificate.write_bytes(root.sign(authority_key, hashes.SHA256()).public_bytes(pem))
    authority.localhost_chain.write_bytes(leaf.sign(authority_key, hashes.SHA256()).public_bytes(pem) + private_key)
    return authority


class TlsServer:
    """A fake PostgreSQL server that records the client's first message and then closes the connection."""

    def __init__(self, chain: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(chain)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.received: list[bytes] = []
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
                request = connection.recv(8)
                if request != SSL_REQUEST:
                    self.received.append(b"unencrypted: " + request)
                    continue
                connection.sendall(b"S")
                try:
                    with self._context.wrap_socket(connection, server_side=True) as encrypted:
                        self.received.append(encrypted.recv(1000))
                except OSError:
                    continue


@pytest.fixture
def start_tls_server() -> Iterator[Callable[[Path], TlsServer]]:
    servers: list[TlsServer] = []

    def start(chain: Path) -> TlsServer:
        servers.append(TlsServer(chain))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def fail_to_query(server: TlsServer, **options: str) -> None:
    """Connect to a server and expect an error, because the server never responds."""
    query = "&".join(f"{name}={value}" for name, value in options.items())
    url = database_url(f"postgresql://ada:c4n4ry@localhost:{server.port}/mlapi?hostaddr=127.0.0.1&{query}")
    with Database(url, timeout_seconds=2) as database, pytest.raises(RepositoryUnavailableError):
        database.read(lambda connection: connection.exec_driver_sql("SELECT 1"))


def test_required_encryption_never_falls_back_to_plain_text(postgres: PostgresServer, postgres_url: URL) -> None:
    for mode in ("require", "verify-ca", "verify-full"):
        url = postgres_url.update_query_dict(
            {"sslmode": mode, "sslrootcert": "system" if mode == "verify-full" else ""}
        )
        with Database(url, timeout_seconds=2) as database, pytest.raises(RepositoryUnavailableError) as caught:
            database.read(lambda connection: connection.exec_driver_sql("SELECT 1"))

        assert "check sslmode" in str(caught.value)


@pytest.mark.parametrize("option", ["sslmode", "sslmode=", "sslmode=disable&sslmode=verify-full"])
def test_encryption_is_never_required_without_effect(option: str) -> None:
    with pytest.raises(ConfigurationError, match="sslmode"):
        database_url(f"postgresql://ada:c4n4ry@localhost/mlapi?{option}")


def test_server_with_an_untrusted_certificate_receives_nothing(
    tmp_path: Path, start_tls_server: Callable[[Path], TlsServer]
) -> None:
    trusted, untrusted = create_authority(tmp_path, "trusted"), create_authority(tmp_path, "untrusted")
    genuine = start_tls_server(trusted.localhost_chain)
    forged = start_tls_server(untrusted.localhost_chain)

    for server in (genuine, forged):
        fail_to_query(server, sslmode="verify-full", sslrootcert=str(trusted.certificate))

    assert b"".join(forged.received) == b""
    assert all(b"user\0ada\0" in message and b"unencrypted" not in message for message in genuine.received)
    assert genuine.received


def test_server_with_a_mismatched_host_name_receives_nothing(
    tmp_path: Path, start_tls_server: Callable[[Path], TlsServer]
) -> None:
    trusted = create_authority(tmp_path, "trusted")
    server = start_tls_server(trusted.localhost_chain)

    url = database_url(
        f"postgresql://ada:c4n4ry@127.0.0.1:{server.port}/mlapi?sslmode=verify-full&sslrootcert={trusted.certificate}"
    )
    with Database(url, timeout_seconds=2) as database, pytest.raises(RepositoryUnavailableError):
        database.read(lambda connection: connection.exec_driver_sql("SELECT 1"))

    assert b"".join(server.received) == b""
