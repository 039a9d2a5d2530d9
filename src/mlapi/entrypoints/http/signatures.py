"""Sign values that browsers keep, and read them back."""

import hashlib
import hmac
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec
from itsdangerous import BadData, TimestampSigner
from itsdangerous.encoding import base64_decode, base64_encode

MAX_COOKIE_CHARS = 4096
"""The pages never set a longer cookie, because browsers store at most 4096 bytes (RFC 6265, 6.1)."""
_CLOCK_SKEW_SECONDS = 60  # another machine's clock may be ahead by this much

T = TypeVar("T")


class SignedValue(Generic[T]):
    """Signs values of one type, and reads them back: base64 of JSON, timestamp and signature, separated by dots.

    itsdangerous's own serializers would also decompress a value to any size, and return an object of any type.
    """

    def __init__(self, kind: object, key: bytes, salt: bytes, clock: Callable[[], float]) -> None:
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)
        self._signer = _StrictSigner(key, salt, clock)
        self._clock = clock

    def dump(self, value: T) -> str:
        return self._signer.sign(base64_encode(msgspec.json.encode(value))).decode("ascii")

    def load(self, cookie: str, max_age_seconds: int) -> tuple[T, int] | None:
        """Return the value and when it was signed, or None if the cookie is invalid or has expired."""
        if len(cookie) > MAX_COOKIE_CHARS:
            return None
        try:
            content, signed_at = self._signer.unsign(cookie, return_timestamp=True)
            value = self._decoder.decode(base64_decode(content))
        except (BadData, msgspec.DecodeError, ValueError, OverflowError, OSError):  # the last two: an impossible time
            return None
        timestamp = int(signed_at.timestamp())
        return (value, timestamp) if is_current(timestamp, self._clock(), max_age_seconds) else None


def is_current(timestamp: int, now: float, max_age_seconds: int) -> bool:
    """Check the age of a timestamp. itsdangerous's own ``max_age`` does not tolerate clock skew."""
    return -_CLOCK_SKEW_SECONDS <= now - timestamp < max_age_seconds


class _StrictSigner(TimestampSigner):
    """A `TimestampSigner` with a replaceable clock, which accepts only one encoding of each signature."""

    def __init__(self, secret_key: bytes, salt: bytes, clock: Callable[[], float]) -> None:
        super().__init__(secret_key, salt=salt, key_derivation="hmac", digest_method=hashlib.sha256)
        self._clock = clock

    def get_timestamp(self) -> int:
        return int(self._clock())

    def verify_signature(self, value: str | bytes, sig: str | bytes) -> bool:
        """Compare signatures before decoding: base64 decoding ignores unknown characters and unused trailing bits."""
        given = sig if isinstance(sig, bytes) else sig.encode("utf-8")
        return hmac.compare_digest(self.get_signature(value), given)
