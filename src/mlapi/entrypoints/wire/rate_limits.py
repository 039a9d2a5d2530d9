"""The headers ``RateLimit-Policy`` and ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers-11)."""

from collections.abc import Sequence
from functools import lru_cache

from mlapi.domain.plans import Allowance, AllowanceState, Window

RATE_LIMIT_HEADERS = ("RateLimit-Policy", "RateLimit")
_WINDOW_PARAMETERS = {
    Window.MINUTE: ";w=60",
    Window.HOUR: ";w=3600",
    Window.DAY: ";w=86400",
    Window.MONTH: "",  # months differ in length, and the parameter is optional
}


def rate_limit_headers(states: Sequence[AllowanceState]) -> tuple[tuple[str, str], ...]:
    """Return the headers that tell a client how many requests or units of each allowance remain.

    >>> from mlapi.domain.plans import Allowance
    >>> rate_limit_headers([AllowanceState(Allowance("requests", Window.MINUTE, 60), remaining=59, reset_seconds=34)])
    (('RateLimit-Policy', '"requests per minute";q=60;w=60'), ('RateLimit', '"requests per minute";r=59;t=34'))
    """
    if not states:
        return ()
    policies = [_describe(state.allowance) for state in states]
    limits = [
        f"{name};r={max(0, state.remaining)};t={state.reset_seconds}"
        for (name, _), state in zip(policies, states, strict=True)
    ]
    return ("RateLimit-Policy", ", ".join([policy for _, policy in policies])), ("RateLimit", ", ".join(limits))


@lru_cache(maxsize=1000)
def _describe(allowance: Allowance) -> tuple[str, str]:
    """Return the name of an allowance, and its policy."""
    name = f'"{allowance.key}"'
    return name, f"{name};q={allowance.limit}{_WINDOW_PARAMETERS[allowance.window]}"
