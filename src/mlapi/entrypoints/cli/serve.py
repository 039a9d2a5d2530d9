"""``mlapi serve``: run the service on uvicorn."""

import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain
from typing import TypeVar

import click
import msgspec

from mlapi import bootstrap
from mlapi.config import Settings, load_settings
from mlapi.domain.addresses import is_loopback
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.cli.output import CommandError, command_errors
from mlapi.entrypoints.server.arguments import KEEP_ALIVE_SECONDS, SupervisorArguments, WorkerOptions
from mlapi.entrypoints.server.inherited_sockets import adopt_socket
from mlapi.entrypoints.server.listeners import close_all
from mlapi.entrypoints.server.open_files import needed_files, raise_open_file_limit
from mlapi.entrypoints.server.processes import SIGNALS
from mlapi.entrypoints.server.tcp_sockets import bind_hosts
from mlapi.entrypoints.server.unix_sockets import SocketFile, bind_path

STANDARD_STREAMS = (0, 1, 2)
DEFAULT_HOST = "127.0.0.1"
_MAX_MODE = 0o777
_TextT = TypeVar("_TextT", bound=str | tuple[str, ...] | None)
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*")


def _require_text(_context: click.Context, _parameter: click.Parameter, value: _TextT) -> _TextT:
    if value == "" or (isinstance(value, tuple) and "" in value):
        raise click.BadParameter("must not be empty")
    return value


