"""Verify password hashes that other systems made without our salt: argon2 (PHC strings) and bcrypt.

The other system chose how costly its hashes are to verify. Only hashes that take at most about one second on one core
are accepted.
"""

import base64
import binascii
import re

from argon2.exceptions import VerificationError
from argon2.low_level import Type, verify_secret

from mlapi.domain.rules import find_text_error

MAX_HASH_CHARS = 256
"""A longer hash would have a salt or a tag of more than 64 bytes, which no library writes."""
MAX_ARGON2_MEMORY_KIB = 256 * 1024
MAX_ARGON2_PASSES = 20
MAX_ARGON2_WORK_KIB = 1024 * 1024
"""The maximum product of memory and passes. With both at their own maximum, a login would take five seconds."""
MAX_ARGON2_LANES = 16
MIN_ARGON2_SALT_BYTES = 8
MIN_ARGON2_TAG_BYTES = 16
"""RFC 9106, section 3.1, permits tags as short as 4 bytes, which an attacker could guess."""
MIN_BCRYPT_COST, MAX_BCRYPT_COST = 4, 15
MAX_BCRYPT_PASSWORD_BYTES = 72
"""bcrypt ignores all further bytes of a password."""

_TYPES = {"argon2id": Type.ID, "argon2i": Type.I, "argon2d": Type.D}
_ARGON2 = re.compile(
    r"\$(?P<type>argon2(?:id|i|d))(?:\$v=(?:16|19))?"
    r"\$m=(?P<memory>[1-9]\d{0,9}),t=(?P<passes>[1-9]\d{0,9}),p=(?P<lanes>[1-9]\d{0,9})"
    r"\$(?P<salt>[A-Za-z0-9+/]+)\$(?P<tag>[A-Za-z0-9+/]+)",
    re.ASCII,
)
# The last characters of the salt and the checksum contain unused bits, which libraries set to zero.
_BCRYPT = re.compile(r"\$2[aby]\$(?P<cost>\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{30}[.CGKOSWaeimquy26]", re.ASCII)


def find_hash_error(text: object) -> str | None:
    """Return why a hash cannot be imported, or None if `verify_hash` supports it.

    The reason never contains the hash.
    """
    error = find_text_error(text, MAX_HASH_CHARS)
    if error is not None or not isinstance(text, str):
        return error
    if (argon2 := _ARGON2.fullmatch(text)) is not None:
        return _find_argon2_error(argon2)
    if (bcrypt := _BCRYPT.fullmatch(text)) is not None:
        if not MIN_BCRYPT_COST <= int(bcrypt["cost"]) <= MAX_BCRYPT_COST:
            return f"must have a bcrypt cost of {MIN_BCRYPT_COST} to {MAX_BCRYPT_COST}"
        return None
    return "must be an argon2 ($argon2id$..., $argon2i$..., $argon2d$...) or bcrypt ($2a$..., $2b$..., $2y$...) hash"


def verify_hash(password: bytes, text: str) -> bool:
    """Return whether the password matches a hash for which `find_hash_error` returned None."""
    if text.startswith("$2"):
        return _verify_bcrypt(password, text)
    try:
        return verify_secret(text.encode(), password, _TYPES[text.split("$")[1]])
    except VerificationError:
        return False


def _verify_bcrypt(password: bytes, text: str) -> bool:
    import bcrypt  # noqa: PLC0415 - only needed for users with a bcrypt hash

    # The systems that made these hashes ignored everything after 72 bytes, even in the middle of a character. Do the
    # same, so that their users can log in: the library would raise an error. The first login then hashes the whole
    # password.
    truncated = password[:MAX_BCRYPT_PASSWORD_BYTES]
    # Reject NUL: some systems cut off the password there, and bcrypt cannot distinguish `a` from `a\0a`.
    return bcrypt.checkpw(truncated, text.encode()) and b"\0" not in password


def _find_argon2_error(match: re.Match[str]) -> str | None:
    memory, passes, lanes = int(match["memory"]), int(match["passes"]), int(match["lanes"])
    salt, tag = _decode_base64(match["salt"]), _decode_base64(match["tag"])
    limits = [
        (memory <= MAX_ARGON2_MEMORY_KIB, f"a memory (m) of at most {MAX_ARGON2_MEMORY_KIB} KiB"),
        (passes <= MAX_ARGON2_PASSES, f"a time (t) of at most {MAX_ARGON2_PASSES}"),
        (lanes <= MAX_ARGON2_LANES, f"a parallelism (p) of at most {MAX_ARGON2_LANES}"),
        (memory * passes <= MAX_ARGON2_WORK_KIB, f"memory times time (m x t) of at most {MAX_ARGON2_WORK_KIB} KiB"),
        (memory >= 8 * lanes, "a memory (m) of at least 8 KiB for each lane (p)"),  # RFC 9106, 3.1
        (len(salt) >= MIN_ARGON2_SALT_BYTES, f"a salt of at least {MIN_ARGON2_SALT_BYTES} bytes, in base64"),
        (len(tag) >= MIN_ARGON2_TAG_BYTES, f"a tag of at least {MIN_ARGON2_TAG_BYTES} bytes, in base64"),
    ]
    return next((f"must be an argon2 hash with {limit}" for is_met, limit in limits if not is_met), None)


def _decode_base64(text: str) -> bytes:
    """Decode unpadded base64. Return empty bytes unless the text is exactly what an encoder would write."""
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return b""
    return decoded if base64.b64encode(decoded).decode("ascii").rstrip("=") == text else b""
