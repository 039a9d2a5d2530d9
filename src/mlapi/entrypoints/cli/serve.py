"""``mlapi serve``: uvicorn with the settings that this service wants."""

import json
import os
import socket
import sys
from typing import Any

import click

from mlapi.config import load_settings
from mlapi.entrypoints.cli.output import Refused, in_one_line

BACKLOG = 2048
"""Connections that the system keeps until a worker takes them."""


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at; 0.0.0.0 for all.")
@click.option("--port", default=8001, show_default=True, type=click.IntRange(0, 65535))
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes that serve.")
@click.option(
    "--connections", default=10_000, show_default=True, type=click.IntRange(1), help="At most, to each of them."
)
@click.option("--access-log/--no-access-log", default=True, show_default=True, help="A line for each request.")
def serve_command(*, host: str, port: int, workers: int, connections: int, access_log: bool) -> None:
    """Serve the users over HTTP.

    Reads config.yml and the environment as every command does. Refuses to start, with exit code 3, where something must
    be mended first. SIGHUP restarts it without cutting a request; SIGTERM and Ctrl-C answer what is under way and end.
    """
    with in_one_line():
        settings = load_settings()
    places = bound_sockets(host, port, workers)
    for place in places:
        place.set_inheritable(True)
    arguments = {
        "listeners": [place.detach() for place in places],
        "connections": connections,
        "access_log": access_log,
        "log_format": settings.log_format,
    }
    # In the place of this process: all that this command line has imported would stay in memory as long as it serves.
    module = "mlapi.entrypoints.server.supervisor"
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, json.dumps(arguments)])  # noqa: S606 - our own module


def bound_sockets(host: str, port: int, number: int) -> list[socket.socket]:
    """Return so many sockets that are bound to one address, of which the first listens.

    Raises:
        Refused: if that cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # Not shared at first: an address that another server has, shared or not, is taken.
        first = _bound(family, address[:2], is_shared=False)
        if number == 1:
            first.listen(BACKLOG)
            return [first]
        address = first.getsockname()[:2]
        first.close()
        sockets = [_bound(family, address, is_shared=True) for _ in range(number)]
        sockets[0].listen(BACKLOG)
    except socket.gaierror as error:  # which has numbers of its own
        reason = str(error.args[1])
    except OSError as error:
        reason = os.strerror(error.errno or 0)
    except UnicodeError:
        reason = "this is no address"
    else:
        return sockets
    raise Refused(f"cannot listen at {host} port {port}: {reason.lower()}; see --host and --port")


def _bound(family: socket.AddressFamily, address: tuple[Any, ...], *, is_shared: bool) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound
