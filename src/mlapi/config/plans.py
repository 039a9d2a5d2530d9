"""The settings ``plans`` and ``default_plan``: check them, and make the plans of the domain."""

import re
from typing import Any

import attrs

from mlapi.config.settings import MAX_ALLOWANCE, PlanSettings, Settings
from mlapi.config.unknown_keys import unknown_key_error
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.plans import NO_PLAN, Allowance, Measure, Plan, Plans, Window

_PLAN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEYS = tuple(attrs.fields_dict(PlanSettings))


def validate_plan_keys(plans: object, source: str) -> None:
    """Check the names and keys in the section ``plans``.

    Args:
        plans: the content of the section.
        source: the file or variable, for error messages.

    Raises:
        ConfigurationError: for the first plan with an invalid name, an unknown key, or a key without a value.
    """
    if plans is None:
        return
    if not isinstance(plans, dict):
        raise ConfigurationError(f"{source}: plans must contain `name: {{per_minute: 60}}` lines")
    for name, plan in plans.items():
        if not isinstance(name, str) or not _PLAN_NAME.fullmatch(name):
            raise ConfigurationError(
                f"{source}: a name in plans is invalid: use 1 to 64 ASCII letters, digits and - . _, and begin with a"
                " letter or digit; put names such as 1 or yes in quotes"
            )
        if name == NO_PLAN:
            raise ConfigurationError(
                f"{source}: plans.{NO_PLAN} is reserved for users without a plan: use another name"
            )
        if not isinstance(plan, dict):
            raise ConfigurationError(
                f"{source}: plans.{name} must contain `key: value` lines, or {{}} for a plan without limits; the keys"
                f" are {', '.join(_KEYS)}"
            )
        for key, limit in plan.items():
            if key not in _KEYS:
                raise unknown_key_error(source, f"plans.{name}.", key, _KEYS)
            if limit is None:
                raise ConfigurationError(f"{source}: plans.{name}.{key} has no value: write one, or remove the line")


def parse_plans(plans: dict[str, dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Return the section with each limit as a whole number. Environment variables contain limits as text.

    Raises:
        ConfigurationError: for the first limit that is not a whole number from 1 to `MAX_ALLOWANCE`.
    """
    return {
        name: {key: _parse_limit(f"plans.{name}.{key}", limit) for key, limit in plan.items()}
        for name, plan in plans.items()
    }


def _parse_limit(setting: str, limit: object) -> int:
    if isinstance(limit, str) and limit.strip().isascii() and limit.strip().isdigit():
        limit = int(limit) if len(limit) < len(str(MAX_ALLOWANCE)) * 2 else 0
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 < limit <= MAX_ALLOWANCE:
        raise ConfigurationError(
            f"{setting} must be a whole number from 1 to {MAX_ALLOWANCE}: remove the line for no limit"
        )
    return limit


def validate_default_plan(settings: Settings) -> None:
    """Check that ``default_plan`` is one of the plans.

    Raises:
        ConfigurationError: if it is not.
    """
    if settings.default_plan is not None and settings.default_plan not in settings.plans:
        plans = f"one of the plans: {', '.join(settings.plans)}" if settings.plans else "defined in plans"
        raise ConfigurationError(f"default_plan must be {plans}; or remove default_plan")


def make_plans(settings: Settings) -> Plans:
    """Return the plans in the settings."""
    plans = {name: Plan(name, _make_allowances(plan)) for name, plan in settings.plans.items()}
    return Plans(plans, settings.default_plan)


def _make_allowances(plan: PlanSettings) -> tuple[Allowance, ...]:
    limits: tuple[tuple[Measure, Window, int | None], ...] = (
        ("requests", Window.MINUTE, plan.per_minute),
        ("requests", Window.HOUR, plan.per_hour),
        ("requests", Window.DAY, plan.per_day),
        ("requests", Window.MONTH, plan.per_month),
        ("units", Window.DAY, plan.units_per_day),
        ("units", Window.MONTH, plan.units_per_month),
    )
    return tuple(Allowance(measure, window, limit) for measure, window, limit in limits if limit is not None)
