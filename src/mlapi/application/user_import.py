"""Register many users from a file. Rows are checked like registrations and stored in durable batches.

An import keeps no state. It recognizes existing users by name and e-mail address, so an interrupted import can simply
be run again.
"""

import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Protocol, final, get_args

import attrs

from mlapi.application.command_factory import find_detail_errors
from mlapi.application.users import Users
from mlapi.domain.actors import Actor
from mlapi.domain.commands import Register
from mlapi.domain.credentials import Principal
from mlapi.domain.errors import ChangeRejectedError, FieldError, InvalidFieldsError, UserExistsError
from mlapi.domain.metadata import NO_METADATA, Metadata
from mlapi.domain.ports import is_costly
from mlapi.domain.rules import canonical_username, find_email_error, find_username_error
from mlapi.domain.users import NO_PASSWORD, EncryptedPassword, Pending, User, UserId, UsernameKey, to_utc, utc_now

BATCH_ROWS = 2_000
"""Maximum number of rows in one transaction."""
HASHES_PER_THREAD = 25
"""Maximum number of passwords that each thread hashes for one transaction, which takes about half a second."""
COMMIT_TIMEOUT_SECONDS = 8.0
"""A password is stored within this time after its encryption, or not at all. Key rotation waits longer than that:
`mlapi.application.secret_rotation.SETTLE_SECONDS`."""

_FLAGS = {
    **dict.fromkeys(["1", "true", "t", "yes", "y", "on", ""], True),
    **dict.fromkeys(["0", "false", "f", "no", "n", "off"], False),
}
_NAME_TAKEN = FieldError("username", "belongs to another user with a different e-mail address")
_REJECTED_BY_DATABASE = FieldError("line", "a constraint or trigger in the database rejects this user")


@attrs.frozen
class Row:
    """A row of an import file."""

    number: int
    """The line number, starting at 1."""
    end_offset_bytes: int
    """The offset where the next row starts."""
    values: Mapping[str, object] = attrs.field(factory=dict, repr=False)
    """Values by column."""
    error: FieldError | None = None
    """Why the row cannot be parsed; ``values`` is then empty."""


class PasswordImporter(Protocol):
    """The part of a cipher that encrypts passwords hashed by other systems."""

    def import_hash(self, text: object) -> EncryptedPassword:
        """Encrypt a hash from another system. Raises `InvalidFieldsError`."""

    def find_column(self, text: str) -> str | None:
        """Return the column in which a hashed or encrypted text belongs; None if the text may be a password."""

    def import_stored(self, value: object) -> EncryptedPassword:
        """Re-encrypt a password stored by mlapi or the legacy app with the newest key. Raises `InvalidFieldsError`."""


class RejectReport(Protocol):
    """Records which rows were rejected, and why."""

    def write(self, row: Row, errors: Iterable[FieldError]) -> None: ...
    def flush(self) -> None: ...


@attrs.define
class Summary:
    """The number of rows processed so far, by result."""

    imported: int = 0
    already_present: int = 0
    rejected: int = 0

    def __str__(self) -> str:
        return f"{self.imported} imported, {self.already_present} already present, {self.rejected} rejected"


@attrs.frozen(eq=False)
class _Candidate:
    """A valid row."""

    key: UsernameKey
    fields: dict[str, Any] = attrs.field(repr=False)
    """The fields of its `Register`, except the password, the time and the actor."""
    password: str | None = attrs.field(repr=False)
    """The plain password, unless it is already encrypted."""
    encrypted: EncryptedPassword | None

    def to_command(self, users: Users, actor: Actor, at: datetime) -> Register:
        encrypted = self.encrypted or users.cipher.encrypt(self.password or "")
        return Register(**self.fields, password=encrypted, at=at, actor=actor)


_Prepared = Register | _Candidate | UserExistsError | InvalidFieldsError
"""A command to store the row; in a dry run, the valid row; or the reason why it is not stored."""


@attrs.frozen
class _PreparedBatch:
    rows: list[Row]
    started: float
    """The monotonic time when encryption started."""
    prepared: Iterable[_Prepared]
    """One item for each row."""
    existing: dict[int, Principal | None]
    """Users, by id, who already had one of the batch's names before the batch was stored."""


