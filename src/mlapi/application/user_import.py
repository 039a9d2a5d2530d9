"""Many users from a file: checked as registrations are, and stored in batches, each of them durable.

It keeps no state of its own: a line whose user is there already is known by name and address, so an import that was
interrupted, however, goes on when it is run again.
"""

import signal
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol, final

import attrs

from mlapi.application.users import Users
from mlapi.domain.commands import Actor, Register
from mlapi.domain.credentials import Principal
from mlapi.domain.errors import FieldError, InvalidFieldsError, UserExistsError
from mlapi.domain.ports import is_costly
from mlapi.domain.rules import canonical_username, find_email_error, find_username_error
from mlapi.domain.users import EncryptedPassword, User, UserId, UsernameKey, to_utc, utc_now
from mlapi.entrypoints.http.thread_pool import cores

BATCH = 2_000
"""Lines in one transaction."""
COSTLY_BATCH = 25
"""Passwords to hash in one transaction, for each core: half a second's."""
COMMIT_WITHIN = 8.0
"""Seconds after a password was encrypted until it is stored, or not: when a key turns over, that is counted on
(`mlapi.application.key_rotation.UNDER_WAY`)."""

_FLAGS = {"1": True, "true": True, "0": False, "false": False, "": True}
_TAKEN = FieldError("username", "belongs to another user, with another e-mail address")


@attrs.frozen
class Row:
    """A line of a file of users.

    ``number`` counts from 1, ``end`` is the offset in bytes of what follows it, ``values`` has what is said, by column.
    """

    number: int
    end: int
    values: Mapping[str, object] = attrs.field(factory=dict, repr=False)
    problem: FieldError | None = None
    """What is wrong with the line as a whole; there are no values then."""


class Adopting(Protocol):
    """Takes over what others have made of passwords."""

    def adopted_hash(self, text: object) -> EncryptedPassword: ...
    def adopted_value(self, value: object) -> EncryptedPassword: ...


class Rejects(Protocol):
    """Where it is told which lines were refused, and why."""

    def write(self, row: Row, problems: Iterable[FieldError]) -> None: ...
    def flush(self) -> None: ...


@attrs.define
class Summary:
    """What has become of the lines so far."""

    imported: int = 0
    already_there: int = 0
    refused: int = 0

    def __str__(self) -> str:
        return f"imported {self.imported}, already there {self.already_there}, refused {self.refused}"


@attrs.frozen(kw_only=True, eq=False)
class _Candidate:
    """A user who breaks no rule. His password is still to be encrypted, or it has been elsewhere."""

    username: str
    email: str
    enabled: bool
    created: datetime | None
    password: str | None = attrs.field(repr=False)
    stored: EncryptedPassword | None

    @property
    def key(self) -> UsernameKey:
        return canonical_username(self.username)

    def encrypted_by(self, users: Users, actor: Actor) -> Register:
        stored = self.stored or users.cipher.encrypt(self.password or "")
        return Register(
            username=self.username,
            password=stored,
            email=self.email,
            enabled=self.enabled,
            at=utc_now(),
            created=self.created,
            actor=actor,
        )


@attrs.frozen
class _Batch:
    rows: list[Row]
    begun: float
    """When the first password was encrypted, as `time.monotonic` has it."""
    prepared: Iterable["_Prepared"]
    """What each row has become, in their order."""
    find_principals: dict[int, Principal | None]
    """Who has a name that was looked up."""


_Prepared = Register | _Candidate | UserExistsError | InvalidFieldsError
"""Of a line: to be stored; good, for a dry run; of a name that somebody has; or what is wrong with it."""


