"""Read and write users as CSV or JSON lines. An error in a record invalidates only that record."""

import csv
import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import BinaryIO, Literal, TextIO

import msgspec

from mlapi.application.user_import import Row
from mlapi.domain.errors import FieldError
from mlapi.domain.users import User
from mlapi.entrypoints.cli.csv_records import CsvRecord, read_csv
from mlapi.entrypoints.cli.output import CommandError
from mlapi.entrypoints.cli.tables import format_cell

MAX_LINE_BYTES = 64 * 1024
"""Enough for fields of the maximum length, even if every character is escaped."""

PASSWORD_COLUMNS = ("password", "password_hash", "stored_password")
_REQUIRED = {"username", "email"}
_UNUSED = {"user_id", "updated_datetime"}  # exports contain these columns, but imports set new values
_OPTIONAL = {"enabled", "created_datetime", "expires_datetime", "plan", "metadata", "pending"}
_KNOWN = {*_REQUIRED, *PASSWORD_COLUMNS, *_OPTIONAL, *_UNUSED}
_PASSWORD_CHOICES = f"one of {', '.join(PASSWORD_COLUMNS)}"
_PASSWORD_ERROR = f"must have exactly {_PASSWORD_CHOICES}"
_PLAIN_NAME = re.compile(r"[A-Za-z][\w .-]{0,40}", re.ASCII)

FileFormat = Literal["csv", "jsonl"]


def read_rows(stream: BinaryIO, file_format: FileFormat, *, ignore_columns: bool = False) -> Iterator[Row]:
    """Yield a row for each record. In CSV, the first record is a header.

    Args:
        stream: UTF-8 text, with or without a byte order mark. Lines end in LF or CRLF.
        file_format: the format of the stream.
        ignore_columns: whether to ignore unknown columns.

    Raises:
        CommandError: if the header is invalid or missing.
    """
    if file_format == "csv":
        return _csv_rows(read_csv(stream), ignore_columns=ignore_columns)
    return _json_rows(_read_lines(stream), ignore_columns=ignore_columns)


def _read_lines(stream: BinaryIO) -> Iterator[tuple[str, Row]]:
    """Yield each non-empty line together with its row, which has no values yet but may have an error."""
    number = end_offset_bytes = 0
    while line := stream.readline(MAX_LINE_BYTES):
        number, end_offset_bytes = number + 1, end_offset_bytes + len(line)
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                end_offset_bytes += len(rest)
            end_offset_bytes += len(rest)
            yield "", _invalid(Row(number, end_offset_bytes), f"must be shorter than {MAX_LINE_BYTES} bytes")
            continue
        try:
            text = (line.removeprefix(BOM_UTF8) if number == 1 else line).decode("utf-8")
        except UnicodeDecodeError:
            yield "", _invalid(Row(number, end_offset_bytes), "must be UTF-8")
            continue
        if text := text.removesuffix("\n").removesuffix("\r"):
            yield text, Row(number, end_offset_bytes)


def _csv_rows(records: Iterator[CsvRecord], *, ignore_columns: bool) -> Iterator[Row]:
    header = next(records, None)
    if header is None:
        raise CommandError("the file is empty")
    columns = _parse_header(header.cells or [], ignore_columns=ignore_columns)
    for record in records:
        position, cells = (record.number, record.end_offset_bytes), record.cells
        if cells is None:
            yield _invalid(Row(*position), record.error)
        elif len(cells) != len(columns):
            yield _invalid(Row(*position), f"must have {len(columns)} cells to match the header, but has {len(cells)}")
        else:
            yield Row(*position, dict(zip(columns, cells, strict=True)))


def _parse_header(columns: list[str], *, ignore_columns: bool) -> list[str]:
    if not columns or set(columns).isdisjoint(_KNOWN):  # do not show the line: it may be the first user
        raise CommandError(
            f"the first line must be a header in UTF-8 with username, email and {_PASSWORD_CHOICES}, separated by"
            " commas, semicolons or tabs"
        )
    if len(set(columns)) != len(columns):
        raise CommandError("the header contains a duplicate column")
    if missing := sorted(_REQUIRED - set(columns)):
        raise CommandError(f"the header has no column {missing[0]}")
    if len(set(PASSWORD_COLUMNS) & set(columns)) != 1:
        raise CommandError(f"the header {_PASSWORD_ERROR}")
    unknown = [column for column in columns if column not in _KNOWN]
    if unknown and not ignore_columns:
        raise CommandError(f"the header has {_describe_unknown(unknown)}; use --ignore-columns to ignore them")
    return columns


