"""Tables for terminals: wide characters, control characters and narrow windows."""

import attrs
import msgspec
import pytest

from mlapi.entrypoints.cli.tables import Column, display_width, printable, show_rows


class Row(msgspec.Struct):
    number: int
    name: str
    note: str = "note"


COLUMNS: list[Column[Row]] = [
    Column(heading="NO", cell=lambda row: row.number, is_number=True),
    Column(heading="NAME", cell=lambda row: row.name, may_shrink=True),
    Column(heading="NOTE", cell=lambda row: row.note, is_optional=True),
]


def table(
    rows: list[Row], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int | None = None
) -> list[str]:
    if width is not None:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(width))
    show_rows(rows, COLUMNS, Row, None)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("text", "width"), [("ada", 3), ("漢字", 4), ("e\u0301", 1), ("\u0e01\u0e33\u0e35", 2), ("\u1112\u1161\u11ab", 2)]
)
def test_width_is_that_on_a_terminal(text: str, width: int) -> None:
    assert display_width(text) == width


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zoë 漢字", "Zoë 漢字"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\tb\n", "a\\tb\\n"),
        ("\u202egpj", "\\u202egpj"),
        ("\ud800", "\\ud800"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_columns_are_aligned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = table([Row(7, "漢字"), Row(123, "ada")], monkeypatch, capsys)

    assert lines == [" NO  NAME  NOTE", "  7  漢字  note", "123  ada   note"]


def test_long_tables_are_written_in_chunks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    written: list[str] = []
    monkeypatch.setattr("mlapi.entrypoints.cli.tables.click.echo", written.append)

    table([Row(number, "ada") for number in range(1_000)], monkeypatch, capsys)

    assert len("\n".join(written).splitlines()) == 1_001
    assert len(written) < 10


def test_text_in_a_pipe_is_never_cut(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert table([Row(1, "n" * 500)], monkeypatch, capsys)[1] == f" 1  {'n' * 500}  note"


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (25, " 1  漢字漢字漢字1  note"),
        (20, " 1  漢字漢字漢字1"),
        (16, " 1  漢字漢字漢…"),
        (15, " 1  漢字漢字漢…"),
        (5, " 1  漢字漢…"),
    ],
)
def test_narrow_terminal_omits_optional_columns_and_cuts_others(
    width: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert table([Row(1, "漢字漢字漢字1")], monkeypatch, capsys, width)[1] == line


def test_headings_are_printed_once_for_a_long_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = table([Row(number, "ada") for number in range(1200)], monkeypatch, capsys)

    assert len(lines) == 1201
    assert [line for line in lines if "NAME" in line] == lines[:1]
    assert lines[-1] == "1199  ada   note"


def test_column_without_any_text_is_omitted(capsys: pytest.CaptureFixture[str]) -> None:
    sparse = [*COLUMNS[:2], attrs.evolve(COLUMNS[2], is_sparse=True)]

    show_rows([Row(1, "ada", ""), Row(2, "bob", "")], sparse, Row, None)
    show_rows([Row(1, "ada", ""), Row(2, "bob", "x")], sparse, Row, None)

    assert capsys.readouterr().out.splitlines() == [
        *("NO  NAME", " 1  ada", " 2  bob"),
        *("NO  NAME  NOTE", " 1  ada", " 2  bob   x"),
    ]


def test_headings_are_repeated_if_a_column_is_needed_later(capsys: pytest.CaptureFixture[str]) -> None:
    sparse = [*COLUMNS[:2], attrs.evolve(COLUMNS[2], is_sparse=True)]

    show_rows([Row(number, "ada", "x" if number == 700 else "") for number in range(1600)], sparse, Row, None)

    lines = capsys.readouterr().out.splitlines()
    assert [number for number, line in enumerate(lines) if "NAME" in line] == [0, 501]
    assert lines[501].split() == ["NO", "NAME", "NOTE"]
    assert len(lines) == 1602