def _parse_root_path(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    path = value.rstrip("/")
    if not _ROOT_PATH.fullmatch(path):
        raise click.BadParameter("must be a path such as /um: a slash, then letters, digits and the signs . _ ~ -")
    return path


def _parse_mode(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    try:
        mode = int(value, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= _MAX_MODE:
        raise click.BadParameter("must be an octal number such as 660")
    return mode


@click.command("serve")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    callback=_require_text,
    help=f"Address to listen on; 0.0.0.0 for all of IPv4, :: for all of IPv6. Can be repeated.  [default:"
    f" {DEFAULT_HOST}]",
)
@click.option("--port", default=8001, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on.")
@click.option(
    "--uds",
    type=click.Path(),
    callback=_require_text,
    help="Path of a Unix socket to listen on, instead of the default host.",
)
@click.option(
    "--uds-mode", default="666", show_default=True, callback=_parse_mode, help="Permissions of the Unix socket."
)
@click.option(
    "--fd",
    "descriptors",
    multiple=True,
    type=click.IntRange(3),
    help="Number of a listening socket that the parent process has opened. Can be repeated.",
)
@click.option(
    "--root-path", default="", callback=_parse_root_path, help="Path under which a proxy serves mlapi, such as /um."
)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Worker processes.")
@click.option(
    "--connections", default=10_000, show_default=True, type=click.IntRange(1), help="Maximum connections per worker."
)
@click.option(
    "--connections-per-address",
    type=click.IntRange(1),
    help="Maximum connections per worker from one address.  [default: a tenth of --connections]",
)
@click.option(
    "--keep-alive",
    "keep_alive_seconds",
    metavar="SECONDS",
    default=KEEP_ALIVE_SECONDS,
    show_default=True,
    type=click.IntRange(1, 600),
    help="How long an idle connection stays open.",
)
@click.option("--access-log/--no-access-log", default=True, show_default=True, help="Log every request.")
def serve_command(
    *,
    hosts: tuple[str, ...],
    port: int,
    uds: str | None,
    uds_mode: int,
    descriptors: tuple[int, ...],
    root_path: str,
    workers: int,
    connections: int,
    connections_per_address: int | None,
    keep_alive_seconds: int,
    access_log: bool,
) -> None:
    """Serve the API over HTTP.

    Exits with code 3 if the settings, the secrets or the database must be fixed first. SIGHUP restarts the workers
    without interrupting requests. SIGTERM and Ctrl-C let running requests finish, then stop the service.
    """
    if descriptors and (hosts or uds):
        raise click.UsageError("--fd cannot be combined with --host or --uds")
    open_standard_streams()
    with ExitStack() as on_error, command_errors():
        settings = load_settings()
        addresses, socket_file = _open_listeners(
            hosts, port, uds, uds_mode, descriptors, workers=workers, on_error=on_error
        )
        check_open_files(workers, len(addresses))
        for listener, *_ in addresses:
            if listener.family != socket.AF_UNIX:  # its clients are never admins without a token
                _validate_address(listener.getsockname()[0], settings)
        on_error.pop_all()
    arguments = SupervisorArguments(
        listener_fds=_inheritable_descriptors(addresses),
        socket_file=socket_file,
        log_format=settings.log_format,
        worker=WorkerOptions(
            max_connections=connections,
            connections_per_address=connections_per_address,
            access_log=access_log,
            keep_alive_seconds=keep_alive_seconds,
            root_path=root_path,
            is_inherited=bool(descriptors),
        ),
    )
    _run_supervisor(arguments)


def _inheritable_descriptors(addresses: list[list[socket.socket]]) -> list[list[int]]:
    """Return the file descriptors of the listeners of each worker, detached from their sockets."""
    for listener in chain.from_iterable(addresses):
        listener.set_inheritable(True)
    return [[listener.detach() for listener in listeners] for listeners in zip(*addresses, strict=True)]


def _run_supervisor(arguments: SupervisorArguments) -> None:
    """Replace this process: otherwise, the modules of the command line would stay in memory while the service runs."""
    module = "mlapi.entrypoints.server.supervisor"
    command = [sys.executable, "-P", "-m", module, msgspec.json.encode(arguments).decode()]
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


def check_open_files(workers: int, addresses: int) -> None:
    """Raise the limit of open files to the maximum.

    Raises:
        CommandError: if the limit is too low for this number of workers and addresses.
    """
    needed, limit = needed_files(workers, addresses), raise_open_file_limit()
    if limit < needed:
        raise CommandError(
            f"a process may open only {limit} files, but {workers} workers need {needed}:"
            f" raise the limit (ulimit -n {needed})"
        )


def _open_listeners(
    hosts: Sequence[str],
    port: int,
    uds: str | None,
    uds_mode: int,
    descriptors: Sequence[int],
    *,
    workers: int,
    on_error: ExitStack,
) -> tuple[list[list[socket.socket]], SocketFile | None]:
    """Return the sockets of each address, one for each worker, and the file of the Unix socket.

    Raises:
        ConfigurationError: if an address is invalid or in use.
    """
    socket_file = None
    addresses = [_copies(adopt_socket(descriptor), workers, on_error) for descriptor in dict.fromkeys(descriptors)]
    if uds is not None:
        listener, socket_file = bind_path(uds, uds_mode)
        on_error.callback(socket_file.remove)
        addresses.append(_copies(listener, workers, on_error))
    if hosts or not addresses:
        bound = bind_hosts(hosts or [DEFAULT_HOST], port, workers)
        on_error.callback(close_all, [listener for copies in bound for listener in copies])
        addresses += bound
    return addresses, socket_file


def _copies(listener: socket.socket, count: int, on_error: ExitStack) -> list[socket.socket]:
    """Return copies of a socket that cannot be bound again, so the workers share its queue of connections."""
    listener.settimeout(0)  # the copies, and perhaps sockets of the parent process, share this setting
    copies = [listener, *(listener.dup() for _ in range(count - 1))]
    on_error.callback(close_all, copies)
    return copies


def _validate_address(address: str, settings: Settings) -> None:
    """Check that the service listens on this machine only, if programs on this machine are admins without a token.

    Raises:
        CommandError: if other machines could connect.
    """
    if is_loopback(address) or AdminPolicy.from_settings(settings).mode != "local":
        return
    _, secrets = bootstrap.locate_data(settings)
    if secrets.exists and secrets.load().admin_token is not None:
        return
    raise CommandError(
        f"without an admin token, mlapi does not listen on {address}: to serve this machine only, leave out --host;"
        " otherwise, set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)"
    )
