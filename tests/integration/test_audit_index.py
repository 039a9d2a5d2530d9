"""The entries of a user are found through an index that is divided into buckets of consecutive entries."""

from typing import Any

import pytest
from sqlalchemy import event, insert

from mlapi import UserId
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.repository import SqlUserRepository
from mlapi.adapters.sql.tables import audit
from mlapi.domain.audit import AuditEntry, AuditFilter, AuditId
from mlapi.testing.samples import LATER, NOON

ADA, BOB = UserId(7), UserId(8)
IDS = (1, 2, 4095, 4096, 9_000, 200_000, 200_001, 3_000_000, 3_000_001, 30_000_000, 2**63 - 1)
"""Entries in the same bucket, in adjacent buckets, and in buckets that are far apart."""


def entry(entry_id: int, user_id: UserId) -> dict[str, Any]:
    return {"id": entry_id, "at": NOON, "actor": "admin", "action": "enable", "user_id": user_id, "outcome": "done"}


@pytest.fixture
def repository(database: Database) -> SqlUserRepository:
    """Return a repository in which each id in `IDS` belongs to an entry of Ada, and the next but one to one of Bob."""
    rows = [entry(entry_id, ADA) for entry_id in IDS]
    rows += [{**entry(entry_id + 2, BOB), "action": "remove"} for entry_id in (9_000, 30_000_000)]
    database.execute(insert(audit), rows)
    return SqlUserRepository(database)


def ids_of(entries: list[AuditEntry]) -> list[int]:
    return [entry.id for entry in entries]


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_entries_of_a_user_are_paged_newest_first(repository: SqlUserRepository, limit: int) -> None:
    pages, after = list[int](), None
    while page := repository.audit.list_page(limit=limit, after=after, matching=AuditFilter(user_id=ADA)):
        pages += ids_of(page)
        after = page[-1].id

    assert tuple(pages) == IDS[::-1]


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_newer_entries_of_a_user_are_the_next_ones(repository: SqlUserRepository, limit: int) -> None:
    found = [
        ids_of(repository.audit.list_page(limit=limit, newer_than=AuditId(last), matching=AuditFilter(user_id=ADA)))
        for last in (0, *IDS)
    ]

    assert found == [list(IDS[first : first + limit][::-1]) for first in range(len(IDS) + 1)]


def test_entries_of_a_user_match_the_whole_filter(repository: SqlUserRepository) -> None:
    def find(matching: AuditFilter) -> list[int]:
        return ids_of(repository.audit.list_page(limit=100, matching=matching))

    assert find(AuditFilter(user_id=BOB)) == [30_000_002, 9_002]
    assert find(AuditFilter(user_id=BOB, action="remove", actor="admin", is_folded=True)) == [30_000_002, 9_002]
    assert find(AuditFilter(user_id=ADA, action="remove")) == []
    assert find(AuditFilter(user_id=ADA, actor="eve")) == []
    assert find(AuditFilter(user_id=ADA, bulk_id="request-7")) == []
    assert find(AuditFilter(user_id=ADA, since=LATER)) == []
    assert find(AuditFilter(user_id=ADA, until=NOON)) == []
    assert find(AuditFilter(user_id=UserId(9))) == []


def test_entries_of_a_user_are_read_from_the_index(sqlite_database: Database) -> None:
    statements = list[tuple[str, Any]]()

    @event.listens_for(sqlite_database.pools.browsing, "before_cursor_execute")
    def _collect(_connection: object, _cursor: object, statement: str, parameters: Any, *_others: object) -> None:
        statements.append((statement, parameters))

    sqlite_database.execute(insert(audit), [entry(1, ADA)])
    matching = AuditFilter(user_id=ADA, action="enable", actor="admin", since=NOON, is_folded=True)
    SqlUserRepository(sqlite_database).audit.list_page(limit=10, newer_than=AuditId(0), matching=matching)
    statement, parameters = statements[-2]  # the last one finds no more buckets
    with sqlite_database.reading() as connection:
        plan = str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all())

    assert "ix_mlapi_audit_user (<expr>=? AND user_id=?" in plan
