"""Schemathesis hooks: the only values that JSON Schema allows and mlapi rejects, and a user that must not change.

- Unassigned code points: which ones are unassigned depends on the version of Unicode.
- Usernames that are too long when normalized: JSON Schema does not know NFKC.
- Times in the past: JSON Schema does not know the current time.
- Plans that the configuration does not contain, and metadata that is too large or contains NUL characters.
- A state together with ``enabled``, which may contradict each other.
- Positions in sorted lists, and fields of ``POST /users/batch`` that belong to another action.
- Ranges of days that end before they begin: JSON Schema cannot compare two parameters.
"""

import re
import unicodedata
from datetime import UTC, date, datetime, timedelta
from typing import Any, get_args

import schemathesis
from hypothesis import strategies as st

from mlapi.domain.metadata import find_metadata_error
from mlapi.domain.rules import MAX_USERNAME_CHARS, fold
from mlapi.domain.users import UserState
from mlapi.entrypoints.wire import patterns

PROTECTED_ID = "1"
"""Id of the user that schemathesis logs in as. Without that user, all later ``/users/me`` requests would fail."""
MAX_NFKC_EXPANSION = 18
"""NFKC replaces U+FDFA with 18 characters, and no other character with more."""

schemathesis.openapi.format(
    "date-time",
    st.datetimes(datetime.now() + timedelta(days=1), datetime(9999, 12, 30), timezones=st.just(UTC)).map(  # noqa: DTZ001, DTZ005
        datetime.isoformat
    ),
)


@schemathesis.hook
def before_call(_context: object, case: Any, _kwargs: object) -> None:
    parameters = case.path_parameters or {}
    if str(parameters.get("user_id")) == PROTECTED_ID:
        parameters["user_id"] = 10**9
    for fields in (case.body, case.query):
        if isinstance(fields, dict):
            for name in fields.keys() & {"username", "name", "q"}:
                fields[name] = replace_unassigned(fields[name])
    if isinstance(case.query, dict):
        order_days(case.query)
        remove_positions(case.query)
        if case.query.get("state") in get_args(UserState) and str(case.query.get("enabled")) in {"0", "1"}:
            del case.query["enabled"]
    if isinstance(case.body, dict):
        replace_unknown_plan(case.body)
        remove_fields_of_other_actions(case.body)
    if isinstance(case.body, dict) and "username" in case.body:
        case.body["username"] = shorten_normal_form(case.body["username"])


def remove_positions(query: dict[str, Any]) -> None:
    """Remove positions in sorted lists: only a page of the same list contains valid ones."""
    if "order" in query or "before" in query:
        query.pop("before", None)
        query.pop("after", None)


def remove_fields_of_other_actions(body: dict[str, Any]) -> None:
    """Give each action of ``POST /users/batch`` its own field, and remove the others."""
    fields = {"set_plan": "plan", "extend": "expires_at"}
    if isinstance(body.get("user_ids"), list):
        body["user_ids"] = [10**9 if str(each) == PROTECTED_ID else each for each in body["user_ids"]]
    if isinstance(body.get("action"), str) and "user_ids" in body:
        for action in fields.keys() - {body["action"]}:
            body.pop(fields[action], None)
        if body["action"] in fields:
            body.setdefault(fields[body["action"]], {"set_plan": None, "extend": "+30d"}[body["action"]])


def replace_unknown_plan(body: dict[str, Any]) -> None:
    """Replace valid plan names, because the configuration has no plans. Replace invalid metadata, too."""
    if isinstance(body.get("plan"), str) and re.search(patterns.PLAN_NAME, body["plan"]):
        body["plan"] = None
    if isinstance(body.get("metadata"), dict) and find_metadata_error(body["metadata"]):
        body["metadata"] = {}


def order_days(query: dict[str, Any]) -> None:
    """Make a generated range of days valid: if it begins after its last day, let it begin on its last day."""
    try:
        first = date.fromisoformat(query["from"])
        last = date.fromisoformat(query["to"]) if "to" in query else datetime.now(UTC).date()
    except (KeyError, TypeError, ValueError):  # not a range, or meant to be rejected
        return
    if first > last:
        query["from"] = last.isoformat()


def replace_unassigned(value: object) -> object:
    """Replace the unassigned characters that the description allows."""
    if not isinstance(value, str):
        return value
    return "".join(
        "x" if unicodedata.category(character) == "Cn" and re.search(patterns.API_KEY_NAME, character) else character
        for character in value
    )


def shorten_normal_form(value: object) -> object:
    if isinstance(value, str) and len(value) <= MAX_USERNAME_CHARS < len(fold(value)):
        return value[: MAX_USERNAME_CHARS // MAX_NFKC_EXPANSION]
    return value
