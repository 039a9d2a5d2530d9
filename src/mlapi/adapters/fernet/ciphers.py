"""Two password ciphers that use a list of Fernet keys: they encrypt with the first key and decrypt with any of them.

Both ciphers read all three kinds of stored passwords:

- ``<fernet token>``: written by the legacy app; the plaintext is the password followed by the salt;
- ``<fernet token>|argon2id``: the plaintext is a salt id and an argon2id hash;
- ``<fernet token>|foreign``: the plaintext is a hash that another system made without our salt.

The tag is outside the token, so a password cannot be mistaken for a hash.
"""

import base64
import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Sequence
from functools import cached_property

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import ARGON2_VERSION
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from mlapi.adapters.fernet.imported_hashes import find_hash_error, is_hash, verify_hash
from mlapi.domain.errors import InvalidFieldsError
from mlapi.domain.users import EncryptedPassword

_ARGON2ID, _IMPORTED = "|argon2id", "|foreign"
# The costs follow the OWASP Password Storage Cheat Sheet: argon2id with 19 MiB, two passes and one lane. The lengths
# are in bytes and follow RFC 9106, section 4.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, salt_len=16, hash_len=32)
_DECOY = "stands in for a missing password"

_FERNET_TOKEN = re.compile(r"gAAAA[A-Za-z0-9_-]{90}")
"""The beginning of every token until the year 2106: the version, the high bits of the time, and at least 90 more
characters (Fernet specification, "Token Format")."""

_logger = logging.getLogger("mlapi")


class _KeyedCipher:
    """The operations that both ciphers share."""

    def __init__(self, keys: Sequence[str], *salts: str) -> None:
        self._keys = _KeyRing(keys, salts)

    def reencrypt(self, encrypted: EncryptedPassword) -> EncryptedPassword | None:
        return self._keys.reencrypt(encrypted)

    def is_readable(self, encrypted: EncryptedPassword) -> bool:
        """Return whether the value can be decrypted with one of the keys."""
        return self._keys.decrypt(_split_tag(encrypted)[0]) is not None

    def needs_older_salt(self, encrypted: EncryptedPassword) -> bool:
        """Return whether the value was made with a salt other than the first."""
        return self._keys.needs_older_salt(encrypted)

    def find_stored_error(self, value: object) -> str | None:
        """Return why `import_stored` would reject a stored password, or None."""
        return self._keys.find_stored_error(value)

    def import_hash(self, text: object) -> EncryptedPassword:
        """Return the value to store for another system's password hash.

        Raises:
            InvalidFieldsError: for ``password_hash``, if the hash is unsupported or too costly to verify.
        """
        InvalidFieldsError.raise_for([("password_hash", find_hash_error(text))])
        return EncryptedPassword(self._keys.encrypt(str(text)) + _IMPORTED)

    def find_column(self, text: str) -> str | None:
        """Return the import column in which a hashed or encrypted text belongs; None if the text may be a password."""
        if is_hash(text):
            return "password_hash"
        return "stored_password" if _FERNET_TOKEN.match(text) else None

    def import_stored(self, value: object) -> EncryptedPassword:
        """Return a password stored by the legacy app or mlapi, re-encrypted with the newest key if necessary.

        Raises:
            InvalidFieldsError: for ``stored_password``, if the value was made with other keys or salts, or is damaged.
        """
        InvalidFieldsError.raise_for([("stored_password", self._keys.find_stored_error(value))])
        encrypted = EncryptedPassword(str(value))
        # `mlapi secrets prune` relies on every new value being encrypted with the newest key.
        return self.reencrypt(encrypted) or encrypted


class FernetCipher(_KeyedCipher):
    """The legacy app's scheme, ``Fernet(password + salt)``. It is reversible: the key decrypts every password.

    Use it for a database that the legacy app still reads, or on hosts that cannot spend 20 ms and 19 MiB on a login.

    Args:
        keys: Fernet keys, each 32 bytes in URL-safe base64. New passwords are encrypted with the first.
        salts: new passwords use the first; stored passwords may use any of them.
    """

    def __init__(self, keys: Sequence[str], *salts: str) -> None:
        super().__init__(keys, *salts)
        self._has_verified_hash = False

    @property
    def is_costly(self) -> bool:
        """True after the first stored hash has been verified. Verifying a hash takes 20 ms to a second."""
        return self._has_verified_hash

    def encrypt(self, password: str) -> EncryptedPassword:
        return EncryptedPassword(self._keys.encrypt(password + self._keys.salts[0]))

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        token, tag = _split_tag(self._decoy if encrypted is None else encrypted)
        plaintext = self._keys.decrypt(token)
        if plaintext is None:
            return False
        if tag:
            self._has_verified_hash = True
        return self._keys.verify(password, plaintext, tag) and encrypted is not None

    def needs_upgrade(self, encrypted: EncryptedPassword) -> bool:
        """Return whether the value uses an older key or salt.

        Hashes with an older salt are kept, because hashes are safer.
        """
        token, tag = _split_tag(encrypted)
        plaintext = self._keys.decrypt(token)
        if plaintext is None:
            return False
        return self._keys.has_older_key(token) or not (tag or plaintext.endswith(self._keys.salts[0]))

    @cached_property
    def _decoy(self) -> EncryptedPassword:
        return self.encrypt(_DECOY)


