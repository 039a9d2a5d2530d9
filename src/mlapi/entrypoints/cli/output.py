"""How the commands talk: for people and for programs, and what is refused in one line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import click
import msgspec

from mlapi.domain.errors import MlapiError

EXIT_REFUSED = 3
"""As uvicorn exits when the application refuses to start."""


class Refused(click.ClickException):
    """What mlapi refuses: one line."""

    exit_code = EXIT_REFUSED

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"mlapi: {self.message}", file=file, err=file is None)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Tell of what our code refuses in one line, and exit with `EXIT_REFUSED`."""
    try:
        yield
    except MlapiError as error:
        raise Refused(str(error)) from None


def json_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option ``--json``, as its argument ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def show(text: str, value: object, *, as_json: bool) -> None:
    """Print a line for people, or the same as JSON for programs."""
    click.echo(msgspec.json.encode(value) if as_json else text)
