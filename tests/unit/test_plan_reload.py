"""Plans are read again when the configuration file changes."""

import logging
import threading
from pathlib import Path

import pytest

from mlapi.config import PlanSettings, Settings
from mlapi.config.loading import load_plans
from mlapi.config.plan_reload import CHECK_SECONDS, SETTLE_SECONDS, PlansInFile, reloading_plans
from mlapi.config.plans import make_plans
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.plans import Allowance, Plan, Plans, Window
from tests.sample_settings import load, write

_FIRST = "plans: {free: {per_day: 10}}"
_SECOND = "plans: {free: {per_day: 25}}"


def plans_with(limit: int) -> Plans:
    return Plans({"free": Plan("free", (Allowance("requests", Window.DAY, limit),))})


def _do_nothing() -> None:
    """Do not delay the load."""


class Reloading:
    """Plans in a file, with a clock that passes the time between two checks."""

    def __init__(self, folder: Path) -> None:
        self.now = 100.0
        self.loads = 0
        self.on_load = _do_nothing
        self.file = folder / "config.yml"
        self.plans = PlansInFile(
            self.file, make_plans(load(folder, _FIRST)), load=self._load, monotonic=lambda: self.now
        )
        self.get()
        self.settle()

    def _load(self, file: Path) -> Plans:
        self.loads += 1
        self.on_load()
        return load_plans(file, {})

    def get(self) -> Plans:
        self.now += CHECK_SECONDS
        return self.plans()

    def settle(self) -> None:
        self.now += SETTLE_SECONDS
        self.get()

    def write(self, content: str) -> None:
        """Replace the file."""
        write(self.file.parent, content, name="draft.yml").rename(self.file)


@pytest.fixture
def reloading(tmp_path: Path) -> Reloading:
    return Reloading(tmp_path)


def test_unchanged_file_is_not_read_again(reloading: Reloading) -> None:
    before = reloading.loads

    plans = [reloading.get() for _ in range(9)]

    assert reloading.loads == before
    assert plans == [plans_with(10)] * 9
    assert len(set(map(id, plans))) == 1


def test_changed_file_is_read_at_the_next_request(reloading: Reloading, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    reloading.write(_SECOND)

    assert reloading.get() == plans_with(25)
    assert caplog.messages == ["reloaded the plans from the configuration"]


def test_request_after_a_change_uses_the_new_plans(reloading: Reloading) -> None:
    reloading.get()
    reloading.write(_SECOND)

    reloading.plans.refresh(since=reloading.now)

    assert reloading.plans() == plans_with(25)


def test_concurrent_requests_share_a_check_of_the_file(reloading: Reloading) -> None:
    began = reloading.now
    reloading.get()
    reloading.write(_SECOND)

    reloading.plans.refresh(since=began)

    assert reloading.plans() == plans_with(10)


def test_other_threads_wait_while_plans_are_loaded(reloading: Reloading) -> None:
    found: list[Plans] = []

    def refresh() -> None:
        reloading.plans.refresh(since=float("inf"))
        found.append(reloading.plans())

    def load_slowly() -> None:
        other.start()
        other.join(0.05)  # it must not end before the plans are loaded

    other = threading.Thread(target=refresh)
    reloading.on_load = load_slowly
    reloading.write(_SECOND)
    reloading.get()
    other.join()

    assert found == [plans_with(25)]


def test_file_is_checked_only_once_in_half_a_millisecond(reloading: Reloading) -> None:
    reloading.get()
    reloading.write(_SECOND)

    assert reloading.plans() == plans_with(10)
    assert reloading.get() == plans_with(25)


def test_second_change_with_the_same_time_is_noticed(reloading: Reloading) -> None:
    reloading.file.write_text(_SECOND)
    status = reloading.file.stat()
    signature = reloading.plans._read_signature()
    reloading.plans._read_signature = lambda: signature  # type: ignore[method-assign]
    reloading.get()
    reloading.file.write_text(_FIRST.replace("10", "99"))
    assert reloading.file.stat().st_size == status.st_size
    assert reloading.get() == plans_with(25)

    reloading.settle()

    assert reloading.get() == plans_with(99)


@pytest.mark.parametrize("content", ["", "plans: {free: {per_day: 0}}", "plans: {", "plans: {free: {}"])
def test_unusable_file_keeps_the_plans_and_is_logged_once(
    reloading: Reloading, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    reloading.write(content)

    assert reloading.get() == plans_with(10)
    reloading.settle()
    assert reloading.get() == plans_with(10)
    (message,) = caplog.messages
    assert message.startswith("the configuration changed but cannot be used, keeping the previous plans: ")
    reloading.write(_SECOND)
    assert reloading.get() == plans_with(25)


def test_removed_file_keeps_the_plans(reloading: Reloading, caplog: pytest.LogCaptureFixture) -> None:
    reloading.file.unlink()

    assert reloading.get() == plans_with(10)
    (message,) = caplog.messages
    assert message.endswith("config.yml cannot be read: No such file or directory")


def test_only_one_thread_reads_the_file(reloading: Reloading) -> None:
    reloading.write(_SECOND)
    reloading.get()
    before = reloading.loads

    reloading.plans._reload(reloading.plans._signature, reloading.now)

    assert reloading.loads == before


def test_plans_without_a_file_never_change(tmp_path: Path) -> None:
    settings = Settings(plans={"free": PlanSettings(per_day=10)})

    assert reloading_plans(settings)() == plans_with(10)
    assert reloading_plans(load(tmp_path, ""))() == Plans()
    assert isinstance(reloading_plans(load(tmp_path, _FIRST)), PlansInFile)


def test_variables_override_reloaded_plans(tmp_path: Path) -> None:
    file = write(tmp_path, _FIRST)

    assert load_plans(file, {"MLAPI_PLANS__FREE__PER_DAY": "7"}) == plans_with(7)
    with pytest.raises(ConfigurationError, match="is empty"):
        load_plans(write(tmp_path, ""), {})
