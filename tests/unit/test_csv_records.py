"""The CSV reader of the import: records as in RFC 4180, and no part of a malformed record becomes another record."""

import csv
import io
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlapi.domain.users import EncryptedPassword, User, UserId
from mlapi.entrypoints.cli.csv_records import MAX_RECORD_BYTES, CsvRecord, read_csv
from mlapi.entrypoints.cli.user_files import FileFormat, read_rows, write_users

MISPLACED = "must have quotes only around whole cells; a quote inside a quoted cell must be doubled"
UNCLOSED = "has a quote that is never closed, so the rest of the file was not imported: close or double the quote"
CARRIAGE_RETURN = "must not contain a carriage return outside quotes: end lines with LF or CRLF"
MALLORY = b"mallory,m@example.com,pw,1"


def read(content: bytes) -> list[CsvRecord]:
    return list(read_csv(io.BytesIO(content)))


def cells(content: bytes) -> list[list[str] | None]:
    return [record.cells for record in read(content)]


def errors(content: bytes) -> dict[int, str]:
    return {record.number: record.error for record in read(content) if record.error}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a,b\nc,d\n", [["a", "b"], ["c", "d"]]),
        (b"a,b\r\nc,d\r\n", [["a", "b"], ["c", "d"]]),
        (b"a,b\nc,d", [["a", "b"], ["c", "d"]]),
        (b"a,b\r", [["a", "b"]]),
        (b'\xef\xbb\xbf"a",b\n', [["a", "b"]]),
        (b"\n\r\na,b\n\n", [["a", "b"]]),
        (b'"a\nb","c\r\nd","e\rf"\ng\n', [["a\nb", "c\r\nd", "e\rf"], ["g"]]),
        (b'"a ""b"", c",""\n""""\n', [['a "b", c', ""], ['"']]),
        (b'""\n,\n', [[""], ["", ""]]),
        (b" a , b\t\n", [[" a ", " b\t"]]),
        ("é,\u2028\x85\x0b\x0c\x1c\n".encode(), [["é", "\u2028\x85\x0b\x0c\x1c"]]),
        (b"", []),
        (b"\xef\xbb\xbf", []),
    ],
)
def test_records_are_read_as_rfc_4180_describes(content: bytes, expected: list[list[str]]) -> None:
    assert cells(content) == expected


