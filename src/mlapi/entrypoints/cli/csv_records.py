"""Split CSV into records as RFC 4180 describes. A quoted cell may contain line breaks, commas and doubled quotes.

Cells are separated by commas, semicolons or tabs, as in the header.

A malformed record is rejected as a whole: no part of it is returned as another record. Readers disagree on where a
record with misplaced quotes ends. This reader ends such a record where it has as many cells as the header, unless its
last line is a valid record. Otherwise, only a line break outside quotes ends the record.
"""

import csv
import functools
import io
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum, auto
from typing import BinaryIO

import attrs

MAX_RECORD_BYTES = 64 * 1024
"""The maximum length of a record. Sufficient for the longest cells, even if every character is escaped."""

MAX_AHEAD_BYTES = 8 * 1024
"""How far to read ahead for the end of a malformed record. Most records are shorter, and this much is read quickly."""
_SEPARATORS = (b",", b";", b"\t")
_PLAIN_LINE = re.compile(rb'([^"\0\r\n]+)\r?\n')


@attrs.frozen
class CsvRecord:
    """A record of a CSV file. ``cells`` is None if it is malformed; ``error`` then says why."""

    number: int
    """The number of its first line, starting at 1."""
    end_offset_bytes: int
    """The offset where the next record starts."""
    cells: list[str] | None = attrs.field(default=None, repr=False)
    error: str = ""


def read_csv(stream: BinaryIO, *, known_column: str = "username") -> Iterator[CsvRecord]:
    """Yield each record that is not empty.

    Args:
        stream: UTF-8 text, with or without a byte order mark. Lines end in LF or CRLF.
        known_column: a column of the header. The character beside it in the header separates all cells.
    """
    lines, number, columns, separator = _Lines(stream), 1, None, b","
    while line := lines.readline():
        if columns is None:
            separator = _find_separator(line, known_column.encode())
        elif (cells := _split_plain_line(line, separator)) is not None:
            yield CsvRecord(number, lines.offset_bytes, cells)
            number = lines.number
            continue
        content, error = _read_record(line, lines, _Format(separator, columns))
        if error is not None:
            yield CsvRecord(number, lines.offset_bytes, error=error)
        elif content:
            cells = _split_cells(content.decode("utf-8"), separator.decode("ascii"))
            columns = len(cells) if columns is None else columns
            yield CsvRecord(number, lines.offset_bytes, cells)
        number = lines.number


def _split_plain_line(line: bytes, separator: bytes) -> list[str] | None:
    """Split a record that is one line without quotes, like most records. Return None for others and malformed ones."""
    match = _PLAIN_LINE.fullmatch(line)
    if match is not None and len(line) <= MAX_RECORD_BYTES // 2:
        with suppress(UnicodeDecodeError):
            return match[1].decode("utf-8").split(separator.decode("ascii"))
    return None


def _find_separator(header: bytes, column: bytes) -> bytes:
    """Return the separator of a header. By default, it is a comma."""
    for separator in _SEPARATORS:
        if column in [cell.strip(b' "\r\n') for cell in header.removeprefix(BOM_UTF8).split(separator)]:
            return separator
    return _SEPARATORS[0]


class _Lines:
    """Reads lines, and counts lines and bytes. Data that was read ahead can be returned."""

    def __init__(self, stream: BinaryIO) -> None:
        self.number = 1
        """The number of the next line."""
        self.offset_bytes = 0
        """The offset of the next line."""
        self._stream = stream
        self._returned = io.BytesIO()

    def readline(self) -> bytes:
        """Return the next line, or `MAX_RECORD_BYTES` of it if it is longer."""
        line = self._returned.readline(MAX_RECORD_BYTES)
        if not line.endswith(b"\n"):
            line += self._stream.readline(MAX_RECORD_BYTES - len(line))
        return self._count(line)

    def read(self, max_bytes: int) -> bytes:
        data = self._returned.read(max_bytes)
        return self._count(data + self._stream.read(max_bytes - len(data)))

    def put_back(self, data: bytes) -> None:
        self.number -= data.count(b"\n")
        self.offset_bytes -= len(data)
        self._returned = io.BytesIO(data + self._returned.read())

    def _count(self, data: bytes) -> bytes:
        self.number += data.count(b"\n")
        self.offset_bytes += len(data)
        return data


