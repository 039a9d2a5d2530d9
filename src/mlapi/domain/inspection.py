"""The state of a database, as `Storage.inspect` reports it to ``mlapi doctor`` and ``mlapi db check``."""

from datetime import datetime
from typing import Literal

import attrs

Kind = Literal["mlapi", "legacy", "other", "empty"]
"""The program that created the ``users`` table: mlapi, the legacy app, or another. ``empty`` means no such table."""


@attrs.frozen(kw_only=True)
class Inspection:
    """The result of an inspection. The defaults describe a healthy database without users."""

    kind: Kind = "mlapi"
    revision: str | None
    """The schema revision of the database; None if it has no mlapi schema."""
    newest_revision: str
    """The schema revision that this version of mlapi needs. Revisions sort as strings."""
    fingerprint: str | None = None
    """The fingerprint of the key that encrypts the passwords; None before the first start."""
    users: int = 0
    """Number of users."""
    misnamed: tuple[int, ...] = ()
    """Ids of users with a wrong canonical username, so that a look-up by name does not find them."""
    unreadable: int = 0
    """Number of sampled legacy passwords that the secrets cannot decrypt."""
    sampled: int = 0
    """Number of legacy passwords that were tried."""
    damage: tuple[str, ...] = ()
    """Descriptions of damage to the file."""
    clock: datetime | None = None
    """The database server's time in UTC; None for a file or memory."""
    latest_change: datetime | None = None
    """The newest ``updated_datetime`` of any user, in UTC; None without users."""
