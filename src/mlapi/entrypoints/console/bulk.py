"""Change many users: the selected ones, or all that the list shows.

1. The form below the list sends the selection to `select_users`, which puts it into a `Job` and redirects.
2. The page of the job asks for confirmation, and names the action and the number of users.
3. Each form on it changes at most `USERS_PER_STEP` users, then redirects to the page of the job that remains. With
   JavaScript, the page continues by itself. Without, it has a button.

The job is signed in the query, so a page can be reloaded, and the job continued later. Repeating a step changes no user
twice.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, cast
from urllib.parse import urlencode

import msgspec
from starlette.responses import Response

from mlapi.application.bulk_changes import BulkAction, BulkChange
from mlapi.domain.errors import FieldError, InvalidFieldsError, MlapiError, ServiceUnavailableError
from mlapi.domain.expiry import parse_extension
from mlapi.domain.users import User, UserId, utc_now
from mlapi.entrypoints.console.user_list import FILTERS, parse_filter
from mlapi.entrypoints.http.signatures import SignedValue
from mlapi.entrypoints.pages import Notice, PageRequest, Undo, redirect, render_page
from mlapi.entrypoints.wire import queries

SELECT_PATH = "/users/select"
CHANGE_PATH = "/users/change"
USERS_PER_STEP = 1_000
MAX_NAMED_USERS = 10
"""The number of users that a confirmation lists by name."""
_JOB_SECONDS = 24 * 3600
_SELECTED = "user-"
"""The beginning of the name of a checkbox. The id of the user follows."""
_MAX_ID_DIGITS = 19
_PERIODS: Mapping[str, str] = {"+1w": "1 week", "+1mo": "1 month", "+1y": "1 year"}
_VERBS: Mapping[BulkAction, str] = {
    "enable": "Enable",
    "disable": "Disable",
    "remove": "Remove",
    "set_plan": "Set plan",
    "extend": "Extend",
}
_OPPOSITE: Mapping[BulkAction, BulkAction] = {"enable": "disable", "disable": "enable"}


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A change of many users, and its progress.

    Attributes:
        action: see `BulkChange`.
        plan: see `BulkChange`.
        extension: the text of the extension, such as ``+1mo``.
        ids: the ids of the selected users, sorted; None for all users that match ``filters``.
        filters: the parameters of the list.
        through: the largest id when the job was made. Users who register later are not changed.
        since_ms: when the job was made, in milliseconds since 1970.
        total: how many users were to be changed when the job was made.
        after: the id of the last user that was changed.
        changed: how many users were changed.
        skipped: how many users were not changed, because they were removed or changed in the meantime.
    """

    action: BulkAction
    plan: str | None = None
    extension: str = ""
    ids: list[int] | None = None
    filters: dict[str, str] = {}  # msgspec copies it
    through: int = 0
    since_ms: Annotated[int, msgspec.Meta(ge=0, le=2**50)] = 0
    total: int = 0
    after: int = 0
    changed: int = 0
    skipped: int = 0

    @property
    def since(self) -> datetime:
        return datetime.fromtimestamp(self.since_ms / 1000, UTC)

    @property
    def change(self) -> BulkChange:
        extension = parse_extension(self.extension) if self.extension else None
        return BulkChange(action=self.action, plan=self.plan, extension=extension)

    @property
    def title(self) -> str:
        """The action and the number of users, as on the button."""
        count = "1 user" if self.total == 1 else f"{self.total:,} users"
        match self.action:
            case "set_plan":
                return f"Set the plan of {count} to {self.plan or 'the default plan'}"
            case "extend":
                return f"Extend the access of {count} by {_PERIODS.get(self.extension, self.extension)}"
            case action:
                return f"{_VERBS[action]} {count}"


async def select_users(request: PageRequest) -> Response:
    """Turn the selection in the list into a job."""
    if request.is_safe:
        return redirect(request)
    form = request.form
    filters = dict(queries.split_query(form.get("list", "").encode("utf-8")))
    filters = {name: value for name, value in filters.items() if name in FILTERS and value}
    ids = None if form.get("scope") == "all" else _selected_ids(form)
    action, plan, extension = _parse_action(form.get("action", ""))
    if ids == []:
        notice = Notice("Nothing was changed: select users first.")
        return redirect(request, f"?{urlencode(filters)}" if filters else "", notice=notice)
    users, matching = request.users, parse_filter(request, filters)
    if action == "set_plan":
        users.prepare_update(user_id=UserId(1), plan=plan)  # validates the name

    def count() -> tuple[int, int]:
        newest = request.runtime.users.repository.list_sorted("id", descending=True, limit=1)
        total = request.runtime.users.repository.count(matching) if ids is None else len(ids)
        return total, newest[0].user.id if newest else 0

    total, through = await request.search(count)
    job = Job(
        action=action,
        plan=plan,
        extension=extension,
        ids=ids,
        filters=filters,
        through=through,
        since_ms=int(utc_now().timestamp() * 1000),
        total=total,
    )
    return redirect(request, _job_path(request, job))


