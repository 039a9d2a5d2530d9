"""Power loss at any moment: no acknowledged change is lost.

A recorder between the real code and the disk logs every write and fsync. From this log, the tests build states that the
disk may be in after a power loss at many points, open each state and compare it with the changes acknowledged by then.
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
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.revisions import HEAD
from mlapi.adapters.sql.schema import upgrade
from mlapi.adapters.sql.urls import database_url
from mlapi.application.batching import CommandBatcher
from mlapi.application.users import Users
from mlapi.bootstrap import open_service
from mlapi.config import DatabaseSettings, PasswordSettings, Settings
from mlapi.config.files import read_yaml
from mlapi.domain.commands import Command
from mlapi.domain.credentials import ApiKey
from mlapi.domain.errors import RepositoryUnavailableError
from mlapi.domain.users import EncryptedPassword, User
from mlapi.secret_store import create_secrets_file, new_key, update_secrets_file
from tests.torture import simulated_disk
from tests.torture.conftest import Report, ShortOrFull

pytestmark = pytest.mark.skipif(
    simulated_disk.get_unsupported_reason() is not None,
    reason=f"POWER LOSS IS NOT TESTED: {simulated_disk.get_unsupported_reason()}",
)

CLIENTS = 6
WAL_PAGES = 40  # SQLite checkpoints the write-ahead log at this size, many times per run
STATES_PER_START = 40  # the service is started on one state in 40

PASSWORDS = ("difference engine", "analytical engine")

Row = tuple[Any, ...]
Rows = dict[str, Row]
"""One client's rows: users by username, API keys by key id."""


# --- the workload to record


def make_settings(folder: Path) -> Settings:
    url = f"sqlite:///{folder}/mlapi.db"
    return Settings(database=DatabaseSettings(url=url), passwords=PasswordSettings(scheme="fernet"))


@attrs.frozen
class Acknowledgement:
    """Records that the first ``changes`` changes of a client have been acknowledged."""

    client: int
    changes: int


@attrs.define
class Client:
    """Makes one change at a time and records the rows expected after each."""

    number: int
    disk: simulated_disk.Recorder
    history: list[Rows] = attrs.field(factory=lambda: [{}])

    def record(self, **rows: Row | None) -> None:
        after = {**self.history[-1], **rows}
        self.history.append({key: row for key, row in after.items() if row is not None})
        self.disk.mark(Acknowledgement(self.number, len(self.history) - 1))

    def expected(self, done: int) -> tuple[Rows, Rows]:
        """Return the rows after ``done`` changes, and the rows if the change in flight was applied too."""
        return self.history[done], self.history[min(done + 1, len(self.history) - 1)]

    async def work(self, users: Users, apply: Callable[[Command], Any], prefix: str, rounds: int) -> None:
        for number in range(rounds):
            name = f"{prefix}-{self.number}-{number}"
            body: dict[str, Any] = {"username": name, "password": "difference engine", "email": f"{name}@example.com"}
            user = await apply(users.prepare_registration(**body))
            self.record(**{name: make_row(user)})
            user = await apply(users.prepare_set_enabled(user_id=user.id, enabled=False))
            self.record(**{name: make_row(user)})
            user = await apply(users.prepare_password(user_id=user.id, password="analytical engine"))
            self.record(**{name: make_row(user)})
            command, _ = users.prepare_api_key(user_id=user.id, name="nightly", expires_datetime=None)
            key = await apply(command)
            self.record(**{key.id: make_key_row(key)})
            if number % 3 == 0:
                await apply(users.prepare_remove(user_id=user.id))
                self.record(**{name: None, key.id: None})


def make_row(user: User) -> Row:
    updated = user.updated_datetime.isoformat(" ", "microseconds")[:26]
    return user.id, user.username, user.password.value, user.email, user.enabled, updated, user.token_epoch


def make_key_row(key: ApiKey) -> Row:
    return key.id, key.user_id, key.name, key.digest


