"""``mlapi serve``: uvicorn with the settings that this service wants."""

import json
import os
import socket
import sys

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
    listening = listening_socket(host, port)
    listening.set_inheritable(True)
    arguments = {
        "listening": listening.detach(),
        "workers": workers,
        "connections": connections,
        "access_log": access_log,
        "log_format": settings.log_format,
    }
    # In the place of this process: all that this command line has imported would stay in memory as long as it serves.
    module = "mlapi.entrypoints.server.supervisor"
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, json.dumps(arguments)])  # noqa: S606 - our own module


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens there.

    Raises:
        Refused: if that cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except socket.gaierror as error:  # which has numbers of its own
        reason = str(error.args[1])
    except OSError as error:
        reason = os.strerror(error.errno or 0)
    except UnicodeError:
        reason = "this is no address"
    raise Refused(f"cannot listen at {host} port {port}: {reason.lower()}; see --host and --port")
