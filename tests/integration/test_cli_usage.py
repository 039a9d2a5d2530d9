"""``mlapi usage``, and the last request in ``mlapi users show``."""

import csv
import json
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from mlapi import UserId
from mlapi.application import usage_reports
from mlapi.bootstrap import open_service
from mlapi.config import load_settings
from mlapi.domain.credentials import ApiKeyId
from mlapi.domain.usage import UsageRow
from mlapi.entrypoints.cli import usage
from tests.command_line import create_users, mlapi

KEY = ApiKeyId("00000000000000aa")
TODAY = datetime.now(UTC).date()
RANGE = ("--from", "2026-11-01", "--to", "2026-11-30")
HEADER = "date,user_id,key_id,requests,units"
CSV = [
    "2026-11-28,1,,3,7",
    "2026-11-28,1,00000000000000aa,5,0",
    "2026-11-28,2,,1,0",
    "2026-11-29,1,,2,0",
    "2026-11-29,9,,4,0",
]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_users(tmp_path_factory.mktemp("original"), ["ada", "Bob"], "x")


@pytest.fixture(autouse=True)
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(original, tmp_path, dirs_exist_ok=True))
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", "fernet")
    return tmp_path


def add(*rows: UsageRow) -> None:
    with open_service(load_settings()) as service:
        service.usage.add(rows)


def row(day: date, user_id: int, key_id: ApiKeyId | None = None, requests: int = 1, units: int = 0) -> UsageRow:
    seen = datetime(day.year, day.month, day.day, 12, 30, tzinfo=UTC)
    return UsageRow(day=day, user_id=UserId(user_id), key_id=key_id, requests=requests, units=units, seen_datetime=seen)


def add_november() -> None:
    """Add the usage of three users, of whom user 9 was removed."""
    add(
        row(date(2026, 11, 28), 1, requests=3, units=7),
        row(date(2026, 11, 28), 1, KEY, requests=5),
        row(date(2026, 11, 28), 2),
        row(date(2026, 11, 29), 1, requests=2),
        row(date(2026, 11, 29), 9, requests=4),
        row(date(2026, 10, 31), 1, requests=100),
    )


def test_table_has_the_totals_of_each_user() -> None:
    add_november()

    result = mlapi("usage", *RANGE)

    assert result.stdout.splitlines() == [
        "USER ID  USERNAME   REQUESTS  UNITS  LATEST (UTC)",
        "      1  ada              10      7  2026-11-29 12:30",
        "      2  Bob               1      0  2026-11-28 12:30",
        "      9  (removed)         4      0  2026-11-29 12:30",
    ]


def test_totals_are_read_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    add_november()
    in_one_page = mlapi("usage", *RANGE).stdout
    monkeypatch.setattr(usage, "_PAGE_USERS", 1)

    assert mlapi("usage", *RANGE).stdout == in_one_page


def test_csv_has_a_line_per_day_user_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    add_november()
    monkeypatch.setattr(usage_reports, "PAGE_ROWS", 2)

    assert mlapi("usage", *RANGE, "--csv").stdout.splitlines() == [HEADER, *CSV]


def test_json_has_the_same_rows_as_csv() -> None:
    add_november()

    as_json = [json.loads(line) for line in mlapi("usage", *RANGE, "--json").stdout.splitlines()]
    as_csv = list(csv.DictReader(mlapi("usage", *RANGE, "--csv").stdout.splitlines()))

    assert [{name: "" if cell is None else str(cell) for name, cell in found.items()} for found in as_json] == as_csv
    assert as_json[0] == {"date": "2026-11-28", "user_id": 1, "key_id": None, "requests": 3, "units": 7}


def test_daily_table_has_the_rows_of_the_csv() -> None:
    add_november()

    assert mlapi("usage", *RANGE, "--daily", "ada").stdout.splitlines() == [
        "DATE (UTC)  USER ID  KEY ID            REQUESTS  UNITS",
        "2026-11-28        1  -                        3      7",
        "2026-11-28        1  00000000000000aa         5      0",
        "2026-11-29        1  -                        2      0",
    ]


def test_users_are_selected_by_name_or_id() -> None:
    add_november()

    table = mlapi("usage", *RANGE, "bob", "1")
    from_stdin = mlapi("usage", *RANGE, "--csv", "-", stdin="bob\nada\n")

    assert [line.split()[:3] for line in table.stdout.splitlines()[1:]] == [["2", "Bob", "1"], ["1", "ada", "10"]]
    assert from_stdin.stdout.splitlines() == [HEADER, CSV[2], CSV[0], CSV[1], CSV[3]]


def test_removed_user_is_selected_by_id() -> None:
    add_november()

    result = mlapi("usage", *RANGE, "9")

    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].split() == ["9", "(removed)", "4", "0", "2026-11-29", "12:30"]


def test_unknown_user_is_reported_and_the_others_are_shown() -> None:
    add_november()

    partial, failed = mlapi("usage", *RANGE, "--csv", "eve", "bob", "77"), mlapi("usage", "--csv", "eve")

    assert (partial.exit_code, failed.exit_code) == (4, 3)
    assert partial.stdout.splitlines() == [HEADER, CSV[2]]
    assert partial.stderr.splitlines() == ["mlapi: user 'eve' does not exist", "mlapi: user 77 does not exist"]


def test_default_range_is_the_last_thirty_days() -> None:
    days = [TODAY - timedelta(days=number) for number in (31, 29, 0)]
    add(*[row(day, 1) for day in days])

    found = [line.split(",")[0] for line in mlapi("usage", "--csv").stdout.splitlines()[1:]]
    since_yesterday = mlapi("usage", "--csv", "--from", "1d").stdout.splitlines()[1:]

    assert found == [day.isoformat() for day in days[1:]]
    assert since_yesterday == [f"{TODAY},1,,1,0"]


def test_named_user_without_usage_has_a_total_of_zero() -> None:
    add_november()

    result = mlapi("usage", "--from", "2026-11-29", "--to", "2026-11-29", "bob")

    assert result.stdout.splitlines() == [
        "USER ID  USERNAME  REQUESTS  UNITS  LATEST (UTC)",
        "      2  Bob              0      0  -",
    ]


def test_no_usage_is_an_empty_list() -> None:
    table, as_csv = mlapi("usage"), mlapi("usage", "--csv")
    known_user = mlapi("usage", "ada", "--daily")

    assert (table.exit_code, table.stdout, table.stderr) == (0, "", "no usage found\n")
    assert as_csv.stdout.splitlines() == [HEADER]
    assert (known_user.exit_code, known_user.stderr) == (0, "no usage found\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "2026-11-02", "--to", "2026-11-01"], "--from must not be after the last day (by default, today)"),
        (["--from", "0000-01-01"], "'0000-01-01' is not a time such as 30d, 2030-01-31 or 2030-01-31T12:00Z"),
    ],
)
def test_invalid_range_is_a_usage_error(options: list[str], message: str) -> None:
    result = mlapi("usage", *options)

    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_users_show_the_time_of_their_latest_request() -> None:
    add(row(date(2026, 11, 29), 1))

    table = mlapi("users", "show", "ada", "bob").stdout.splitlines()
    as_json = [json.loads(line) for line in mlapi("users", "show", "ada", "bob", "--json").stdout.splitlines()]

    assert [line.rpartition("  ")[2] for line in table] == ["LAST SEEN (UTC)", "2026-11-29 12:30", "-"]
    assert [found["last_seen"] for found in as_json] == ["2026-11-29T12:30:00Z", None]