@final
class UserImport:
    """Imports the rows of one file, in one pass.

    Args:
        users: the users of the database.
        importer: returns an importer with the current keys. Called for each row, because keys can be rotated.
        rejects: records the rejected rows.
        actor: recorded in the audit trail.
        threads: number of threads that hash passwords.
        dry_run: check rows without storing any. This does not detect duplicates within the file.
    """

    def __init__(
        self,
        users: Users,
        importer: Callable[[], PasswordImporter],
        rejects: RejectReport,
        *,
        actor: Actor,
        threads: int,
        dry_run: bool = False,
    ) -> None:
        self.summary = Summary()
        self._users = users
        self._importer = importer
        self._rejects = rejects
        self._actor = actor
        self._has_first = False  # whether a row has the original actor; the others repeat it
        self._threads = threads
        self._dry_run = dry_run
        self._is_hashing = is_costly(users.cipher) and not dry_run

    def run(self, rows: Iterable[Row]) -> Generator[int, None, None]:
        """Import the rows in order; after each batch, yield the offset in bytes of the next row.

        While one batch is stored, a thread validates and encrypts the next one.

        Raises:
            RepositoryUnavailableError: if the database is unavailable. Stored batches are kept.
        """
        hashing = ThreadPoolExecutor(self._threads)
        preparing_in_order = ThreadPoolExecutor(1)
        try:
            previous = None
            for batch_rows in self._batches(rows):
                preparing = preparing_in_order.submit(self._prepare, batch_rows, hashing)
                if previous is not None:
                    yield self._store_uninterrupted(previous.result())
                previous = preparing
            if previous is not None:
                yield self._store_uninterrupted(previous.result())
        finally:
            preparing_in_order.shutdown(cancel_futures=True)
            hashing.shutdown(cancel_futures=True)

    def _batches(self, rows: Iterable[Row]) -> Iterator[list[Row]]:
        max_hashes = HASHES_PER_THREAD * self._threads
        batch: list[Row] = []
        hashes = 0
        for row in rows:
            batch.append(row)
            hashes += self._needs_hashing(row)
            if len(batch) == BATCH_ROWS or hashes == max_hashes:
                yield batch
                batch, hashes = [], 0
        if batch:
            yield batch

    def _needs_hashing(self, row: Row) -> bool:
        return self._is_hashing and "password" in row.values

    def _prepare(self, rows: list[Row], hashing: ThreadPoolExecutor) -> _PreparedBatch:
        """Validate rows, look up existing users, and start encrypting the passwords of new users."""
        started, at = time.monotonic(), utc_now()
        validated = [self._validate(row) for row in rows]
        candidates = [candidate for candidate in validated if isinstance(candidate, _Candidate)]
        found = dict(zip(candidates, self._users.repository.find_many([one.key for one in candidates]), strict=True))

        first = None if self._has_first else next((one for one in candidates if found[one] is None), None)
        self._has_first = self._has_first or first is not None
        repeated = self._actor.repeated()

        def prepare(row: _Candidate | InvalidFieldsError) -> _Prepared:
            if isinstance(row, InvalidFieldsError):
                return row
            if (existing := found[row]) is not None:
                return UserExistsError(existing.id)
            actor = self._actor if row is first else repeated
            return row if self._dry_run else row.to_command(self._users, actor, at)

        # argon2 releases the GIL, so threads speed up hashing. Other rows would gain nothing from threads.
        in_threads = any(map(self._needs_hashing, rows))
        prepared = hashing.map(prepare, validated) if in_threads else list(map(prepare, validated))
        return _PreparedBatch(rows, started, prepared, {user.id: user for user in found.values() if user is not None})

    def _validate(self, row: Row) -> _Candidate | InvalidFieldsError:
        try:
            return self._to_candidate(row)
        except InvalidFieldsError as error:
            return error

    def _to_candidate(self, row: Row) -> _Candidate:
        """Check a row by the same rules as a registration.

        Raises:
            InvalidFieldsError: if a field is invalid. The error lists every invalid field.
        """
        if row.error is not None:
            raise InvalidFieldsError((row.error,))
        values = row.values
        username, email = values.get("username"), values.get("email")
        plan = None if values.get("plan") == "" else values.get("plan")
        flag = values.get("enabled")
        enabled = _FLAGS.get("" if flag is None else str(flag).strip().lower())
        pending = values.get("pending") or None
        errors = [
            ("username", find_username_error(username)),
            ("email", find_email_error(email)),
            (
                "enabled",
                None if enabled is not None else "must be true or false, also written 1/0, t/f, yes/no or on/off",
            ),
            ("pending", _find_pending_error(pending, enabled=enabled)),
            *(() if plan is None else find_detail_errors({"plan": plan}, self._users.plans)),
        ]
        times: dict[str, datetime | None] = {}
        for name in ("created_datetime", "expires_datetime"):
            times[name], error = _parse_time(values.get(name))
            errors.append((name, error))
        password = encrypted = None
        try:
            if "password" in values:
                password = str(values["password"])
                if (column := self._importer().find_column(password)) is not None:
                    errors.append(("password", f"is already hashed or encrypted: name the column {column}"))
                self._users.validate_password(values["password"])  # type: ignore[arg-type]  # it rejects other types
            elif "password_hash" in values:
                encrypted = self._importer().import_hash(values["password_hash"])
            elif values["stored_password"] == NO_PASSWORD.value:
                encrypted = NO_PASSWORD
            else:
                encrypted = self._importer().import_stored(values["stored_password"])
        except InvalidFieldsError as error:
            errors += [(field_error.field, field_error.message) for field_error in error.errors]
        metadata = NO_METADATA
        try:
            metadata = _parse_metadata(values.get("metadata"))
        except InvalidFieldsError as error:
            errors += [(field_error.field, field_error.message) for field_error in error.errors]
        InvalidFieldsError.raise_for(errors)
        fields = {
            "username": username,
            "email": email,
            "enabled": enabled,
            "pending": pending,
            "created": times["created_datetime"],
            "expires_datetime": times["expires_datetime"],
            "plan": plan,
            "metadata": metadata,
        }
        return _Candidate(canonical_username(str(username)), fields, password, encrypted)

    def _store_uninterrupted(self, batch: _PreparedBatch) -> int:
        with _deferred_interrupt():  # otherwise, rows could be stored but not counted
            return self._store(batch)

    def _store(self, batch: _PreparedBatch) -> int:
        """Store a batch, count the results, report rejected rows, and return the offset of the next row."""
        prepared, started = list(batch.prepared), batch.started
        commands = [one for one in prepared if isinstance(one, Register)]
        if time.monotonic() > started + COMMIT_TIMEOUT_SECONDS / 2:  # on a slow machine, the key may have been rotated
            started = time.monotonic()
            commands = [self._under_newest_key(command) for command in commands]
        applied = iter(self._users.repository.apply(commands, commit_by=started + COMMIT_TIMEOUT_SECONDS))
        outcomes = [next(applied) if isinstance(one, Register) else one for one in prepared]
        existing = self._existing(batch, [one.user_id for one in outcomes if isinstance(one, UserExistsError)])
        for row, outcome in zip(batch.rows, outcomes, strict=True):
            if isinstance(outcome, InvalidFieldsError):
                self._reject(row, outcome.errors)
            elif isinstance(outcome, ChangeRejectedError):
                self._reject(row, (_REJECTED_BY_DATABASE,))
            elif not isinstance(outcome, UserExistsError):
                self.summary.imported += 1
            elif _is_same_user(row, existing[outcome.user_id]):
                self.summary.already_present += 1
            else:
                self._reject(row, (_NAME_TAKEN,))
        self._rejects.flush()
        return batch.rows[-1].end_offset_bytes

    def _existing(self, batch: _PreparedBatch, user_ids: list[int]) -> dict[int, Principal | None]:
        """Return the users with these ids, including users registered since the batch was prepared."""
        missing = [UserId(user_id) for user_id in user_ids if user_id not in batch.existing]
        if not missing:
            return batch.existing
        return batch.existing | dict(zip(missing, self._users.repository.find_principals(missing), strict=True))

    def _under_newest_key(self, command: Register) -> Register:
        if command.password == NO_PASSWORD:
            return command
        return attrs.evolve(command, password=self._users.cipher.reencrypt(command.password) or command.password)

    def _reject(self, row: Row, errors: Iterable[FieldError]) -> None:
        self.summary.rejected += 1
        self._rejects.write(row, errors)


