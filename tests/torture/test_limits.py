"""Kill one of two workers under load, repeatedly: no user is granted more than the allowance of a window."""

import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import attrs
from sqlalchemy import URL, select

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.storage import SqlStorage
from mlapi.adapters.sql.tables import allowances
from mlapi.domain.plans import Window, lease_size
from tests.e2e.server import Server
from tests.system_programs import require_program
from tests.torture.conftest import Report, ShortOrFull
from tests.torture.limit_clients import (
    LimitClient,
    LimitedPlan,
    LimitedUser,
    UserPool,
    add_users,
    make_plan,
    render_plans,
)
from tests.waiting import wait_until

PLANS = {
    make_plan(Window.MINUTE, 10): (20, 20),
    make_plan(Window.MINUTE, 1_000): (3, 3),
    make_plan(Window.MINUTE, 100_000, drawn_first=80_000): (1, 1),
    make_plan(Window.DAY, 10): (100, 1_500),
    make_plan(Window.DAY, 1_000): (10, 100),
    make_plan(Window.DAY, 100_000, drawn_first=80_000): (3, 40),
}
"""Each plan, and its number of users in the short and the full form."""


@attrs.define(eq=False)
class Scenario:
    """Two workers of a guarded model, users with limited plans, and clients that count the admitted requests."""

    storage: SqlStorage
    users: list[LimitedUser]
    pools: list[UserPool]
    workers: list[Server]
    clients: list[LimitClient]

    def stop_one(self, signal_number: signal.Signals, number: int) -> None:
        """Stop one of the workers under load at a random moment, and start it again."""
        for user in self.users:
            user.draw_first(self.storage)
        time.sleep(random.random() * 0.4)
        worker = self.workers[number % len(self.workers)]
        worker.stop(signal_number)
        for pool in self.pools if signal_number is signal.SIGKILL else []:
            pool.note_kill()
        worker.start()

    @contextmanager
    def load(self) -> Iterator[None]:
        """Run the clients."""
        stop = threading.Event()
        threads = [threading.Thread(target=client.work, args=(stop,)) for client in self.clients]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def stop_all(self) -> None:
        """Stop the workers, which give back their leases."""
        for worker in self.workers:
            worker.stop()

    def count_lost(self) -> list[tuple[LimitedUser, int]]:
        """Return how many used requests of each daily allowance were not granted. Stop the workers first."""
        query = select(allowances.c.user_id, allowances.c.used)
        with self.storage.database.reading() as connection:
            used: dict[int, int] = {row.user_id: row.used for row in connection.execute(query)}
        return [
            (user, user.count_lost(used[user.id]))
            for user in self.users
            if user.plan.allowance.window is Window.DAY and user.id in used
        ]

    def check(self) -> None:
        """Check that no allowance was exceeded, and that every response was expected."""
        assert {user.plan.name: excess for user in self.users if (excess := user.count_excess())} == {}
        assert [response for client in self.clients for response in client.unexpected][:3] == []

    def describe(self) -> str:
        answers = sum(user.answers for user in self.users)
        refused = sum(client.refused for client in self.clients)
        reached = sum(user.rejected_until > 0 for user in self.users)
        return (
            f"{answers:,} requests granted to {len(self.users):,} users, {refused:,} rejected, 0 over an allowance"
            f" (reached by {reached:,} users)"
        )


