"""``mlapi users import`` and ``mlapi users export``: many users from a file, and into one."""

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import click

from mlapi.adapters.fernet import FernetCipher, HashingFernetCipher
from mlapi.application.key_reload import Reloader
from mlapi.application.user_import import Row, UserImport
from mlapi.bootstrap import open_database, open_users, password_cipher, secrets_file
from mlapi.config import Settings, completed, load_settings
from mlapi.domain.commands import Actor
from mlapi.domain.errors import MlapiError
from mlapi.domain.users import EncryptedPassword
from mlapi.entrypoints.cli.files import STDIO, RejectsFile, opened_input, opened_output, size_of
from mlapi.entrypoints.cli.output import Refused, in_one_line, json_option, show
from mlapi.entrypoints.cli.service import os_user
from mlapi.entrypoints.cli.user_files import FileFormat, read_rows, write_users
from mlapi.secret_files import file_signature

EXIT_SOME_REFUSED = 4
"""Of an import: some lines were refused, the others are stored."""
EXIT_INTERRUPTED = 130
"""As a shell has it: 128 and the number of SIGINT."""

_PAGE = 2_000
_FORMATS: dict[str, FileFormat] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


class Interrupted(Refused):
    """By whoever runs it, with Ctrl-C."""

    exit_code = EXIT_INTERRUPTED


def _file_of_users(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option(
        "--format", "file_format", type=click.Choice(["csv", "jsonl"]), help="By default by the end of its name."
    )(command)
    return click.argument("file", type=click.Path(path_type=Path, allow_dash=True, readable=False))(command)


@click.command("import")
@_file_of_users
@click.option("--ignore-columns", is_flag=True, help="Let columns pass that mean nothing here.")
@click.option("--rejects", type=click.Path(path_type=Path), help="Where refused lines are told of.")
@click.option("--dry-run", is_flag=True, help="Check every line and store nothing.")
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
    """Register the users in FILE, or - for standard input; safe to repeat.

    CSV with a line of column names, or JSON lines: username, email, one of password, password_hash (argon2 or bcrypt)
    and stored_password (of mlapi, with the same secrets), and if wanted enabled and created_datetime.

    Lines that are refused are told of in a file beside it; then the exit code is 4. Interrupted, it goes on when it is
    run again.
    """
    file_format = file_format or _format_of(file)
    path = rejects or (Path() if file == STDIO else file.parent) / f"{_name_of(file)}.rejects.jsonl"
    with in_one_line(), opened_input(file) as stream, closing(RejectsFile(path, besides=stream)) as rejected:
        settings, actor = load_settings(), Actor(f"import by {os_user()}")
        with open_users(settings) as users:
            importing = UserImport(users, _Adoption(settings), rejected, actor=actor, dry_run=dry_run)
            rows = read_rows(stream, file_format, ignore_columns=ignore_columns)
            _run(importing, rows, size=size_of(stream))
    summary = importing.summary
    line = f"{summary} (a dry run: nothing is stored)" if dry_run else str(summary)
    if summary.refused:
        line += f", see {path}"
    show(line, {**attrs.asdict(summary), "rejects": str(path) if summary.refused else None}, as_json=as_json)
    if summary.refused:
        click.get_current_context().exit(EXIT_SOME_REFUSED)


def _run(importing: UserImport, rows: Iterable[Row], *, size: int | None) -> None:
    try:
        with _progress("importing", size) as bar, closing(importing.run(rows)) as ends:
            for end in ends:
                bar.update(end - bar.pos)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {importing.summary}: run it again, and it goes on") from None
    except MlapiError as error:
        raise Refused(f"{error}; {importing.summary}: run it again, and it goes on") from None


class _Adoption:
    """Hashes and stored values under the newest key, also if that turns over meanwhile."""

    def __init__(self, settings: Settings) -> None:
        with open_database(settings) as database:
            file = secrets_file(database)

        def make() -> FernetCipher | HashingFernetCipher:
            return password_cipher(completed(settings, file))

        self._current = Reloader(make, partial(file_signature, file))

    def adopted_hash(self, text: object) -> EncryptedPassword:
        return self._current.get().adopted_hash(text)

    def adopted_value(self, value: object) -> EncryptedPassword:
        return self._current.get().adopted_value(value)


@click.command("export")
@_file_of_users
@click.option("--enabled/--disabled", default=None, help="Only those who are let in, or shut out.")
@click.option("--containing", default="", metavar="TEXT", help="Only those with it in their name or e-mail address.")
@click.option("--with-stored-passwords", is_flag=True, help="Encrypted as they are; the same secrets read them again.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
def users_export(
    file: Path,
    *,
    file_format: FileFormat | None,
    enabled: bool | None,
    containing: str,
    with_stored_passwords: bool,
    force: bool,
) -> None:
    """Write the users into FILE, closed to others, or - for standard output: as CSV or JSON lines, by rising id.

    With their stored passwords they can be imported elsewhere.
    """
    file_format = file_format or _format_of(file)
    with in_one_line(), opened_output(file, force=force) as stream, open_users(load_settings()) as users:
        chosen = users.iterate_users(batch=_PAGE, enabled=enabled, containing=containing)
        with _progress("exporting", users.repository.count()) as bar:
            for _ in write_users(stream, file_format, chosen, passwords=with_stored_passwords):
                bar.update(1)
        count = bar.pos
    if file != STDIO:
        click.echo(f"exported {count}")


def _format_of(file: Path) -> FileFormat:
    found = _FORMATS.get(file.suffix.lower())
    if found is None:
        raise click.UsageError("give --format csv or --format jsonl: the name does not end in .csv or .jsonl")
    return found


def _name_of(file: Path) -> str:
    return "import" if file == STDIO else file.name


def _progress(label: str, length: int | None) -> AbstractContextManager[Any]:
    """Return a progress bar on a terminal's standard error; a hidden one elsewhere, or where no end is known."""
    hidden = length is None or not sys.stderr.isatty()
    return click.progressbar(length=length or 1, label=label, file=sys.stderr, hidden=hidden)