@pytest.mark.parametrize(
    ("malformed", "error"),
    [
        (b'a"b,c', MISPLACED),
        (b'a""b,c', MISPLACED),
        (b'a,b"', MISPLACED),
        (b'"a"b,c', MISPLACED),
        (b'"a" ,c', MISPLACED),
        (b'a, "b"', MISPLACED),
        (b'"a\n%s\nb"c,d' % MALLORY, MISPLACED),
        (b'a"b,"c\n%s\nd"' % MALLORY, MISPLACED),
        (b'a, "b\n%s\nc"' % MALLORY, MISPLACED),
        (b'a,\t"b\r\n%s\r\nc"' % MALLORY, MISPLACED),
        (b'"He said "hi" to\n%s\nall",1' % MALLORY, MISPLACED),
        (b'"He said "hi, there" to\n%s\nall",1' % MALLORY, MISPLACED),
        (b'"a"b,"c\n%s\nd",e' % MALLORY, MISPLACED),
        (b'"5" nail\n%s\nall",1' % MALLORY, MISPLACED),
        (b'a,"5" nail\n%s\n"' % MALLORY, MISPLACED),
        (b'"a\\"b",c', MISPLACED),
        (b'"a"b","c"', MISPLACED),
        (b'a, "b', MISPLACED),
        (b"a\r%s" % MALLORY, CARRIAGE_RETURN),
        (b"a\r\r", CARRIAGE_RETURN),
        (b'"a"\r,b', MISPLACED),
        (b"a\0b,c", "must not contain NUL characters"),
        (b'"a\n%s\n\0"' % MALLORY, "must not contain NUL characters"),
        (b'"a\n%s\n\xff",b' % MALLORY, "must be UTF-8"),
        (b"a" * MAX_RECORD_BYTES, f"must be shorter than {MAX_RECORD_BYTES} bytes"),
        (b'"%s\n%s\n"' % (b"a" * MAX_RECORD_BYTES, MALLORY), f"must be shorter than {MAX_RECORD_BYTES} bytes"),
        (b'"%s\n"' % ((MALLORY + b"\n") * 10_000), f"must be shorter than {MAX_RECORD_BYTES} bytes"),
        (b'"%s"",\n%s\n"' % (b"a" * (MAX_RECORD_BYTES - 2), MALLORY), f"must be shorter than {MAX_RECORD_BYTES} bytes"),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_malformed_record_is_rejected_alone_and_as_a_whole(malformed: bytes, error: str, end: bytes) -> None:
    records = read(b"x,y" + end + malformed + end + b'"z",w' + end)

    assert [(record.number, record.cells, record.error) for record in records] == [
        (1, ["x", "y"], ""),
        (2, None, error),
        (3 + malformed.count(b"\n"), ["z", "w"], ""),
    ]


@pytest.mark.parametrize(
    "rest", [b"", b"\n", b"\n" + MALLORY, b"\n" + (MALLORY + b"\n") * 10_000, b'x"y,"\n' + MALLORY]
)
def test_unclosed_quote_rejects_the_rest_of_the_file(rest: bytes) -> None:
    content = b'x,y\n"a,b' + rest

    assert [record.cells for record in read(content)] == [["x", "y"], None]
    assert errors(content) == {2: UNCLOSED}


@pytest.mark.parametrize("rest", [b"z,w\n" * 20_000, b'"z","w"\n' * 20_000, b'z,"w"\n' * 20_000])
def test_misplaced_quote_does_not_affect_later_records(rest: bytes) -> None:
    records = read(b'x,y\n"a"b",c\n"a\\"b",c\nd,"e"f\n' + rest)

    assert [record.number for record in records if record.error] == [2, 3, 4]
    assert [record.cells for record in records[4:]] == [["z", "w"]] * 20_000


def test_misplaced_unclosed_quotes_reject_the_rest_of_the_file() -> None:
    records = read(b'x,y\n"a"b"c,d\n' + (MALLORY + b"\n") * 10_000)

    assert [record.cells for record in records] == [["x", "y"], None]


def test_record_ends_where_the_next_one_starts() -> None:
    content = b'\xef\xbb\xbfa,b\r\n\n"c\nd",e\nf"g\nh'

    offsets = [(record.number, record.end_offset_bytes) for record in read(content)]

    assert offsets == [(1, 8), (3, 17), (5, 21), (6, 22)]


TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from('",\r\n'), max_size=8
)


@given(rows=st.lists(st.lists(TEXT, min_size=2, max_size=4), max_size=5), end=st.sampled_from(["\n", "\r\n"]))
def test_written_cells_are_read_back(rows: list[list[str]], end: str) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)

    assert cells(stream.getvalue().encode()) == rows


@given(st.text('"" ,\n\rab', max_size=40))
def test_valid_files_are_read_like_the_standard_library_does(text: str) -> None:
    records = read(text.encode())

    if not any(record.error for record in records):
        assert [record.cells for record in records] == [
            row for row in csv.reader(io.StringIO(text, newline="")) if row and text
        ]


NAMES = st.text(st.characters(exclude_categories=["C"]) | st.sampled_from("\",;=+-@'\\ "), min_size=1, max_size=20)


@given(names=st.lists(NAMES, max_size=3), file_format=st.sampled_from(["csv", "jsonl"]))
def test_hostile_names_are_exported_and_read_back(names: list[str], file_format: FileFormat) -> None:
    now = datetime.now(UTC)
    users = [
        User(
            id=UserId(number),
            username=name,
            password=EncryptedPassword("x"),
            email=f"{name}@example.com",
            enabled=number % 2 == 0,
            token_epoch="",
            created_datetime=now,
            updated_datetime=now,
        )
        for number, name in enumerate(names, 1)
    ]
    stream = io.StringIO(newline="")

    assert len(list(write_users(stream, file_format, users, passwords=True))) == len(users)
    rows = list(read_rows(io.BytesIO(stream.getvalue().encode()), file_format))

    assert [row.error for row in rows] == [None] * len(users)
    assert [(row.values["username"], row.values["email"]) for row in rows] == [
        (user.username, user.email) for user in users
    ]
