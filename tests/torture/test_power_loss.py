"""Power that fails at any moment: nothing that was acknowledged is lost, whatever the disk has kept of the rest.

The real code works while all that it writes and makes durable is recorded. Of that, states are made that a disk may be
left in, at places all over the record; each is opened, and compared with what had been acknowledged by then.
"""

import asyncio
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml
from sqlalchemy import Pool, event, text

from mlapi.adapters.fernet import FernetCipher
from mlapi.adapters.sql import HEAD, Database, database_url, upgrade
from mlapi.application.users import Users
from mlapi.bootstrap import group_commit, open_service
from mlapi.config import DatabaseSettings, PasswordSettings, Settings
from mlapi.domain.commands import Command
from mlapi.domain.credentials import ApiKey
from mlapi.domain.errors import RepositoryUnavailableError
from mlapi.domain.users import EncryptedPassword, User
from mlapi.secret_files import change_secrets_file, make_secrets_file, new_key, read_yaml
from tests.torture import storage

pytestmark = pytest.mark.skipif(storage.missing() is not None, reason=f"NO POWER LOSS IS TRIED: {storage.missing()}")

CLIENTS = 6
PAGES = 40  # of the write-ahead log, after which it is written back: many times in a run
STARTED = 40  # every so manieth state is started by the service itself

PASSWORDS = ("difference engine", "analytical engine")

Row = tuple[Any, ...]
Rows = dict[str, Row]
"""Of one client: each of his users, and each API key, by its key."""


# --- what is done while it is recorded


def settings_of(folder: Path) -> Settings:
    url = f"sqlite:///{folder}/mlapi.db"
    return Settings(database=DatabaseSettings(url=url), passwords=PasswordSettings(scheme="fernet"))


@attrs.frozen
class Acknowledged:
    """A client knows that so many of his changes are done."""

    client: int
    changes: int


@attrs.define
class Client:
    """Changes one thing after the other, and keeps what there must be after each."""

    number: int
    disk: storage.Recorder
    history: list[Rows] = attrs.field(factory=lambda: [{}])

    def acknowledged(self, **rows: Row | None) -> None:
        after = {**self.history[-1], **rows}
        self.history.append({key: row for key, row in after.items() if row is not None})
        self.disk.mark(Acknowledged(self.number, len(self.history) - 1))

    def known(self, done: int) -> tuple[Rows, Rows]:
        """Return what there must be after so many changes, and what there may be if the next one is under way."""
        return self.history[done], self.history[min(done + 1, len(self.history) - 1)]

    async def work(self, users: Users, apply: Callable[[Command], Any], prefix: str, rounds: int) -> None:
        for number in range(rounds):
            name = f"{prefix}-{self.number}-{number}"
            body = {"username": name, "password": "difference engine", "email": f"{name}@example.com"}
            user = await apply(users.prepare_registration(**body))
            self.acknowledged(**{name: row_of(user)})
            user = await apply(users.prepare_set_enabled(user_id=user.id, enabled=False))
            self.acknowledged(**{name: row_of(user)})
            user = await apply(users.prepare_password(user_id=user.id, password="analytical engine"))
            self.acknowledged(**{name: row_of(user)})
            change, _ = users.prepare_api_key(user_id=user.id, name="nightly", expires=None)
            key = await apply(change)
            self.acknowledged(**{key.id: key_row_of(key)})
            if number % 3 == 0:
                await apply(users.prepare_remove(user_id=user.id))
                self.acknowledged(**{name: None, key.id: None})


def row_of(user: User) -> Row:
    updated = user.updated_datetime.isoformat(" ", "microseconds")[:26]
    return user.id, user.username, user.password.value, user.email, user.enabled, updated, user.token_epoch


def key_row_of(key: ApiKey) -> Row:
    return key.id, key.user_id, key.name, key.digest


