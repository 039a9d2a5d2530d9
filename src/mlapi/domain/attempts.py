"""Login attempts, and how many have failed."""

import attrs


@attrs.define(kw_only=True, eq=False)
class Attempt:
    """A login attempt, from the moment a client sends it until it gets a response.

    Attributes:
        username: any text; usually a canonical username. No such user needs to exist.
        address: any text that identifies the client.
        is_over: True once `mlapi.domain.ports.AttemptLimiter.end` was called.
    """

    username: str
    address: str
    is_over: bool = False


@attrs.frozen
class WindowCount:
    """The number of events counted in a time window, and the time when the window ends."""

    count: int
    ends_at_timestamp: float
    """Seconds since 1970."""
