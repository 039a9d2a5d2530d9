"""Verify password hashes that other systems made without our salt: argon2, bcrypt, PBKDF2 and scrypt.

Hashes are accepted as the other system stores them. Django, for example, writes a name before argon2 and bcrypt hashes.

The other system chose how costly its hashes are to verify. Only hashes that take at most about one second on one core
are accepted.
"""

import hashlib
import re
from collections.abc import Callable

import attrs
from argon2.exceptions import VerificationError
from argon2.low_level import Type, verify_secret

from mlapi.adapters.fernet.kdf_hashes import (
    decode_base64,
    find_limit_error,
    find_pbkdf2_error,
    find_scrypt_error,
    match_pbkdf2,
    match_scrypt,
    verify_pbkdf2,
    verify_scrypt,
)
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
    r"(?:argon2)?(?P<phc>\$(?P<type>argon2(?:id|i|d))(?:\$v=(?:16|19))?"
    r"\$m=(?P<memory>[1-9]\d{0,9}),t=(?P<passes>[1-9]\d{0,9}),p=(?P<lanes>[1-9]\d{0,9})"
    r"\$(?P<salt>[A-Za-z0-9+/]+)\$(?P<tag>[A-Za-z0-9+/]+))",
    re.ASCII,
)
# The last characters of the salt and the checksum contain unused bits, which libraries set to zero.
_BCRYPT = re.compile(
    r"(?:(?P<django>bcrypt|bcrypt_sha256)\$)?"
    r"(?P<hash>\$2[aby]\$(?P<cost>\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{30}[.CGKOSWaeimquy26])",
    re.ASCII,
)
_FLAGS = re.IGNORECASE | re.ASCII
_UNSUPPORTED = {
    "Django's mark for a user without a password": re.compile(r"!.*", _FLAGS),
    "a salted MD5 or SHA hash": re.compile(r"(?:md5|sha1|sha256|sha512)\$.*", _FLAGS),
    "an argon2 hash in an unknown form": re.compile(r"\$argon2.*|argon2.*", _FLAGS),
    "a bcrypt hash in an unknown form": re.compile(r"\$2[abxy]?\$.*|bcrypt.*", _FLAGS),
    "a PBKDF2 hash in an unknown form": re.compile(r"\$?pbkdf2.*", _FLAGS),
    "an scrypt hash in an unknown form": re.compile(r"\$?scrypt.*", _FLAGS),
    "a passlib bcrypt-sha256 hash": re.compile(r"\$bcrypt-sha256\$.*", _FLAGS),
    "a Firebase scrypt hash": re.compile(r"\$fbscrypt\$.*", _FLAGS),
    "an MD5-crypt hash": re.compile(r"\$1\$.*|\$apr1\$.*", _FLAGS),
    "a SHA-256-crypt hash": re.compile(r"\$5\$.*", _FLAGS),
    "a SHA-512-crypt hash": re.compile(r"\$6\$.*", _FLAGS),
    "a yescrypt hash": re.compile(r"\$y\$.*|\$7\$.*", _FLAGS),
    "a phpass hash (WordPress)": re.compile(r"\$[PH]\$.*", _FLAGS),
    "an LDAP hash": re.compile(r"\{[A-Z0-9-]+\}.*", _FLAGS),
    "a plain MD5 or SHA digest in hex": re.compile(r"[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64}|[0-9a-f]{128}", _FLAGS),
}
_SUPPORTED = "an argon2, bcrypt, PBKDF2 or scrypt hash in the format of Django, Werkzeug or passlib"


@attrs.frozen
class _HashFormat:
    """A kind of hash: how to recognize it, which ones to reject, and how to verify it."""

    match: Callable[[str], re.Match[str] | None]
    find_error: Callable[[re.Match[str]], str | None]
    verify: Callable[[bytes, re.Match[str]], bool]


