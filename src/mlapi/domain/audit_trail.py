"""The port that reads the audit trail."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from mlapi.domain.audit import EVERY_ENTRY, AuditEntry, AuditFilter, AuditId, DailyCount
from mlapi.domain.users import UserId


class AuditTrail(Protocol):
    """Reads and purges the audit entries that `UserRepository.apply` writes.

    Entry ids increase and are never reused. Every method raises `RepositoryUnavailableError` while the database is
    unavailable.
    """

    def list_page(
        self,
        *,
        after: AuditId | None = None,
        newer_than: AuditId | None = None,
        limit: int,
        matching: AuditFilter = EVERY_ENTRY,
    ) -> list[AuditEntry]:
        """Return a page of entries, the newest (highest id) first.

        Args:
            after: the last id of the previous page; None for the first page. It may be larger than any existing id.
            newer_than: to go back a page, the first id of the next page: return the oldest entries with higher ids.
            limit: maximum number of entries to return.
            matching: return only the entries that it matches. Use an index if ``is_folded`` is set. Ids are in the
                order of times, except that the clocks of several machines may differ by up to an hour.
        """
        ...

    def count_bulk(self, bulk_ids: Sequence[str], *, limit: int) -> list[int]:
        """Return how many entries have each ``bulk_id``. Stop counting at ``limit``, and use an index."""
        ...

    def find_removals(self, user_ids: Sequence[UserId]) -> list[AuditEntry]:
        """Return the entries about the removal of these users, in any order. Omit unknown and existing users."""
        ...

    def count_per_day(self, *, since: datetime) -> list[DailyCount]:
        """Count the successful actions per day, in UTC, in entries written at ``since`` or later.

        The result is sorted by day, then by action name. Rejected commands are not counted. Days and actions without
        entries are omitted.
        """
        ...

    def purge(self, *, before: datetime, limit: int) -> int:
        """Delete at most ``limit`` entries older than ``before``, the oldest first. Return how many were deleted."""
        ...