def worked(folder: Path, disk: storage.Recorder, clients: list[Client], prefix: str, rounds: int) -> None:
    """One life of the service, from its start to its end."""
    with open_service(settings_of(folder)) as opened:
        changes = group_commit(opened.users, lambda _changes, _outcomes: None)

        async def all_at_once() -> None:
            async with asyncio.TaskGroup() as tasks:
                for client in clients:
                    tasks.create_task(client.work(opened.users, changes.apply, prefix, rounds))

        asyncio.run(all_at_once())
        changes.close()


def first_start(folder: Path, disk: storage.Recorder, clients: list[Client], rounds: int) -> None:
    for life in range(2):
        worked(folder, disk, clients, f"life{life}", rounds)


def older_schema(folder: Path, disk: storage.Recorder, clients: list[Client], rounds: int) -> None:
    """A database of the first revision, whose user was acknowledged by the mlapi of then, is brought up."""
    secrets = folder / "secrets.yml"
    make_secrets_file(secrets)
    tree = read_yaml(secrets)
    with Database(database_url(f"sqlite:///{folder}/mlapi.db")) as database:
        upgrade(database, "0001")
        password = FernetCipher([tree["key"]], tree["salt"]).encrypt("difference engine").value
        now = datetime.now(UTC).isoformat(" ", "microseconds")[:26]
        row = (1, "life0-0-first", password, "first@example.com", True, now, "0" * 16)
        with database.writing() as connection:
            connection.execute(
                text(
                    "INSERT INTO users (id, username, username_key, password, email, enabled, created_datetime,"
                    " updated_datetime, token_epoch) VALUES (:a, :b, :b, :c, :d, :e, :f, :f, :g)"
                ),
                dict(zip("abcdefg", row, strict=True)),
            )
        clients[0].acknowledged(**{row[1]: row})
    worked(folder, disk, clients, "life0", rounds)


@contextmanager
def at_every_use(*pragmas: str) -> Iterator[None]:
    """Settings of SQLite beside those that our code makes."""

    def configure(connection: Any, _record: object, _proxy: object) -> None:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    event.listen(Pool, "checkout", configure)
    try:
        yield
    finally:
        event.remove(Pool, "checkout", configure)


Work = Callable[[Path, storage.Recorder, list[Client], int], None]


def recorded(work: Work, folder: Path, rounds: int, *pragmas: str) -> tuple[storage.Recorder, list[Client]]:
    folder.mkdir()
    disk = storage.Recorder(folder)
    clients = [Client(number, disk) for number in range(CLIENTS)]
    with at_every_use(f"wal_autocheckpoint = {PAGES}", *pragmas), disk.recording():
        work(folder, disk, clients, rounds)
    return disk, clients


# --- what is found afterwards


def places(disk: storage.Recorder, count: int, chance: random.Random) -> list[int]:
    """Where power fails: every third time while the first start makes its files, else anywhere."""
    first, last = disk.first, len(disk.events)
    return sorted(chance.randint(first, last if number % 3 else min(last, first + 120)) for number in range(count))


