"""PBKDF2 and scrypt hashes in the formats of Django, Werkzeug and passlib.

Each format writes the same values in a different order and encoding:

- Django: ``pbkdf2_sha256$<iterations>$<salt>$<tag>`` and ``scrypt$<n>$<salt>$<r>$<p>$<tag>``, with the tag in base64;
- Werkzeug: ``pbkdf2:sha256:<iterations>$<salt>$<tag>`` and ``scrypt:<n>:<r>:<p>$<salt>$<tag>``, with the tag in hex;
- passlib: ``$pbkdf2-sha256$<iterations>$<salt>$<tag>`` and ``$scrypt$ln=<log2 n>,r=<r>,p=<p>$<salt>$<tag>``, with salt
  and tag in unpadded base64.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence

MAX_PBKDF2_ITERATIONS = 4_000_000
"""Four million iterations of SHA-256 take about a second on one core."""
MAX_SCRYPT_MEMORY_BYTES = 256 * 1024 * 1024
MAX_SCRYPT_WORK = 2**21
"""The maximum product of n, r and p: eight times Werkzeug's default, which takes 0.1 seconds."""
_MAX_DIGITS = 10
_MAX_LOG2_N = 40
MIN_TAG_BYTES, MAX_SCRYPT_TAG_BYTES = 16, 64

_PBKDF2 = (
    re.compile(r"pbkdf2_(?P<digest>sha1|sha256)\$(?P<iterations>\d+)\$(?P<salt>[^$]+)\$(?P<base64>[^$]+)", re.ASCII),
    re.compile(
        r"pbkdf2:(?P<digest>sha1|sha224|sha256|sha384|sha512):(?P<iterations>\d+)\$(?P<salt>[^$]+)\$(?P<hex>[^$]+)",
        re.ASCII,
    ),
    re.compile(
        r"\$pbkdf2(?:-(?P<digest>sha256|sha512))?\$(?P<iterations>\d+)\$(?P<salt64>[^$]*)\$(?P<base64>[^$]+)", re.ASCII
    ),
)
_SCRYPT = (
    re.compile(r"scrypt\$(?P<n>\d+)\$(?P<salt>[^$]+)\$(?P<r>\d+)\$(?P<p>\d+)\$(?P<base64>[^$]+)", re.ASCII),
    re.compile(r"scrypt:(?P<n>\d+):(?P<r>\d+):(?P<p>\d+)\$(?P<salt>[^$]+)\$(?P<hex>[^$]+)", re.ASCII),
    re.compile(r"\$scrypt\$ln=(?P<ln>\d+),r=(?P<r>\d+),p=(?P<p>\d+)\$(?P<salt64>[^$]*)\$(?P<base64>[^$]+)", re.ASCII),
)

Match = re.Match[str]


def find_limit_error(kind: str, limits: Sequence[tuple[bool, str]]) -> str | None:
    """Return the first limit that a hash does not meet, or None.

    Args:
        kind: the kind of hash, for the message.
        limits: whether each limit is met, and its description.
    """
    return next((f"must be {kind} with {limit}" for is_met, limit in limits if not is_met), None)


def match_pbkdf2(text: str) -> Match | None:
    """Return the parts of a PBKDF2 hash, or None for any other text."""
    return next(filter(None, (pattern.fullmatch(text) for pattern in _PBKDF2)), None)


def find_pbkdf2_error(match: Match) -> str | None:
    """Return why a PBKDF2 hash cannot be verified, or None."""
    digest_bytes = hashlib.new(_digest(match)).digest_size
    limits = [
        (0 < _number(match["iterations"]) <= MAX_PBKDF2_ITERATIONS, f"1 to {MAX_PBKDF2_ITERATIONS} iterations"),
        (_salt(match) is not None, "a salt in base64"),
        (
            MIN_TAG_BYTES <= len(_tag(match)) <= digest_bytes,
            f"a tag of {MIN_TAG_BYTES} to {digest_bytes} bytes, in {_encoding(match)}",
        ),
    ]
    return find_limit_error("a PBKDF2 hash", limits)


