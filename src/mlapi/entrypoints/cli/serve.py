"""``mlapi serve``: run the service on uvicorn."""

import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import click

from mlapi.bootstrap import locate_data
from mlapi.config import Settings, load_settings
from mlapi.domain.addresses import is_loopback
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.cli.output import CommandError, command_errors
from mlapi.entrypoints.server.listeners import reserve_address
from mlapi.entrypoints.server.open_files import needed_files, raise_open_file_limit
from mlapi.entrypoints.server.processes import SIGNALS

STANDARD_STREAMS = (0, 1, 2)


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", default=8001, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Worker processes.")
@click.option(
    "--connections", default=10_000, show_default=True, type=click.IntRange(1), help="Maximum connections per worker."
)
@click.option(
    "--connections-per-address",
    type=click.IntRange(1),
    help="Maximum connections per worker from one address.  [default: a tenth of --connections]",
)
@click.option("--access-log/--no-access-log", default=True, show_default=True, help="Log every request.")
def serve_command(
    *, host: str, port: int, workers: int, connections: int, connections_per_address: int | None, access_log: bool
) -> None:
    """Serve the API over HTTP.

    Exits with code 3 if the settings, the secrets or the database must be fixed first. SIGHUP restarts the workers
    without interrupting requests. SIGTERM and Ctrl-C let running requests finish, then stop the service.
    """
    open_standard_streams()
    check_open_files(workers)
    with command_errors():
        settings = load_settings()
    listeners = bind_listeners(host, port, workers)
    with ExitStack() as on_error, command_errors():
        for listener in listeners:
            on_error.callback(listener.close)
        _validate_address(listeners[0].getsockname()[0], settings)
        on_error.pop_all()
    for listener in listeners:
        listener.set_inheritable(True)
    arguments = {
        "listeners": [listener.detach() for listener in listeners],
        "max_connections": connections,
        "connections_per_address": connections_per_address,
        "access_log": access_log,
        "log_format": settings.log_format,
    }
    # Replace this process: otherwise, the modules of the command line would stay in memory while the service runs.
    command = [sys.executable, "-P", "-m", "mlapi.entrypoints.server.supervisor", json.dumps(arguments)]
    # The supervisor inherits the blocked signals, and handles them when it is ready.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        os.execv(sys.executable, command)  # noqa: S606 - runs a module of this package
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def open_standard_streams() -> None:
    """Open closed standard streams as ``/dev/null``. Otherwise a socket could become standard error."""
    for descriptor in STANDARD_STREAMS:
        try:
            os.fstat(descriptor)
        except OSError:  # closed, so it is the lowest free number
            os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - it has no keyword


def check_open_files(workers: int) -> None:
    """Raise the limit of open files to the maximum.

    Raises:
        CommandError: if the limit is too low for this number of workers.
    """
    needed, limit = needed_files(workers), raise_open_file_limit()
    if limit < needed:
        raise CommandError(
            f"a process may open only {limit} files, but {workers} workers need {needed}:"
            f" raise the limit (ulimit -n {needed})"
        )


def _validate_address(address: str, settings: Settings) -> None:
    """Check that the service listens on this machine only, if programs on this machine are admins without a token.

    Raises:
        CommandError: if other machines could connect.
    """
    if is_loopback(address) or AdminPolicy.from_settings(settings).mode != "local":
        return
    _, secrets = locate_data(settings)
    if secrets.exists and secrets.load().admin_token is not None:
        return
    raise CommandError(
        f"without an admin token, mlapi does not listen on {address}: to serve this machine only, leave out --host;"
        " otherwise, set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)"
    )


def bind_listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """Return sockets that are bound to the same address. They do not listen yet.

    Raises:
        CommandError: if the address is invalid or in use.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return _bind_first(addresses, count)
    except socket.gaierror as error:  # its error codes are not errno values
        reason = str(error.args[1])
    except OSError as error:
        reason = os.strerror(error.errno or 0)
    except UnicodeError:
        reason = "invalid host name"
    raise CommandError(f"cannot listen on {host} port {port}: {reason.lower()}; change --host or --port")


def _bind_first(addresses: Iterable[tuple[Any, ...]], count: int) -> list[socket.socket]:
    """Bind to the first address that this machine has. ``localhost`` may resolve to IPv6, which may be disabled."""
    unavailable = OSError(errno.EADDRNOTAVAIL, "")
    for family, _, _, _, address in addresses:
        try:
            return _bind_all(family, address[:2], count)
        except OSError as error:
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                raise
            unavailable = error
    raise unavailable


def _bind_all(family: socket.AddressFamily, address: tuple[Any, ...], count: int) -> list[socket.socket]:
    # Bind without SO_REUSEPORT first, to detect another server on the same address. Then bind to the same port
    # explicitly. Otherwise, a socket whose port the kernel has chosen would lose the port when it stops listening.
    with _bind(family, address, reuse_port=False) as first:
        address = first.getsockname()[:2]
    return [_bind(family, address, reuse_port=count > 1) for _ in range(count)]


def _bind(family: socket.AddressFamily, address: tuple[Any, ...], *, reuse_port: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        reserve_address(listener)
    except BaseException:
        listener.close()
        raise
    return listener