class HashingFernetCipher(_KeyedCipher):
    """The default scheme: hash the password with argon2id and encrypt the hash. The password cannot be recovered.

    A stolen database is useless without the key; together with the key, it yields only argon2id hashes. The password
    first goes through HMAC-SHA256, keyed with the salt, so its length is not limited. Each hash also has a random salt.

    Args:
        keys: Fernet keys, each 32 bytes in URL-safe base64. New passwords are encrypted with the first.
        salts: secrets shared by all passwords (peppers). New passwords use the first; stored passwords may use any.
    """

    is_costly = True

    def __init__(self, keys: Sequence[str], *salts: str) -> None:
        super().__init__(keys, *salts)
        self._decoy_hash = self._keys.make_decoy_hash()
        self._decoy = self._encrypt_hash(self._decoy_hash)

    def encrypt(self, password: str) -> EncryptedPassword:
        return self._encrypt_hash(self._keys.hash(password))

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        token, tag = _split_tag(self._decoy if encrypted is None else encrypted)
        plaintext = self._keys.decrypt(token)
        if plaintext is not None and tag == _ARGON2ID:
            return self._keys.verify_argon2id(password, plaintext) and encrypted is not None
        # Always verify one argon2id hash, so that response times do not reveal old or damaged values. Verifying an
        # imported hash takes additional time, the same for right and wrong passwords.
        self._keys.verify_argon2id(password, self._decoy_hash)
        return plaintext is not None and self._keys.verify(password, plaintext, tag)

    def needs_upgrade(self, encrypted: EncryptedPassword) -> bool:
        """Return whether the value uses a different scheme, an older key or salt, or different argon2id parameters."""
        token, tag = _split_tag(encrypted)
        plaintext = self._keys.decrypt(token)
        if plaintext is None:
            return False
        return tag != _ARGON2ID or self._keys.has_older_key(token) or self._keys.needs_rehash(plaintext)

    def _encrypt_hash(self, hashed: str) -> EncryptedPassword:
        return EncryptedPassword(self._keys.encrypt(hashed) + _ARGON2ID)