def run_service(folder: Path, disk: simulated_disk.Recorder, clients: list[Client], prefix: str, rounds: int) -> None:
    """Run the service once, from startup to shutdown, with all clients concurrently."""
    with open_service(make_settings(folder)) as service:
        batcher = CommandBatcher(service.users.repository)

        async def run_clients() -> None:
            async with asyncio.TaskGroup() as tasks:
                for client in clients:
                    tasks.create_task(client.work(service.users, batcher.apply, prefix, rounds))

        asyncio.run(run_clients())
        batcher.close()


def first_start(folder: Path, disk: simulated_disk.Recorder, clients: list[Client], rounds: int) -> None:
    for run in range(2):
        run_service(folder, disk, clients, f"run{run}", rounds)


def older_schema(folder: Path, disk: simulated_disk.Recorder, clients: list[Client], rounds: int) -> None:
    """Upgrade a database from the first schema revision, with a user that an older mlapi acknowledged."""
    secrets = folder / "secrets.yml"
    create_secrets_file(secrets)
    tree = read_yaml(secrets)
    with Database(database_url(f"sqlite:///{folder}/mlapi.db")) as database:
        upgrade(database, "0001")
        password = FernetCipher([tree["key"]], tree["salt"]).encrypt("difference engine").value
        now = datetime.now(UTC).isoformat(" ", "microseconds")[:26]
        row = (1, "run0-0-first", password, "first@example.com", True, now, "0" * 16)
        with database.writing() as connection:
            connection.execute(
                text(
                    "INSERT INTO users (id, username, username_key, password, email, enabled, created_datetime,"
                    " updated_datetime, token_epoch) VALUES (:a, :b, :b, :c, :d, :e, :f, :f, :g)"
                ),
                dict(zip("abcdefg", row, strict=True)),
            )
        clients[0].record(**{row[1]: row})
    run_service(folder, disk, clients, "run0", rounds)


@contextmanager
def with_pragmas(*pragmas: str) -> Iterator[None]:
    """Set additional SQLite pragmas on every connection during the block."""

    def configure(connection: Any, _record: object, _proxy: object) -> None:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    event.listen(Pool, "checkout", configure)
    try:
        yield
    finally:
        event.remove(Pool, "checkout", configure)


Work = Callable[[Path, simulated_disk.Recorder, list[Client], int], None]


def record_disk(work: Work, folder: Path, rounds: int, *pragmas: str) -> tuple[simulated_disk.Recorder, list[Client]]:
    folder.mkdir()
    disk = simulated_disk.Recorder(folder)
    clients = [Client(number, disk) for number in range(CLIENTS)]
    with with_pragmas(f"wal_autocheckpoint = {WAL_PAGES}", *pragmas), disk.recording():
        work(folder, disk, clients, rounds)
    return disk, clients


# --- the states after a power loss


def choose_crash_points(disk: simulated_disk.Recorder, count: int, rng: random.Random) -> list[int]:
    """Return random points in the log. A third are among the first events, while the files are created."""
    first, last = disk.first, len(disk.events)
    return sorted(rng.randint(first, last if number % 3 else min(last, first + 120)) for number in range(count))


