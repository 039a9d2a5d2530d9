"""``mlapi serve``: uvicorn with the settings that this service wants."""

import os
import sys
import tempfile
from contextlib import ExitStack
from typing import Any

import click

from mlapi.bootstrap import open_service
from mlapi.config import load_settings
from mlapi.entrypoints.cli.output import in_one_line
from mlapi.entrypoints.logs import Format
from mlapi.entrypoints.metrics import FOLDER, Metrics

IDLE = 5
"""Seconds that a connection may be kept without a request."""
DRAIN = 15
"""Seconds that requests under way have when the server is asked to stop: more than any of ours takes."""

APP = "mlapi.entrypoints.http:app"


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at; 0.0.0.0 for all.")
@click.option("--port", default=8001, show_default=True, type=click.IntRange(0, 65535))
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes.")
@click.option("--access-log/--no-access-log", default=True, show_default=True, help="A line for each request.")
def serve_command(*, host: str, port: int, workers: int, access_log: bool) -> None:
    """Serve the users over HTTP.

    Reads config.yml and the environment as every command does. Refuses to start, with one line and exit code 3, where
    something must be mended first.
    """
    with in_one_line():
        settings = load_settings()
        if workers > 1:
            # One process finds out alone what is wrong: uvicorn's workers would be started over and over.
            with open_service(settings):
                Metrics()
    import uvicorn  # noqa: PLC0415 - the other commands do without

    with ExitStack() as opened:
        if workers > 1 and FOLDER not in os.environ:
            folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="mlapi-metrics-"))
            os.environ[FOLDER] = folder  # inherited: each worker counts there, any of them tells all
        uvicorn.run(
            APP,
            host=host,
            port=port,
            workers=workers,
            lifespan="on",
            access_log=access_log,
            log_config=log_config(settings.log_format),
            server_header=False,
            proxy_headers=False,  # whom to believe says http.trusted_proxies, and nobody else is
            timeout_keep_alive=IDLE,
            timeout_graceful_shutdown=DRAIN,
        )
    sys.stdout.flush()


def log_config(form: Format) -> dict[str, Any]:
    """Return a configuration of `logging` for a server whose every line is ours, from the first on."""
    formatter = {"json": "mlapi.entrypoints.logs.JsonFormatter", "text": "mlapi.entrypoints.logs.TextFormatter"}[form]
    one = {"handlers": ["stderr"], "level": "INFO", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"ours": {"()": formatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "ours"}},
        "loggers": {"uvicorn": one, "uvicorn.access": one, "mlapi": one},
    }
