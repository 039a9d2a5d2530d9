"""Extensions of a user's access: calendar months, short months, and early renewals that lose no time."""

from datetime import UTC, datetime, timedelta

import pytest

from mlapi import InvalidFieldsError
from mlapi.domain.errors import FieldError
from mlapi.domain.expiry import Extension, parse_extension

NOW = datetime(2026, 11, 30, 12, 34, 56, 789, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "extension"),
    [
        ("+1h", Extension(hours=1)),
        ("+30d", Extension(hours=720)),
        ("+2w", Extension(hours=336)),
        ("+1mo", Extension(months=1)),
        ("+10y", Extension(months=120)),
        ("+9999d", Extension(hours=239_976)),
    ],
)
def test_extensions_are_parsed(text: str, extension: Extension) -> None:
    assert parse_extension(text) == extension


@pytest.mark.parametrize(
    "text",
    ["", "+", "30d", "-30d", "+0d", "+01d", "+30", "+30D", "+1m", "+1 d", "+1d ", "+1.5d", "+10000d", "+1d1h", "+٣d"],
)
def test_invalid_extensions_are_rejected(text: str) -> None:
    with pytest.raises(InvalidFieldsError) as error_info:
        parse_extension(text)

    message = "must be + and a number of h, d, w, mo or y, such as +30d or +1mo"
    assert error_info.value == InvalidFieldsError((FieldError("expires_at", message),))


@pytest.mark.parametrize(
    ("start", "text", "end"),
    [
        ("2026-01-31", "+1mo", "2026-02-28"),
        ("2028-01-31", "+1mo", "2028-02-29"),
        ("2026-01-30", "+13mo", "2027-02-28"),
        ("2026-12-31", "+1mo", "2027-01-31"),
        ("2026-11-30", "+3mo", "2027-02-28"),
        ("2028-02-29", "+1y", "2029-02-28"),
        ("2028-02-29", "+4y", "2032-02-29"),
        ("2026-03-28", "+1w", "2026-04-04"),
        ("2026-12-31", "+1d", "2027-01-01"),
    ],
)
def test_months_keep_the_day_or_use_the_last_one(start: str, text: str, end: str) -> None:
    at, expected = (datetime.fromisoformat(day).replace(hour=23, minute=59, tzinfo=UTC) for day in (start, end))

    assert parse_extension(text).extend(at, NOW - timedelta(days=9999)) == expected


@pytest.mark.parametrize(
    ("expiry", "start"),
    [
        (None, NOW),
        (NOW - timedelta(days=9), NOW),
        (NOW, NOW),
        (NOW + timedelta(microseconds=1), NOW + timedelta(microseconds=1)),
    ],
)
def test_extension_starts_at_the_later_of_now_and_the_expiry(expiry: datetime | None, start: datetime) -> None:
    assert Extension(hours=24).extend(expiry, NOW) == start + timedelta(days=1)


@pytest.mark.parametrize("extension", [Extension(months=12 * 9999), Extension(hours=9999 * 366 * 24)])
@pytest.mark.parametrize("expiry", [None, datetime.max.replace(tzinfo=UTC)])
def test_extension_ends_in_the_year_9999(extension: Extension, expiry: datetime | None) -> None:
    assert extension.extend(expiry, NOW) == datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize("amounts", [{}, {"months": -1}, {"hours": -1}, {"months": 1, "hours": -1}])
def test_extension_must_add_time(amounts: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"months|hours"):
        Extension(**amounts)