@attrs.frozen
class _Format:
    separator: bytes
    columns: int | None
    """The number of cells in the header; None if the header has not been read."""


def _read_record(line: bytes, lines: _Lines, file_format: _Format) -> tuple[bytes, str | None]:
    """Return the content of a record, and why it is malformed, or None.

    Args:
        line: the first line of the record.
        lines: the lines after it.
        file_format: the format of the file.
    """
    if lines.offset_bytes == len(line):
        line = line.removeprefix(BOM_UTF8)
    content, size_bytes, quotes = bytearray(), 0, _Quotes(file_format.separator)
    while line:
        size_bytes += len(line)
        if size_bytes <= 2 * MAX_RECORD_BYTES:
            content += line
        quotes.read(line)
        if quotes.is_complete or (quotes.is_misplaced and size_bytes > MAX_RECORD_BYTES):
            break
        line = lines.readline()
    if quotes.is_misplaced and size_bytes == len(content) and _skip_malformed(content, lines, quotes, file_format):
        return b"", quotes.error
    while not quotes.is_complete and (line := lines.readline()):
        size_bytes += len(line)
        quotes.read(line)
    content = content.removesuffix(b"\n").removesuffix(b"\r")
    return bytes(content), _find_error(content, quotes, size_bytes)


def _skip_malformed(content: bytearray, lines: _Lines, quotes: "_Quotes", file_format: _Format) -> bool:
    """Skip a record with misplaced quotes. Return False if its end was not found.

    Args:
        content: the record as far as it has been read.
        lines: the lines after it, which are read ahead if necessary.
        quotes: the quotes in the content.
        file_format: the format of the file.
    """
    size_bytes = len(content)
    content += lines.read(MAX_AHEAD_BYTES)
    is_rest = len(content) < size_bytes + MAX_AHEAD_BYTES
    text = bytes(content) + b"\n" if is_rest else bytes(content)
    ends = (_find_lenient_end(text, cell, file_format) for cell in _lenient_cells(file_format.separator))
    end = next(filter(None, ends), size_bytes if quotes.is_complete else None)
    lines.put_back(text[end or size_bytes : len(content)])
    return end is not None


@functools.cache
def _lenient_cells(separator: bytes) -> tuple[re.Pattern[bytes], ...]:
    """Return patterns for cells like "5" nail", in which a quote ends a cell only before a separator or line break."""
    blank = b" " if separator == b"\t" else b" \t"
    pattern = rb'"(?>[^"]+|""|"(?![%b]*(?:%b|\r?\n)))*+"[%b]*' % (blank, separator, blank)
    return (
        re.compile(rb'[%b]*%b|(?![%b]*")[^%b\n]*' % (blank, pattern, blank, separator)),  # also after blanks
        re.compile(rb'%b|(?!")[^%b\n]*' % (pattern, separator)),
    )


def _find_lenient_end(text: bytes, cell: re.Pattern[bytes], file_format: _Format) -> int | None:
    """Return where a record ends for a reader that accepts misplaced quotes, or None if that end is implausible.

    Args:
        text: the record and the lines after it.
        cell: the pattern of the reader's cells.
        file_format: the format of the file.
    """
    position = cells = 0
    while match := cell.match(text, position):
        position, cells = match.end(), cells + 1
        if not text.startswith(file_format.separator, position):
            end = text.find(b"\n", position) + 1
            is_end = end and cells == file_format.columns and not _ends_with_record(text[:end], file_format)
            return end if is_end else None
        position += 1
    return None