def _json_rows(lines: Iterator[tuple[str, Row]], *, ignore_columns: bool) -> Iterator[Row]:
    for text, row in lines:
        if row.error is not None:
            yield row
            continue
        try:
            values = _parse_object(text)
        except (msgspec.DecodeError, ValueError, RecursionError):  # DecodeError is not a ValueError; deep nesting
            yield _invalid(row, "must be a JSON object without duplicate keys")
            continue
        if error := _find_key_error(values, ignore_columns=ignore_columns):
            yield _invalid(row, error)
        else:
            yield Row(row.number, row.end_offset_bytes, values)


def _parse_object(text: str) -> dict[str, object]:
    values = msgspec.json.decode(text, type=dict[str, object])
    strings = len(values) + sum(isinstance(value, str) for value in values.values())
    if text.count('"') != 2 * strings:
        # The line contains an escaped quote, an object or a duplicate key. msgspec accepts duplicate keys and rounds
        # long integers in objects, so parse again.
        values = json.loads(text, object_pairs_hook=_to_dict)
    return values


def _to_dict(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("duplicate key")
    return values


def _find_key_error(values: Mapping[str, object], *, ignore_columns: bool) -> str | None:
    if missing := sorted(_REQUIRED - values.keys()):
        return f"must have a key {missing[0]}"
    if len(values.keys() & set(PASSWORD_COLUMNS)) != 1:
        return _PASSWORD_ERROR
    if not ignore_columns and (unknown := [key for key in values if key not in _KNOWN]):
        return f"has {_describe_unknown(unknown)}; use --ignore-columns to ignore them"
    return None


def _describe_unknown(names: list[str]) -> str:
    """List unknown columns for an error message. Hide unusual names, which may be misplaced passwords."""
    shown = [name if _PLAIN_NAME.fullmatch(name) else "(hidden)" for name in names]
    return f"unknown columns: {', '.join(shown)}"


def _invalid(row: Row, message: str) -> Row:
    return Row(row.number, row.end_offset_bytes, error=FieldError("line", message))


def write_users(stream: TextIO, file_format: FileFormat, users: Iterable[User], *, passwords: bool) -> Iterator[None]:
    """Write one line per user, and yield after each line.

    Cells that start with ``=``, ``+``, ``-`` or ``@`` are not escaped for spreadsheets, because an import must read the
    same values.

    Args:
        stream: a text stream without newline translation.
        file_format: the format to write.
        users: the users to write.
        passwords: whether to include stored passwords.
    """
    writer = csv.writer(stream, lineterminator="\n")
    columns = {**_EXPORTED, **_STORED_PASSWORD} if passwords else _EXPORTED
    if file_format == "csv":
        writer.writerow(columns)
    for user in users:
        values = [read(user) for read in columns.values()]
        if file_format == "csv":
            writer.writerow(map(format_cell, values))
        else:
            stream.write(f"{msgspec.json.encode(dict(zip(columns, values, strict=True))).decode()}\n")
        yield


_EXPORTED: Mapping[str, Callable[[User], object]] = {
    "user_id": lambda user: user.id,
    "username": lambda user: user.username,
    "email": lambda user: user.email,
    "enabled": lambda user: user.enabled,
    "created_datetime": lambda user: user.created_datetime,
    "updated_datetime": lambda user: user.updated_datetime,
    "expires_datetime": lambda user: user.expires_datetime,
    "plan": lambda user: user.plan,
    "pending": lambda user: user.pending,
    "metadata": lambda user: None if user.metadata.value is None else msgspec.Raw(user.metadata.value.encode()),
}
"""The columns of an export, in order."""
_STORED_PASSWORD: Mapping[str, Callable[[User], object]] = {"stored_password": lambda user: user.password.value}
