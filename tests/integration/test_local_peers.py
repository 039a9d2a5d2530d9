"""The owner of the program at the other end of a connection, as the kernel of this machine reports it."""

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mlapi.domain.errors import ServiceUnavailableError
from mlapi.entrypoints import local_peers
from mlapi.entrypoints.local_peers import PeerOwners, describe_trusted_peers, trust_any_peer
from mlapi.entrypoints.wire.client import Client
from tests.system_programs import require_program

OTHER_USER = 54321
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the owner of a connection")
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="not tested with other users: only root can run programs as another user"
)
pytestmark = needs_linux

LISTENERS: dict[str, tuple[socket.AddressFamily, str, bool]] = {
    "IPv4": (socket.AF_INET, "127.0.0.1", False),
    "IPv6": (socket.AF_INET6, "::1", False),
    "dual stack": (socket.AF_INET6, "::", True),
}


@pytest.fixture(params=LISTENERS)
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family, host, is_dual_stack = LISTENERS[request.param]
    with socket.create_server((host, 0), family=family, dualstack_ipv6=is_dual_stack) as listener:
        yield listener


@pytest.fixture(params=["sock_diag", "table of connections"])
def _source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel answer through sock_diag, or forbid that, as systemd can."""
    if request.param == "table of connections":
        monkeypatch.setattr("mlapi.entrypoints.local_peers.socket.AF_NETLINK", 250)  # an unknown address family


def client_of(accepted: socket.socket) -> Client:
    """Return the client that an ASGI server reports for an accepted connection."""
    return Client.from_asgi(
        {
            "path": "/users",
            "http_version": "1.1",
            "headers": [],
            "client": accepted.getpeername()[:2],
            "server": accepted.getsockname()[:2],
        }
    )


def address_of(listener: socket.socket) -> tuple[str, int]:
    host, port = listener.getsockname()[:2]
    return ("127.0.0.1" if host == "::" else host), port


@contextmanager
def accepted_from(listener: socket.socket, user: int) -> Iterator[Client]:
    """Accept a connection of a program that runs as another user."""
    host, port = address_of(listener)
    target = f"TCP6:[{host}]:{port}" if ":" in host else f"TCP4:{host}:{port}"
    with ExitStack() as stack:
        program = stack.enter_context(
            subprocess.Popen([require_program("socat"), "-", target], stdin=subprocess.PIPE, cwd="/", user=user)
        )
        stack.callback(program.kill)
        accepted, _ = listener.accept()
        stack.callback(accepted.close)
        yield client_of(accepted)


@pytest.mark.usefixtures("_source")
def test_peer_of_the_same_user_is_trusted(listener: socket.socket) -> None:
    with socket.create_connection(address_of(listener)), listener.accept()[0] as accepted:
        is_trusted = PeerOwners()(client_of(accepted))

    assert is_trusted


@pytest.mark.usefixtures("_source")
def test_ipv6_socket_with_an_ipv4_address_is_found() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_INET6) as connection,
    ):
        connection.connect(("::ffff:127.0.0.1", listener.getsockname()[1]))
        with listener.accept()[0] as accepted:
            is_trusted = PeerOwners()(client_of(accepted))

    assert is_trusted


@pytest.mark.usefixtures("_source")
def test_half_closed_connection_has_an_owner() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as connection,
        listener.accept()[0] as accepted,
    ):
        connection.shutdown(socket.SHUT_WR)
        is_trusted = PeerOwners()(client_of(accepted))

    assert is_trusted


@needs_root
@pytest.mark.usefixtures("_source")
def test_peer_of_another_user_is_not_trusted(listener: socket.socket) -> None:
    with accepted_from(listener, OTHER_USER) as client:
        is_trusted = PeerOwners()(client)

    assert not is_trusted


@needs_root
@pytest.mark.usefixtures("_source")
def test_root_and_own_user_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlapi.entrypoints.local_peers.os.geteuid", lambda: OTHER_USER)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        with accepted_from(listener, 0) as client:
            root_is_trusted = PeerOwners()(client)
        with accepted_from(listener, OTHER_USER) as client:
            own_user_is_trusted = PeerOwners()(client)
        with accepted_from(listener, OTHER_USER + 1) as client:
            other_user_is_trusted = PeerOwners()(client)

    assert (root_is_trusted, own_user_is_trusted, other_user_is_trusted) == (True, True, False)
    assert describe_trusted_peers().startswith(f"programs on this machine that run as user {OTHER_USER} or root")


@pytest.mark.usefixtures("_source")
@pytest.mark.parametrize("reads_all", [True, False], ids=["graceful", "reset"])
def test_closed_peer_is_not_trusted(reads_all: bool) -> None:
    # The kernel reports root as the owner of a socket that its program has closed.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        client = client_of(accepted)
        if not reads_all:
            accepted.send(b"unread")
            time.sleep(0.05)
        connection.close()
        is_trusted = PeerOwners()(client)
        accepted.close()

    assert not is_trusted


@pytest.mark.usefixtures("_source")
def test_listening_socket_on_the_peer_port_is_not_the_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as other:
        scope = {"path": "/", "http_version": "1.1", "headers": []}
        client = Client.from_asgi({**scope, "client": other.getsockname(), "server": listener.getsockname()})
        is_trusted = PeerOwners()(client)

    assert not is_trusted


@pytest.mark.parametrize(
    ("peer", "server"),
    [(None, None), (("127.0.0.1", 5), ("/run/mlapi.sock", None)), (("testclient", 50000), ("testserver", 80))],
    ids=["none", "Unix socket", "no addresses"],
)
def test_peer_without_addresses_is_not_trusted(peer: object, server: object) -> None:
    client = Client.from_asgi({"path": "/", "http_version": "1.1", "headers": [], "client": peer, "server": server})

    assert not PeerOwners()(client)


def count_lookups(monkeypatch: pytest.MonkeyPatch) -> list[Client]:
    looked_up: list[Client] = []
    find_owner: Callable[[Client], int | None] = local_peers._find_owner

    def counting(client: Client) -> int | None:
        looked_up.append(client)
        return find_owner(client)

    monkeypatch.setattr(local_peers, "_find_owner", counting)
    return looked_up


def test_kernel_is_asked_once_per_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = count_lookups(monkeypatch)
    scope = {"path": "/", "http_version": "1.1", "headers": [], "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 6)}
    reused_port = {**scope, "client": ("127.0.0.1", int("5"))}
    owners = PeerOwners()

    for each in (scope, scope, reused_port, reused_port):
        owners(Client.from_asgi(each))

    assert len(looked_up) == 2


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE], ids=errno.errorcode.get)
def test_owner_is_looked_up_again_after_a_shortage(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    owners = PeerOwners()
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        client = client_of(accepted)
        with monkeypatch.context() as patched:
            patched.setattr(local_peers, "_ask_kernel", fail)
            with pytest.raises(ServiceUnavailableError):
                owners(client)
        is_trusted = owners(client)

    assert is_trusted


def test_remembered_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_peers, "_MAX_CACHED_CONNECTIONS", 3)
    owners = PeerOwners()

    for port in range(10):
        owners(Client.from_asgi({"path": "/", "http_version": "1.1", "headers": [], "client": ("127.0.0.1", port)}))

    assert len(owners._cache) <= 3


def test_id_of_unmapped_users_does_not_count_as_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        monkeypatch.setattr(local_peers, "_overflow_user_id", os.geteuid)
        is_trusted = PeerOwners()(client_of(accepted))

    assert not is_trusted


@pytest.mark.parametrize(
    ("user_id_map", "expected"),
    [("         0          0 4294967295\n", None), ("0 1000 1\n1 100000 65536\n", 65534), (None, None)],
    ids=["all users", "user namespace", "unreadable"],
)
def test_overflow_id_is_known_in_a_user_namespace(
    user_id_map: str | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {"/proc/self/uid_map": user_id_map, "/proc/sys/kernel/overflowuid": "65534\n"}

    def read(path: Path, _encoding: str) -> str:
        text = contents[str(path)]
        if text is None:
            raise FileNotFoundError(path)
        return text

    local_peers._overflow_user_id.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr("mlapi.entrypoints.local_peers.Path.read_text", read)
        found = local_peers._overflow_user_id()
    local_peers._overflow_user_id.cache_clear()

    assert found == expected


def test_systems_without_owners_trust_every_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlapi.entrypoints.local_peers.sys.platform", "darwin")
    client = Client.from_asgi({"path": "/", "http_version": "1.1", "headers": [], "client": ("127.0.0.1", 1)})

    assert PeerOwners()(client)
    assert describe_trusted_peers() == "programs on this machine that send no proxy headers"


def test_any_peer_can_be_trusted_in_tests() -> None:
    assert trust_any_peer(Client.from_asgi({"path": "/", "http_version": "1.1", "headers": []}))


def test_missing_table_of_connections_means_no_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_peers, "_CONNECTION_TABLES", ("/proc/net/missing",))
    monkeypatch.setattr("mlapi.entrypoints.local_peers.socket.AF_NETLINK", 250)
    client = Client.from_asgi(
        {"path": "/", "http_version": "1.1", "headers": [], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)}
    )

    assert not PeerOwners()(client)
