"""Select users by name or id, ask for confirmation, and apply a change to several users."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import wraps
from itertools import islice
from typing import TypeVar, cast, get_args

import attrs
import click

from mlapi.application.users import Users
from mlapi.domain.commands import UpdateUser, UserChange, UserCommand
from mlapi.domain.errors import MlapiError, RepositoryUnavailableError
from mlapi.domain.plans import NO_PLAN
from mlapi.domain.rules import UserFilter
from mlapi.domain.users import User, UserId, UserState, utc_now
from mlapi.entrypoints.cli.output import EXIT_PARTIAL, CommandError, UsageError, show
from mlapi.entrypoints.cli.tables import printable
from mlapi.entrypoints.cli.times import AnyTime
from mlapi.entrypoints.wire import requests, responses

T = TypeVar("T")

STDIN = "-"
MAX_SHOWN_ITEMS = 20
"""The maximum number of items that a question lists."""
_BATCH_USERS = 500
_BYTE_ORDER_MARK = "\ufeff"


def filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that filter users. The command receives them as ``matching``, a `UserFilter`."""

    @wraps(command)
    def with_filter(
        *arguments: object,
        enabled: bool | None,
        containing: str,
        state: UserState | None,
        expires_before: datetime | None,
        metadata: str | None,
        plan: str | None,
        email: str | None,
        **others: object,
    ) -> None:
        if state is not None and enabled not in {None, state not in {"disabled", "pending"}}:
            raise UsageError(f"no user matches both --state {state} and --{'enabled' if enabled else 'disabled'}")
        matching = UserFilter(
            enabled=enabled,
            containing=containing,
            state=state,
            expires_before=expires_before,
            metadata=None if metadata is None else _parse_pair(metadata),
            plans=None if plan is None else frozenset({None if plan == NO_PLAN else plan}),
            email=email,
        )
        command(*arguments, matching=matching, **others)

    for option in (
        click.option("--email", metavar="ADDRESS", help="Only users with exactly this e-mail address."),
        click.option(
            "--plan", metavar="NAME", help="Only users with this plan; none: those without a plan of their own."
        ),
        click.option("--metadata", metavar="KEY=VALUE", help="Only users whose metadata has this value for KEY."),
        click.option(
            "--expires-before",
            type=AnyTime(),
            metavar="TIME",
            help="Only users whose access expires before TIME: +7d, or a date.",
        ),
        click.option("--state", type=click.Choice(get_args(UserState)), help="Only users in this state now."),
        click.option("--enabled/--disabled", default=None, help="Only enabled users, or only disabled ones."),
        click.option(
            "--containing", default="", metavar="TEXT", help="Only users with TEXT in their name or e-mail address."
        ),
    ):
        with_filter = option(with_filter)
    return with_filter


def _parse_pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise UsageError("--metadata must be KEY=VALUE, such as --metadata customer=cus_123")
    return key, value


def reference_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--id`` and ``--username``, which the command receives as ``reference``."""
    command = click.option(
        "--username", "reference", flag_value="username", help="USER is a name, even if it is a number."
    )(command)
    return click.option("--id", "reference", flag_value="id", help="USER is an id.")(command)


def user_argument(command: Callable[..., None]) -> Callable[..., None]:
    """Add one USER argument and its options."""
    return click.argument("user")(reference_options(command))


def users_argument(command: Callable[..., None]) -> Callable[..., None]:
    """Add the argument for several users and its options."""
    return click.argument("names", metavar="USER...", nargs=-1, required=True)(reference_options(command))


def yes_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--yes``."""
    return click.option("--yes", is_flag=True, help="Do not ask for confirmation.")(command)


def find_user(users: Users, text: str, reference: str | None) -> User:
    """Return the user that a name or an id refers to. Without ``reference``, digits are an id and other text a name.

    Raises:
        CommandError: if no user has this name, or if it may be an id or another user's name.
        MlapiError: if no user has this id.
    """
    if reference == "id":
        return users.get(requests.parse_user_id(text))
    named = users.find(text)
    if reference is None and _is_id(text):
        user_id = requests.parse_user_id(text)
        if named is not None and named.id != user_id:
            raise CommandError(f"{text} may be an id or the name of user {named.id}: add --id or --username")
        return users.get(user_id)
    if named is None:
        raise CommandError(f"user {text!r} does not exist")
    return named