def find_losses(
    folder: Path, files: Mapping[str, bytes], expected: list[tuple[Rows, Rows]], audit_entries: int
) -> list[str]:
    """Return a description of each loss or damage in a state.

    Args:
        folder: where to write the files.
        files: the files of the state.
        expected: for each client, the rows that must exist, and the rows if the change in flight was applied.
        audit_entries: minimum number of audit entries.
    """
    write_files(files, folder)
    missing_files = {"mlapi.db", "secrets.yml"} - files.keys()
    if missing_files and (audit_entries or any(must for must, _ in expected)):
        return [f"{name} does not exist" for name in sorted(missing_files)]
    with closing(sqlite3.connect(folder / "mlapi.db", isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA synchronous = OFF")  # faster; nothing written here needs to survive
            damage = [line for (line,) in connection.execute("PRAGMA integrity_check") if line != "ok"]
            return [
                *damage,
                *find_differences(Stored.read(connection), expected, audit_entries, files.get("secrets.yml")),
            ]
        except sqlite3.Error as error:
            return [str(error)]


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)


@attrs.define
class Stored:
    """The content of a database, by client."""

    rows: list[Rows] = attrs.field(factory=lambda: [{} for _ in range(CLIENTS)])
    passwords: list[str] = attrs.field(factory=list)
    names: Counter[str] = attrs.field(factory=Counter)
    audit_entries: int = 0

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
            ((stored.audit_entries,),) = connection.execute("SELECT count(*) FROM mlapi_audit")
        return stored


_COLUMNS = "id, username, password, email, enabled, updated_datetime, token_epoch"


def find_differences(
    stored: Stored, expected: list[tuple[Rows, Rows]], audit_entries: int, secrets: bytes | None
) -> Iterator[str]:
    if stored.audit_entries < audit_entries:
        yield f"{audit_entries - stored.audit_entries} audit entries are lost"
    yield from (f"{name} exists {count} times" for name, count in stored.names.items() if count > 1)
    for client, (must, may) in enumerate(expected):
        if stored.rows[client] not in (must, may):
            yield f"client {client} has {len(stored.rows[client])} rows, not the expected {len(must)} or {len(may)}"
    if stored.passwords and secrets is not None:
        cipher = make_cipher(yaml.safe_load(secrets))
        if not all(cipher.is_readable(EncryptedPassword(password)) for password in stored.passwords[-3:]):
            yield "the newest passwords cannot be decrypted"


def make_cipher(tree: Mapping[str, Any]) -> FernetCipher:
    return FernetCipher([tree["key"]] if isinstance(tree["key"], str) else tree["key"], tree["salt"])


def start_service(folder: Path) -> None:
    """Start the service on a state, check the stored passwords and register a user."""
    with open_service(make_settings(folder)) as service:
        cipher = service.users.cipher
        assert all(
            any(cipher.matches(password, user.password) for password in PASSWORDS)
            for user in service.users.iterate_users()
        )
        ada = service.users.register(username="ada", password="difference engine", email="ada@example.com")
        assert service.users.find("ADA") == ada
    with closing(sqlite3.connect(folder / "mlapi.db")) as connection:
        assert connection.execute("SELECT version_num FROM mlapi_alembic_version").fetchall() == [(HEAD,)]


@attrs.define
class Results:
    states: int = 0
    starts: int = 0
    damaged: list[tuple[int, list[str]]] = attrs.field(factory=list)


def check_power_losses(
    disk: simulated_disk.Recorder,
    clients: list[Client],
    folder: Path,
    count: int,
    before: int = 0,
    *,
    starts: bool = True,
) -> Results:
    """Check ``count`` random states of the disk.

    Args:
        disk: the recorder, with its events.
        clients: the clients, with their expected rows.
        folder: where to write the states.
        count: number of states.
        before: number of audit entries that no client caused; negative if some changes have no entry.
        starts: whether to start the service on some of the states.
    """
    rng, results = random.Random(len(disk.events)), Results()
    simulated = simulated_disk.Disk(disk.events)
    for point in choose_crash_points(disk, count, rng):
        simulated.run(point)
        done = Counter({mark.client: mark.changes for mark in simulated.marks})
        expected = [client.expected(done[client.number]) for client in clients]
        losses = find_losses(folder, simulated.after_power_loss(rng), expected, max(0, done.total() + before))
        if losses:
            results.damaged.append((point, losses))
        elif starts and results.states % STATES_PER_START == 0:
            start_service(folder)
            results.starts += 1
        results.states += 1
    return results


@pytest.mark.parametrize("work", [first_start, older_schema])
def test_power_loss_loses_no_acknowledged_change(
    work: Work, tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    disk, clients = record_disk(work, tmp_path / "recorded", short_or_full(3, 12))

    results = check_power_losses(
        disk, clients, tmp_path / "state", short_or_full(150, 10_000), -1 if work is older_schema else 0
    )

    kinds = Counter(type(event).__name__ for event in disk.events)
    report(
        f"power loss ({work.__name__.replace('_', ' ')}, SQLite): {results.states:,} disk states from"
        f" {kinds['Written']:,} writes, {kinds['Synced']:,} fsyncs of files and {kinds['FolderSynced']} of the folder,"
        f" with {sum(len(client.history) - 1 for client in clients):,} acknowledged changes;"
        f" {len(results.damaged)} with a loss or damage; the service started on {results.starts} of them"
    )
    assert results.damaged == []


def test_power_loss_without_fsync_at_commit_is_detected(tmp_path: Path, report: Report) -> None:
    disk, clients = record_disk(first_start, tmp_path / "recorded", 3, "synchronous = NORMAL")

    results = check_power_losses(disk, clients, tmp_path / "state", 100, starts=False)

    report(
        f"power loss (first start, synchronous=NORMAL): {len(results.damaged)} of {results.states} states have a loss"
    )
    assert len(results.damaged) > 10


def test_power_loss_without_folder_sync_is_detected(tmp_path: Path) -> None:
    disk, clients = record_disk(first_start, tmp_path / "recorded", 1)
    disk.events = [
        event if not isinstance(event, simulated_disk.FolderSynced) else simulated_disk.Marked(Acknowledgement(0, 0))
        for event in disk.events
    ]

    results = check_power_losses(disk, clients, tmp_path / "state", 100, starts=False)

    assert {"mlapi.db does not exist", "secrets.yml does not exist"} <= {
        line for _, lines in results.damaged for line in lines
    }


def test_second_power_loss_loses_no_acknowledged_change(
    tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    disk, _ = record_disk(first_start, tmp_path / "recorded", 2)
    rng, results, first_losses = random.Random(2), Results(), short_or_full(3, 50)

    simulated = simulated_disk.Disk(disk.events)
    for point in choose_crash_points(disk, first_losses, rng):
        simulated.run(point)
        files = simulated.after_power_loss(rng)
        write_files(files, tmp_path / "first state")
        with closing(sqlite3.connect(tmp_path / "first state" / "mlapi.db")) as connection:
            stored = Stored.read(connection)
        again = simulated_disk.Recorder(tmp_path / "again")
        write_files(files, again.folder)
        clients = [Client(number, again, [rows]) for number, rows in enumerate(stored.rows)]
        with with_pragmas(f"wal_autocheckpoint = {WAL_PAGES}"), again.recording():
            run_service(again.folder, again, clients, "again", 1)
        more = check_power_losses(again, clients, tmp_path / "state", short_or_full(15, 100), stored.audit_entries)
        results.states += more.states
        results.starts += more.starts
        results.damaged += more.damaged

    report(
        f"second power loss, after recovery from {first_losses} others: {results.states:,} disk states,"
        f" {len(results.damaged)} with a loss or damage; the service started on {results.starts} of them"
    )
    assert results.damaged == []


def test_power_loss_after_failed_fsync_loses_no_later_change(
    tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    rng, folder, failed = random.Random(4), tmp_path / "recorded", 0
    folder.mkdir()
    disk = simulated_disk.Recorder(folder, sync_fails=lambda: rng.random() < 0.2)

    with with_pragmas(f"wal_autocheckpoint = {WAL_PAGES}"), disk.recording():
        for run in range(short_or_full(2, 5)):
            with open_service(make_settings(folder)) as service:
                for number in range(40):
                    name = f"run{run}-0-{number}"
                    try:
                        user = service.users.register(
                            username=name, password="difference engine", email="a@example.com"
                        )
                    except RepositoryUnavailableError:
                        failed += 1  # the change may have been applied anyway
                    else:
                        disk.mark(make_row(user))

    simulated, states = simulated_disk.Disk(disk.events), short_or_full(100, 3_000)
    recovered_states, losses, damaged_before = 0, list[str](), 0
    for point in choose_crash_points(disk, states, rng):
        simulated.run(point)
        write_files(simulated.after_power_loss(rng), tmp_path / "state")
        found = find_lost_rows(tmp_path / "state", simulated.marks)
        if is_recovered(disk.events[:point]):
            recovered_states += 1
            losses += found
        else:
            damaged_before += bool(found)
    report(
        f"power loss after failed fsyncs, {failed} changes rejected: {recovered_states:,} states after a later change"
        f" was acknowledged, {len(losses)} losses; {states - recovered_states:,} states before that, {damaged_before}"
        " with a loss"
    )
    assert failed > 0
    assert losses == []


def is_recovered(events: list[simulated_disk.Event]) -> bool:
    """Return whether a change was acknowledged since the last failed fsync.

    Until then, no program can prevent a loss: the kernel marks pages that it failed to write as clean, SQLite reads
    them from memory, and a power loss during the next checkpoint can damage the file.
    """
    last = next(
        event
        for event in reversed([simulated_disk.Marked(()), *events])
        if isinstance(event, simulated_disk.Marked | simulated_disk.SyncFailed)
    )
    return isinstance(last, simulated_disk.Marked)


def find_lost_rows(folder: Path, rows: list[Row]) -> list[str]:
    with closing(sqlite3.connect(folder / "mlapi.db", isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA synchronous = OFF")
            damage = [line for (line,) in connection.execute("PRAGMA integrity_check") if line != "ok"]
            stored = Stored.read(connection).rows[0]
        except sqlite3.Error as error:
            return [str(error)]
    return [*damage, *(f"{row[1]} is lost" for row in rows if stored.get(row[1]) != row)]


IN_USE = "in use"


def states_at_mark(disk: simulated_disk.Recorder, count: int) -> Iterator[dict[str, bytes]]:
    """Yield states after a power loss at the `IN_USE` mark."""
    simulated = simulated_disk.Disk(disk.events)
    simulated.run(disk.events.index(simulated_disk.Marked(IN_USE)))
    for number in range(count):
        yield simulated.after_power_loss(random.Random(number))


def test_new_key_is_durable_before_it_encrypts_a_password(tmp_path: Path) -> None:
    disk = simulated_disk.Recorder(tmp_path)
    clients = [Client(number, disk) for number in range(CLIENTS)]

    with disk.recording(), open_service(make_settings(tmp_path)) as service:

        def before_folder_sync() -> None:
            """Register a user while the new secrets file is in place but its name is not yet durable."""
            disk.before_folder_sync = lambda: None  # type: ignore[method-assign]  # run only once
            assert not service.users.cipher.matches("difference engine", EncryptedPassword("unreadable"))
            user = service.users.register(username="run0-0-0", password="difference engine", email="a@example.com")
            clients[0] = Client(0, disk, [{user.username: make_row(user)}])
            disk.mark(IN_USE)

        disk.before_folder_sync = before_folder_sync  # type: ignore[method-assign]  # test hook
        update_secrets_file(tmp_path / "secrets.yml", lambda tree: {**tree, "key": [new_key(), tree["key"]]})

    losses = [
        find_losses(tmp_path / "state", files, [client.expected(0) for client in clients], 0)
        for files in states_at_mark(disk, 50)
    ]
    assert losses == [[]] * 50


def test_new_secrets_file_is_durable_before_it_is_used(tmp_path: Path) -> None:
    disk = simulated_disk.Recorder(tmp_path)
    read: list[Mapping[str, Any]] = []

    def before_folder_sync() -> None:
        disk.before_folder_sync = lambda: None  # type: ignore[method-assign]  # run only once
        read.append(read_yaml(tmp_path / "secrets.yml"))
        disk.mark(IN_USE)

    disk.before_folder_sync = before_folder_sync  # type: ignore[method-assign]  # test hook
    with disk.recording():
        create_secrets_file(tmp_path / "secrets.yml")

    assert [yaml.safe_load(files["secrets.yml"]) for files in states_at_mark(disk, 50)] == read * 50
