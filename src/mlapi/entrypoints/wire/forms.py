"""Decode HTML forms: the media type ``application/x-www-form-urlencoded``."""

import re
from binascii import a2b_qp

from mlapi.entrypoints.wire.errors import UnreadableBodyError

_MAX_FIELDS = 50  # a list has a field for each selected user
_INVALID_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})|[\r\n]")


def decode_form(body: bytes) -> dict[str, str]:
    """Return the fields of a form.

    Raises:
        UnreadableBodyError: if the body is not URL-encoded UTF-8, repeats a field or has too many fields.
    """
    fields = [field.partition(b"=") for field in body.split(b"&") if field]
    if len(fields) > _MAX_FIELDS:
        raise UnreadableBodyError(f"it has more than {_MAX_FIELDS} fields", "form")
    try:
        form = {unquote_form(name): unquote_form(value) for name, _, value in fields}
    except ValueError:
        raise UnreadableBodyError("it is not URL-encoded UTF-8", "form") from None
    if len(form) != len(fields):
        raise UnreadableBodyError("it repeats a field", "form")
    return form


def unquote_form(text: bytes) -> str:
    """Decode a name or value of a form. urllib returns the same text, but takes three times as long.

    Raises:
        ValueError: if an escape sequence is malformed, the text contains a line break, or it is not UTF-8.
    """
    if _INVALID_ESCAPE.search(text):
        raise ValueError
    # Quoted-printable differs only in the escape character and in its rules for line breaks.
    escaped = text.replace(b"+", b" ").replace(b"=", b"%3D").replace(b"%", b"=")
    return a2b_qp(escaped).decode("utf-8")