def lost(folder: Path, files: Mapping[str, bytes], known: list[tuple[Rows, Rows]], entries: int) -> list[str]:
    """Return what is wrong with a state.

    Args:
        folder: to put it in.
        files: of the state.
        known: for each client, what there must be, and what there may be instead: a change may be under way.
        entries: at least so many there must be in the audit trail.
    """
    put(files, folder)
    missing = {"mlapi.db", "secrets.yml"} - files.keys()
    if missing and (entries or any(must for must, _ in known)):
        return [f"{name} is not there" for name in sorted(missing)]
    with closing(sqlite3.connect(folder / "mlapi.db", isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA synchronous = OFF")  # this one needs not last
            damage = [line for (line,) in connection.execute("PRAGMA integrity_check") if line != "ok"]
            return [*damage, *differing(Stored.read(connection), known, entries, files.get("secrets.yml"))]
        except sqlite3.Error as error:
            return [str(error)]


def put(files: Mapping[str, bytes], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)


@attrs.define
class Stored:
    """What is in a database, by client."""

    rows: list[Rows] = attrs.field(factory=lambda: [{} for _ in range(CLIENTS)])
    passwords: list[str] = attrs.field(factory=list)
    names: Counter[str] = attrs.field(factory=Counter)
    entries: int = 0
    """Of the audit trail."""

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> "Stored":
        stored, owner = cls(), dict[int, int]()
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "users" in tables:
            for row in connection.execute(f"SELECT {_COLUMNS}, username_key FROM users ORDER BY id"):
                owner[row[0]] = int(row[1].split("-")[1])
                stored.rows[owner[row[0]]][row[1]] = row[:-1]
                stored.passwords.append(row[2])
                stored.names[row[-1]] += 1
        if "mlapi_api_keys" in tables:
            for row in connection.execute("SELECT id, user_id, name, digest FROM mlapi_api_keys"):
                stored.rows[owner[row[1]]][row[0]] = row
        if "mlapi_audit" in tables:
            ((stored.entries,),) = connection.execute("SELECT count(*) FROM mlapi_audit")
        return stored


_COLUMNS = "id, username, password, email, enabled, updated_datetime, token_epoch"


def differing(stored: Stored, known: list[tuple[Rows, Rows]], entries: int, secrets: bytes | None) -> Iterator[str]:
    if stored.entries < entries:
        yield f"{entries - stored.entries} entries of the audit trail are lost"
    yield from (f"{name} is there {count} times" for name, count in stored.names.items() if count > 1)
    for client, (must, may) in enumerate(known):
        if stored.rows[client] not in (must, may):
            yield f"client {client} has {len(stored.rows[client])} rows that are not his {len(must)} or {len(may)}"
    if stored.passwords and secrets is not None:
        cipher = cipher_of(yaml.safe_load(secrets))
        if not all(cipher.is_readable(EncryptedPassword(password)) for password in stored.passwords[-3:]):
            yield "the newest passwords cannot be read"


def cipher_of(tree: Mapping[str, Any]) -> FernetCipher:
    return FernetCipher([tree["key"]] if isinstance(tree["key"], str) else tree["key"], tree["salt"])


def started(folder: Path) -> None:
    """Let the service start on what is there, and do something."""
    with open_service(settings_of(folder)) as opened:
        cipher = opened.users.cipher
        assert all(
            any(cipher.matches(password, user.password) for password in PASSWORDS)
            for user in opened.users.iterate_users()
        )
        ada = opened.users.register(username="ada", password="difference engine", email="ada@example.com")
        assert opened.users.find("ADA") == ada
    with closing(sqlite3.connect(folder / "mlapi.db")) as connection:
        assert connection.execute("SELECT version_num FROM mlapi_alembic_version").fetchall() == [(HEAD,)]


@attrs.define
class Found:
    states: int = 0
    starts: int = 0
    differing: list[tuple[int, list[str]]] = attrs.field(factory=list)


def after_power_losses(
    disk: storage.Recorder, clients: list[Client], folder: Path, count: int, before: int = 0, *, starts: bool = True
) -> Found:
    """Look at so many states. ``before``: what is in the audit trail that no client has asked for, negative if less."""
    chance, found = random.Random(len(disk.events)), Found()
    simulated = storage.Disk(disk.events)
    for place in places(disk, count, chance):
        simulated.run(place)
        done = Counter({mark.client: mark.changes for mark in simulated.marks})
        known = [client.known(done[client.number]) for client in clients]
        problems = lost(folder, simulated.after_power_loss(chance), known, max(0, done.total() + before))
        if problems:
            found.differing.append((place, problems))
        elif starts and found.states % STARTED == 0:
            started(folder)
            found.starts += 1
        found.states += 1
    return found


@pytest.mark.parametrize("work", [first_start, older_schema])
def test_what_was_acknowledged_is_there_after_power_was_lost(
    work: Work, tmp_path: Path, times: Callable[[int, int], int], tell: Callable[[str], None]
) -> None:
    disk, clients = recorded(work, tmp_path / "recorded", times(3, 12))

    found = after_power_losses(disk, clients, tmp_path / "state", times(150, 10_000), -1 if work is older_schema else 0)

    kinds = Counter(type(event).__name__ for event in disk.events)
    tell(
        f"power lost ({work.__name__.replace('_', ' ')}, SQLite): {found.states:,} states of a disk, after"
        f" {kinds['Written']:,} writes, {kinds['Synced']:,} syncs of files and {kinds['FolderSynced']} of the folder,"
        f" with {sum(len(client.history) - 1 for client in clients):,} acknowledged changes;"
        f" {len(found.differing)} with a loss or damage; {found.starts} started by the service"
    )
    assert found.differing == []


def test_a_log_that_is_not_synced_at_each_commit_is_found_to_lose_changes(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    disk, clients = recorded(first_start, tmp_path / "recorded", 3, "synchronous = NORMAL")

    found = after_power_losses(disk, clients, tmp_path / "state", 100, starts=False)

    tell(f"the same with synchronous=NORMAL: {len(found.differing)} of {found.states} states have lost something")
    assert len(found.differing) > 10


def test_a_folder_that_is_not_synced_is_found_to_lose_the_database(tmp_path: Path) -> None:
    disk, clients = recorded(first_start, tmp_path / "recorded", 1)
    disk.events = [
        event if not isinstance(event, storage.FolderSynced) else storage.Marked(Acknowledged(0, 0))
        for event in disk.events
    ]

    found = after_power_losses(disk, clients, tmp_path / "state", 100, starts=False)

    assert {"mlapi.db is not there", "secrets.yml is not there"} <= {
        line for _, lines in found.differing for line in lines
    }


def test_what_was_acknowledged_after_a_power_loss_is_there_after_the_next(
    tmp_path: Path, times: Callable[[int, int], int], tell: Callable[[str], None]
) -> None:
    disk, _ = recorded(first_start, tmp_path / "recorded", 2)
    chance, found, losses = random.Random(2), Found(), times(3, 50)

    simulated = storage.Disk(disk.events)
    for place in places(disk, losses, chance):
        simulated.run(place)
        left = simulated.after_power_loss(chance)
        put(left, tmp_path / "looked at")
        with closing(sqlite3.connect(tmp_path / "looked at" / "mlapi.db")) as connection:
            stored = Stored.read(connection)
        again = storage.Recorder(tmp_path / "again")
        put(left, again.folder)
        clients = [Client(number, again, [rows]) for number, rows in enumerate(stored.rows)]
        with at_every_use(f"wal_autocheckpoint = {PAGES}"), again.recording():
            worked(again.folder, again, clients, "again", 1)
        more = after_power_losses(again, clients, tmp_path / "state", times(15, 100), stored.entries)
        found.states += more.states
        found.starts += more.starts
        found.differing += more.differing

    tell(
        f"power lost twice: after {losses} losses the service went on, and lost power again: {found.states:,} states,"
        f" {len(found.differing)} with a loss or damage; {found.starts} started by the service"
    )
    assert found.differing == []


def test_what_was_acknowledged_after_a_sync_that_failed_is_there_after_power_was_lost(
    tmp_path: Path, times: Callable[[int, int], int], tell: Callable[[str], None]
) -> None:
    chance, folder, refused = random.Random(4), tmp_path / "recorded", 0
    folder.mkdir()
    disk = storage.Recorder(folder, sync_fails=lambda: chance.random() < 0.2)

    with at_every_use(f"wal_autocheckpoint = {PAGES}"), disk.recording():
        for life in range(times(2, 5)):
            with open_service(settings_of(folder)) as opened:
                for number in range(40):
                    name = f"life{life}-0-{number}"
                    try:
                        user = opened.users.register(username=name, password="difference engine", email="a@example.com")
                    except RepositoryUnavailableError:
                        refused += 1  # it may be done all the same, if power is lost before what comes next
                    else:
                        disk.mark(row_of(user))

    simulated, states = storage.Disk(disk.events), times(100, 3_000)
    settled, problems, meanwhile = 0, list[str](), 0
    for place in places(disk, states, chance):
        simulated.run(place)
        put(simulated.after_power_loss(chance), tmp_path / "state")
        found = lost_rows(tmp_path / "state", simulated.marks)
        if is_settled(disk.events[:place]):
            settled += 1
            problems += found
        else:
            meanwhile += bool(found)
    tell(
        f"syncs that fail, {refused} changes refused for it, then power lost: {settled:,} states after a change was"
        f" acknowledged again, {len(problems)} losses; {states - settled:,} states before that, {meanwhile} with a loss"
    )
    assert refused > 0
    assert problems == []


def is_settled(events: list[storage.Event]) -> bool:
    """Whether something was acknowledged since a sync has failed.

    Before that nothing helps: what the system has dropped after it failed to write is read from its memory all the
    same, and a loss of power while SQLite writes it back can damage the file.
    """
    last = next(
        e for e in reversed([storage.Marked(()), *events]) if isinstance(e, storage.Marked | storage.SyncFailed)
    )
    return isinstance(last, storage.Marked)


def lost_rows(folder: Path, rows: list[Row]) -> list[str]:
    with closing(sqlite3.connect(folder / "mlapi.db", isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA synchronous = OFF")
            damage = [line for (line,) in connection.execute("PRAGMA integrity_check") if line != "ok"]
            stored = Stored.read(connection).rows[0]
        except sqlite3.Error as error:
            return [str(error)]
    return [*damage, *(f"{row[1]} is lost" for row in rows if stored.get(row[1]) != row)]


IT_IS = "in use"


def states_at(disk: storage.Recorder, count: int) -> Iterator[dict[str, bytes]]:
    """Yield states that power may leave that is lost when `IT_IS`."""
    simulated = storage.Disk(disk.events)
    simulated.run(disk.events.index(storage.Marked(IT_IS)))
    for number in range(count):
        yield simulated.after_power_loss(random.Random(number))


def test_no_password_is_stored_under_a_key_that_a_power_loss_takes_away(tmp_path: Path) -> None:
    disk = storage.Recorder(tmp_path)
    clients = [Client(number, disk) for number in range(CLIENTS)]

    with disk.recording(), open_service(settings_of(tmp_path)) as opened:

        def while_a_key_is_added() -> None:
            """The new file has its name, which is not on the disk yet; the service looks at it."""
            disk.before_folder_sync = lambda: None  # type: ignore[method-assign]  # once
            assert not opened.users.cipher.matches("difference engine", EncryptedPassword("of no key"))
            user = opened.users.register(username="life0-0-0", password="difference engine", email="a@example.com")
            clients[0] = Client(0, disk, [{user.username: row_of(user)}])
            disk.mark(IT_IS)

        disk.before_folder_sync = while_a_key_is_added  # type: ignore[method-assign]  # for this
        change_secrets_file(tmp_path / "secrets.yml", lambda tree: {**tree, "key": [new_key(), tree["key"]]})

    problems = [lost(tmp_path / "state", files, [c.known(0) for c in clients], 0) for files in states_at(disk, 50)]
    assert problems == [[]] * 50


def test_a_secrets_file_that_another_process_has_just_made_is_durable_before_it_is_used(tmp_path: Path) -> None:
    disk = storage.Recorder(tmp_path)
    read: list[Mapping[str, Any]] = []

    def while_it_is_made() -> None:
        disk.before_folder_sync = lambda: None  # type: ignore[method-assign]  # once
        read.append(read_yaml(tmp_path / "secrets.yml"))
        disk.mark(IT_IS)

    disk.before_folder_sync = while_it_is_made  # type: ignore[method-assign]  # for this
    with disk.recording():
        make_secrets_file(tmp_path / "secrets.yml")

    assert [yaml.safe_load(files["secrets.yml"]) for files in states_at(disk, 50)] == read * 50
