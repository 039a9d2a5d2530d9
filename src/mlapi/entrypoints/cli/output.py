"""Print the results of commands as text or JSON, and their errors."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, NoReturn

import click
import msgspec

from mlapi.domain.errors import MlapiError

EXIT_USAGE = 2
EXIT_ERROR = 3
"""The same exit code that uvicorn uses if the application fails to start."""
EXIT_PARTIAL = 4
"""The exit code if a command changed something, but not everything that was requested."""
EXIT_INTERRUPTED = 130
"""The exit code that shells use for SIGINT: 128 + 2."""


class CommandError(click.ClickException):
    """An error that ends a command with one line on standard error."""

    exit_code = EXIT_ERROR

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"mlapi: {self.message}", file=file, err=file is None)


class UsageError(CommandError):
    exit_code = EXIT_USAGE


class MissingCommandError(UsageError):
    """A command group is used without a command. The message is its help."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.message, file=file, err=file is None)


class CommandGroup(click.Group):
    """A command group that shows its help as an error if no command is given. click 8.1 would report success."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            raise MissingCommandError(ctx.get_help())
        return super().parse_args(ctx, args)


class OneLineGroup(CommandGroup):
    """A command group that prints every error as one line on standard error, where click would print three.

    The exit code is 2 for incorrect usage and 1 for operating system errors.
    """

    def main(self, *args: Any, **options: Any) -> NoReturn:  # noqa: ANN401 - inherited signature
        options["standalone_mode"] = False
        # Python sets a standard stream to None if the parent process closed it.
        sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115 - open until the process ends
        sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - as above
        _escape_unencodable(sys.stdout)
        try:
            code: object = super().main(*args, **options)
        except CommandError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx is not None else "mlapi"
            _exit(f"{error.format_message().rstrip('.').replace(chr(10), ' ')}; see `{path} --help`", error.exit_code)
        except click.ClickException as error:
            _exit(error.format_message(), error.exit_code)
        except click.Abort:
            _exit("interrupted", EXIT_INTERRUPTED)
        except BrokenPipeError:  # the program that read our output has exited
            with suppress(OSError):  # in tests, standard output is not a file
                # Discard buffered output: flushing it at exit would raise the error again.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            _exit(f"{error.filename or 'output'}: {error.strerror}", 1)
        except (ValueError, RuntimeError) as error:  # not UTF-8, a NUL in a path, a loop of symbolic links
            _exit(f"an argument or the input is invalid ({type(error).__name__})", 1)
        sys.exit(code if isinstance(code, int) else 0)


def _escape_unencodable(stream: object) -> None:
    """Escape the characters that the encoding of the terminal lacks, instead of raising `UnicodeEncodeError`."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def _exit(message: str, code: int) -> NoReturn:
    click.echo(f"mlapi: {message}", err=True)
    sys.exit(code)


@contextmanager
def command_errors() -> Iterator[None]:
    """Convert `MlapiError` to `CommandError`."""
    try:
        yield
    except MlapiError as error:
        raise CommandError(str(error)) from None


def json_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add the ``--json`` option, which the command receives as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def read_secret(label: str, *, confirm: bool = False) -> str:
    """Read a line from the terminal, hidden, or from standard input: other accounts could see it in the arguments."""
    if sys.stdin.isatty():
        secret: str = click.prompt(label, hide_input=True, confirmation_prompt=confirm, err=True)
        return secret
    return sys.stdin.readline().rstrip("\r\n")


def format_count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def show(text: str, value: object, *, as_json: bool) -> None:
    """Print ``text``, or ``value`` as JSON."""
    click.echo(msgspec.json.encode(value) if as_json else text)