@final
class UserImport:
    """One pass over the rows of a file.

    Args:
        users: the database that they come into.
        adopting: makes stored passwords of hashes.
        rejects: where it is told which lines were refused.
        by: who imports them, for the audit trail.
        dry_run: whether nothing is to be stored. Names that stand twice in the file are not noticed then.
    """

    def __init__(
        self, users: Users, adopting: Adopting, rejects: Rejects, *, actor: Actor, dry_run: bool = False
    ) -> None:
        self.summary = Summary()
        self._users = users
        self._adopting = adopting
        self._rejects = rejects
        self._actor = actor
        self._dry_run = dry_run
        self._is_hashing = is_costly(users.cipher) and not dry_run

    def run(self, rows: Iterable[Row]) -> Generator[int, None, None]:
        """Take the rows in their order; yield the offset in bytes of what follows, after each batch that is done.

        The next batch is hashed while one is stored.

        Raises:
            RepositoryUnavailableError: if the database is away. What is done is done.
        """
        pool = ThreadPoolExecutor(cores())
        try:
            ahead = None
            for rows_of_batch in self._batches(rows):
                following = self._begun(rows_of_batch, pool)
                if ahead is not None:
                    yield self._stored(ahead)
                ahead = following
            if ahead is not None:
                yield self._stored(ahead)
        finally:
            pool.shutdown(cancel_futures=True)

    def _batches(self, rows: Iterable[Row]) -> Iterator[list[Row]]:
        most = COSTLY_BATCH * cores()
        batch: list[Row] = []
        costly = 0
        for row in rows:
            batch.append(row)
            costly += self._is_costly(row)
            if len(batch) == BATCH or costly == most:
                yield batch
                batch, costly = [], 0
        if batch:
            yield batch

    def _is_costly(self, row: Row) -> bool:
        return self._is_hashing and "password" in row.values

    def _begun(self, rows: list[Row], pool: ThreadPoolExecutor) -> _Batch:
        """Check rows, look for those who are there already, and begin to encrypt the passwords of the others."""
        begun = time.monotonic()
        checked = [self._checked_or_refused(row) for row in rows]
        candidates = [candidate for candidate in checked if isinstance(candidate, _Candidate)]
        found = dict(zip(candidates, self._users.repository.find_many([one.key for one in candidates]), strict=True))

        def prepared(one: _Candidate | InvalidFieldsError) -> _Prepared:
            if isinstance(one, InvalidFieldsError):
                return one
            if (holder := found[one]) is not None:
                return UserExistsError(holder.id)
            return one if self._dry_run else one.encrypted_by(self._users, self._actor)

        # argon2 lets other threads run meanwhile; what is cheap would only wait for them.
        in_order = pool.map(prepared, checked) if any(map(self._is_costly, rows)) else list(map(prepared, checked))
        return _Batch(rows, begun, in_order, {holder.id: holder for holder in found.values() if holder is not None})

    def _checked_or_refused(self, row: Row) -> _Candidate | InvalidFieldsError:
        try:
            return self._checked(row)
        except InvalidFieldsError as error:
            return error

    def _checked(self, row: Row) -> _Candidate:
        """Check a line by the rules of a registration.

        Raises:
            InvalidFieldsError: naming every field at fault.
        """
        if row.problem is not None:
            raise InvalidFieldsError((row.problem,))
        values = row.values
        username, email = values.get("username"), values.get("email")
        flag = values.get("enabled")
        enabled = _FLAGS.get("" if flag is None else str(flag).lower())
        created = _instant(values.get("created_datetime"))
        problems = [
            ("username", find_username_error(username)),
            ("email", find_email_error(email)),
            ("enabled", None if enabled is not None else "must be 1, 0, true or false"),
            (
                "created_datetime",
                None if created is not None else "must be ISO 8601 with its zone: 2026-01-31T12:00:00Z",
            ),
        ]
        password = stored = None
        try:
            if "password" in values:
                password = str(values["password"])
                self._users.check_password(values["password"])  # type: ignore[arg-type]  # it tells if it is no text
            elif "password_hash" in values:
                stored = self._adopting.adopted_hash(values["password_hash"])
            else:
                stored = self._adopting.adopted_value(values["stored_password"])
        except InvalidFieldsError as error:
            problems += [(problem.field, problem.message) for problem in error.errors]
        InvalidFieldsError.raise_for(problems)
        return _Candidate(
            username=str(username),
            email=str(email),
            enabled=enabled is True,
            created=created,
            password=password,
            stored=stored,
        )

    def _stored(self, batch: _Batch) -> int:
        with _uninterrupted():  # or what is stored would not be counted
            return self._store(batch)

    def _store(self, batch: _Batch) -> int:
        """Store a batch, count and report what has become of its lines, and return where it ends."""
        prepared, begun = list(batch.prepared), batch.begun
        commands = [one for one in prepared if isinstance(one, Register)]
        if time.monotonic() > begun + COMMIT_WITHIN / 2:  # a slow machine: the key may have turned over meanwhile
            begun = time.monotonic()
            commands = [self._under_newest_key(command) for command in commands]
        applied = iter(self._users.repository.apply(commands, commit_by=begun + COMMIT_WITHIN))
        outcomes = [next(applied) if isinstance(one, Register) else one for one in prepared]
        find_principals = self._holders(batch, [one.user_id for one in outcomes if isinstance(one, UserExistsError)])
        for row, outcome in zip(batch.rows, outcomes, strict=True):
            if isinstance(outcome, InvalidFieldsError):
                self._refuse(row, outcome.errors)
            elif not isinstance(outcome, UserExistsError):
                self.summary.imported += 1
            elif _is_of(row, find_principals[outcome.user_id]):
                self.summary.already_there += 1
            else:
                self._refuse(row, (_TAKEN,))
        self._rejects.flush()
        return batch.rows[-1].end

    def _holders(self, batch: _Batch, user_ids: list[int]) -> dict[int, Principal | None]:
        """Return who has the names that were taken: before the batch, or since, by a line of it too."""
        since = [UserId(user_id) for user_id in user_ids if user_id not in batch.find_principals]
        if not since:
            return batch.find_principals
        return batch.find_principals | dict(zip(since, self._users.repository.find_principals(since), strict=True))

    def _under_newest_key(self, command: Register) -> Register:
        return attrs.evolve(command, password=self._users.cipher.reencrypt(command.password) or command.password)

    def _refuse(self, row: Row, problems: Iterable[FieldError]) -> None:
        self.summary.refused += 1
        self._rejects.write(row, problems)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until this is left. For the main thread, which is interrupted by it."""
    waiting: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if waiting:
        raise KeyboardInterrupt


def _is_of(row: Row, holder: Principal | None) -> bool:
    return isinstance(holder, User) and holder.email == row.values["email"]


def _instant(value: object) -> datetime | None:
    """Return the time that a line says, or now if it says none; None for what is no time."""
    if value is None or value == "":  # zero says something: no time
        return utc_now()
    try:
        return to_utc(datetime.fromisoformat(str(value)))
    except (ValueError, OverflowError):  # no such time, or none with its zone; or one before the first year in UTC
        return None
