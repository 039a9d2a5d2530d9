"""Bind the sockets of ``mlapi serve``, and describe why a socket cannot be used."""

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from click.testing import CliRunner

from mlapi.domain.errors import ConfigurationError
from mlapi.entrypoints.cli import main
from mlapi.entrypoints.server import tcp_sockets, unix_sockets
from mlapi.entrypoints.server.arguments import SupervisorArguments
from mlapi.entrypoints.server.inherited_sockets import adopt_socket
from mlapi.entrypoints.server.listeners import (
    BACKLOG,
    close_all,
    describe_listener,
    drain_backlog,
    is_listening,
    start_listening,
    stop_listening,
)
from mlapi.entrypoints.server.open_files import MIN_OPEN_FILES, needed_files
from mlapi.entrypoints.server.processes import Timeouts
from mlapi.entrypoints.server.supervisor import _console_url
from mlapi.entrypoints.server.tcp_sockets import bind_hosts
from mlapi.entrypoints.server.unix_sockets import bind_path


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a Unix socket."""
    with TemporaryDirectory() as name:
        yield Path(name)


def names(bound: list[list[socket.socket]]) -> list[list[tuple[str, int]]]:
    """Close the sockets, and return their addresses and ports."""
    found = [[listener.getsockname()[:2] for listener in copies] for copies in bound]
    for copies in bound:
        close_all(copies)
    return found


# --- hosts


@pytest.mark.parametrize("hosts", [["127.0.0.1", "::1"], ["0.0.0.0", "::"], ["::1", "127.0.0.1", "::1"]])
def test_several_hosts_share_one_free_port(hosts: list[str]) -> None:
    found = names(bind_hosts(hosts, 0, 2))

    ports = {port for copies in found for _address, port in copies}
    assert [copies[0][0] for copies in found] == list(dict.fromkeys(hosts))
    assert [len(copies) for copies in found] == [2, 2]
    assert len(ports) == 1


def test_host_name_stands_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0] for host in ("::1", "127.0.0.1", "127.0.0.1")]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **_options: both)

    found = names(bind_hosts(["localhost"], 0, 1))

    assert [copies[0][0] for copies in found] == ["::1", "127.0.0.1"]


def test_another_free_port_is_chosen_if_it_is_taken_on_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    bind_copies, calls = tcp_sockets._bind_copies, []

    def fail_once(family: socket.AddressFamily, address: tuple[object, ...], copies: int) -> list[socket.socket]:
        calls.append(address)
        if len(calls) == 2:
            raise OSError(errno.EADDRINUSE, "")
        return bind_copies(family, address, copies)

    monkeypatch.setattr(tcp_sockets, "_bind_copies", fail_once)

    found = names(bind_hosts(["127.0.0.1", "::1"], 0, 1))

    assert len(calls) == 4
    assert len(found) == 2


def test_port_taken_on_every_attempt_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(family: socket.AddressFamily, *_arguments: object) -> list[socket.socket]:
        if family == socket.AF_INET:
            return [socket.create_server(("127.0.0.1", 0))]
        raise OSError(errno.EADDRINUSE, "")

    monkeypatch.setattr(tcp_sockets, "_bind_copies", fail)

    with pytest.raises(ConfigurationError, match=r"cannot listen on ::1 port [1-9][0-9]*: address already in use"):
        bind_hosts(["127.0.0.1", "::1"], 0, 1)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "cannot assign requested address"),
        ("no such host.invalid", "name or service not known"),
        ("\udcff" * 70, "invalid host name"),
    ],
)
def test_invalid_host_is_reported_and_others_are_released(host: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=f"port [0-9]+: {reason}; change --host or --port"):
        bind_hosts(["127.0.0.1", host], 0, 1)


# --- Unix sockets


def test_unix_socket_replaces_a_stale_file_and_removes_its_own(folder: Path) -> None:
    path = folder / "mlapi.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))

    listener, file = bind_path(str(path), 0o640)
    mode = path.lstat().st_mode
    file.remove()

    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode), describe_listener(listener)) == (True, 0o640, f"unix:{path}")
    assert not path.exists()
    file.remove()
    listener.close()


def test_unix_socket_of_a_successor_is_not_removed(folder: Path) -> None:
    path = folder / "mlapi.sock"
    first, file = bind_path(str(path), 0o600)
    first.close()
    path.rename(folder / "old.sock")
    second, _ = bind_path(str(path), 0o600)

    file.remove()

    assert path.exists()
    second.close()


@pytest.mark.parametrize("kind", ["bound", "listening", "full", "bound without /proc"])
def test_unix_socket_in_use_is_kept(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "mlapi.sock"
    with ExitStack() as stack:
        other = stack.enter_context(socket.socket(socket.AF_UNIX))
        other.bind(str(path))
        if kind != "bound":
            other.listen(0)
        if kind == "full":
            for _ in range(2):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                try:
                    client.connect(str(path))
                except BlockingIOError:
                    break
        if "without" in kind:
            monkeypatch.setattr(unix_sockets, "_BOUND_SOCKETS", folder / "missing")
        with pytest.raises(ConfigurationError, match=r"another process is using this socket; change --uds or stop"):
            bind_path(str(path), 0o600)
        assert path.exists()


def test_stale_socket_is_recognized_without_proc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "mlapi.sock"
    monkeypatch.setattr(unix_sockets, "_BOUND_SOCKETS", folder / "missing")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))

    listener, file = bind_path(str(path), 0o600)

    file.remove()
    listener.close()


def test_file_that_is_no_socket_is_never_replaced(folder: Path) -> None:
    target = folder / "target"
    target.write_text("kept")
    (folder / "link").symlink_to(target)

    for path in (target, folder / "link", folder):
        with pytest.raises(ConfigurationError, match="it exists and is not a socket; change --uds or remove it"):
            bind_path(str(path), 0o600)

    assert target.read_text() == "kept"


@pytest.mark.parametrize(
    ("name", "reason"), [("missing/mlapi.sock", "no such file or directory"), ("x" * 200, "AF_UNIX path too long")]
)
def test_path_that_cannot_be_created_is_reported(name: str, reason: str, folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"{reason}; change --uds"):
        bind_path(str(folder / name), 0o600)


def test_bind_path_closes_the_socket_after_other_errors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(unix_sockets, "_remove_stale", interrupt)

    with pytest.raises(KeyboardInterrupt):
        bind_path(str(folder / "mlapi.sock"), 0o600)


def test_unix_socket_that_stops_listening_listens_again(folder: Path) -> None:
    path = str(folder / "mlapi.sock")
    listener, file = bind_path(path, 0o600)
    listener.settimeout(0)
    stop_listening(listener)  # does nothing yet
    assert not is_listening(listener)
    start_listening(listener)
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.settimeout(5)
        waiting.connect(path)
        stop_listening(listener)
        assert waiting.recv(1) == b""  # the connection was closed

    start_listening(listener)

    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        assert BACKLOG > 10
    file.remove()
    listener.close()


def test_draining_leaves_no_filter_on_shared_listeners() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(drain_backlog(listener, is_shared=True))

        with socket.create_connection(listener.getsockname(), timeout=5):  # a filter would drop its first packet
            pass


# --- inherited sockets


def test_inherited_listener_is_adopted(folder: Path) -> None:
    for family, address in ((socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, str(folder / "mlapi.sock"))):
        with socket.socket(family) as listener:
            listener.bind(address)
            adopted = adopt_socket(os.dup(listener.fileno()))
            assert adopted.getsockname() == listener.getsockname()
            adopted.close()


def test_unusable_descriptors_are_reported(folder: Path) -> None:
    with ExitStack() as stack:
        file = stack.enter_context((folder / "file").open("w"))
        datagram = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        unbound = stack.enter_context(socket.socket())
        unbound_unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        first, second = map(stack.enter_context, socket.socketpair())
        problems = {
            file.fileno(): "is not an open socket",
            datagram.fileno(): "is not a TCP or Unix stream socket",
            unbound.fileno(): "is not bound to an address",
            unbound_unix.fileno(): "is not bound to an address",
            first.fileno(): "is connected to a client",
            999_999: "is not an open socket",
            2**31: "is not an open socket",
            2**32 + datagram.fileno(): "is not an open socket",
            10**30: "is not an open socket",
        }

        for descriptor, problem in problems.items():
            with pytest.raises(
                ConfigurationError, match=f"^--fd {descriptor}: file descriptor {descriptor} {problem};"
            ):
                adopt_socket(descriptor)

        second.sendall(b"x")  # the descriptors stay open
        assert first.recv(1) == b"x"


# --- options


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--fd", "3", "--host", "::1"], 2, "--fd cannot be combined with --host or --uds"),
        (["--fd", "3", "--uds", "x"], 2, "--fd cannot be combined with --host or --uds"),
        (["--fd", "2"], 2, "Invalid value for '--fd'"),
        (["--fd", "987654"], 3, "--fd 987654: file descriptor 987654 is not an open socket"),
        (["--uds", "x", "--uds-mode", "888"], 2, "must be an octal number such as 660"),
        (["--uds", "x", "--uds-mode", "4660"], 2, "must be an octal number such as 660"),
        *(
            (["--root-path", path], 2, "must be a path such as /um")
            for path in ("um", "//evil.example", "/um/../x", "/u m", "/um?x", "/\u00fcm", "https://x/um")
        ),
        (["--host", "127.0.0.1", "--host", ""], 2, "Invalid value for '--host': must not be empty"),
        (["--uds", ""], 2, "Invalid value for '--uds': must not be empty"),
        (["--keep-alive", "0"], 2, "Invalid value for '--keep-alive'"),
    ],
)
def test_invalid_options_are_reported(
    options: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(main, ["serve", *options])

    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_failed_start_removes_the_unix_socket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)

    result = CliRunner().invoke(main, ["serve", "--uds", "mlapi.sock", "--host", "192.0.2.1"])

    assert result.exit_code == 3
    assert not (folder / "mlapi.sock").exists()


def test_workers_share_the_unix_socket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    passed: list[str] = []
    monkeypatch.setattr("os.execv", lambda _program, command: passed.append(command[-1]))

    result = CliRunner().invoke(main, ["serve", "--uds", "mlapi.sock", "--workers", "2", "--root-path", "/um/"])

    arguments = msgspec.json.decode(passed[0], type=SupervisorArguments)
    listeners = [socket.socket(fileno=descriptor) for (descriptor,) in arguments.listener_fds]
    assert (result.exit_code, result.stderr) == (0, "")
    assert {listener.getsockname() for listener in listeners} == {str(folder / "mlapi.sock")}
    assert [os.get_blocking(listener.fileno()) for listener in listeners] == [False, False]
    assert arguments.worker.root_path == "/um"
    assert arguments.socket_file is not None
    arguments.socket_file.remove()
    close_all(listeners)
    assert list(folder.iterdir()) == []


def test_repeated_descriptor_is_adopted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[str] = []
    monkeypatch.setattr("os.execv", lambda _program, command: passed.append(command[-1]))
    listener = socket.create_server(("127.0.0.1", 0))
    fd = str(listener.detach())

    result = CliRunner().invoke(main, ["serve", "--fd", fd, "--fd", fd])

    arguments = msgspec.json.decode(passed[0], type=SupervisorArguments)
    assert (result.exit_code, arguments.listener_fds) == (0, [[int(fd)]])
    os.close(int(fd))


# --- descriptions and limits


@pytest.mark.parametrize(
    ("host", "root_path", "url"),
    [
        ("127.0.0.1", "", "http://127.0.0.1:{}/console"),
        ("0.0.0.0", "/um", "http://127.0.0.1:{}/um/console"),
        ("::", "", "http://[::1]:{}/console"),
    ],
)
def test_console_url_can_be_opened(host: str, root_path: str, url: str) -> None:
    ((listener,),) = bind_hosts([host], 0, 1)

    assert _console_url([listener], root_path) == url.format(listener.getsockname()[1])
    listener.close()


def test_console_url_behind_a_unix_socket_names_the_socket(folder: Path) -> None:
    listener, file = bind_path(str(folder / "mlapi.sock"), 0o600)
    ((tcp,),) = bind_hosts(["127.0.0.1"], 0, 1)

    assert _console_url([listener], "/um") == f"/um/console of the proxy in front of unix:{folder}/mlapi.sock"
    assert _console_url([listener, tcp], "") == f"http://127.0.0.1:{tcp.getsockname()[1]}/console"
    file.remove()
    close_all([listener, tcp])


def test_abstract_unix_socket_is_described(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{folder}")

        assert describe_listener(listener) == f"unix:\0{folder}"


def test_each_address_needs_more_files() -> None:
    assert needed_files(1) == MIN_OPEN_FILES
    assert needed_files(1, 3) == MIN_OPEN_FILES + 32


def test_long_keep_alive_extends_the_drain_timeout() -> None:
    assert [Timeouts.for_keep_alive(seconds).drain_seconds for seconds in (1, 5, 75)] == [45, 45, 115]
