"""The fields ``RateLimit-Policy`` and ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers-11)."""

from collections.abc import Sequence

from mlapi.domain.plans import AllowanceState, Window

RATE_LIMIT_HEADERS = ("RateLimit-Policy", "RateLimit")
_WINDOW_PARAMETERS = {
    Window.MINUTE: ";w=60",
    Window.HOUR: ";w=3600",
    Window.DAY: ";w=86400",
    Window.MONTH: "",  # months differ in length, and the parameter is optional
}


def rate_limit_headers(states: Sequence[AllowanceState]) -> tuple[tuple[str, str], ...]:
    """Return the header fields that tell a client what is left of each allowance.

    >>> from mlapi.domain.plans import Allowance
    >>> rate_limit_headers([AllowanceState(Allowance("requests", Window.MINUTE, 60), remaining=59, reset_seconds=34)])
    (('RateLimit-Policy', '"requests per minute";q=60;w=60'), ('RateLimit', '"requests per minute";r=59;t=34'))
    """
    if not states:
        return ()
    policies, limits = [], []
    for state in states:
        allowance = state.allowance
        policies.append(f'"{allowance.key}";q={allowance.limit}{_WINDOW_PARAMETERS[allowance.window]}')
        limits.append(f'"{allowance.key}";r={max(0, state.remaining)};t={state.reset_seconds}')
    return ("RateLimit-Policy", ", ".join(policies)), ("RateLimit", ", ".join(limits))