@contextmanager
def _deferred_interrupt() -> Iterator[None]:
    """Delay Ctrl-C until the block ends. Use it in the main thread, which receives signals."""
    received: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if received:
        raise KeyboardInterrupt


def _find_pending_error(pending: object, *, enabled: bool | None) -> str | None:
    if pending is None:
        return None
    if pending not in get_args(Pending):
        return f"must be one of {', '.join(get_args(Pending))}"
    return "must be empty unless enabled is false" if enabled else None


def _is_same_user(row: Row, existing: Principal | None) -> bool:
    return isinstance(existing, User) and existing.email == row.values["email"]


def _parse_time(value: object) -> tuple[datetime | None, str | None]:
    """Return the time in a row (None for an empty value), and an error message if it is invalid."""
    if value is None or value == "":
        return None, None
    try:
        return to_utc(datetime.fromisoformat(str(value))), None
    except (ValueError, OverflowError):  # invalid, without a time zone, or before year 1 in UTC
        return None, "must be ISO 8601 with a time zone, such as 2026-01-31T12:00:00Z"


def _parse_metadata(value: object) -> Metadata:
    """Return the metadata in a row: an object in JSON lines, a JSON text in CSV.

    Raises:
        InvalidFieldsError: if it is invalid.
    """
    if value is None or value == "":
        return NO_METADATA
    return Metadata.from_json(value) if isinstance(value, str) else Metadata.from_object(value)
