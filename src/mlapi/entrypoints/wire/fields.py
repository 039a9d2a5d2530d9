"""The types of the fields of request bodies, with their descriptions for OpenAPI."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, get_args

import msgspec

from mlapi.application.bulk_changes import MAX_BULK_USERS, BulkAction
from mlapi.domain.credentials import MAX_API_KEY_NAME_CHARS
from mlapi.domain.errors import InvalidFieldsError
from mlapi.domain.expiry import Extension, parse_extension
from mlapi.domain.rules import MAX_EMAIL_CHARS, MAX_PASSWORD_CHARS, MAX_USERNAME_CHARS
from mlapi.domain.users import to_utc
from mlapi.entrypoints.wire import patterns


def _field(description: str, example: object, **schema: object) -> msgspec.Meta:
    """Describe a field for OpenAPI only: the domain validates values, and reports all invalid fields together."""
    return msgspec.Meta(description=description, examples=[example], extra_json_schema=schema)


Username = Annotated[
    str,
    _field(
        "No control, invisible or unassigned characters, and no leading or trailing whitespace. "
        "Usernames are compared case-insensitively after NFKC normalization: `Ada` and `ADA` refer to the same user.",
        "ada",
        pattern=patterns.USERNAME,
        minLength=1,
        maxLength=MAX_USERNAME_CHARS,
    ),
]
Password = Annotated[
    str,
    _field(
        "Stored exactly as sent, without normalization or truncation. The production profile sets a minimum length and"
        " rejects common passwords and the name of this service.",
        "difference engine",
        minLength=1,
        maxLength=MAX_PASSWORD_CHARS,
    ),
]
Email = Annotated[
    str,
    _field(
        "Only the format is checked. Several users may share an address.",
        "ada@example.com",
        format="idn-email",
        minLength=3,
        maxLength=MAX_EMAIL_CHARS,
    ),
]
ApiKeyName = Annotated[
    str,
    _field(
        "The purpose of the key. No control or invisible characters, and not only whitespace.",
        "nightly job",
        pattern=patterns.API_KEY_NAME,
        minLength=1,
        maxLength=MAX_API_KEY_NAME_CHARS,
    ),
]
# Existing credentials have no constraints: an invalid value simply does not match.
KnownUsername = Annotated[str, _field("Matched case-insensitively, after NFKC normalization.", "ada")]
KnownPassword = Annotated[str, _field("The current password.", "difference engine")]
LinkToken = Annotated[
    str, _field("The token in the URL of the link: what follows `/links/`.", f"mlapi-link_0123456789abcdef_{'0' * 64}")
]
GRANT_TYPES = ["password", ""]
GrantType = Annotated[str, _field("The grant type of OAuth 2.0.", "password", enum=GRANT_TYPES)]
IgnoredField = Annotated[str, _field("Ignored.", "")]
ApiKeyExpiry = Annotated[
    datetime | None,
    _field(
        "The expiry time, which must be in the future and have a time zone. If null, the key does not expire.",
        "2030-01-31T12:00:00Z",
        format="date-time",
    ),
]


class NewExpiry:
    """The expiry of a user's access in a request: a time, or an extension of the current expiry.

    Not an attrs class: msgspec would decode that from an object.
    """

    def __init__(self, value: datetime | Extension) -> None:
        self.value = value

    @classmethod
    def parse(cls, value: object) -> "NewExpiry":
        """Parse a time with a time zone (RFC 3339) or an extension such as ``+30d``. Raise `ValueError` if invalid."""
        if not isinstance(value, str):
            raise ValueError("not a string")  # noqa: TRY004 - msgspec reports a ValueError as an invalid field
        try:
            return cls(parse_extension(value) if value.startswith("+") else to_utc(msgspec.convert(value, datetime)))
        except (InvalidFieldsError, OverflowError) as error:  # before the year 1 in UTC
            raise ValueError("invalid") from error


_EXTENSION = r"^\+[1-9][0-9]{0,3}(h|d|w|mo|y)$"
NullableNewExpiry = Annotated[
    NewExpiry | None,
    _field(
        "When access expires: a time with a time zone, or an extension in hours (`h`), days (`d`), weeks (`w`),"
        " calendar months (`mo`) or years (`y`). An extension starts from the current expiry, or from now if access has"
        " expired or never expires. If null, access never expires.",
        "2030-01-31T12:00:00Z",
    ),
]
PlanName = Annotated[
    str | None,
    _field(
        "The name of a plan in the configuration. If null, the default plan applies.", None, pattern=patterns.PLAN_NAME
    ),
]
MetadataFields = Annotated[
    dict[str, Any] | None,
    _field(
        "A JSON object of at most 4 KiB, for example with a billing id. It replaces all keys. Null removes them.",
        {"customer": "cus_123"},
    ),
]


UserIds = Annotated[
    list[int],
    _field(
        "The ids of the users, each once.",
        [1, 2],
        minItems=1,
        maxItems=MAX_BULK_USERS,
        uniqueItems=True,
        items={"type": "integer", "minimum": 1},
    ),
]
BULK_ACTIONS: tuple[str, ...] = get_args(BulkAction)
BulkActionName = Annotated[str, _field("What to do with each user.", "disable", enum=list(BULK_ACTIONS))]
ExtensionText = Annotated[
    str,
    _field(
        "How far the action `extend` extends the access of each user: an extension as in `PATCH /users/{user_id}`.",
        "+30d",
        pattern=_EXTENSION,
    ),
]


def describe_choices(names: Sequence[str]) -> str:
    """Return a text such as ``enable, disable or remove``."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def decode_expiry(_field_type: type[Any], value: object) -> NewExpiry:
    """Decode the only type that msgspec does not know. It reports a `ValueError` as an invalid field."""
    return NewExpiry.parse(value)


def describe_expiry(_field_type: type[Any]) -> dict[str, object]:
    """Return the JSON Schema of the only type that msgspec does not know."""
    return {"type": "string", "anyOf": [{"format": "date-time"}, {"pattern": _EXTENSION}]}


TYPE_NAMES: dict[object, str] = {
    str: "a string",
    list[int]: "a list of numbers",
    str | None: "a string or null",
    dict[str, Any] | None: "an object or null",
    datetime | None: "a time such as 2030-01-31T12:00:00Z, or null",
    NewExpiry | None: "a time with a time zone such as 2030-01-31T12:00:00Z, an extension such as +30d, or null",
}
"""How error messages describe the values of each type."""
