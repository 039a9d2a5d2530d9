"""Split CSV into records as RFC 4180 describes. A quoted cell may contain line breaks, commas and doubled quotes.

A malformed record is rejected as a whole: no part of it is returned as another record. In a record with misplaced
quotes, a line break ends the record only if no reader would place it inside a quoted cell.
"""

import csv
import io
from codecs import BOM_UTF8
from collections.abc import Iterator
from enum import Enum, auto
from typing import BinaryIO

import attrs

MAX_RECORD_BYTES = 64 * 1024
"""The maximum length of a record. Sufficient for the longest cells, even if every character is escaped."""


@attrs.frozen
class CsvRecord:
    """A record of a CSV file. ``cells`` is None if it is malformed; ``error`` then says why."""

    number: int
    """The number of its first line, starting at 1."""
    end_offset_bytes: int
    """The offset where the next record starts."""
    cells: list[str] | None = attrs.field(default=None, repr=False)
    error: str = ""


def read_csv(stream: BinaryIO) -> Iterator[CsvRecord]:
    """Yield each record that is not empty.

    Args:
        stream: UTF-8 text, with or without a byte order mark. Lines end in LF or CRLF.
    """
    number, offset_bytes = 1, 0
    while line := stream.readline(MAX_RECORD_BYTES):
        first_number, size_bytes, content, quotes = number, 0, bytearray(), _Quotes()
        while line:
            size_bytes += len(line)
            if offset_bytes == 0 and size_bytes == len(line):
                line = line.removeprefix(BOM_UTF8)
            if size_bytes <= MAX_RECORD_BYTES:
                content += line
            quotes.read(line)
            if line.endswith(b"\n"):
                number += 1
                if not quotes.is_open:
                    break
            line = stream.readline(MAX_RECORD_BYTES)
        offset_bytes += size_bytes
        content = content.removesuffix(b"\n").removesuffix(b"\r")
        error = _find_error(content, quotes, size_bytes)
        if error is not None:
            yield CsvRecord(first_number, offset_bytes, error=error)
        elif content:
            yield CsvRecord(first_number, offset_bytes, _split_cells(content.decode("utf-8")))


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


def _split_cells(text: str) -> list[str]:
    if '"' not in text:
        return text.split(",")
    return next(csv.reader(io.StringIO(text, newline=""), strict=True))


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

    def __init__(self) -> None:
        self.error: str | None = None
        """Why the record is malformed, or None."""
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
                self.error = _MISPLACED
            self._state = _AFTER_QUOTE[self._state]
            self._read_text(text)

    def _read_text(self, text: bytes) -> None:
        """Read text without quotes and without the end of the line."""
        if self.is_open or self._state is _State.OUTSIDE or not text:
            return
        if b"\r" in text:
            self.error = "must not contain a carriage return outside quotes: end lines with LF or CRLF"
        if self._state is _State.CLOSED and not text.startswith(b","):
            self.error, self._state = _MISPLACED, _State.OUTSIDE
            return
        _, comma, cell = text.rpartition(b",")
        if comma:
            self._state = _State.CELL_START
        if cell.strip(b" \t"):
            self._state = _State.UNQUOTED
        elif cell and self._state is _State.CELL_START:
            self._state = _State.BLANK
