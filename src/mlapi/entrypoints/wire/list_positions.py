"""Positions in a sorted list of users, as text that clients send back unchanged."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime

import msgspec

from mlapi.domain.lists import ListPosition, Value
from mlapi.domain.rules import MAX_USERNAME_CHARS, has_lone_surrogate
from mlapi.domain.users import MAX_USER_ID, UserId, UserOrder, to_utc

_TIMES: frozenset[UserOrder] = frozenset({"created", "updated", "expires", "seen"})


class _Position(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    order: str
    value: str | int | None
    user_id: int


def encode_position(order: UserOrder, position: ListPosition) -> str:
    """Return the text of a position in a list with this order."""
    value = position.value
    stored = value.isoformat() if isinstance(value, datetime) else value
    encoded = msgspec.json.encode(_Position(order, stored, position.user_id))
    return urlsafe_b64encode(encoded).rstrip(b"=").decode("ascii")


def decode_position(order: UserOrder, text: str) -> ListPosition:
    """Return the position in a text from a client. The user need not exist.

    Raises:
        ValueError: if the text is not a position in a list with this order.
    """
    padding = "=" * (-len(text) % 4)
    try:
        found = msgspec.json.decode(urlsafe_b64decode((text + padding).encode("ascii")), type=_Position)
    except msgspec.MsgspecError as error:
        raise ValueError("not a position") from error
    if found.order != order or not 0 <= found.user_id <= MAX_USER_ID:
        raise ValueError("not a position in this list")
    return ListPosition(_decode_value(order, found.value), UserId(found.user_id))


def _decode_value(order: UserOrder, value: str | int | None) -> Value | None:
    if value is None and order in {"expires", "seen", "usage"}:
        return None
    if order in _TIMES and isinstance(value, str):
        try:
            return to_utc(datetime.fromisoformat(value))
        except OverflowError as error:
            raise ValueError("the time is outside the years 1 to 9999") from error
    if order == "name" and isinstance(value, str):
        if len(value) <= MAX_USERNAME_CHARS and "\0" not in value and not has_lone_surrogate(value):
            return value
    elif order in {"id", "usage"} and isinstance(value, int) and 0 <= value <= MAX_USER_ID:
        return value
    raise ValueError("not a value of this order")