def verify_pbkdf2(password: bytes, match: Match) -> bool:
    """Return whether the password matches a hash for which `find_pbkdf2_error` returned None."""
    tag = _tag(match)
    key = hashlib.pbkdf2_hmac(_digest(match), password, _salt(match) or b"", int(match["iterations"]), len(tag))
    return hmac.compare_digest(key, tag)


def match_scrypt(text: str) -> Match | None:
    """Return the parts of an scrypt hash, or None for any other text."""
    return next(filter(None, (pattern.fullmatch(text) for pattern in _SCRYPT)), None)


def find_scrypt_error(match: Match) -> str | None:
    """Return why an scrypt hash cannot be verified, or None."""
    n, r, p = _scrypt_costs(match)
    limits = [
        (n > 1 and n & (n - 1) == 0, "a work factor (n) that is a power of 2"),  # RFC 7914, section 2
        (r > 0 and p > 0, "a block size (r) and a parallelism (p) of at least 1"),
        (n.bit_length() <= 16 * r, "a work factor (n) below 2^(16 x r)"),  # as above; hashlib raises an error
        (128 * n * r <= MAX_SCRYPT_MEMORY_BYTES, f"a memory (128 x n x r) of at most {MAX_SCRYPT_MEMORY_BYTES} bytes"),
        (n * r * p <= MAX_SCRYPT_WORK, f"costs (n x r x p) of at most {MAX_SCRYPT_WORK}"),
        (_salt(match) is not None, "a salt in base64"),
        (
            MIN_TAG_BYTES <= len(_tag(match)) <= MAX_SCRYPT_TAG_BYTES,
            f"a tag of {MIN_TAG_BYTES} to {MAX_SCRYPT_TAG_BYTES} bytes, in {_encoding(match)}",
        ),
    ]
    return find_limit_error("an scrypt hash", limits)


def verify_scrypt(password: bytes, match: Match) -> bool:
    """Return whether the password matches a hash for which `find_scrypt_error` returned None."""
    n, r, p = _scrypt_costs(match)
    tag = _tag(match)
    max_bytes = 128 * r * (n + p + 2)  # slightly more than OpenSSL allocates
    key = hashlib.scrypt(password, salt=_salt(match) or b"", n=n, r=r, p=p, maxmem=2 * max_bytes, dklen=len(tag))
    return hmac.compare_digest(key, tag)


def _digest(match: Match) -> str:
    return match["digest"] or "sha1"  # passlib leaves it out for SHA-1


def _scrypt_costs(match: Match) -> tuple[int, int, int]:
    groups = match.groupdict()
    log2_n = _number(groups.get("ln") or "0")
    n = _number(groups["n"]) if "n" in groups else 2 ** min(log2_n, _MAX_LOG2_N)
    return n, _number(match["r"]), _number(match["p"])


def _number(digits: str) -> int:
    """Return a number, or 0 if it is too long or has leading zeros."""
    return int(digits) if len(digits) <= _MAX_DIGITS and not digits.startswith("0") else 0


def _encoding(match: Match) -> str:
    return "hex" if "hex" in match.groupdict() else "base64"


def _tag(match: Match) -> bytes:
    """Return the derived key. Return empty bytes unless an encoder would write exactly this text."""
    groups = match.groupdict()
    if "hex" not in groups:
        return decode_base64(groups["base64"], is_padded="salt64" not in groups) or b""
    try:
        tag = bytes.fromhex(groups["hex"])
    except ValueError:
        return b""
    return tag if tag.hex() == groups["hex"] else b""


def _salt(match: Match) -> bytes | None:
    groups = match.groupdict()
    if "salt64" in groups:
        return decode_base64(groups["salt64"], is_padded=False)
    salt: str = groups["salt"]
    return salt.encode()


def decode_base64(text: str, *, is_padded: bool) -> bytes | None:
    """Decode base64, in which passlib writes "." for "+". Return None unless an encoder would write the text."""
    standard = text if is_padded else text.replace(".", "+") + "=" * (-len(text) % 4)
    try:
        decoded = base64.b64decode(standard, validate=True)
    except (binascii.Error, ValueError):
        return None
    return decoded if base64.b64encode(decoded).decode("ascii") == standard else None
