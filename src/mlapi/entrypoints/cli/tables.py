"""Print rows as an aligned table, JSON lines or CSV."""

import csv
import io
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain, islice
from typing import Any, Generic, Literal, TypeVar

import attrs
import click
import msgspec

from mlapi.domain.rules import has_invisible

ListFormat = Literal["json", "csv"]
Row = TypeVar("Row", bound=msgspec.Struct)

_CHUNK_ROWS = 500
_GAP = "  "
_ELLIPSIS = "…"
_MIN_SHRUNK_WIDTH = 8


@attrs.frozen(kw_only=True)
class Column(Generic[Row]):
    """A column of a table.

    Attributes:
        heading: in upper case.
        cell: returns the text of a row in this column.
        is_number: whether to align it at the right.
        may_shrink: whether long cells may be cut on a narrow terminal.
        is_optional: whether a narrow terminal may omit the column.
        is_sparse: whether to omit the column as long as all its cells are empty.
    """

    heading: str
    cell: Callable[[Row], object]
    is_number: bool = False
    may_shrink: bool = False
    is_optional: bool = False
    is_sparse: bool = False


def list_format_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--json`` and ``--csv``, which the command receives as ``list_format``. The last option takes precedence."""
    command = click.option("--csv", "list_format", flag_value="csv", help="Print CSV with a header.")(command)
    return click.option("--json", "list_format", flag_value="json", help="Print JSON, one line per row.")(command)


def show_rows(
    rows: Iterable[Row],
    columns: Sequence[Column[Row]],
    row_type: type[Row],
    list_format: str | None,
    *,
    empty: str = "",
) -> None:
    """Print rows while they are read.

    Args:
        rows: the rows. JSON and CSV contain all of their fields, and a table contains only ``columns``.
        columns: the columns of the table.
        row_type: the type of every row; its fields are the header of CSV.
        list_format: the format. None prints a table.
        empty: the message on standard error if a table would have no rows.
    """
    chunks = _chunks(rows)
    if list_format == "json":
        for chunk in chunks:
            click.echo(b"".join(msgspec.json.encode(row) + b"\n" for row in chunk), nl=False)
    elif list_format == "csv":
        header = row_type.__struct_fields__
        for lines in chain([[header]], (map(msgspec.structs.astuple, chunk) for chunk in chunks)):
            click.echo(_format_csv(lines), nl=False)
    elif (first := next(chunks, None)) is None:
        click.echo(empty, err=True, nl=bool(empty))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for text in _format_table(chain([first], chunks), columns, width):
            click.echo(text)


def format_time(time: datetime | None, *, seconds: bool = False, none: str = "") -> str:
    """Return a time in UTC, to the minute or to the second."""
    return none if time is None else time.strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")


def printable(text: str) -> str:
    """Return a text with control and invisible characters escaped, so that it cannot control the terminal."""
    if not has_invisible(text):
        return text
    return "".join(
        character.encode("unicode_escape").decode() if has_invisible(character) else character for character in text
    )


def display_width(text: str) -> int:
    """Return how many columns of a terminal a text occupies."""
    if text.isascii():
        return len(text)
    return sum(map(_character_width, unicodedata.normalize("NFC", text)))


def _character_width(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me"}:  # drawn over the character before it
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, _CHUNK_ROWS)):
        yield chunk


def _format_csv(lines: Iterable[Sequence[object]]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([map(format_cell, line) for line in lines])
    return stream.getvalue().encode()


_WRITE_CELL: dict[type, Callable[[Any], str]] = {
    bool: lambda value: "true" if value else "false",
    datetime: datetime.isoformat,
    **dict.fromkeys([dict, msgspec.Raw], lambda value: msgspec.json.encode(value).decode()),
}


def format_cell(value: object) -> object:
    """Return a value as it is written in CSV."""
    write = _WRITE_CELL.get(type(value))
    return value if write is None else write(value)


def _format_table(
    chunks: Iterable[list[Row]], columns: Sequence[Column[Row]], terminal_width: int | None
) -> Iterator[str]:
    """Yield the lines of a table, chunk by chunk. Each chunk may widen the columns for the rows that follow.

    If a sparse column gets its first text after the first chunk, the headings are repeated with the new column.
    """
    headings = [column.heading for column in columns]
    cell_widths = [0] * len(columns)
    filled: list[int] = []
    shown: list[int] = []
    for chunk in chunks:
        lines = [[printable(str(column.cell(row))) for column in columns] for row in chunk]
        cell_widths = [
            max(width, *map(display_width, cells))
            for width, cells in zip(cell_widths, zip(*lines, strict=True), strict=True)
        ]
        widths = [max(width, len(heading)) for width, heading in zip(cell_widths, headings, strict=True)]
        before, filled = (
            filled,
            [index for index, column in enumerate(columns) if cell_widths[index] or not column.is_sparse],
        )
        if filled != before:
            shown = _choose_columns(columns, widths, filled, terminal_width)
            lines = [headings, *lines]
        fitted = _shrink(columns, widths, shown, terminal_width)
        yield "\n".join(
            _GAP.join(_align(line[index], fitted[index], columns[index]) for index in shown).rstrip() for line in lines
        )


def _choose_columns(
    columns: Sequence[Column[Any]], widths: Sequence[int], filled: Sequence[int], terminal_width: int | None
) -> list[int]:
    """Return the indexes of the columns to show. A narrow terminal omits optional ones, the last one first."""
    shown = list(filled)
    for index in reversed(filled):
        if terminal_width is not None and columns[index].is_optional and _total(widths, shown) > terminal_width:
            shown.remove(index)
    return shown


def _shrink(
    columns: Sequence[Column[Any]], widths: Sequence[int], shown: Sequence[int], terminal_width: int | None
) -> list[int]:
    """Return the widths of the columns. Shrink the widest column that may shrink, until the table fits the terminal."""
    fitted = list(widths)
    flexible = [index for index in shown if columns[index].may_shrink]
    while terminal_width is not None and flexible and _total(fitted, shown) > terminal_width:
        widest = max(flexible, key=fitted.__getitem__)
        if fitted[widest] <= _MIN_SHRUNK_WIDTH:
            break
        fitted[widest] -= 1
    return fitted


def _total(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[index] for index in shown) + len(_GAP) * (len(shown) - 1)


def _align(text: str, width: int, column: Column[Any]) -> str:
    text = _cut(text, width)
    padding = " " * (width - display_width(text))
    return padding + text if column.is_number else text + padding


def _cut(text: str, width: int) -> str:
    """Cut a text to at most ``width`` columns, including an ellipsis."""
    if display_width(text) <= width:
        return text
    cut = unicodedata.normalize("NFC", text)
    while display_width(cut) >= width:
        cut = cut[:-1]
    return cut + _ELLIPSIS