async def change_users(request: PageRequest) -> Response:
    """Show a job on GET; change the next users on POST."""
    text = request.query_parameters("job").get("job", "") if request.is_safe else request.form.get("job", "")
    signed = _signer(request).load(text, _JOB_SECONDS)
    if signed is None:
        return redirect(request, notice=Notice("This change has expired: select the users again."))
    job = signed[0]
    if request.is_safe:
        first = await request.search(partial(_next_users, request, job, MAX_NAMED_USERS))
        return render_page(request, "change_users.html", job=job, signed_job=text, first=first)
    job = await _change_next(request, job)
    if job.after < job.through:
        return redirect(request, _job_path(request, job))
    query = urlencode(job.filters)
    return redirect(request, f"?{query}" if query else "", notice=_make_notice(job))


async def _change_next(request: PageRequest, job: Job) -> Job:
    """Change the next users, and return the job that remains.

    Raises:
        ServiceUnavailableError: if the database is unavailable.
    """
    found = await request.search(partial(_next_users, request, job, USERS_PER_STEP))
    prepared = [job.change.prepare_once(request.users, user, since=job.since) for user in found]
    commands = [command for command in prepared if command is not None]
    outcomes = await request.runtime.executor.apply_all(commands)
    unavailable = next((each for each in outcomes if isinstance(each, ServiceUnavailableError)), None)
    if unavailable is not None:
        raise unavailable
    changed = sum(not isinstance(outcome, MlapiError) for outcome in outcomes)
    return msgspec.structs.replace(
        job,
        after=found[-1].id if len(found) == USERS_PER_STEP else job.through,
        changed=job.changed + changed,
        skipped=job.skipped + len(found) - changed,
    )


def _next_users(request: PageRequest, job: Job, limit: int) -> Sequence[User]:
    """Return the next users of a job, sorted by id."""
    repository = request.runtime.users.repository
    if job.ids is not None:
        ids = [UserId(user_id) for user_id in job.ids if user_id > job.after][:limit]
        found = repository.find_principals(ids)
        return [user for user in found if isinstance(user, User)]
    matching = parse_filter(request, job.filters)
    page = request.runtime.users.list_page(after=UserId(job.after), limit=limit, matching=matching)
    return [user for user in page if user.id <= job.through]


def _make_notice(job: Job) -> Notice:
    count = "1 user" if job.changed == 1 else f"{job.changed:,} users"
    were = "was" if job.changed == 1 else "were"
    match job.action:
        case "set_plan":
            text = f"The plan of {count} is now {job.plan or 'the default plan'}."
        case "extend":
            text = f"The access of {count} was extended."
        case action:
            text = f"{count} {were} {_VERBS[action].lower().removesuffix('e')}ed."
    if job.skipped:
        text += f" {job.skipped:,} had been removed or changed in the meantime."
    opposite = _OPPOSITE.get(job.action)
    undo = None
    if opposite is not None and job.ids is not None:
        fields = {_SELECTED + str(user_id): "on" for user_id in job.ids} | {"action": opposite, "list": ""}
        undo = Undo(SELECT_PATH, fields)
    return Notice(text, undo=undo)


def _selected_ids(form: Mapping[str, str]) -> list[int]:
    names = [name.removeprefix(_SELECTED) for name in form if name.startswith(_SELECTED)]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and len(name) <= _MAX_ID_DIGITS)


def _parse_action(text: str) -> tuple[BulkAction, str | None, str]:
    """Parse the value of the select element: an action, with a plan or an extension after a colon.

    Raises:
        InvalidFieldsError: if it is invalid.
    """
    name, _, value = text.partition(":")
    if name == "extend":
        parse_extension(value)
        return "extend", None, value
    if name == "set_plan":
        return "set_plan", value or None, ""
    if name not in _VERBS or value:
        raise InvalidFieldsError((FieldError("action", "must be one of the actions in the list"),))
    return cast("BulkAction", name), None, ""


def _job_path(request: PageRequest, job: Job) -> str:
    return f"{CHANGE_PATH}?{urlencode({'job': _signer(request).dump(job)})}"


def _signer(request: PageRequest) -> SignedValue[Job]:
    return SignedValue(Job, request.admin_policy.session_key, b"mlapi bulk change", request.notices.clock)
