"""The settings ``plans`` and ``default_plan``."""

from pathlib import Path

import pytest

from mlapi.config import make_plans
from mlapi.domain.plans import Allowance, Plan, Plans, Window
from tests.sample_settings import load, load_error

_PLANS = """
default_plan: free
plans:
  free: {per_minute: 60, per_month: 1000}
  pro: {per_hour: 600, per_day: 5_000, units_per_day: 10, units_per_month: 20}
  staff: {}
"""
_KEYS = "per_minute, per_hour, per_day, per_month, units_per_day, units_per_month"
_NAME_ERROR = (
    "a name in plans is invalid: use 1 to 64 ASCII letters, digits and - . _, and begin with a letter or digit; put"
    " names such as 1 or yes in quotes"
)
_LIMIT_ERROR = "must be a whole number from 1 to 1000000000000: remove the line for no limit"


def test_plans_are_read_from_the_file(tmp_path: Path) -> None:
    assert make_plans(load(tmp_path, _PLANS)) == Plans(
        {
            "free": Plan(
                "free",
                (Allowance("requests", Window.MINUTE, 60), Allowance("requests", Window.MONTH, 1000)),
            ),
            "pro": Plan(
                "pro",
                (
                    Allowance("requests", Window.HOUR, 600),
                    Allowance("requests", Window.DAY, 5000),
                    Allowance("units", Window.DAY, 10),
                    Allowance("units", Window.MONTH, 20),
                ),
            ),
            "staff": Plan("staff"),
        },
        default="free",
    )


def test_there_are_no_plans_by_default(tmp_path: Path) -> None:
    assert make_plans(load(tmp_path, "plans:")) == Plans()


def test_variables_override_single_values_of_plans(tmp_path: Path) -> None:
    mounted = tmp_path / "limit"
    mounted.write_text("7\n")
    environ = {
        "MLAPI_DEFAULT_PLAN": "pro",
        "MLAPI_PLANS__FREE__PER_MINUTE": " 30 ",
        "MLAPI_PLANS__PRO__PER_DAY_FILE": str(mounted),
        "MLAPI_PLANS__NEW__PER_HOUR": "5",
    }

    settings = load(tmp_path, _PLANS, environ)

    assert settings.default_plan == "pro"
    assert (settings.plans["free"].per_minute, settings.plans["free"].per_month) == (30, 1000)
    assert (settings.plans["pro"].per_day, settings.plans["new"].per_hour) == (7, 5)


def test_settings_know_their_file(tmp_path: Path) -> None:
    assert load(tmp_path, "").file == tmp_path / "config.yml"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (
            "plans: {none: {per_minute: 60}}",
            "FOLDER/config.yml: plans.none is reserved for users without a plan: use another name",
        ),
        ("plans: 5", "FOLDER/config.yml: plans must contain `name: {per_minute: 60}` lines"),
        ("plans: {1: {}}", f"FOLDER/config.yml: {_NAME_ERROR}"),
        ("plans: {'a b': {}}", f"FOLDER/config.yml: {_NAME_ERROR}"),
        ("plans: {'': {}}", f"FOLDER/config.yml: {_NAME_ERROR}"),
        (
            "plans: {free: }",
            (
                "FOLDER/config.yml: plans.free must contain `key: value` lines, or {} for a plan without limits; the"
                f" keys are {_KEYS}"
            ),
        ),
        (
            "plans: {free: {per_second: 1}}",
            "FOLDER/config.yml: plans.free.per_second is not a setting; did you mean plans.free.per_month?",
        ),
        (
            "plans: {free: {per_minut: 1}}",
            "FOLDER/config.yml: plans.free.per_minut is not a setting; did you mean plans.free.per_minute?",
        ),
        (
            "plans: {free: {per_day:1000}}",
            f"FOLDER/config.yml: a key in plans.free is not a setting; the settings are {_KEYS}",
        ),
        (
            "plans: {free: {per_day: }}",
            "FOLDER/config.yml: plans.free.per_day has no value: write one, or remove the line",
        ),
        ("plans: {free: {per_day: 0}}", f"plans.free.per_day {_LIMIT_ERROR}"),
        ("plans: {free: {per_day: -1}}", f"plans.free.per_day {_LIMIT_ERROR}"),
        ("plans: {free: {per_day: 1.5}}", f"plans.free.per_day {_LIMIT_ERROR}"),
        ("plans: {free: {per_day: yes}}", f"plans.free.per_day {_LIMIT_ERROR}"),
        ("plans: {free: {per_day: many}}", f"plans.free.per_day {_LIMIT_ERROR}"),
        ("plans: {free: {per_day: 1000000000001}}", f"plans.free.per_day {_LIMIT_ERROR}"),
        (f"plans: {{free: {{per_day: '{'9' * 5000}'}}}}", f"plans.free.per_day {_LIMIT_ERROR}"),
        ("default_plan: free", "default_plan must be defined in plans; or remove default_plan"),
        (
            "{default_plan: pro, plans: {free: {}, big: {}}}",
            "default_plan must be one of the plans: free, big; or remove default_plan",
        ),
        ("default_plan: 5", "default_plan must be text: put it in quotes"),
    ],
)
def test_error_says_how_to_correct_a_plan(tmp_path: Path, content: str, error: str) -> None:
    assert load_error(tmp_path, content) == error


def test_error_names_the_variable_without_a_limit(tmp_path: Path) -> None:
    error = load_error(tmp_path, "", {"MLAPI_PLANS__FREE": "60"})

    assert error.startswith("MLAPI_PLANS__FREE: plans.free must contain `key: value` lines")