def _read_names(names: Sequence[str]) -> Iterator[str]:
    """Yield the names in the arguments. In place of ``-``, yield the lines of standard input that are not empty."""
    for name in names:
        if name == STDIN:
            lines = (line.removeprefix(_BYTE_ORDER_MARK).strip() for line in sys.stdin)
            yield from filter(None, lines)
        else:
            yield name


def require_terminal(*, may_read: bool = True) -> None:
    """Raise `UsageError` if there is no terminal to ask a question on, or if standard input contains names."""
    if not (may_read and sys.stdin.isatty()):
        raise UsageError("nothing was changed: there is no terminal to ask for confirmation, so add --yes")


def confirm(question: str, items: Sequence[str] = ()) -> None:
    """List the items and ask a question on the terminal.

    Raises:
        CommandError: if the answer is no.
    """
    for item in items[:MAX_SHOWN_ITEMS]:
        click.echo(f"  {item}", err=True)
    if len(items) > MAX_SHOWN_ITEMS:
        click.echo(f"  ... and {len(items) - MAX_SHOWN_ITEMS} more", err=True)
    if not click.confirm(question, err=True):
        raise CommandError("nothing was changed")


def describe(user: User) -> str:
    """Return the id and name of a user, for messages."""
    return f"user {user.id} ({printable(user.username)})"


@attrs.define
class Report:
    """Counts and prints what happened to each user or API key.

    Args:
        done_word: the past participle of the change, for messages.
        as_json: whether to print JSON.
        is_quiet: whether to print errors only.
        describe: describes a user, for messages.
    """

    done_word: str
    as_json: bool = False
    is_quiet: bool = False
    describe: Callable[[User], str] = describe
    done: int = 0
    failed: int = 0

    def succeed(self, description: str, value: responses.ResponseBody) -> None:
        self.done += 1
        if not self.is_quiet:
            show(f"{self.done_word} {description}", value, as_json=self.as_json)

    def succeed_for(self, user: User) -> None:
        self.succeed(self.describe(user), responses.UserResponse.from_user(user, utc_now()))

    def count(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and count them as done."""
        for item in items:
            self.done += 1
            yield item

    def fail(self, error: Exception) -> None:
        self.failed += 1
        CommandError(str(error)).show()

    def exit_on_failure(self) -> None:
        """Exit with code 3 if every user failed, and with code 4 if only some did."""
        if self.failed:
            raise click.exceptions.Exit(EXIT_PARTIAL if self.done else CommandError.exit_code)


def find_each_user(users: Users, names: Sequence[str], reference: str | None, report: Report) -> Iterator[User]:
    """Yield the user for each name. See `find_each`."""
    return find_each(names, lambda name: find_user(users, name, reference), report)


def find_each(names: Sequence[str], find: Callable[[str], T], report: Report) -> Iterator[T]:
    """Yield what ``find`` returns for each name in the arguments or on standard input, and report its errors."""
    for name in _read_names(names):
        try:
            yield find(name)
        except RepositoryUnavailableError:
            raise
        except (MlapiError, CommandError) as error:
            report.fail(error)


def apply_to_each(
    users: Users,
    selected: Iterable[User],
    prepare: Callable[[User], UserCommand | UpdateUser],
    report: Report,
    *,
    is_repeatable: bool = True,
) -> None:
    """Apply a command to each user, in one transaction per batch, and report the outcomes.

    Args:
        users: all users.
        selected: the users to change. Repeated users are changed once.
        prepare: returns the command for a user.
        report: reports the outcomes.
        is_repeatable: whether applying the commands again has no further effect.

    Raises:
        CommandError: if the database becomes unavailable. The outcomes of earlier batches have been reported.
    """
    try:
        iterator = _skip_repeated(selected)
        while batch := list(islice(iterator, _BATCH_USERS)):
            for outcome in users.repository.apply([prepare(user) for user in batch]):
                if isinstance(outcome, MlapiError):  # removed in the meantime, or rejected
                    report.fail(outcome)
                else:
                    report.succeed_for(cast("User", outcome.after if isinstance(outcome, UserChange) else outcome))
    except RepositoryUnavailableError as error:
        advice = "run the command again"
        if not is_repeatable:
            advice += ", but only for users that `mlapi users show` reports as unchanged"
        raise CommandError(f"{error}; users changed before: {report.done}; {advice}") from None


def _skip_repeated(selected: Iterable[User]) -> Iterator[User]:
    seen: set[UserId] = set()
    for user in selected:
        if user.id not in seen:
            seen.add(user.id)
            yield user


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and not text.startswith("0")
