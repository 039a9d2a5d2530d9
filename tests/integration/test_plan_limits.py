"""Guards of one database share the limits of plans, and reload changed limits from the configuration file."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import URL

from mlapi import Guard, RequestLimitReachedError
from mlapi.application.guard import AsyncGuard
from mlapi.bootstrap import async_guard, open_guard, open_users
from mlapi.config import load_settings, plan_reload
from mlapi.domain.errors import ConfigurationError
from tests.sample_settings import write

PASSWORD = "difference engine"


class Deployment:
    """A database with one user, and a configuration file that the guards share."""

    def __init__(self, folder: Path, url: URL, resources: ExitStack) -> None:
        self._folder = folder
        self._url = url.render_as_string(hide_password=False)
        self._resources = resources
        self.configure("free: {per_day: 40}")
        self.users = resources.enter_context(open_users(load_settings(self.file)))
        self.user = self.users.register(username="ada", password=PASSWORD, email="ada@example.com")
        _, self.key = self.users.add_api_key(user_id=self.user.id, name="key")

    @property
    def file(self) -> Path:
        return self._folder / "config.yml"

    def configure(self, plans: str, default: str = "free") -> None:
        """Replace the configuration file."""
        draft = write(
            self._folder,
            f"database: {{url: '{self._url}'}}\nplans: {{{plans}}}\ndefault_plan: {default}\n",
            name="draft.yml",
        )
        draft.rename(self.file)

    def open_guard(self) -> Guard:
        return self._resources.enter_context(open_guard(load_settings(self.file)))

    def count_admitted(self, guard: Guard, attempts: int = 1000) -> int:
        for admitted in range(attempts):
            try:
                guard.check(self.key)
            except RequestLimitReachedError:
                return admitted
        return attempts


@pytest.fixture
def deployment(tmp_path: Path, url: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    monkeypatch.chdir(tmp_path)
    with ExitStack() as resources:
        yield Deployment(tmp_path, url, resources)


def test_guards_share_the_limits(deployment: Deployment) -> None:
    first, second = deployment.open_guard(), deployment.open_guard()

    assert deployment.count_admitted(first, 10) == 10
    # The first guard may hold one lease, of two requests.
    assert 28 <= deployment.count_admitted(second) <= 30
    assert deployment.count_admitted(first) + 10 + deployment.count_admitted(second) <= 40


def test_closed_guard_gives_back_its_lease(deployment: Deployment) -> None:
    with open_guard(load_settings(deployment.file)) as first:
        assert deployment.count_admitted(first, 1) == 1

    assert deployment.count_admitted(deployment.open_guard()) == 39


_SCRIPT = """
import sys
from contextlib import ExitStack
from mlapi.bootstrap import open_guard
from mlapi.config import load_settings

resources = ExitStack()  # never closed
print(resources.enter_context(open_guard(load_settings())).admit(sys.argv[1]).limits[0].remaining)
"""


def test_script_that_ends_gives_back_its_lease(deployment: Deployment) -> None:
    script = subprocess.run(
        [sys.executable, "-c", _SCRIPT, deployment.key],
        env={**os.environ, "MLAPI_CONFIG": str(deployment.file)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert script.stdout == "39\n"
    assert deployment.count_admitted(deployment.open_guard()) == 39


def test_changed_limit_holds_at_the_next_request(deployment: Deployment) -> None:
    first, second = deployment.open_guard(), deployment.open_guard()
    for guard in (first, second):
        deployment.count_admitted(guard, 5)
    deployment.configure("free: {per_day: 10}")

    assert [deployment.count_admitted(guard, 1) for guard in (first, second)] == [0, 0]
    deployment.configure("free: {per_day: 13}")
    time.sleep(1.1)  # longer than `REJECTION_SECONDS`

    assert deployment.count_admitted(first) + deployment.count_admitted(second) == 3


def test_changed_limit_does_not_wait_for_a_check(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_reload, "CHECK_SECONDS", 1000.0)
    guard = deployment.open_guard()

    async def find_limit() -> int:
        with async_guard(guard) as wrapper:
            return (await wrapper.admit(deployment.key)).limits[0].allowance.limit

    found = []
    for limit in (50, 60, 70):
        deployment.configure(f"free: {{per_day: {limit}}}")
        found.append(guard.admit(deployment.key).limits[0].allowance.limit)
        deployment.configure(f"free: {{per_day: {limit + 1}}}")
        found.append(asyncio.run(find_limit()))

    assert found == [50, 51, 60, 61, 70, 71]


def test_changed_plan_holds_at_the_next_request(deployment: Deployment) -> None:
    deployment.configure("free: {per_day: 2}, pro: {per_day: 5}")
    guard = deployment.open_guard()
    assert deployment.count_admitted(guard) == 2

    deployment.users.update(user_id=deployment.user.id, plan="pro")

    assert deployment.count_admitted(guard) == 3


def test_units_are_limited_across_guards(deployment: Deployment) -> None:
    deployment.configure("free: {units_per_day: 100}")
    first, second = deployment.open_guard(), deployment.open_guard()

    first.charge(first.check(deployment.key), 99)
    second.charge(second.check(deployment.key), 50)

    for guard in (first, second):
        with pytest.raises(RequestLimitReachedError, match="Request limit reached: 100 units per day"):
            guard.check(deployment.key)


def test_async_guards_share_the_limits(deployment: Deployment) -> None:
    async def admit(guard: AsyncGuard) -> bool:
        try:
            await guard.admit(deployment.key)
        except RequestLimitReachedError:
            return False
        return True

    async def admit_all() -> int:
        with async_guard(deployment.open_guard()) as first, async_guard(deployment.open_guard()) as second:
            return sum(await asyncio.gather(*(admit(guard) for _ in range(50) for guard in (first, second))))

    assert asyncio.run(admit_all()) == 40


def test_limits_in_environment_variables_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: URL) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLAPI_DATABASE__URL", url.render_as_string(hide_password=False))
    monkeypatch.setenv("MLAPI_PLANS__FREE__PER_DAY", "2")
    monkeypatch.setenv("MLAPI_DEFAULT_PLAN", "free")
    with ExitStack() as resources:
        users = resources.enter_context(open_users(load_settings()))
        ada = users.register(username="ada", password=PASSWORD, email="ada@example.com")
        _, key = users.add_api_key(user_id=ada.id, name="key")
        guard = resources.enter_context(open_guard(load_settings()))

        guard.check(key)
        guard.check(key)
        with pytest.raises(RequestLimitReachedError):
            guard.check(key)


def test_unknown_plan_without_default_is_an_error(deployment: Deployment) -> None:
    deployment.configure("free: {per_day: 2}, pro: {}")
    deployment.users.update(user_id=deployment.user.id, plan="pro")
    deployment.file.write_text(deployment.file.read_text().replace("default_plan: free", "").replace(", pro: {}", ""))

    with pytest.raises(ConfigurationError, match="a user has the plan 'pro', which the configuration does not contain"):
        deployment.open_guard().check(deployment.key)
