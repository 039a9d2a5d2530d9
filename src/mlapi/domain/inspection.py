"""The state of a database, as `Storage.inspect` reports it to ``mlapi doctor`` and ``mlapi db check``."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Literal

import attrs

from mlapi.domain.managers import Manager
from mlapi.domain.users import User

Kind = Literal["mlapi", "legacy", "other", "empty"]
"""The program that created the ``users`` table: mlapi, the legacy app or another. ``empty``: no such table exists."""


@attrs.frozen(kw_only=True)
class Inspection:
    """The result of an inspection. The defaults describe a healthy database without users."""

    kind: Kind = "mlapi"
    revision: str | None
    """The schema revision of the database; None if the database has no mlapi schema."""
    newest_revision: str
    """The schema revision that this version of mlapi needs. Revisions sort as strings."""
    fingerprint: str | None = None
    """The fingerprint of the key that encrypts the passwords; None before the first startup of the service."""
    users: int = 0
    plans: tuple[tuple[str, int], ...] = ()
    """See `count_plans`."""
    managers: tuple[Manager, ...] = ()
    """All managers, sorted by name; empty if the schema is outdated."""
    misnamed: tuple[int, ...] = ()
    """Ids of users whose stored canonical username is wrong, so look-ups by name do not find them."""
    unreadable: int = 0
    """Number of sampled legacy passwords that the secrets cannot decrypt."""
    sampled: int = 0
    """Number of legacy passwords that were checked."""
    other_namespaces: tuple[str, ...] = ()
    """Other PostgreSQL schemas of the database with tables of mlapi. Only set if ``revision`` is None."""
    damage: tuple[str, ...] = ()
    """Descriptions of damage to the file."""
    obstacles: tuple[str, ...] = ()
    """Why the service could not change rows, or upgrade the schema if it is outdated. Each includes a solution."""
    clock: datetime | None = None
    """The database server's time in UTC; None for a database in a file or in memory."""
    latest_change: datetime | None = None
    """The latest ``updated_datetime`` of any user, in UTC; None if there are no users."""


def count_plans(users: Iterable[User]) -> tuple[tuple[str, int], ...]:
    """Return the name of each plan that users have, and how many users have it, sorted by name."""
    return tuple(sorted(Counter(user.plan for user in users if user.plan is not None).items()))
