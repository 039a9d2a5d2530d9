"""The contract of `AuditTrail`, which reads what `UserRepository.apply` writes."""

import json
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import attrs

from mlapi import (
    Actor,
    ApiKeyId,
    AuditEntry,
    Command,
    User,
    UserId,
    UserRepository,
)
from mlapi.domain.actors import ANYONE
from mlapi.domain.audit import UNSAVED_ID, Action, AuditFilter, AuditId, DailyCount
from mlapi.domain.commands import (
    AddApiKey,
    ChangePassword,
    EndTokens,
    IssueToken,
    RecordApiKeyUse,
    Reencrypt,
    Remove,
    RemoveApiKey,
    SetEnabled,
    UpdateUser,
)
from mlapi.domain.metadata import Metadata
from mlapi.domain.users import EncryptedPassword
from mlapi.testing.samples import (
    ANOTHER,
    LATER,
    NO_KEY,
    NO_USER,
    NOON,
    SECOND,
    STORED,
    SUBSCRIBED,
    UNKNOWN_IDS,
    api_key,
    apply_one,
    registered,
    registration,
    with_api_key,
)


class AuditTrailContract:
    def test_every_command_writes_an_entry(self, repository: UserRepository) -> None:
        actor = Actor("admin", "request-7")
        ada = apply_one(repository, registration(actor=actor))
        assert isinstance(ada, User)
        key = api_key(ada.id, created_datetime=LATER)
        commands: list[Command] = [
            SetEnabled(user_id=ada.id, enabled=False, at=LATER, actor=actor),
            SetEnabled(user_id=ada.id, enabled=True, at=LATER, actor=actor),
            IssueToken(user_id=ada.id, at=LATER, actor=actor),
            EndTokens(user_id=ada.id, at=LATER, actor=actor),
            ChangePassword(user_id=ada.id, password=ANOTHER, replacing=None, at=LATER, actor=actor),
            AddApiKey(key=key, actor=actor),
            RemoveApiKey(key_id=key.id, at=LATER, actor=actor),
            Remove(user_id=ada.id, at=LATER, actor=actor),
        ]
        repository.apply(commands)

        entries = repository.audit.list_page(limit=10)
        expected: list[tuple[Action, ApiKeyId | None]] = [
            ("register", None),
            ("disable", None),
            ("enable", None),
            ("issue_token", None),
            ("end_tokens", None),
            ("set_password", None),
            ("add_api_key", key.id),
            ("remove_api_key", key.id),
            ("remove", None),
        ]
        assert [attrs.evolve(entry, id=UNSAVED_ID) for entry in reversed(entries)] == [
            AuditEntry(
                at=NOON if action == "register" else LATER,
                actor="admin",
                action=action,
                user_id=ada.id,
                api_key_id=key_id,
                outcome="done",
                request_id="request-7",
                changes='{"username": ["ada", null]}' if action == "remove" else None,
            )
            for action, key_id in expected
        ]
        assert [entry.id for entry in entries] == sorted({entry.id for entry in entries}, reverse=True)

    def test_entry_of_a_rejected_command_contains_the_reason(self, repository: UserRepository) -> None:
        ada = registered(repository)
        replacing = EncryptedPassword("not the stored one")
        repository.apply(
            [
                registration("ADA"),
                ChangePassword(user_id=ada.id, password=ANOTHER, replacing=replacing, at=LATER),
                Remove(user_id=NO_USER, at=LATER),
                AddApiKey(key=api_key(NO_USER)),
                RemoveApiKey(key_id=NO_KEY, at=LATER),
            ]
        )

        entries = repository.audit.list_page(limit=5)
        assert [(entry.action, entry.outcome, entry.user_id, entry.api_key_id) for entry in reversed(entries)] == [
            ("register", "user_exists", ada.id, None),
            ("set_password", "password_changed", ada.id, None),
            ("remove", "user_not_found", NO_USER, None),
            ("add_api_key", "user_not_found", NO_USER, None),
            ("remove_api_key", "api_key_not_found", None, None),
        ]
        assert {(entry.actor, entry.request_id) for entry in entries} == {("library", None)}

    def test_entry_of_an_update_contains_the_changes(self, repository: UserRepository) -> None:
        ada = registered(repository, **SUBSCRIBED)
        metadata = Metadata.from_object({"customer": "cus_456", "seats": 5})
        repository.apply(
            [
                UpdateUser(user_id=ada.id, expires=None, plan="free", at=LATER),
                UpdateUser(user_id=ada.id, username="eve", email="eve@example.com", metadata=metadata, at=LATER),
                UpdateUser(user_id=ada.id, username="eve", plan="free", at=LATER),
                UpdateUser(user_id=NO_USER, plan="free", at=LATER),
                registration("bob"),
                UpdateUser(user_id=ada.id, username="BOB", plan="pro", at=LATER),
                UpdateUser(user_id=ada.id, plan="pro", replacing_expires=NOON, at=LATER),
            ]
        )

        entries = repository.audit.list_page(limit=8)
        assert [
            (entry.action, entry.outcome, entry.user_id, entry.changes and json.loads(entry.changes))
            for entry in reversed(entries)
            if entry.user_id in {ada.id, NO_USER}
        ] == [
            (
                "register",
                "done",
                ada.id,
                {
                    "expires_at": [None, "2026-12-24T12:00:00.123456Z"],
                    "plan": [None, "pro"],
                    "metadata": ["customer", "seats", "tags"],
                },
            ),
            (
                "update",
                "done",
                ada.id,
                {"expires_at": ["2026-12-24T12:00:00.123456Z", None], "plan": ["pro", "free"]},
            ),
            ("update", "done", ada.id, {"username": None, "email": None, "metadata": ["customer", "tags"]}),
            ("update", "done", ada.id, None),
            ("update", "user_not_found", NO_USER, None),
            ("update", "user_exists", ada.id, None),
            ("update", "user_changed", ada.id, None),
        ]

    def test_rejected_registration_without_credentials_has_no_entry(self, repository: UserRepository) -> None:
        anyone = Actor(ANYONE, "request-7")
        repository.apply([registration("ada", actor=anyone), registration("ADA", actor=anyone)])

        entries = repository.audit.list_page(limit=5)
        assert [(entry.actor, entry.outcome) for entry in entries] == [("anyone", "done")]

    def test_audit_entry_omits_a_user_id_that_cannot_be_stored(self, repository: UserRepository) -> None:
        repository.apply([SetEnabled(user_id=user_id, enabled=True, at=NOON) for user_id in UNKNOWN_IDS])

        user_ids = [entry.user_id for entry in repository.audit.list_page(limit=10)]
        assert user_ids == [user_id if user_id == NO_USER else None for user_id in reversed(UNKNOWN_IDS)]

    def test_reencryption_and_api_key_use_write_no_entry(self, repository: UserRepository) -> None:
        ada = registered(repository)
        key = with_api_key(repository, ada)
        before = repository.audit.list_page(limit=10)

        repository.apply(
            [
                Reencrypt(user_id=ada.id, password=ANOTHER, replacing=STORED),
                RecordApiKeyUse(key_id=key.id, at=LATER),
            ]
        )

        assert repository.audit.list_page(limit=10) == before

    def test_entries_are_paged_and_filtered_by_user(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")
        apply_one(repository, Remove(user_id=ada.id, at=LATER))
        audit = repository.audit

        everything = audit.list_page(limit=10)
        first = audit.list_page(limit=2)
        second = audit.list_page(limit=2, after=first[-1].id)
        assert [(entry.action, entry.user_id) for entry in everything] == [
            ("remove", ada.id),
            ("register", bob.id),
            ("register", ada.id),
        ]
        assert first + second == everything
        matching = AuditFilter(user_id=ada.id)
        assert audit.list_page(limit=10, matching=matching) == [everything[0], everything[2]]
        assert audit.list_page(limit=10, matching=matching, after=everything[0].id) == [everything[2]]
        assert audit.list_page(limit=1, newer_than=everything[2].id) == [everything[1]]
        assert audit.list_page(limit=9, newer_than=everything[2].id) == everything[:2]
        assert audit.list_page(limit=10, after=everything[-1].id) == []

    def test_entries_are_filtered_by_action_actor_and_time(self, repository: UserRepository) -> None:
        alice, root = Actor("manager alice", "request-7"), Actor("import by root", "request-8")
        users = [registered(repository, name, actor=actor) for name, actor in (("ada", alice), ("bob", root))]
        for user, actor in zip(users, (alice, Actor("admin")), strict=True):
            apply_one(repository, SetEnabled(user_id=user.id, enabled=False, at=LATER, actor=actor))
        entries = repository.audit.list_page(limit=10)

        def numbers(**fields: Any) -> list[list[int]]:
            pages = [
                repository.audit.list_page(limit=10, matching=AuditFilter(**fields, is_folded=is_folded))
                for is_folded in (False, True)
            ]
            return [[len(entries) - entries.index(entry) for entry in page] for page in pages]

        assert numbers() == [[4, 3, 2, 1]] * 2
        assert numbers(action="disable") == [[4, 3]] * 2
        assert numbers(actor="manager alice") == [[3, 1]] * 2
        assert numbers(actor="admin") == [[4]] * 2
        assert numbers(actor="import by root", action="register") == [[2]] * 2
        assert numbers(actor="import by root", action="disable") == [[]] * 2
        assert numbers(since=LATER) == [[4, 3]] * 2
        assert numbers(until=LATER, user_id=users[1].id) == [[2]] * 2
        assert numbers(since=NOON, until=NOON + SECOND) == [[2, 1]] * 2
        assert numbers(since=datetime.min.replace(tzinfo=UTC), until=datetime.max.replace(tzinfo=UTC)) == numbers()

    def test_times_are_filtered_although_clocks_differ(self, repository: UserRepository) -> None:
        minutes = [0, 50, 10, 90, 70, 200, 150]
        times = [NOON + minute * timedelta(minutes=1) for minute in minutes]
        for number, time in enumerate(times):
            apply_one(repository, registration(f"user {number}", at=time))

        for since, until in ((10, 70), (50, 90), (70, 200), (0, 999)):
            matching = AuditFilter(
                since=NOON + since * timedelta(minutes=1), until=NOON + until * timedelta(minutes=1), is_folded=True
            )
            found = repository.audit.list_page(limit=10, matching=matching)
            assert [entry.at for entry in found] == [
                time for minute, time in reversed([*zip(minutes, times, strict=True)]) if since <= minute < until
            ]

    def test_entries_of_a_bulk_request_are_folded(self, repository: UserRepository) -> None:
        actor, other = Actor("import by root", "request-7"), Actor("admin", "request-8")
        first = registered(repository, "ada", actor=actor)
        bob, eve = (registered(repository, name, actor=actor.repeated()) for name in ("bob", "eve"))
        apply_one(repository, SetEnabled(user_id=bob.id, enabled=False, at=LATER, actor=other))
        audit, folded = repository.audit, AuditFilter(is_folded=True)

        page = audit.list_page(limit=10, matching=folded)

        assert [(entry.actor, entry.user_id, entry.bulk_id) for entry in page] == [
            ("admin", bob.id, ""),
            ("import by root", first.id, ""),
        ]
        assert audit.list_page(limit=1, matching=folded, after=page[0].id) == page[1:]
        assert audit.list_page(limit=1, matching=folded, newer_than=page[1].id) == page[:1]
        assert [entry.user_id for entry in audit.list_page(limit=10)] == [bob.id, eve.id, bob.id, first.id]
        assert [entry.user_id for entry in audit.list_page(limit=9, matching=AuditFilter(bulk_id="request-7"))] == [
            eve.id,
            bob.id,
        ]
        assert audit.list_page(limit=9, matching=AuditFilter(bulk_id="a\0b")) == []
        assert audit.count_bulk(["request-7", "request-8", "request-9"], limit=10) == [2, 0, 0]
        assert audit.count_bulk(["request-7"], limit=1) == [1]
        assert audit.count_bulk([], limit=1) == []

    def test_removals_are_found_with_the_names(self, repository: UserRepository) -> None:
        ada, bob, eve = (registered(repository, name) for name in ("ada", "bob", "eve"))
        apply_one(repository, Remove(user_id=ada.id, at=LATER))
        apply_one(repository, Remove(user_id=bob.id, keeps_name=False, at=LATER))
        apply_one(repository, Remove(user_id=bob.id, at=LATER))

        found = repository.audit.find_removals([ada.id, bob.id, eve.id, NO_USER])

        assert sorted((entry.user_id or 0, entry.changes) for entry in found) == [
            (ada.id, '{"username": ["ada", null]}'),
            (bob.id, None),
        ]

    def test_entries_can_be_listed_by_any_id(self, repository: UserRepository) -> None:
        registered(repository)

        assert [
            repository.audit.list_page(limit=10, matching=AuditFilter(user_id=user_id)) for user_id in UNKNOWN_IDS
        ] == [[]] * len(UNKNOWN_IDS)
        assert len(repository.audit.list_page(limit=10, after=AuditId(10**30))) == 1
        assert repository.audit.list_page(limit=10, newer_than=AuditId(10**30)) == []
        assert repository.audit.find_removals(UNKNOWN_IDS) == []
        assert repository.audit.find_removals([UserId(10**30)]) == []
        assert repository.audit.list_page(limit=10, matching=AuditFilter(actor="a\0b")) == []
        assert repository.audit.list_page(limit=10, after=AuditId(0)) == []

    def test_entries_are_counted_by_day_in_utc(self, repository: UserRepository) -> None:
        late = datetime(2026, 11, 23, 23, 30, tzinfo=UTC)
        in_tokyo = (late + timedelta(minutes=90)).astimezone(timezone(timedelta(hours=9)))
        repository.apply(
            [
                registration("ada", at=late),
                registration("ADA", at=late),
                registration("bob", at=in_tokyo),
                registration("eve", at=late - timedelta(days=1)),
                SetEnabled(user_id=NO_USER, enabled=True, at=late),
            ]
        )
        (ada,) = [user for user in repository.list_page(after=UserId(0), limit=1) if user.username == "ada"]
        repository.apply([SetEnabled(user_id=ada.id, enabled=False, at=late)])

        assert repository.audit.count_per_day(since=late) == [
            DailyCount(date(2026, 11, 23), "disable", 1),
            DailyCount(date(2026, 11, 23), "register", 1),
            DailyCount(date(2026, 11, 24), "register", 1),
        ]

    def test_oldest_entries_are_purged_first(self, repository: UserRepository) -> None:
        for number in (3, 1, 2, 4):
            apply_one(repository, registration(f"user {number}", at=NOON + number * SECOND))

        purged = [repository.audit.purge(before=NOON + 4 * SECOND, limit=2) for _ in range(3)]

        assert purged == [2, 1, 0]
        assert [entry.at for entry in repository.audit.list_page(limit=10)] == [NOON + 4 * SECOND]

    def test_entry_ids_are_never_reused(self, repository: UserRepository) -> None:
        registered(repository)
        (entry,) = repository.audit.list_page(limit=10)
        repository.audit.purge(before=LATER, limit=10)

        apply_one(repository, registration("bob"))

        (next_entry,) = repository.audit.list_page(limit=10)
        assert next_entry.id > entry.id
