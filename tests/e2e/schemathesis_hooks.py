"""Schemathesis hooks: data for mlapi's own formats, future times, and a user that requests must not change."""

from datetime import UTC, datetime, timedelta
from typing import Any

import schemathesis
from hypothesis import strategies as st

from mlapi.domain.rules import find_username_error, has_invisible

PROTECTED_ID = "1"
"""Id of the user that schemathesis logs in as. Without that user, all later ``/users/me`` requests would fail."""

_visible = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"])).filter(lambda text: not has_invisible(text))
# Random text rarely has a length close to a limit, so these lengths are chosen explicitly.
_sized = st.tuples(_visible, st.sampled_from([None, None, 1, 2, 99, 100, 101, 253, 254, 255])).map(
    lambda drawn: drawn[0] if drawn[1] is None else (drawn[0] * drawn[1])[: drawn[1]]
)

schemathesis.openapi.format("visible-text", _sized.filter(lambda text: not text or bool(text.strip())))
schemathesis.openapi.format("username", _sized.map(str.strip).filter(lambda name: find_username_error(name) is None))
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
