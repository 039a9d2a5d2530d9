"""Files of users, as CSV or JSON lines: read line by line, whatever is in them, and written.

A line is a user, in CSV too: where a quote does not end, or a line is none at all, that line is refused and no other.
"""

import csv
import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import BinaryIO, Literal, TextIO

import msgspec

from mlapi.application.user_import import Row
from mlapi.domain.errors import FieldError
from mlapi.domain.users import User
from mlapi.entrypoints.cli.output import Refused

LINE_MAX = 64 * 1024
"""Bytes of a line. A user whose fields are all at their longest takes less, in escapes too."""

PASSWORD_COLUMNS = ("password", "password_hash", "stored_password")
_REQUIRED = {"username", "email"}
_UNUSED = {"user_id", "updated_datetime"}  # in every export; a new user gets his own
_KNOWN = {*_REQUIRED, *PASSWORD_COLUMNS, "enabled", "created_datetime", *_UNUSED}
_EXPORTED = ("user_id", "username", "email", "enabled", "created_datetime", "updated_datetime")
_ONE_OF = f"one of {', '.join(PASSWORD_COLUMNS)}"
_ONE_PASSWORD = f"must have exactly {_ONE_OF}"
_WORD = re.compile(r"[A-Za-z][\w .-]{0,40}", re.ASCII)

FileFormat = Literal["csv", "jsonl"]


def read_rows(stream: BinaryIO, file_format: FileFormat, *, ignore_columns: bool = False) -> Iterator[Row]:
    """Yield a row for each line that is not empty; the first line of CSV names the columns.

    Args:
        stream: UTF-8, with or without a byte order mark; lines end in LF or CRLF.
        file_format: of the stream.
        ignore_columns: whether columns that mean nothing here are let pass.

    Raises:
        Refused: if the file as a whole is none of users.
    """
    lines = _lines(stream)
    read = _csv_rows if file_format == "csv" else _json_rows
    return read(lines, ignore_columns=ignore_columns)


def _lines(stream: BinaryIO) -> Iterator[tuple[str, Row]]:
    """Yield the text of each line that is not empty, and its row as far as it is known."""
    number = end = 0
    while line := stream.readline(LINE_MAX):
        number, end = number + 1, end + len(line)
        if len(line) == LINE_MAX and not line.endswith(b"\n"):
            while (rest := stream.readline(LINE_MAX)) and not rest.endswith(b"\n"):
                end += len(rest)
            end += len(rest)
            yield "", _refused(Row(number, end), f"must be shorter than {LINE_MAX} bytes")
            continue
        try:
            text = (line.removeprefix(BOM_UTF8) if number == 1 else line).decode("utf-8")
        except UnicodeDecodeError:
            yield "", _refused(Row(number, end), "must be UTF-8")
            continue
        if text := text.removesuffix("\n").removesuffix("\r"):
            yield text, Row(number, end)


def _csv_rows(lines: Iterator[tuple[str, Row]], *, ignore_columns: bool) -> Iterator[Row]:
    columns: list[str] | None = None
    for text, row in lines:
        cells = None if row.problem is not None else _cells(text)
        if columns is None:
            columns = _checked_columns(cells or [], ignore_columns=ignore_columns)
        elif cells is None:
            yield row if row.problem is not None else _refused(row, "must be CSV, with every quote ended in it")
        elif len(cells) != len(columns):
            yield _refused(row, f"must have {len(columns)} cells, as the first line has, and has {len(cells)}")
        else:
            yield Row(row.number, row.end, dict(zip(columns, cells, strict=True)))
    if columns is None:
        raise Refused("the file is empty")


def _cells(line: str) -> list[str] | None:
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader((line,), strict=True))
    except csv.Error:
        return None


def _checked_columns(columns: list[str], *, ignore_columns: bool) -> list[str]:
    if not columns or set(columns).isdisjoint(_KNOWN):  # then it is not shown: it may be the first user
        raise Refused(f"the first line must name columns, in UTF-8: username, email and {_ONE_OF}")
    if len(set(columns)) != len(columns):
        raise Refused("the first line names a column twice")
    if missing := sorted(_REQUIRED - set(columns)):
        raise Refused(f"the first line names no column {missing[0]}")
    if len(set(PASSWORD_COLUMNS) & set(columns)) != 1:
        raise Refused(f"the first line {_ONE_PASSWORD}")
    unknown = [column for column in columns if column not in _KNOWN]
    if unknown and not ignore_columns:
        raise Refused(f"the first line names {_shown(unknown)}: --ignore-columns lets them pass")
    return columns


def _json_rows(lines: Iterator[tuple[str, Row]], *, ignore_columns: bool) -> Iterator[Row]:
    for text, row in lines:
        if row.problem is not None:
            yield row
            continue
        try:
            values = _object(text)
        except (msgspec.DecodeError, ValueError, RecursionError):  # msgspec's own, a key twice, a thousand brackets
            yield _refused(row, "must be a JSON object, with every key once")
            continue
        if problem := _keys_problem(values, ignore_columns=ignore_columns):
            yield _refused(row, problem)
        else:
            yield Row(row.number, row.end, values)


def _object(text: str) -> dict[str, object]:
    values = msgspec.json.decode(text, type=dict[str, object])
    strings = len(values) + sum(isinstance(value, str) for value in values.values())
    if text.count('"') != 2 * strings:  # an escaped quote, or a key twice, of which msgspec takes the last
        json.loads(text, object_pairs_hook=_unique)
    return values


def _unique(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice")


def _keys_problem(values: Mapping[str, object], *, ignore_columns: bool) -> str | None:
    if missing := sorted(_REQUIRED - values.keys()):
        return f"must have a key {missing[0]}"
    if len(values.keys() & set(PASSWORD_COLUMNS)) != 1:
        return _ONE_PASSWORD
    if not ignore_columns and (unknown := [key for key in values if key not in _KNOWN]):
        return f"must have no {_shown(unknown)}: --ignore-columns lets them pass"
    return None


def _shown(names: list[str]) -> str:
    """Names that are no plain words are not repeated: of a line out of place, they may be a password."""
    words = [name if _WORD.fullmatch(name) else "(no plain word)" for name in names]
    return f"unknown columns: {', '.join(words)}"


def _refused(row: Row, message: str) -> Row:
    return Row(row.number, row.end, problem=FieldError("line", message))


def write_users(stream: TextIO, file_format: FileFormat, users: Iterable[User], *, passwords: bool) -> Iterator[None]:
    """Write users, a line for each, and yield after each of them.

    Cells are written as they are. One that begins with ``=``, ``+``, ``-`` or ``@``, which a spreadsheet would take for
    a formula, is somebody's name.

    Args:
        stream: a text file that does not translate line ends.
        file_format: to write.
        users: whom.
        passwords: whether with their stored passwords.
    """
    writer = csv.writer(stream, lineterminator="\n")
    if file_format == "csv":
        writer.writerow([*_EXPORTED, "stored_password"] if passwords else _EXPORTED)
    for user in users:
        values: dict[str, object] = {
            "user_id": user.id,
            "username": user.username,
            "email": user.email,
            "enabled": user.enabled,
            "created_datetime": user.created_datetime,
            "updated_datetime": user.updated_datetime,
        }
        if passwords:
            values["stored_password"] = user.password.value
        if file_format == "csv":
            writer.writerow(map(_cell, values.values()))
        else:
            stream.write(f"{msgspec.json.encode(values).decode()}\n")
        yield


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, datetime) else value