class _KeyRing:
    """The keys and salts, newest first."""

    def __init__(self, keys: Sequence[str], salts: Sequence[str]) -> None:
        fernets = [Fernet(key) for key in keys]
        self._newest = fernets[0]
        self._has_only_one = len(fernets) == 1
        self._fernet = MultiFernet(fernets)
        self.salts = salts
        self._salt_by_id = {_salt_id(salt): salt for salt in salts}
        self._salt_by_id[""] = salts[-1]  # the oldest hashes have no salt id, because only one salt existed then

    def encrypt(self, plaintext: str) -> str:
        return self._newest.encrypt(plaintext.encode()).decode("ascii")

    def decrypt(self, token: str) -> str | None:
        """Return the plaintext; log a warning and return None if no key decrypts the token."""
        plaintext = self._try_decrypt(token)
        if plaintext is None:
            _logger.warning("cannot decrypt a stored password: wrong key or damaged value; it matches no password")
        return plaintext

    def _try_decrypt(self, token: str) -> str | None:
        try:
            return self._fernet.decrypt(token.encode()).decode()
        except (InvalidToken, ValueError):  # ValueError: the token is not ASCII, or the plaintext is not UTF-8
            return None

    def find_stored_error(self, value: object) -> str | None:
        """Return why a stored password cannot be imported, or None."""
        if not isinstance(value, str):
            return "must be a string"
        token, tag = _split_tag(EncryptedPassword(value))
        plaintext = self._try_decrypt(token)
        if plaintext is None:
            return "cannot be decrypted with secrets.key: it was made with a different key, or is damaged"
        if tag == _IMPORTED:
            return find_hash_error(plaintext)
        has_known_salt = (
            plaintext.partition("$")[0] in self._salt_by_id
            if tag == _ARGON2ID
            else any(plaintext.endswith(salt) for salt in self.salts)
        )
        return None if has_known_salt else "was made with a salt that is not in secrets.salt"

    def reencrypt(self, encrypted: EncryptedPassword) -> EncryptedPassword | None:
        token, _ = _split_tag(encrypted)
        if not self.has_older_key(token):
            return None
        return EncryptedPassword(
            self._fernet.rotate(token.encode()).decode("ascii") + encrypted.value.removeprefix(token)
        )

    def needs_older_salt(self, encrypted: EncryptedPassword) -> bool:
        token, tag = _split_tag(encrypted)
        plaintext = self.decrypt(token)
        if plaintext is None or tag == _IMPORTED:
            return False
        newest = self.salts[0]
        if tag == _ARGON2ID:
            return self._salt_by_id.get(plaintext.partition("$")[0]) != newest
        return not plaintext.endswith(newest)

    def has_older_key(self, token: str) -> bool:
        """Return whether an older key decrypts the token, but the newest does not."""
        if self._has_only_one:
            return False
        try:
            self._newest.decrypt(token.encode())
        except (InvalidToken, ValueError):  # ValueError: the token is not ASCII
            return self.decrypt(token) is not None
        return False

    def verify(self, password: str, plaintext: str, tag: str) -> bool:
        """Return whether the password matches a decrypted value with this tag."""
        if tag == _ARGON2ID:
            return self.verify_argon2id(password, plaintext)
        if tag != _IMPORTED:
            return self._verify_legacy(password, plaintext)
        if find_hash_error(plaintext) is not None:
            _logger.warning("a stored password contains an unsupported hash; it matches no password")
            return False
        return verify_hash(_encode(password), plaintext)

    def _verify_legacy(self, password: str, plaintext: str) -> bool:
        expected, given = plaintext.encode(), _encode(password)
        # Compare with every salt: the response time must not reveal which salt matches.
        return any([hmac.compare_digest(expected, given + salt.encode()) for salt in self.salts])  # noqa: C419

    def hash(self, password: str) -> str:
        salt = self.salts[0]
        return _salt_id(salt) + _HASHER.hash(_apply_pepper(password, salt))

    def make_decoy_hash(self) -> str:
        """Return a hash that no password matches. It takes as long to verify as other hashes, but no time to make."""
        salt, digest = (
            base64.b64encode(secrets.token_bytes(count)).decode().rstrip("=")
            for count in (_HASHER.salt_len, _HASHER.hash_len)
        )
        cost = f"m={_HASHER.memory_cost},t={_HASHER.time_cost},p={_HASHER.parallelism}"
        return f"{_salt_id(self.salts[0])}$argon2id$v={ARGON2_VERSION}${cost}${salt}${digest}"

    def verify_argon2id(self, password: str, hashed: str) -> bool:
        salt_id, separator, argon2_hash = hashed.partition("$")
        if (salt := self._salt_by_id.get(salt_id)) is None:
            _logger.warning("a stored password needs a salt that is not in secrets.salt; it matches no password")
            salt = self.salts[0]  # verify anyway, to take the same time
        try:
            return _HASHER.verify(separator + argon2_hash, _apply_pepper(password, salt))
        except (VerificationError, InvalidHashError):
            return False

    def needs_rehash(self, hashed: str) -> bool:
        salt_id, separator, argon2_hash = hashed.partition("$")
        return salt_id != _salt_id(self.salts[0]) or _HASHER.check_needs_rehash(separator + argon2_hash)


def _encode(password: str) -> bytes:
    # A password with a lone surrogate matches nothing, but it must not raise an error.
    return password.encode("utf-8", "surrogatepass")


def _split_tag(encrypted: EncryptedPassword) -> tuple[str, str]:
    """Return the Fernet token and the tag of a stored value. The tag is empty if the legacy app wrote the value."""
    for tag in (_ARGON2ID, _IMPORTED):
        if encrypted.value.endswith(tag):
            return encrypted.value.removesuffix(tag), tag
    return encrypted.value, ""


def _apply_pepper(password: str, salt: str) -> bytes:
    return hmac.digest(salt.encode(), _encode(password), hashlib.sha256)


def _salt_id(salt: str) -> str:
    return hashlib.sha256(b"mlapi salt id\0" + salt.encode()).hexdigest()[:8]
