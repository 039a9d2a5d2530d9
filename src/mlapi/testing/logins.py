"""The contract of `Logins`. The suite is a part of `StorageContract`."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from mlapi.domain.commands import Remove
from mlapi.domain.logins import Login
from mlapi.domain.storage import Storage
from mlapi.testing.samples import LATER, NOON, SECOND, UNKNOWN_IDS, registered


class LoginsContract:
    def test_logins_are_listed_newest_first(self, storage: Storage) -> None:
        ada, bob = registered(storage.users, "ada"), registered(storage.users, "bob")
        first = Login(ada.id, NOON + timedelta(microseconds=7), "192.0.2.1")
        second, third = Login(ada.id, NOON + SECOND, ""), Login(ada.id, NOON + 2 * SECOND, "2001:db8::1")
        bobs = Login(bob.id, NOON + SECOND, "192.0.2.2")

        storage.logins.add([second, bobs])
        storage.logins.add([third, first])

        assert storage.logins.list_recent(ada.id, limit=9) == [third, second, first]
        assert storage.logins.list_recent(ada.id, limit=2) == [third, second]
        assert storage.logins.list_recent(bob.id, limit=9) == [bobs]

    def test_repeated_login_is_stored_once(self, storage: Storage) -> None:
        login = Login(registered(storage.users).id, NOON, "192.0.2.1")

        storage.logins.add([login, login])
        storage.logins.add([login])

        assert storage.logins.list_recent(login.user_id, limit=9) == [login]

    def test_logins_of_unknown_users_are_ignored(self, storage: Storage) -> None:
        ada = registered(storage.users)
        login = Login(ada.id, NOON, "192.0.2.1")

        storage.logins.add([Login(user_id, NOON, "192.0.2.1") for user_id in UNKNOWN_IDS] + [login])
        storage.logins.add([])

        assert [storage.logins.list_recent(user_id, limit=9) for user_id in UNKNOWN_IDS] == [[]] * len(UNKNOWN_IDS)
        assert storage.logins.list_recent(ada.id, limit=9) == [login]

    def test_logins_are_removed_with_their_user(self, storage: Storage) -> None:
        ada, bob = registered(storage.users, "ada"), registered(storage.users, "bob")
        storage.logins.add([Login(ada.id, NOON, "192.0.2.1"), Login(bob.id, NOON, "192.0.2.2")])

        storage.users.apply([Remove(user_id=ada.id, at=LATER)])
        storage.logins.add([Login(ada.id, LATER, "192.0.2.1")])

        assert storage.logins.list_recent(ada.id, limit=9) == []
        assert storage.logins.purge(before=LATER + SECOND, limit=9) == 1

    def test_old_logins_are_purged_oldest_first(self, storage: Storage) -> None:
        ada, bob = registered(storage.users, "ada"), registered(storage.users, "bob")
        kept = Login(ada.id, LATER, "192.0.2.1")
        storage.logins.add([kept, Login(bob.id, NOON + SECOND, ""), Login(ada.id, NOON, "")])

        purged = [storage.logins.purge(before=before, limit=1) for before in (NOON, LATER, LATER, LATER)]

        assert purged == [0, 1, 1, 0]
        assert [storage.logins.list_recent(user.id, limit=9) for user in (ada, bob)] == [[kept], []]

    def test_concurrent_logins_are_all_stored(self, storage: Storage) -> None:
        ids = [registered(storage.users, name).id for name in ("ada", "bob", "eve")]

        def add(number: int) -> None:
            order = ids if number % 2 else ids[::-1]
            storage.logins.add([Login(user_id, NOON + number * SECOND, "192.0.2.1") for user_id in order])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(add, range(12)))

        assert [len(storage.logins.list_recent(user_id, limit=99)) for user_id in ids] == [12] * 3
