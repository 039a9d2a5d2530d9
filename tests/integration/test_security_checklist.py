"""SECURITY.md says what is so: its checklist is whole, its tests are there, its figures are those of the code."""

import ast
import re
from collections import Counter
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from mlapi.adapters.sql.tables import metadata
from mlapi.config import CONTEXT_WORDS, Settings
from tests.unit.test_source import TREES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
LEVELS = (1, 2)


def section(heading: str) -> str:
    """Return what is below a heading, down to the next of its kind or of a higher one."""
    marks = heading.partition(" ")[0]
    (found,) = re.findall(rf"^{re.escape(heading)}\n(.*?)(?=^#{{2,{len(marks)}}} |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def cells(text: str) -> list[list[str]]:
    """Return the rows of the tables in a text, without their headings."""
    rows = [line.strip("|").split(" | ") for line in re.findall(r"^\|(?!---).*\|$", text, re.MULTILINE)]
    return [[cell.strip() for cell in row] for row in rows]


def standard() -> dict[str, int]:
    """Return the level of each requirement."""
    lines = (ROOT / "tests" / "data" / "asvs_5.0.0.txt").read_text("utf-8").splitlines()
    return {
        f"{name}.{at}": int(level)
        for name, levels in (line.split() for line in lines if not line.startswith("#"))
        for at, level in enumerate(levels, start=1)
    }


STANDARD = standard()
CHECKLIST = section("## Checklist").partition("### Left to the operator")[0]
APPLICABLE = [row for row in cells(CHECKLIST) if row[0].startswith("v5.0.0-")]
EXCEPTIONS = [row for row in APPLICABLE if row[3].startswith("Exception: ")]
MET = [row for row in APPLICABLE if row not in EXCEPTIONS]
LEFT = [row for row in cells(section("### Left to the operator")) if row[0].startswith("v5.0.0-")]
NOT_APPLICABLE = [row for row in cells(section("### Not applicable")) if re.match("V|v5", row[0])]


def meant_by(names: str) -> list[str]:
    """Return the requirements of these chapters, sections and numbers that are of levels 1 and 2."""
    found: list[str] = []
    for name in names.split(", "):
        if name.startswith("V"):
            found += [one for one, level in STANDARD.items() if f"V{one}".startswith(f"{name}.") and level in LEVELS]
        else:
            found.append(name.removeprefix("v5.0.0-"))
    return found


@cache
def names_in(file: str) -> frozenset[str]:
    path = ROOT / "src" / "mlapi" / file if file.startswith("testing/") else ROOT / "tests" / file
    tree = ast.parse(path.read_text("utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(function.name for function in functions if function.name.startswith("test_"))


def test_the_standard_is_whole() -> None:
    assert Counter(STANDARD.values()) == {1: 70, 2: 183, 3: 92}
    assert {number.partition(".")[0] for number in STANDARD} == {str(chapter) for chapter in range(1, 18)}


def test_every_requirement_of_levels_1_and_2_is_on_the_page_once() -> None:
    listed = [row[0].removeprefix("v5.0.0-") for row in [*APPLICABLE, *LEFT]]
    listed += [number for names, _why in NOT_APPLICABLE for number in meant_by(names)]

    assert [number for number, times in Counter(listed).items() if times > 1] == []
    assert set(listed) == {number for number, level in STANDARD.items() if level in LEVELS}


def test_every_requirement_has_its_level() -> None:
    wrong = [row[0] for row in [*APPLICABLE, *LEFT] if STANDARD[row[0].removeprefix("v5.0.0-")] != int(row[1])]

    assert wrong == []


@pytest.mark.parametrize("row", MET, ids=lambda row: row[0])
def test_every_test_of_a_requirement_is_there(row: list[str]) -> None:
    named = row[3].split(", ")

    assert [test for test in named if not re.fullmatch(r"`[\w/]+\.py::test_\w+`", test)] == []
    files_and_names = [test.strip("`").split("::") for test in named]
    assert [f"{file}::{name}" for file, name in files_and_names if name not in names_in(file)] == []


def test_every_exception_and_all_that_is_left_out_has_its_reason() -> None:
    reasons = [row[3].removeprefix("Exception: ") for row in [*EXCEPTIONS, *LEFT]] + [why for _, why in NOT_APPLICABLE]

    assert [reason for reason in reasons if len(reason) < 5] == []


def test_the_shares_are_right_and_95_of_100_are_met() -> None:
    met, applicable, left = len(MET), len(APPLICABLE), len(LEFT)

    assert f"{met} of the {applicable} requirements that apply to mlapi are met" in PAGE
    assert f"shown by a test: {met / applicable:.1%}" in PAGE
    assert (
        f"Counting the {left} left to the operator, {met} of {applicable + left}: {met / (applicable + left):.1%}"
        in PAGE
    )
    assert met / applicable >= 0.95


# --- what the page documents


def test_every_column_is_classified_and_none_is_made_up() -> None:
    classes = cells(section("## Stored data"))[1:]

    classified = re.findall(r"`(\w+\.\w+)`", " ".join(columns for _name, columns, _protection in classes))
    assert Counter(classified) == {str(column): 1 for table in metadata.tables.values() for column in table.columns}


def test_the_words_of_the_page_are_those_of_the_code() -> None:
    (words,) = re.findall(r"signs alone: (.*?)\.", section("## Passwords"), re.DOTALL)

    assert set(re.split(r",\s+", words)) == CONTEXT_WORDS


def test_every_limit_of_the_page_is_that_of_the_code() -> None:
    limits = {row[2].strip("`"): float(row[1]) for row in cells(section("## Limits"))[1:]}
    values = {}
    for name in limits:
        holder, _, attribute = name.rpartition(".")
        values[name] = getattr(import_module(holder) if "." in holder else getattr(Settings(), holder), attribute)

    assert limits == values
    assert {"logins.per_address", "logins.per_name", "logins.per_name_and_address", "tokens.minutes"} <= set(limits)


def test_every_logger_is_in_the_inventory() -> None:
    used = {
        name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger"
        for argument in node.args
        if isinstance(argument, ast.Constant)
        for name in [str(argument.value)]
    }

    assert "mlapi" in used
    assert [name for name in used if f"`{name}`" not in section("## The log")] == []


def test_the_page_says_how_soon_a_weakness_is_mended() -> None:
    times = [row[1] for row in cells(section("## Dependencies"))[1:]]

    assert times == ["7 days", "30 days", "90 days"]


def test_every_link_of_the_page_leads_somewhere() -> None:
    files = re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE)
    anchors = re.findall(r"\]\(#([^)]+)\)", PAGE)
    headings = {
        re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    }

    assert [file for file in files if not (ROOT / file).exists()] == []
    assert set(anchors) <= headings
