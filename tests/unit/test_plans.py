"""Windows and allowances of plans, and how draws are counted."""

from datetime import UTC, datetime

import pytest

from mlapi.domain.allowances import AllowanceUse, Draw, Drawn
from mlapi.domain.plans import Allowance, Window, lease_size
from mlapi.domain.users import UserId

MINUTE_60 = Allowance("requests", Window.MINUTE, 60)
NOON = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("window", "at", "start", "end"),
    [
        (Window.MINUTE, "2026-02-28T23:59:59.9", "2026-02-28T23:59", "2026-03-01T00:00"),
        (Window.HOUR, "2026-02-28T23:59:59.9", "2026-02-28T23:00", "2026-03-01T00:00"),
        (Window.DAY, "2026-02-28T23:59:59.9", "2026-02-28T00:00", "2026-03-01T00:00"),
        (Window.MONTH, "2026-02-28T23:59:59.9", "2026-02-01T00:00", "2026-03-01T00:00"),
        (Window.MONTH, "2024-02-29T00:00:00", "2024-02-01T00:00", "2024-03-01T00:00"),
        (Window.MONTH, "2026-12-31T23:59:59.9", "2026-12-01T00:00", "2027-01-01T00:00"),
        (Window.MINUTE, "2026-01-01T00:00:00", "2026-01-01T00:00", "2026-01-01T00:01"),
    ],
)
def test_windows_follow_the_calendar_in_utc(window: Window, at: str, start: str, end: str) -> None:
    starts_at = window.start_of(timestamp(at))

    assert (starts_at, window.end_of(starts_at)) == (timestamp(start), timestamp(end))


def timestamp(text: str) -> float:
    return datetime.fromisoformat(f"{text}+00:00").timestamp()


def test_allowances_are_described_in_words() -> None:
    units = Allowance("units", Window.MONTH, 1000)

    assert (str(MINUTE_60), MINUTE_60.key) == ("60 per minute", "requests per minute")
    assert (str(units), units.key) == ("1000 units per month", "units per month")


@pytest.mark.parametrize(("limit", "size"), [(1, 1), (10, 1), (39, 1), (40, 2), (1000, 50), (100_000, 5000)])
def test_lease_is_a_twentieth_of_the_allowance(limit: int, size: int) -> None:
    assert lease_size(limit) == size


def draw(wanted: int, *, at_least: int = 1, starts_at: int | None = None) -> Draw:
    return Draw.from_allowance(UserId(1), MINUTE_60, wanted, at_least=at_least, starts_at=starts_at)


@pytest.mark.parametrize(
    ("used", "wanted", "at_least", "granted"),
    [(0, 3, 1, 3), (58, 3, 1, 2), (58, 3, 3, 0), (60, 3, 1, 0), (70, 3, 1, 0), (5, 0, 1, 0)],
)
def test_draw_never_exceeds_the_limit(used: int, wanted: int, at_least: int, granted: int) -> None:
    stored = AllowanceUse(NOON, used)

    result = draw(wanted, at_least=at_least).apply_to(stored, NOON + 20.5)

    assert result == (AllowanceUse(NOON, used + granted), Drawn(granted, used + granted, NOON, 39.5))


@pytest.mark.parametrize(
    ("starts_at", "current"),
    [
        (NOON - 60, NOON),
        (NOON, NOON),
        (NOON + 60, NOON + 60),  # the clock was set back a little: keep the window
        (NOON + 240, NOON + 240),
        (NOON + 360, NOON),  # a clock was wrong
    ],
)
def test_stored_window_never_goes_back(starts_at: int, current: int) -> None:
    stored = AllowanceUse(starts_at, 60)

    use, drawn = draw(1).apply_to(stored, NOON + 1)

    assert use.starts_at == drawn.starts_at == current
    assert drawn.granted == (0 if current == starts_at else 1)
    assert drawn.ends_in_seconds == current + 60 - NOON - 1


@pytest.mark.parametrize(("starts_at", "used"), [(NOON, 8), (NOON - 60, 10)])
def test_requests_are_given_back_to_their_own_window(starts_at: int, used: int) -> None:
    use, _ = draw(-2, starts_at=starts_at).apply_to(AllowanceUse(NOON, 10), NOON + 1)

    assert use.used == used


def test_no_more_is_given_back_than_was_used() -> None:
    use, _ = draw(-5, starts_at=NOON).apply_to(AllowanceUse(NOON, 2), NOON + 1)

    assert use.used == 0


def test_draw_without_a_limit_grants_everything() -> None:
    charge = Draw(user_id=UserId(1), allowance="units per day", window=Window.DAY, limit=None, wanted=2**40)

    _, drawn = charge.apply_to(None, NOON)

    assert drawn.granted == drawn.used == 2**40
