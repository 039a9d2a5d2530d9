"""The two password ciphers, both on cryptography's Fernet and one list of keys: the first writes, all of them read.

A stored value is either ``<fernet token>``, the origin's, whose plaintext is password + salt, or
``<fernet token>|argon2id``, whose plaintext is an argon2id hash. The tag stands outside the token, so that no password
can pass for a hash. Both ciphers read both kinds.
"""

import hashlib
import hmac
import logging
from collections.abc import Sequence

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from mlapi.domain.model import EncryptedPassword

_HASHED = "|argon2id"
# Cost: OWASP Password Storage Cheat Sheet, argon2id with 19 MiB, two passes, one lane. Lengths of salt and hash in
# bytes: RFC 9106, 4.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, salt_len=16, hash_len=32)

_logger = logging.getLogger("mlapi")


class FernetCipher:
    """The origin's scheme to the letter, ``Fernet(password + salt)``: whoever holds the key reads every password.

    For databases that the origin still reads, and for hosts that cannot spend 20 ms and 19 MiB on a log-in.

    Args:
        keys: Fernet keys, 32 bytes in URL-safe base64 each; the first encrypts.
        salt: appended to every password.
    """

    is_costly = False

    def __init__(self, keys: Sequence[str], salt: str) -> None:
        self._secret = _Secret(keys, salt)

    def encrypt(self, password: str) -> EncryptedPassword:
        return EncryptedPassword(self._secret.seal(password + self._secret.salt))

    def matches(self, password: str, encrypted: EncryptedPassword) -> bool:
        token, hashed = _untagged(encrypted)
        plaintext = self._secret.open(token)
        if plaintext is None:
            return False
        return (
            _hash_matches(self._secret.peppered(password), plaintext)
            if hashed
            else self._secret.is_origins(plaintext, password)
        )

    def needs_upgrade(self, encrypted: EncryptedPassword) -> bool:
        """Whether an older key wrote it. A hash of the other cipher is never turned back into this scheme."""
        token, _ = _untagged(encrypted)
        return self._secret.is_of_older_key(token)


class HashingFernetCipher:
    """The default: the password is hashed with argon2id, and the hash encrypted. Nobody can read it back.

    A stolen database is useless without the key; with both there are only argon2id hashes. The salt enters as the key
    of an HMAC-SHA256, so that no length limit arises; every hash has its own random salt besides.

    Args:
        keys: Fernet keys, 32 bytes in URL-safe base64 each; the first encrypts.
        salt: a secret shared by all passwords (a pepper).
    """

    is_costly = True

    def __init__(self, keys: Sequence[str], salt: str) -> None:
        self._secret = _Secret(keys, salt)
        self._decoy = _HASHER.hash(self._secret.peppered("a value for when there is none to verify"))

    def encrypt(self, password: str) -> EncryptedPassword:
        return EncryptedPassword(self._secret.seal(_HASHER.hash(self._secret.peppered(password))) + _HASHED)

    def matches(self, password: str, encrypted: EncryptedPassword) -> bool:
        token, hashed = _untagged(encrypted)
        plaintext = self._secret.open(token)
        peppered = self._secret.peppered(password)
        if plaintext is not None and hashed:
            return _hash_matches(peppered, plaintext)
        # The cost of a hash all the same: whose value is old or damaged must not show in the time of an answer.
        _hash_matches(peppered, self._decoy)
        return plaintext is not None and self._secret.is_origins(plaintext, password)

    def needs_upgrade(self, encrypted: EncryptedPassword) -> bool:
        """Whether the origin's scheme, an older key or other argon2id parameters made it."""
        token, hashed = _untagged(encrypted)
        plaintext = self._secret.open(token)
        if plaintext is None:
            return False
        return not hashed or self._secret.is_of_older_key(token) or _HASHER.check_needs_rehash(plaintext)


def key_fingerprints(keys: Sequence[str], salt: str) -> list[str]:
    """What a database may keep to know its keys and salt by: a value in hex for each key, telling nothing of them."""
    message = b"mlapi key check\0" + salt.encode()
    return [hmac.digest(key.encode(), message, hashlib.sha256).hex() for key in keys]


class _Secret:
    """The keys and the salt that both ciphers share."""

    def __init__(self, keys: Sequence[str], salt: str) -> None:
        fernets = [Fernet(key) for key in keys]
        self._newest = fernets[0]
        self._fernet = MultiFernet(fernets)
        self.salt = salt

    def seal(self, plaintext: str) -> str:
        return self._fernet.encrypt(plaintext.encode()).decode("ascii")

    def open(self, token: str) -> str | None:
        """Return the plaintext, or None and one log line if no key opens it."""
        try:
            return self._fernet.decrypt(token.encode()).decode()
        except (InvalidToken, ValueError):  # ValueError: characters or bytes that no key of ours has written
            _logger.warning("a stored password cannot be read: wrong key or damaged value; it matches nothing")
            return None

    def is_of_older_key(self, token: str) -> bool:
        if self.open(token) is None:
            return False
        try:
            self._newest.decrypt(token.encode())
        except InvalidToken:
            return True
        return False

    def is_origins(self, plaintext: str, password: str) -> bool:
        return hmac.compare_digest(plaintext.encode(), _encoded(password) + self.salt.encode())

    def peppered(self, password: str) -> bytes:
        return hmac.digest(self.salt.encode(), _encoded(password), hashlib.sha256)


def _encoded(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")  # a lone surrogate is no password, but asking is no error


def _untagged(encrypted: EncryptedPassword) -> tuple[str, bool]:
    token = encrypted.value.removesuffix(_HASHED)
    return token, token != encrypted.value


def _hash_matches(peppered: bytes, hashed: str) -> bool:
    try:
        return _HASHER.verify(hashed, peppered)
    except (VerificationError, InvalidHashError):
        return False
