"""Measure the user list with many users: `python -m bench.console_lists [users]`, by default 1,000,000.

Fills an SQLite file and a PostgreSQL database, then prints the time of each kind of page: filters, orders, the next and
the previous page, and the counts. The times are those of the repository, in milliseconds: the median and the maximum of
five calls.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import insert
from tests.postgres_server import PostgresServer

from mlapi.adapters.sql.storage import SqlStorage
from mlapi.adapters.sql.tables import activity, users
from mlapi.domain.lists import ListedUser, ListPosition, month_of
from mlapi.domain.rules import UserFilter
from mlapi.domain.users import UserId, UserOrder, UserState

NOW = datetime.now(UTC)
ROWS_PER_INSERT = 10_000
PAGE = 26
CALLS = 5
STATES: tuple[UserState, ...] = ("active", "disabled", "expired", "pending")
ORDERS: tuple[UserOrder, ...] = ("created", "name", "expires", "seen", "usage")


def user_rows(count: int) -> Iterator[dict[str, Any]]:
    """Yield users: 5 % disabled, 0.1 % pending, 20 % with an expiry, some of them expired, 40 % with a plan."""
    choose = random.Random(1)  # noqa: S311 - no secrets
    for number in range(1, count + 1):
        name = f"{choose.choice(('ada', 'bob', 'eve', 'kim', 'zoe'))}{choose.randrange(10**9)}-{number}"
        created = NOW - timedelta(minutes=count - number)
        is_pending, is_disabled = choose.random() < 0.001, choose.random() < 0.05
        yield {
            "id": number,
            "username": name,
            "username_key": name,
            "password": "gAAAA" + "x" * 220,
            "email": f"{name}@example.com",
            "enabled": not (is_pending or is_disabled),
            "pending": "approval" if is_pending else None,
            "created_datetime": created,
            "updated_datetime": created,
            "token_epoch": f"{number:016x}",
            "expires_datetime": NOW + timedelta(hours=choose.randrange(-2_000, 8_000))
            if choose.random() < 0.2
            else None,
            "plan": choose.choice(("free", "free", "free", "pro")) if choose.random() < 0.4 else None,
        }


def activity_rows(count: int) -> Iterator[dict[str, Any]]:
    """Yield the activity of 40 % of the users, most of them in this month."""
    choose = random.Random(2)  # noqa: S311 - no secrets
    for number in range(1, count + 1):
        if choose.random() < 0.4:
            seen = NOW - timedelta(minutes=choose.randrange(60_000))
            yield {
                "user_id": number,
                "seen_datetime": seen,
                "month": month_of(seen),
                "requests": int(choose.paretovariate(1)),
            }


def fill(storage: SqlStorage, count: int) -> None:
    storage.prepare(may_upgrade=True)
    for table, rows in ((users, user_rows(count)), (activity, activity_rows(count))):
        while batch := list(islice(rows, ROWS_PER_INSERT)):
            with storage.database.writing() as connection:
                connection.execute(insert(table), batch)
    with storage.database.writing() as connection:
        if not storage.files:
            connection.exec_driver_sql("ANALYZE")  # the server does so itself, a minute later


def milliseconds(call: Callable[[], object]) -> str:
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1000)
    return f"{statistics.median(times):8.1f} {max(times):8.1f}"


def _measure_pages(label: str, read: Callable[..., list[ListedUser]], order: UserOrder) -> None:
    page = read(limit=PAGE)
    print(f"{label:45}", milliseconds(lambda: read(limit=PAGE)))
    if len(page) == PAGE:
        last = ListPosition.of(order, page[-1])
        following = ListPosition.of(order, (read(limit=PAGE, after=last) or page)[-1])
        print(f"{'  next':45}", milliseconds(lambda: read(limit=PAGE, after=last)))
        print(f"{'  previous':45}", milliseconds(lambda: read(limit=PAGE, before=following)))


def measure(storage: SqlStorage) -> None:
    repository = storage.users
    filters: dict[str, UserFilter] = {
        "all": UserFilter(at=NOW),
        **{str(state): UserFilter(state=state, at=NOW) for state in STATES},
        "plan pro": UserFilter(plans=frozenset({"pro"}), at=NOW),
        "plan free or default": UserFilter(plans=frozenset({"free", None}), at=NOW),
        "disabled and pro": UserFilter(state="disabled", plans=frozenset({"pro"}), at=NOW),
        "an unknown plan": UserFilter(plans=frozenset({"unknown"}), at=NOW),
        "e-mail address": UserFilter(email=repository.get(UserId(1000)).email, at=NOW),
    }
    for name, matching in filters.items():
        for order in ORDERS:
            for descending in (True, False):
                label = f"{name}, by {order}{' descending' if descending else ''}"
                _measure_pages(
                    label, partial(repository.list_sorted, order, descending=descending, matching=matching), order
                )
    print(f"{'counts of states':45}", milliseconds(lambda: repository.count_states(NOW)))
    for name, matching in filters.items():
        print(f"{'count of ' + name:45}", milliseconds(partial(repository.count, matching)))


def main(arguments: Sequence[str]) -> None:
    count = int(arguments[0]) if arguments else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        server = PostgresServer(Path(folder))
        server.start()
        try:
            for url in (f"sqlite:///{folder}/users.sqlite", server.url().render_as_string(hide_password=False)):
                storage = SqlStorage.from_url(url)
                start = time.perf_counter()
                fill(storage, count)
                print(f"\n{url.split(':')[0]}: {count:,} users, filled in {time.perf_counter() - start:.0f} s")
                measure(storage)
                storage.close()
        finally:
            server.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