@contextmanager
def running(
    url: URL, folder: Path, users_by_plan: dict[LimitedPlan, int], environs: Sequence[dict[str, str]] = ({}, {})
) -> Iterator[Scenario]:
    (folder / "config.yml").write_text(render_plans(users_by_plan))
    environ = {
        "MLAPI_CONFIG": str(folder / "config.yml"),
        "MLAPI_DATABASE__URL": url.render_as_string(hide_password=False),
    }
    with closing(SqlStorage(Database(url))) as storage:
        storage.prepare(may_upgrade=True)
        pools = [UserPool(add_users(storage, plan, count)) for plan, count in users_by_plan.items()]
        users = [user for pool in pools for user in pool.users]
        workers = [
            Server(folder, {**environ, **each}, "--no-access-log", app="tests.torture.guarded_app:app")
            for each in environs
        ]
        clients = [LimitClient(pool, worker.port) for pool in pools for worker in workers]
        try:
            for worker in workers:
                worker.start()
            yield Scenario(storage, users, pools, workers, clients)
        finally:
            for worker in workers:
                worker.stop(signal.SIGKILL)


def test_killed_workers_never_exceed_an_allowance(
    durable_url: URL, tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    kills = short_or_full(3, 200)
    users_by_plan = {plan: short_or_full(*counts) for plan, counts in PLANS.items()}

    with running(durable_url, tmp_path, users_by_plan) as scenario:
        with scenario.load():
            for number in range(kills):
                scenario.stop_one(signal.SIGKILL, number)
        scenario.stop_all()
        lost = scenario.count_lost()

    scenario.check()
    assert [(user.plan.name, count, user.max_lost) for user, count in lost if not 0 <= count <= user.max_lost] == []
    most_lost = {limit: max(lost_leases(lost, limit), default=0.0) for limit in (10, 1_000, 100_000)}
    report(
        f"{name_of(durable_url)}: one of two guarded workers killed {kills} times: {scenario.describe()}; a kill"
        f" lost at most one lease of a user (the most, in leases per kill: {most_lost})"
    )


def test_graceful_stops_lose_no_requests(
    durable_url: URL, tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    stops = short_or_full(2, 20)
    plans = [plan for plan in PLANS if plan.allowance.window is Window.DAY]

    with running(durable_url, tmp_path, dict.fromkeys(plans, 10)) as scenario:
        with scenario.load():
            for number in range(stops):
                scenario.stop_one(signal.SIGTERM, number)
        scenario.stop_all()
        lost = scenario.count_lost()

    scenario.check()
    assert [(user.plan.name, count) for user, count in lost if count] == []
    report(f"{name_of(durable_url)}: one of two guarded workers stopped {stops} times: {scenario.describe()}, 0 lost")


def test_wrong_clock_of_a_worker_grants_no_second_allowance(
    durable_postgres_url: URL, tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    plans = {make_plan(Window.MINUTE, limit): 2 for limit in (10, 200)}
    environs = [wrong_clock_environ(seconds) for seconds in (-60, 60)]

    with running(durable_postgres_url, tmp_path, plans, environs) as scenario:
        with scenario.load():
            wait_until(lambda: all(user.rejected_until for user in scenario.users), timeout_seconds=60)
            time.sleep(short_or_full(1, 300))
        scenario.stop_all()

    scenario.check()
    report(f"PostgreSQL: two guarded workers whose clocks are wrong by a minute: {scenario.describe()}")


def wrong_clock_environ(seconds: int) -> dict[str, str]:
    """Return environment variables that make a program read a wrong time of day."""
    faketime = require_program("faketime")
    shown = subprocess.run([faketime, "-f", f"{seconds:+}s", "env"], capture_output=True, text=True, check=True).stdout
    variables = dict(line.partition("=")[::2] for line in shown.splitlines())
    return {
        "LD_PRELOAD": variables["LD_PRELOAD"],
        "FAKETIME": variables["FAKETIME"],
        "DONT_FAKE_MONOTONIC": "1",
    }


def lost_leases(lost: Sequence[tuple[LimitedUser, int]], limit: int) -> list[float]:
    """Return how many leases were lost per kill, for each user with this limit."""
    return [
        round(count / lease_size(limit) / user.kills, 2)
        for user, count in lost
        if user.kills and user.plan.allowance.limit == limit
    ]


def name_of(url: URL) -> str:
    return "SQLite" if url.drivername == "sqlite" else "PostgreSQL"
