"""The contract suite for `Storage`.

A subclass provides the fixture ``open_storage``: a function that opens the same storage at each call. Every test starts
with a new, empty storage:

    class TestMyStorage(StorageContract):
        @pytest.fixture
        def open_storage(self, tmp_path):
            return lambda: MyStorage(tmp_path / "users")

The suite includes the contracts of `UserRepository`, `Managers`, `AttemptLimiter`, `Allowances`, `UsageRepository`,
`Outbox`, `Logins` and `Sessions`, for the parts of the storage with these names.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from mlapi import AttemptLimiter, AuditTrail, ConfigurationError, UserId, UserRepository
from mlapi.application.login_throttle import AttemptLimits, FixedWindowAttemptLimiter
from mlapi.domain.allowances import Allowances
from mlapi.domain.attempts import NonblockingAttemptCounts, WindowCount
from mlapi.domain.commands import Remove, SetEnabled
from mlapi.domain.inspection import Inspection
from mlapi.domain.managers import Managers
from mlapi.domain.outbox import Outbox, QueuedMail
from mlapi.domain.rules import canonical_username
from mlapi.domain.storage import Storage
from mlapi.domain.usage import UsageRepository
from mlapi.testing.allowances import AllowancesContract, draw_one, request_draw
from mlapi.testing.attempts import ATTEMPT_LIMIT, AttemptLimiterContract
from mlapi.testing.logins import LoginsContract
from mlapi.testing.managers import ManagersContract, added
from mlapi.testing.outbox import OutboxContract
from mlapi.testing.repository import UserRepositoryContract
from mlapi.testing.samples import LATER, NOON, registered, registration, with_api_key
from mlapi.testing.sessions import SessionsContract
from mlapi.testing.usage import UsageRepositoryContract, row
from mlapi.testing.user_lists import ActivityListContract

OpenStorage = Callable[[], Storage]

LONG_SECONDS = 60.0
SHORT_SECONDS = 0.05


class StorageContract(
    UserRepositoryContract,
    ManagersContract,
    AttemptLimiterContract,
    AllowancesContract,
    UsageRepositoryContract,
    OutboxContract,
    LoginsContract,
    ActivityListContract,
    SessionsContract,
):
    forgets = False
    """Set this to True for a storage that loses everything when it is closed, such as mlapi's in-memory storage."""

    @pytest.fixture
    def storage(self, open_storage: OpenStorage) -> Iterator[Storage]:
        storage = open_storage()
        storage.prepare(may_upgrade=True)
        yield storage
        storage.close()

    @pytest.fixture
    def repository(self, storage: Storage) -> UserRepository:
        return storage.users

    @pytest.fixture
    def managers(self, storage: Storage) -> Managers:
        return storage.managers

    @pytest.fixture
    def audit(self, storage: Storage) -> AuditTrail:
        return storage.users.audit

    @pytest.fixture
    def attempts(self, storage: Storage) -> AttemptLimiter:
        return FixedWindowAttemptLimiter(storage.attempts, AttemptLimits(per_name_and_address=ATTEMPT_LIMIT))

    @pytest.fixture
    def usage(self, storage: Storage) -> UsageRepository:
        return storage.usage

    @pytest.fixture
    def outbox(self, storage: Storage) -> Outbox:
        return storage.outbox

    @pytest.fixture
    def allowances(self, storage: Storage) -> Allowances:
        return storage.allowances

    # --- closing and opening again

    def test_reopened_storage_contains_everything(self, open_storage: OpenStorage) -> None:
        storage = open_storage()
        storage.prepare(may_upgrade=True)
        ada, bob = registered(storage.users, "ada"), registered(storage.users, "bob")
        key = with_api_key(storage.users, ada)
        (disabled, _) = storage.users.apply(
            [SetEnabled(user_id=ada.id, enabled=False, at=LATER), Remove(user_id=bob.id, at=LATER)]
        )
        alice = added(storage.managers)
        storage.store_fingerprint("a fingerprint")
        storage.usage.add([row(user_id=ada.id), row(user_id=bob.id)])
        entries = storage.users.audit.list_page(limit=10)
        storage.allowances.draw([request_draw(ada.id, 7)])
        storage.outbox.add([QueuedMail.for_user("invitation", ada.id, NOON)])
        mails = storage.outbox.list_page(limit=9)
        storage.close()

        again = open_storage()
        if self.forgets:
            assert (again.users.count(), again.managers.list_all()) == (0, [])
            assert (again.usage.list_page(limit=9), again.outbox.list_page(limit=9)) == ([], [])
            return
        again.prepare(may_upgrade=False)
        assert again.users.list_page(after=UserId(0), limit=10) == [disabled]
        assert again.users.list_api_keys(ada.id) == [key]
        assert again.managers.list_all() == [alice]
        assert again.users.audit.list_page(limit=10) == entries
        assert again.find_fingerprint() == "a fingerprint"
        assert again.usage.list_page(limit=9) == [row(user_id=ada.id), row(user_id=bob.id)]
        assert again.outbox.list_page(limit=9) == mails
        assert draw_one(again.allowances, request_draw(ada.id)).used == 8
        assert registered(again.users, "eve").id > bob.id
        again.close()

    def test_storage_can_be_closed_twice(self, open_storage: OpenStorage) -> None:
        storage = open_storage()
        storage.prepare(may_upgrade=True)

        storage.close()

        storage.close()

    # --- usage

    def test_usage_outlives_its_user_and_api_key(self, storage: Storage) -> None:
        ada = registered(storage.users)
        key = with_api_key(storage.users, ada)
        rows = [row(user_id=ada.id), row(user_id=ada.id, key_id=key.id)]
        storage.usage.add(rows)
        storage.users.apply([Remove(user_id=ada.id, at=LATER)])

        storage.usage.add([row(user_id=ada.id, requests=2)])

        assert storage.usage.list_page(user_id=ada.id, limit=9) == [row(user_id=ada.id, requests=3), rows[1]]

    # --- the outbox

    def test_applied_commands_queue_their_mail(self, storage: Storage) -> None:
        ada = registered(storage.users, "ada", mail="invitation", email="new@example.com")
        storage.users.apply(
            [
                registration("ada", mail="invitation"),
                registration("bob", mail="verify_email", at=LATER),
                registration("eve"),
            ]
        )

        found = [
            (mail.kind, mail.user_id, mail.recipient, mail.created_datetime, mail.due_datetime, mail.attempts)
            for mail in storage.outbox.list_page(limit=9)
        ]

        bob = storage.users.find(canonical_username("bob"))
        assert found == [
            ("verify_email", bob and bob.id, None, LATER, LATER, 0),
            ("invitation", ada.id, None, NOON, NOON, 0),
        ]

    # --- files

    def test_paths_are_absolute_and_in_existing_folders(self, storage: Storage) -> None:
        folders = [file.parent for file in storage.files]
        if storage.secrets_folder is not None:
            folders.append(Path.cwd() / storage.secrets_folder)

        assert [folder for folder in folders if not (folder.is_absolute() and folder.is_dir())] == []

    def test_preparing_creates_the_main_file(self, storage: Storage) -> None:
        assert all(file.exists() for file in storage.files[:1])

    def test_opening_and_inspecting_create_no_file(self, open_storage: OpenStorage) -> None:
        storage = open_storage()
        try:
            found = storage.inspect(find_password_error=None)
        except ConfigurationError:
            found = None

        assert [file for file in storage.files if file.exists()] == []
        assert found is None or found.users == 0
        storage.close()

    # --- the key fingerprint

    def test_new_storage_has_no_fingerprint(self, storage: Storage) -> None:
        assert storage.find_fingerprint() is None

    def test_fingerprint_can_be_read_before_preparation(self, open_storage: OpenStorage) -> None:
        storage = open_storage()

        assert storage.find_fingerprint() is None
        storage.close()

    def test_first_fingerprint_is_kept(self, storage: Storage) -> None:
        stored = [storage.store_fingerprint(fingerprint) for fingerprint in ("first", "second")]

        assert stored == ["first", "first"]
        assert storage.find_fingerprint() == "first"

    def test_fingerprint_can_be_replaced(self, storage: Storage) -> None:
        storage.store_fingerprint("first")

        storage.replace_fingerprint("second")

        assert storage.find_fingerprint() == storage.store_fingerprint("third") == "second"

    def test_threads_agree_on_the_first_fingerprint(self, storage: Storage) -> None:
        with ThreadPoolExecutor(8) as pool:
            stored = set(pool.map(storage.store_fingerprint, [f"fingerprint {number}" for number in range(8)]))

        assert stored == {storage.find_fingerprint()}

    # --- preparing, upgrading and inspecting

    def test_preparing_again_changes_nothing(self, storage: Storage) -> None:
        ada = registered(storage.users)

        storage.prepare(may_upgrade=True)
        storage.prepare(may_upgrade=False)

        assert storage.users.list_page(after=UserId(0), limit=10) == [ada]

    def test_schema_does_not_change_without_permission(self, open_storage: OpenStorage) -> None:
        storage = open_storage()
        try:
            storage.prepare(may_upgrade=False)
        except ConfigurationError:
            must_change = True
        else:
            must_change = False

        before, after = storage.upgrade()

        assert (before != after) == must_change
        storage.close()

    def test_upgrade_of_a_current_schema_changes_nothing(self, storage: Storage) -> None:
        ada = registered(storage.users)

        before, after = storage.upgrade()

        assert before == after
        assert storage.users.list_page(after=UserId(0), limit=10) == [ada]

    def test_inspection_of_an_empty_storage_finds_no_users(self, storage: Storage) -> None:
        found = storage.inspect(find_password_error=None)

        revision, _ = storage.upgrade()
        assert found == Inspection(
            kind="mlapi", revision=revision, newest_revision=revision or "", users=0, clock=found.clock
        )

    def test_inspection_counts_users_and_finds_the_latest_change(self, storage: Storage) -> None:
        ada, _ = registered(storage.users, "ada"), registered(storage.users, "bob")
        before = storage.inspect(find_password_error=None)
        storage.store_fingerprint("a fingerprint")
        storage.users.apply([SetEnabled(user_id=ada.id, enabled=False, at=LATER)])

        after = storage.inspect(find_password_error=lambda _: "unreadable")

        assert (before.users, before.fingerprint, before.latest_change) == (2, None, NOON)
        assert (after.users, after.fingerprint, after.latest_change) == (2, "a fingerprint", LATER)
        assert (after.misnamed, after.unreadable, after.damage) == ((), 0, ())

    def test_inspection_counts_the_users_of_each_plan(self, storage: Storage) -> None:
        for name, plan in (("ada", "pro"), ("bob", "free"), ("eve", "pro"), ("joe", None)):
            registered(storage.users, name, plan=plan)

        assert storage.inspect(find_password_error=None).plans == (("free", 1), ("pro", 2))

    def test_inspection_lists_the_managers(self, storage: Storage) -> None:
        managers = tuple(added(storage.managers, name, number) for number, name in enumerate(("alice", "bob")))

        assert storage.inspect(find_password_error=None).managers == managers

    def test_inspected_times_have_a_time_zone(self, storage: Storage) -> None:
        registered(storage.users)

        found = storage.inspect(find_password_error=None)

        times = [time for time in (found.clock, found.latest_change) if time is not None]
        assert [time.utcoffset() for time in times] == [timedelta(0)] * len(times)

    # --- counts of login attempts

    def test_attempts_are_counted_by_key(self, storage: Storage) -> None:
        added = [
            [window.count for window in storage.attempts.add(keys, window_seconds=LONG_SECONDS)]
            for keys in (["one", "two"], ["three", "one"])
        ]

        assert added == [[1, 1], [1, 2]]
        assert counts(storage, "two", "none", "one", "three") == [1, 0, 2, 1]

    def test_window_starts_with_its_first_attempt(self, storage: Storage) -> None:
        started = time.time()
        (first,) = storage.attempts.add(["one"], window_seconds=LONG_SECONDS)
        (second,) = storage.attempts.add(["one"], window_seconds=2 * LONG_SECONDS)

        (later,) = storage.attempts.read(["one"])

        assert [first, second] == [WindowCount(1, later.ends_at_timestamp), later]
        assert later == WindowCount(2, later.ends_at_timestamp)
        assert started + LONG_SECONDS <= later.ends_at_timestamp <= time.time() + LONG_SECONDS

    def test_count_is_zero_after_its_window_ends(self, storage: Storage) -> None:
        storage.attempts.add(["one", "two"], window_seconds=SHORT_SECONDS)
        storage.attempts.add(["two", "one"], window_seconds=SHORT_SECONDS)
        time.sleep(2 * SHORT_SECONDS)

        (ended,) = storage.attempts.read(["one"])
        again = storage.attempts.add(["one", "two"], window_seconds=LONG_SECONDS)

        assert ended.count == 0
        assert ended.ends_at_timestamp <= time.time()
        assert [window.count for window in again] == [1, 1]
        assert all(window.ends_at_timestamp > time.time() for window in again)

    def test_repeated_keys_are_counted_each_time(self, storage: Storage) -> None:
        storage.attempts.add(["one"], window_seconds=LONG_SECONDS)

        added = storage.attempts.add(["two", "one", "two", "one", "three", "one"], window_seconds=LONG_SECONDS)

        assert [window.count for window in added] == [1, 2, 2, 3, 1, 4]
        assert counts(storage, "one", "two", "three") == [4, 2, 1]
        assert len({window.ends_at_timestamp for window in added[:1] + added[2:3]}) == 1

    def test_repeated_keys_open_one_new_window(self, storage: Storage) -> None:
        storage.attempts.add(["one"] * 3, window_seconds=SHORT_SECONDS)
        time.sleep(2 * SHORT_SECONDS)

        added = storage.attempts.add(["one"] * 2, window_seconds=LONG_SECONDS)

        assert [window.count for window in added] == [1, 2]
        assert added[0].ends_at_timestamp == added[1].ends_at_timestamp > time.time()

    def test_many_attempts_are_counted_at_once(self, storage: Storage) -> None:
        keys = [f"key {number % 500}" for number in range(2_000)]

        added = storage.attempts.add(keys, window_seconds=LONG_SECONDS)

        assert [window.count for window in added] == [1 + number // 500 for number in range(2_000)]
        assert counts(storage, *keys[:500]) == [4] * 500

    def test_nonblocking_counts_are_the_same(self, storage: Storage) -> None:
        attempts = storage.attempts
        attempts.add(["one", "one", "two"], window_seconds=LONG_SECONDS)
        attempts.read(["one"])  # opens a connection, which the nonblocking read needs

        if isinstance(attempts, NonblockingAttemptCounts):
            found = [window.count for window in attempts.read_nowait(["two", "none", "one"])]
            assert found == [1, 0, 2]

    def test_concurrent_attempts_are_all_counted(self, storage: Storage) -> None:
        orders = [["one", "two"], ["two", "one"]]

        with ThreadPoolExecutor(8) as pool:
            added = list(
                pool.map(
                    lambda number: storage.attempts.add(orders[number % 2], window_seconds=LONG_SECONDS), range(40)
                )
            )

        assert counts(storage, "one", "two") == [40, 40]
        assert sorted(window.count for windows in added for window in windows) == sorted([*range(1, 41)] * 2)


def counts(storage: Storage, *keys: str) -> list[int]:
    return [window.count for window in storage.attempts.read(keys)]
