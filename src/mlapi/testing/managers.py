"""The contract suite for `Managers`.

A subclass provides two fixtures: ``managers``, which are new and empty, and ``audit``, the audit trail that they write.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta, timezone

import attrs

from mlapi import Actor, AuditEntry, AuditTrail
from mlapi.domain.audit import UNSAVED_ID
from mlapi.domain.errors import ManagerExistsError, ManagerNotFoundError
from mlapi.domain.managers import (
    AddManager,
    Manager,
    ManagerOutcome,
    Managers,
    ManagerTokenId,
    NonblockingManagers,
    RemoveManager,
    RotateManager,
)
from mlapi.testing.samples import LATER, NOON

UNKNOWN = ["nobody", "", "ALICE", "é", "a\0b", "\ud800"]
"""Names and token ids that no manager has. A database cannot store some of them."""


def manager(name: str = "alice", number: int = 1, **fields: object) -> Manager:
    """Return a manager, without storing it."""
    values = {"role": "viewer", "digest": f"digest {number}", "created_datetime": NOON, **fields}
    return Manager(name=name, token_id=ManagerTokenId(f"{number:016x}"), **values)  # type: ignore[arg-type]  # the test passes the right types


def added(managers: Managers, name: str = "alice", number: int = 1, **fields: object) -> Manager:
    """Add a manager and return it."""
    outcome = managers.apply(AddManager(manager=manager(name, number, **fields), at=NOON))
    assert isinstance(outcome, Manager)
    return outcome


def rotation(name: str = "alice", number: int = 2, **fields: object) -> RotateManager:
    """Return a command that replaces the token of a manager."""
    token_id = ManagerTokenId(f"{number:016x}")
    values = {"expires_datetime": None, "at": LATER, **fields}
    return RotateManager(name=name, token_id=token_id, digest=f"digest {number}", **values)  # type: ignore[arg-type]  # the test passes the right types


class ManagersContract:
    # --- finding

    def test_new_storage_has_no_managers(self, managers: Managers) -> None:
        assert (managers.list_all(), managers.find_many([])) == ([], [])

    def test_manager_is_found_by_name_and_by_token_id(self, managers: Managers) -> None:
        alice, bob = added(managers, "alice", 1), added(managers, "bob", 2, role="admin", expires_datetime=LATER)

        assert [managers.find(name) for name in ("alice", "bob")] == [alice, bob]
        assert managers.find_many([bob.token_id, alice.token_id, bob.token_id]) == [bob, alice, bob]
        assert managers.find_many([alice.token_id]) == [alice]

    def test_managers_are_sorted_by_name(self, managers: Managers) -> None:
        names = ["b", "a-z", "a.z", "a", "a_z", "0", "az"]
        for number, name in enumerate(names):
            added(managers, name, number)

        assert [each.name for each in managers.list_all()] == sorted(names)

    def test_unknown_managers_are_not_found(self, managers: Managers) -> None:
        alice = added(managers)

        token_ids = [alice.token_id, *map(ManagerTokenId, UNKNOWN)]
        assert managers.find_many(token_ids) == [alice] + [None] * len(UNKNOWN)
        assert [managers.find(name) for name in UNKNOWN] == [None] * len(UNKNOWN)

    def test_times_of_managers_keep_microseconds_in_utc(self, managers: Managers) -> None:
        in_tokyo = LATER.astimezone(timezone(timedelta(hours=9)))
        added(managers, created_datetime=in_tokyo, expires_datetime=in_tokyo)

        (found,) = managers.list_all()

        times = [found.created_datetime, found.expires_datetime]
        assert times == [LATER, LATER]
        assert [time and time.utcoffset() for time in times] == [timedelta(0)] * 2

    def test_managers_are_found_without_waiting(self, managers: Managers) -> None:
        alice = added(managers)
        managers.find_many([])  # opens a connection

        if isinstance(managers, NonblockingManagers):
            token_ids = [alice.token_id, *map(ManagerTokenId, UNKNOWN)]
            assert managers.find_many_nowait(token_ids) == managers.find_many(token_ids)

    # --- changing

    def test_name_of_a_manager_can_be_added_only_once(self, managers: Managers) -> None:
        alice = added(managers)

        outcome = managers.apply(AddManager(manager=manager(number=2, role="admin"), at=LATER))

        assert outcome == ManagerExistsError("alice")
        assert managers.list_all() == [alice]

    def test_one_of_several_concurrent_additions_succeeds(self, managers: Managers) -> None:
        def add(number: int) -> ManagerOutcome:
            return managers.apply(AddManager(manager=manager(number=number), at=NOON))

        with ThreadPoolExecutor(4) as pool:
            outcomes = list(pool.map(add, range(8)))

        (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Manager)]
        assert outcomes.count(ManagerExistsError("alice")) == len(outcomes) - 1
        assert managers.list_all() == [winner]

    def test_rotation_replaces_only_the_token(self, managers: Managers) -> None:
        alice, bob = added(managers, expires_datetime=LATER), added(managers, "bob", 3)

        rotated = managers.apply(rotation(number=2))

        expected = manager(number=2, created_datetime=alice.created_datetime)
        assert rotated == expected
        assert managers.find_many([alice.token_id, expected.token_id]) == [None, expected]
        assert managers.list_all() == [expected, bob]

    def test_rotation_can_set_an_expiry(self, managers: Managers) -> None:
        added(managers)

        managers.apply(rotation(expires_datetime=LATER + timedelta(days=1)))

        assert managers.find("alice") == manager(number=2, expires_datetime=LATER + timedelta(days=1))

    def test_removed_manager_is_not_found_and_can_be_added_again(self, managers: Managers) -> None:
        alice = added(managers)

        removed = managers.apply(RemoveManager(name="alice", at=LATER))

        assert (removed, managers.find("alice"), managers.find_many([alice.token_id])) == (alice, None, [None])
        assert added(managers, number=2, role="admin") == managers.find("alice")

    def test_unknown_managers_cannot_be_changed(self, managers: Managers) -> None:
        alice = added(managers)

        outcomes = [managers.apply(rotation(name)) for name in UNKNOWN]
        outcomes += [managers.apply(RemoveManager(name=name, at=LATER)) for name in UNKNOWN]

        assert outcomes == [ManagerNotFoundError(name) for name in UNKNOWN] * 2
        assert managers.list_all() == [alice]

    # --- the audit trail

    def test_changes_of_managers_are_audited(self, managers: Managers, audit: AuditTrail) -> None:
        actor = Actor("manager bob", "request-7")
        managers.apply(AddManager(manager=manager(role="admin", expires_datetime=LATER), at=NOON, actor=actor))
        managers.apply(rotation(actor=actor))
        managers.apply(RemoveManager(name="alice", at=LATER, actor=actor))

        entries = audit.list_page(limit=10)
        assert [attrs.evolve(entry, id=UNSAVED_ID) for entry in reversed(entries)] == [
            AuditEntry(
                at=at,
                actor="manager bob",
                action=action,  # type: ignore[arg-type]  # the names below are actions
                user_id=None,
                api_key_id=None,
                outcome="done",
                request_id="request-7",
                changes=json.dumps({"manager": "alice", "role": "admin", **more}),
            )
            for at, action, more in [
                (NOON, "add_manager", {"token_expires_at": "2026-11-24T13:00:00.123456Z"}),
                (LATER, "rotate_manager", {}),
                (LATER, "remove_manager", {}),
            ]
        ]

    def test_rejected_changes_of_managers_are_audited(self, managers: Managers, audit: AuditTrail) -> None:
        added(managers)
        managers.apply(AddManager(manager=manager(number=2), at=LATER))
        managers.apply(rotation("bob"))
        managers.apply(RemoveManager(name="not a name", at=LATER))

        entries = audit.list_page(limit=3)
        assert [(entry.action, entry.outcome, entry.changes) for entry in reversed(entries)] == [
            ("add_manager", "manager_exists", '{"manager": "alice", "role": "viewer"}'),
            ("rotate_manager", "manager_not_found", '{"manager": "bob"}'),
            ("remove_manager", "manager_not_found", None),
        ]
