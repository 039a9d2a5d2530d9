"""The patterns in the OpenAPI description accept and reject the same values as the domain."""

import re
import sys
import unicodedata
from datetime import UTC, date, datetime, timedelta

import pytest

from mlapi.config.plans import validate_plan_keys
from mlapi.domain.credentials import validate_api_key_fields
from mlapi.domain.errors import ConfigurationError, InvalidFieldsError
from mlapi.domain.rules import UserFilter, find_username_error, fold, has_invisible
from mlapi.domain.usage import UsagePosition
from mlapi.domain.users import UserId
from mlapi.entrypoints.wire import patterns
from mlapi.entrypoints.wire.queries import parse_users_query

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_patterns_exclude_the_same_characters_as_the_domain() -> None:
    excluded = re.compile(patterns.SEARCH.removeprefix("^(?:").removesuffix("{2,})?$"))
    numbers = [number for number in range(sys.maxunicode + 1) if not 0xD800 <= number <= 0xDFFF]

    wrong = [
        number
        for number in numbers
        if (excluded.match(chr(number)) is None) != has_invisible(chr(number))
        and (excluded.match(chr(number)) is None or unicodedata.category(chr(number)) != "Cn")
    ]
    assert wrong == []


def test_usernames_begin_and_end_as_the_domain_allows() -> None:
    username = re.compile(patterns.USERNAME)
    # NFKC produces spaces only in the basic multilingual plane.
    visible = [chr(number) for number in range(0x10000) if not has_invisible(chr(number))]
    unusual = [character for character in visible if fold(character) != fold(character).strip()]

    assert [character for character in visible if username.search(character) is None] == unusual
    for text in [text for character in unusual for text in (f"{character}a", f"a{character}", f"a{character}b")]:
        assert (username.search(text) is not None) == (find_username_error(text) is None), ascii(text)


@pytest.mark.parametrize("name", ["a", " a", "a ", " ", "\u3000", "\u3000a\u3000", "a\tb", "\u200b", "é ü", ""])
def test_key_name_matches_if_the_domain_accepts_it(name: str) -> None:
    try:
        validate_api_key_fields(name=name, expires_datetime=None, now=NOON)
    except InvalidFieldsError:
        is_valid = False
    else:
        is_valid = True

    assert (re.search(patterns.API_KEY_NAME, name) is not None) == is_valid


@pytest.mark.parametrize("text", ["", "a", "ab", "a\0", "a ", "\u200bb", "  ", "é"])
def test_search_matches_if_the_query_is_accepted(text: str) -> None:
    quoted = "".join(f"%{byte:02x}" for byte in text.encode())
    try:
        is_valid = parse_users_query(f"q={quoted}".encode()).matching == UserFilter(containing=text)
    except InvalidFieldsError:
        is_valid = False

    assert (re.search(patterns.SEARCH, text) is not None) == is_valid


@pytest.mark.parametrize(
    "text",
    [
        *["2026-11-30.7", "2026-11-30.7.00000000000000aa", "2024-02-29.0", "2000-02-29.1", f"9999-12-31.{'9' * 19}"],
        *[
            "2026-02-29.1",
            "1900-02-29.1",
            "2026-04-31.1",
            "2026-13-01.1",
            "2026-00-01.1",
            "2026-01-00.1",
            "0000-02-29.1",
        ],
        *["0000-01-01.1", "0001-01-01.1", "2026-11-30", "2026-11-30.", f"2026-11-30.{'9' * 20}", "2026-11-30.1.00AA"],
        *["2026-11-30.1.", "2026-11-30.-1", "2026-11-30.\u0661", "2026-11-30.1.00000000000000aa0", ""],
    ],
)
def test_usage_cursor_matches_if_it_is_accepted(text: str) -> None:
    try:
        UsagePosition.parse(text)
    except ValueError:
        is_valid = False
    else:
        is_valid = True

    assert (re.search(patterns.USAGE_POSITION, text) is not None) == is_valid


def test_every_day_matches_the_pattern_of_usage_cursors() -> None:
    days = [date(2023, 12, 31) + timedelta(days=number) for number in range(800)]

    assert [
        day for day in days if not re.search(patterns.USAGE_POSITION, str(UsagePosition(day, UserId(1), None)))
    ] == []


@pytest.mark.parametrize("name", ["pro", "Pro-2.0_x", "9", "a" * 64, "", "a" * 65, "-a", ".a", "a b", "é", "a\n"])
def test_plan_name_matches_if_the_configuration_accepts_it(name: str) -> None:
    try:
        validate_plan_keys({name: {}}, "config.yml")
        is_valid = True
    except ConfigurationError:
        is_valid = False

    assert (re.fullmatch(patterns.PLAN_NAME, name) is not None) == is_valid
