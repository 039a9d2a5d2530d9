"""``mlapi users import`` and ``mlapi users export``."""

import gc
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import click

from mlapi import bootstrap
from mlapi.application.user_import import Row, UserImport
from mlapi.config import load_settings
from mlapi.domain.actors import Actor
from mlapi.domain.errors import MlapiError
from mlapi.domain.rules import UserFilter
from mlapi.entrypoints.cli.files import STDIO, RejectsFile, open_input, open_output, size_of
from mlapi.entrypoints.cli.operator import account_name
from mlapi.entrypoints.cli.output import EXIT_INTERRUPTED, EXIT_PARTIAL, CommandError, command_errors, json_option, show
from mlapi.entrypoints.cli.selection import filter_options
from mlapi.entrypoints.cli.user_files import FileFormat, read_rows, write_users
from mlapi.entrypoints.logs import generate_request_id
from mlapi.platforms import cores

_PAGE_SIZE = 2_000
_OBJECTS_PER_COLLECTION = 100_000
_FORMAT_BY_SUFFIX: dict[str, FileFormat] = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


class InterruptedCommandError(CommandError):
    exit_code = EXIT_INTERRUPTED


def file_argument(command: Callable[..., None]) -> Callable[..., None]:
    """Add the FILE argument and the ``--format`` option."""
    command = click.option(
        "--format", "file_format", type=click.Choice(["csv", "jsonl"]), help="Default: from the suffix of FILE."
    )(command)
    return click.argument("file", type=click.Path(path_type=Path, allow_dash=True, readable=False))(command)


@click.command("import")
@file_argument
@click.option("--ignore-columns", is_flag=True, help="Ignore unknown columns.")
@click.option(
    "--rejects", type=click.Path(path_type=Path), help="Where to report rejected rows. Default: next to FILE."
)
@click.option("--dry-run", is_flag=True, help="Check every row without storing any.")
@json_option
def users_import(
    file: Path,
    *,
    file_format: FileFormat | None,
    ignore_columns: bool,
    rejects: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Register the users in FILE. Use - for standard input.

    FILE is CSV with a header, or JSON lines. Required columns: username, email, and one of password, password_hash
    (argon2, bcrypt, PBKDF2 or scrypt) and stored_password (from mlapi, with the same secrets). Optional columns:
    enabled, created_datetime, expires_datetime, plan, metadata.

    If rows are rejected, the reasons are written to a file next to FILE, and the exit code is 4. An import
    can be repeated safely: if it is interrupted, run it again to continue.
    """
    file_format = file_format or _format_of(file)
    path = rejects or (Path() if file == STDIO else file.parent) / f"{_name_of(file)}.rejects.jsonl"
    with command_errors(), open_input(file) as stream, closing(RejectsFile(path, source=stream)) as report:
        settings, actor = load_settings(), Actor(f"import by {account_name()}", generate_request_id())
        with bootstrap.open_user_import(settings, report, actor=actor, threads=cores(), dry_run=dry_run) as importing:
            rows = read_rows(stream, file_format, ignore_columns=ignore_columns)
            _run(importing, rows, size_bytes=size_of(stream))
    summary = importing.summary
    line = f"{summary} (dry run: nothing was stored)" if dry_run else str(summary)
    if summary.rejected:
        line += f"; see {path}"
    details = {
        "imported": summary.imported,
        "already_there": summary.already_present,
        "refused": summary.rejected,
        "rejects": str(path) if summary.rejected else None,
    }
    show(line, details, as_json=as_json)
    if summary.rejected:
        click.get_current_context().exit(EXIT_PARTIAL)


def _run(importing: UserImport, rows: Iterable[Row], *, size_bytes: int | None) -> None:
    try:
        with (
            _rare_collections(),
            _progress_bar("importing", size_bytes) as bar,
            closing(importing.run(rows)) as offsets,
        ):
            for offset in offsets:
                bar.update(offset - bar.pos)
    except KeyboardInterrupt:
        raise InterruptedCommandError(f"interrupted; {importing.summary}; run it again to continue") from None
    except MlapiError as error:
        raise CommandError(f"{error}; {importing.summary}; run it again to continue") from None


@click.command("export")
@file_argument
@filter_options
@click.option("--with-stored-passwords", is_flag=True, help="Include the encrypted passwords.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def users_export(
    file: Path,
    *,
    file_format: FileFormat | None,
    matching: UserFilter,
    with_stored_passwords: bool,
    force: bool,
) -> None:
    """Write the users to FILE, ordered by id. Use - for standard output.

    FILE is CSV or JSON lines, and only the current account can read it. If you include the stored passwords, you can
    import the users into another installation of mlapi that has the same secrets.
    """
    file_format = file_format or _format_of(file)
    with (
        command_errors(),
        open_output(file, force=force) as stream,
        bootstrap.open_users(load_settings(), must_be_available=True, may_create=False) as users,
    ):
        selected = users.iterate_users(matching, batch_size=_PAGE_SIZE)
        with _rare_collections(), _progress_bar("exporting", users.count()) as bar:
            for _ in write_users(stream, file_format, selected, passwords=with_stored_passwords):
                bar.update(1)
        count = bar.pos
    if file != STDIO:
        click.echo(f"exported {count}")


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Search for reference cycles less often. Users contain none, and the search takes a tenth of the time."""
    thresholds = gc.get_threshold()
    gc.set_threshold(_OBJECTS_PER_COLLECTION, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


def _format_of(file: Path) -> FileFormat:
    file_format = _FORMAT_BY_SUFFIX.get(file.suffix.lower())
    if file_format is None:
        raise click.UsageError("the file name does not end in .csv, .tsv or .jsonl: add --format csv or --format jsonl")
    return file_format


def _name_of(file: Path) -> str:
    return "import" if file == STDIO else file.name


def _progress_bar(label: str, length: int | None) -> AbstractContextManager[Any]:
    """Return a progress bar. It is hidden if standard error is not a terminal or the length is unknown."""
    is_shown = length is not None and sys.stderr.isatty()
    file = sys.stderr if is_shown else io.StringIO()  # click 8.1 cannot hide the progress bar
    return click.progressbar(length=length or 1, label=label, file=file)