def _ends_with_record(text: bytes, file_format: _Format) -> bool:
    """Return whether the last of several lines is a valid record, and therefore not the end of another record."""
    first, _, last = text.removesuffix(b"\n").rpartition(b"\n")
    quotes = _Quotes(file_format.separator)
    quotes.read(last)
    return bool(first) and quotes.error is None and not quotes.is_open and quotes.cells == file_format.columns


def _find_error(content: bytearray, quotes: "_Quotes", size_bytes: int) -> str | None:
    if quotes.is_open:
        return "has a quote that is never closed, so the rest of the file was not imported: close or double the quote"
    if size_bytes >= MAX_RECORD_BYTES:
        return f"must be shorter than {MAX_RECORD_BYTES} bytes"
    return quotes.error or _find_encoding_error(content)


def _find_encoding_error(content: bytearray) -> str | None:
    if b"\0" in content:
        return "must not contain NUL characters"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "must be UTF-8"
    return None


def _split_cells(text: str, separator: str) -> list[str]:
    if '"' not in text:
        return text.split(separator)
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))


class _State(Enum):
    """The state of the reader after a character of a record."""

    CELL_START = auto()
    BLANK = auto()
    """In a cell that has only spaces and tabs so far."""
    UNQUOTED = auto()
    QUOTED = auto()
    CLOSED = auto()
    """After a quote in a quoted cell, which ends the cell unless another quote follows."""
    OUTSIDE = auto()
    """Outside quotes, after a misplaced quote. From then on, each quote opens or closes a quoted part."""
    INSIDE = auto()


_MISPLACED = "must have quotes only around whole cells; a quote inside a quoted cell must be doubled"
_AFTER_QUOTE = {
    _State.CELL_START: _State.QUOTED,
    _State.BLANK: _State.INSIDE,  # some readers ignore spaces before a quote
    _State.UNQUOTED: _State.UNQUOTED,  # all readers take this quote literally
    _State.QUOTED: _State.CLOSED,
    _State.CLOSED: _State.QUOTED,
    _State.OUTSIDE: _State.INSIDE,
    _State.INSIDE: _State.OUTSIDE,
}


class _Quotes:
    """Tracks the quotes of one record, line by line."""

    def __init__(self, separator: bytes) -> None:
        self._separator = separator
        self._blanks = b" " if separator == b"\t" else b" \t"
        self.error: str | None = None
        """Why the record is malformed, or None."""
        self.is_misplaced = False
        """Whether a quote is misplaced."""
        self.is_complete = False
        """Whether the last line ended the record."""
        self.cells = 1
        """The number of cells so far."""
        self._state = _State.CELL_START

    @property
    def is_open(self) -> bool:
        """Whether the record continues after a line break here."""
        return self._state in {_State.QUOTED, _State.INSIDE}

    def read(self, line: bytes) -> None:
        """Read a line, or a part of one."""
        first, *others = line.removesuffix(b"\n").removesuffix(b"\r").split(b'"')
        self._read_text(first)
        for text in others:
            if self._state in {_State.BLANK, _State.UNQUOTED}:
                self.error, self.is_misplaced = _MISPLACED, True
            self._state = _AFTER_QUOTE[self._state]
            self._read_text(text)
        self.is_complete = line.endswith(b"\n") and not self.is_open

    def _read_text(self, text: bytes) -> None:
        """Read text without quotes and without the end of the line."""
        if self.is_open or not text:
            return
        self.cells += text.count(self._separator)
        if self._state is _State.OUTSIDE:
            return
        if b"\r" in text:
            self.error = "must not contain a carriage return outside quotes: end lines with LF or CRLF"
        if self._state is _State.CLOSED and not text.startswith(self._separator):
            self.error, self.is_misplaced, self._state = _MISPLACED, True, _State.OUTSIDE
            return
        _, separator, cell = text.rpartition(self._separator)
        if separator:
            self._state = _State.CELL_START
        if cell.strip(self._blanks):
            self._state = _State.UNQUOTED
        elif cell and self._state is _State.CELL_START:
            self._state = _State.BLANK
