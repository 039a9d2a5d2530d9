"""SECURITY.md is correct: its checklist is complete, its tests exist and its figures match the code."""

import ast
import re
from collections import Counter
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from mlapi.adapters.sql.tables import metadata
from mlapi.config import CONTEXT_WORDS, Settings
from tests.unit.test_source import trees

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
LEVELS = (1, 2)


def find_section(heading: str) -> str:
    """Return the text below a heading, up to the next heading of the same or a higher level."""
    marks = heading.partition(" ")[0]
    (text,) = re.findall(rf"^{re.escape(heading)}\n(.*?)(?=^#{{2,{len(marks)}}} |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def parse_rows(text: str) -> list[list[str]]:
    """Return the cells of every table row in a text, without the separator lines."""
    rows = [line.strip("|").split(" | ") for line in re.findall(r"^\|(?!---).*\|$", text, re.MULTILINE)]
    return [[cell.strip() for cell in row] for row in rows]


def read_standard() -> dict[str, int]:
    """Return the level of each ASVS requirement."""
    lines = (ROOT / "tests" / "data" / "asvs_5.0.0.txt").read_text("utf-8").splitlines()
    return {
        f"{name}.{number}": int(level)
        for name, levels in (line.split() for line in lines if not line.startswith("#"))
        for number, level in enumerate(levels, start=1)
    }


STANDARD = read_standard()
CHECKLIST = find_section("## Checklist").partition("### Left to the operator")[0]
APPLICABLE = [row for row in parse_rows(CHECKLIST) if row[0].startswith("v5.0.0-")]
EXCEPTIONS = [row for row in APPLICABLE if row[3].startswith("Exception: ")]
MET = [row for row in APPLICABLE if row not in EXCEPTIONS]
LEFT_TO_OPERATOR = [row for row in parse_rows(find_section("### Left to the operator")) if row[0].startswith("v5.0.0-")]
NOT_APPLICABLE = [row for row in parse_rows(find_section("### Not applicable")) if re.match("V|v5", row[0])]


def expand_names(names: str) -> list[str]:
    """Return the numbers of every level 1 and level 2 requirement in these chapters and sections."""
    numbers: list[str] = []
    for name in names.split(", "):
        if name.startswith("V"):
            numbers += [
                number for number, level in STANDARD.items() if f"V{number}".startswith(f"{name}.") and level in LEVELS
            ]
        else:
            numbers.append(name.removeprefix("v5.0.0-"))
    return numbers


@cache
def collect_test_names(file: str) -> frozenset[str]:
    path = ROOT / "src" / "mlapi" / file if file.startswith("testing/") else ROOT / "tests" / file
    tree = ast.parse(path.read_text("utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(function.name for function in functions if function.name.startswith("test_"))


def test_standard_file_lists_all_requirements() -> None:
    assert Counter(STANDARD.values()) == {1: 70, 2: 183, 3: 92}
    assert {number.partition(".")[0] for number in STANDARD} == {str(chapter) for chapter in range(1, 18)}


def test_every_level_1_and_2_requirement_is_listed_once() -> None:
    listed = [row[0].removeprefix("v5.0.0-") for row in [*APPLICABLE, *LEFT_TO_OPERATOR]]
    listed += [number for names, _reason in NOT_APPLICABLE for number in expand_names(names)]

    assert [number for number, count in Counter(listed).items() if count > 1] == []
    assert set(listed) == {number for number, level in STANDARD.items() if level in LEVELS}


def test_every_requirement_has_the_right_level() -> None:
    mismatches = [
        row[0] for row in [*APPLICABLE, *LEFT_TO_OPERATOR] if STANDARD[row[0].removeprefix("v5.0.0-")] != int(row[1])
    ]

    assert mismatches == []


@pytest.mark.parametrize("row", MET, ids=lambda row: row[0])
def test_every_requirement_names_existing_tests(row: list[str]) -> None:
    tests = row[3].split(", ")

    assert [test for test in tests if not re.fullmatch(r"`[\w/]+\.py::test_\w+`", test)] == []
    files_and_names = [test.strip("`").split("::") for test in tests]
    assert [f"{file}::{name}" for file, name in files_and_names if name not in collect_test_names(file)] == []


def test_every_exception_and_exclusion_has_a_reason() -> None:
    reasons = [row[3].removeprefix("Exception: ") for row in [*EXCEPTIONS, *LEFT_TO_OPERATOR]] + [
        reason for _, reason in NOT_APPLICABLE
    ]

    assert [reason for reason in reasons if len(reason) < 5] == []


def test_percentages_are_correct_and_at_least_95() -> None:
    met, applicable, left = len(MET), len(APPLICABLE), len(LEFT_TO_OPERATOR)

    assert f"{met} of the {applicable} requirements that apply to mlapi are met" in PAGE
    assert f"shown by a test: {met / applicable:.1%}" in PAGE
    assert (
        f"Counting the {left} left to the operator, {met} of {applicable + left}: {met / (applicable + left):.1%}"
        in PAGE
    )
    assert met / applicable >= 0.95


# --- documented facts


def test_every_database_column_is_classified() -> None:
    classes = parse_rows(find_section("## Stored data"))[1:]

    classified = re.findall(r"`(\w+\.\w+)`", " ".join(columns for _name, columns, _protection in classes))
    assert Counter(classified) == {str(column): 1 for table in metadata.tables.values() for column in table.columns}


def test_documented_context_words_match_the_code() -> None:
    (words,) = re.findall(r"signs alone: (.*?)\.", find_section("## Passwords"), re.DOTALL)

    assert set(re.split(r",\s+", words)) == CONTEXT_WORDS


def test_documented_limits_match_the_code() -> None:
    limits = {row[2].strip("`"): float(row[1]) for row in parse_rows(find_section("## Limits"))[1:]}
    values = {}
    for name in limits:
        owner, _, attribute = name.rpartition(".")
        values[name] = getattr(import_module(owner) if "." in owner else getattr(Settings(), owner), attribute)

    assert limits == values
    assert {"logins.per_address", "logins.per_name", "logins.per_name_and_address", "tokens.minutes"} <= set(limits)


def test_every_logger_is_documented() -> None:
    used = {
        name
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger"
        for argument in node.args
        if isinstance(argument, ast.Constant)
        for name in [str(argument.value)]
    }

    assert "mlapi" in used
    assert [name for name in used if f"`{name}`" not in find_section("## The log")] == []


def test_deadlines_for_fixing_vulnerabilities_are_documented() -> None:
    times = [row[1] for row in parse_rows(find_section("## Dependencies"))[1:]]

    assert times == ["7 days", "30 days", "90 days"]


def test_links_on_the_security_page_resolve() -> None:
    files = re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE)
    anchors = re.findall(r"\]\(#([^)]+)\)", PAGE)
    headings = {
        re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    }

    assert [file for file in files if not (ROOT / file).exists()] == []
    assert set(anchors) <= headings