def find_hash_error(text: object) -> str | None:
    """Return why a hash cannot be imported, or None if `verify_hash` supports it.

    The reason never contains the hash.
    """
    error = find_text_error(text, MAX_HASH_CHARS)
    if error is not None or not isinstance(text, str):
        return error
    for hash_format in _FORMATS:
        if (match := hash_format.match(text)) is not None:
            return hash_format.find_error(match)
    kind = next((kind for kind, pattern in _UNSUPPORTED.items() if pattern.fullmatch(text)), None)
    return f"is {kind}, which cannot be imported; it must be {_SUPPORTED}" if kind else f"must be {_SUPPORTED}"


def is_hash(text: str) -> bool:
    """Return whether a text has one of the supported formats, whatever its costs."""
    return "$" in text and len(text) <= MAX_HASH_CHARS and any(hash_format.match(text) for hash_format in _FORMATS)


def verify_hash(password: bytes, text: str) -> bool:
    """Return whether the password matches a hash for which `find_hash_error` returned None."""
    return any(
        hash_format.verify(password, match)
        for hash_format in _FORMATS
        if (match := hash_format.match(text)) is not None
    )


def _verify_argon2(password: bytes, match: re.Match[str]) -> bool:
    try:
        return verify_secret(match["phc"].encode(), password, _TYPES[match["type"]])
    except VerificationError:
        return False


def _verify_bcrypt(password: bytes, match: re.Match[str]) -> bool:
    import bcrypt  # noqa: PLC0415 - only needed for users with a bcrypt hash

    if match["django"] == "bcrypt_sha256":  # django.contrib.auth.hashers.BCryptSHA256PasswordHasher
        password = hashlib.sha256(password).hexdigest().encode()
    # The systems that made these hashes ignored everything after 72 bytes, even in the middle of a character. Do the
    # same, so that their users can log in: the library would raise an error. The first login then hashes the whole
    # password.
    truncated = password[:MAX_BCRYPT_PASSWORD_BYTES]
    # Reject NUL: some systems cut off the password there, and bcrypt cannot distinguish `a` from `a\0a`.
    return bcrypt.checkpw(truncated, match["hash"].encode()) and b"\0" not in password


def _find_bcrypt_error(match: re.Match[str]) -> str | None:
    if MIN_BCRYPT_COST <= int(match["cost"]) <= MAX_BCRYPT_COST:
        return None
    return f"must have a bcrypt cost of {MIN_BCRYPT_COST} to {MAX_BCRYPT_COST}"


def _find_argon2_error(match: re.Match[str]) -> str | None:
    memory, passes, lanes = int(match["memory"]), int(match["passes"]), int(match["lanes"])
    salt, tag = (decode_base64(match[name], is_padded=False) or b"" for name in ("salt", "tag"))
    limits = [
        (memory <= MAX_ARGON2_MEMORY_KIB, f"a memory (m) of at most {MAX_ARGON2_MEMORY_KIB} KiB"),
        (passes <= MAX_ARGON2_PASSES, f"a time (t) of at most {MAX_ARGON2_PASSES}"),
        (lanes <= MAX_ARGON2_LANES, f"a parallelism (p) of at most {MAX_ARGON2_LANES}"),
        (memory * passes <= MAX_ARGON2_WORK_KIB, f"memory times time (m x t) of at most {MAX_ARGON2_WORK_KIB} KiB"),
        (memory >= 8 * lanes, "a memory (m) of at least 8 KiB for each lane (p)"),  # RFC 9106, 3.1
        (len(salt) >= MIN_ARGON2_SALT_BYTES, f"a salt of at least {MIN_ARGON2_SALT_BYTES} bytes, in base64"),
        (len(tag) >= MIN_ARGON2_TAG_BYTES, f"a tag of at least {MIN_ARGON2_TAG_BYTES} bytes, in base64"),
    ]
    return find_limit_error("an argon2 hash", limits)


_FORMATS = (
    _HashFormat(_ARGON2.fullmatch, _find_argon2_error, _verify_argon2),
    _HashFormat(_BCRYPT.fullmatch, _find_bcrypt_error, _verify_bcrypt),
    _HashFormat(match_pbkdf2, find_pbkdf2_error, verify_pbkdf2),
    _HashFormat(match_scrypt, find_scrypt_error, verify_scrypt),
)
