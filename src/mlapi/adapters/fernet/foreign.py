"""Hashes that other systems have made, without our salt: argon2 in PHC strings, bcrypt in modular crypt format.

Whoever brings a hash decides what it costs to check, so only such are known here as one log-in can afford: about a
second of a core at most.
"""

import base64
import binascii
import re

from argon2.exceptions import VerificationError
from argon2.low_level import Type, verify_secret

from mlapi.domain.rules import find_text_error

TEXT_MAX = 256
"""Characters of a hash. Longer ones have a salt or a tag beyond the 64 bytes that anybody uses."""
ARGON2_MEMORY_MAX = 256 * 1024
"""KiB."""
ARGON2_TIME_MAX = 20
"""Passes over the memory."""
ARGON2_WORK_MAX = 1024 * 1024
"""KiB written in all passes together: with both of the above at their most it would be five seconds."""
ARGON2_LANES_MAX = 16
ARGON2_SALT_MIN, ARGON2_TAG_MIN = 8, 16
"""Bytes. RFC 9106, 3.1, takes tags of 4 too, which are guessed."""
BCRYPT_COST_MIN, BCRYPT_COST_MAX = 4, 15
BCRYPT_PASSWORD_MAX = 72
"""Bytes that bcrypt looks at."""

_TYPES = {"argon2id": Type.ID, "argon2i": Type.I, "argon2d": Type.D}
_ARGON2 = re.compile(
    r"\$(?P<type>argon2(?:id|i|d))(?:\$v=(?:16|19))?"
    r"\$m=(?P<memory>[1-9]\d{0,9}),t=(?P<time>[1-9]\d{0,9}),p=(?P<lanes>[1-9]\d{0,9})"
    r"\$(?P<salt>[A-Za-z0-9+/]+)\$(?P<tag>[A-Za-z0-9+/]+)",
    re.ASCII,
)
# Salt and checksum end in characters of which some bits mean nothing; those are zero in what a library writes.
_BCRYPT = re.compile(r"\$2[aby]\$(?P<cost>\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{30}[.CGKOSWaeimquy26]", re.ASCII)


def find_hash_error(text: object) -> str | None:
    """What is wrong with a hash from elsewhere, or None if `is_made_of` can check it. Never repeats it."""
    problem = find_text_error(text, TEXT_MAX)
    if problem is not None or not isinstance(text, str):
        return problem
    if (argon2 := _ARGON2.fullmatch(text)) is not None:
        return _argon2_problem(argon2)
    if (bcrypt := _BCRYPT.fullmatch(text)) is not None:
        if not BCRYPT_COST_MIN <= int(bcrypt["cost"]) <= BCRYPT_COST_MAX:
            return f"must have a bcrypt cost of {BCRYPT_COST_MIN} to {BCRYPT_COST_MAX}"
        return None
    return "must be a hash of argon2 ($argon2id$..., $argon2i$..., $argon2d$...) or bcrypt ($2a$..., $2b$..., $2y$...)"


def is_made_of(password: bytes, text: str) -> bool:
    """Whether a hash without `find_hash_error` was made of a password in UTF-8."""
    if text.startswith("$2"):
        return _is_bcrypt_of(password, text)
    try:
        return verify_secret(text.encode(), password, _TYPES[text.split("$")[1]])
    except VerificationError:
        return False


def _is_bcrypt_of(password: bytes, text: str) -> bool:
    import bcrypt  # noqa: PLC0415 - for those alone who have such hashes

    # The library raises over 72 bytes. The systems that wrote these hashes left the rest out, in the middle of a
    # character too, and let their users in so. What is stored at the next log-in is of the whole password.
    cut = password[:BCRYPT_PASSWORD_MAX]
    # They differ in what a NUL did: ended the password, was refused, or was hashed; and to bcrypt, which repeats the
    # password with a NUL at its end, `a` and `a\0a` are one. None of that is a password that somebody typed.
    return bcrypt.checkpw(cut, text.encode()) and b"\0" not in password


def _argon2_problem(match: re.Match[str]) -> str | None:
    memory, time, lanes = int(match["memory"]), int(match["time"]), int(match["lanes"])
    salt, tag = _bytes_of(match["salt"]), _bytes_of(match["tag"])
    bounds = [
        (memory <= ARGON2_MEMORY_MAX, f"a memory (m) of at most {ARGON2_MEMORY_MAX} KiB"),
        (time <= ARGON2_TIME_MAX, f"a time (t) of at most {ARGON2_TIME_MAX}"),
        (lanes <= ARGON2_LANES_MAX, f"a parallelism (p) of at most {ARGON2_LANES_MAX}"),
        (memory * time <= ARGON2_WORK_MAX, f"memory times time (m x t) of at most {ARGON2_WORK_MAX} KiB"),
        (memory >= 8 * lanes, "a memory (m) of at least 8 KiB for each lane (p)"),  # RFC 9106, 3.1
        (len(salt) >= ARGON2_SALT_MIN, f"a salt of at least {ARGON2_SALT_MIN} bytes, in base64"),
        (len(tag) >= ARGON2_TAG_MIN, f"a hash of at least {ARGON2_TAG_MIN} bytes, in base64"),
    ]
    return next((f"must have, for argon2, {bound}" for is_kept, bound in bounds if not is_kept), None)


def _bytes_of(text: str) -> bytes:
    """Return what base64 without padding says, and nothing for what no encoder writes."""
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return b""
    return decoded if base64.b64encode(decoded).decode("ascii").rstrip("=") == text else b""
