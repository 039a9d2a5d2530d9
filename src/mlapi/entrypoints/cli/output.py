"""How the commands talk: for people and for programs, and what is refused in one line."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, NoReturn

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


class OneLineGroup(click.Group):
    """Commands whose every error is one line on standard error and an exit code.

    Click's own are three lines and a usage; 2 is for what was typed wrongly, 1 for what the system refuses.
    """

    def main(self, *args: Any, **options: Any) -> NoReturn:  # noqa: ANN401 - its base's
        options["standalone_mode"] = False
        sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115 - it was closed by the caller
        sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - as above
        try:
            code: object = super().main(*args, **options)
        except Refused as error:
            error.show()
            sys.exit(error.exit_code)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx is not None else "mlapi"
            _end(f"{error.format_message().rstrip('.').replace(chr(10), ' ')}; see `{path} --help`", error.exit_code)
        except click.ClickException as error:
            _end(error.format_message(), error.exit_code)
        except click.Abort:
            _end("interrupted", 130)  # as shells tell of SIGINT
        except BrokenPipeError:  # whoever reads has seen enough
            with suppress(OSError):  # it is no file of the system: a test's
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush tells of it again
            sys.exit(1)
        except OSError as error:
            _end(f"{error.filename or 'the output'}: {error.strerror}", 1)
        except (ValueError, RuntimeError) as error:  # text that is not UTF-8, a NUL in a path, links in a circle
            _end(f"an argument or the input cannot be used as it is ({type(error).__name__})", 1)
        sys.exit(code if isinstance(code, int) else 0)


def _end(line: str, code: int) -> NoReturn:
    click.echo(f"mlapi: {line}", err=True)
    sys.exit(code)


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
