"""Two password ciphers that share one list of Fernet keys. The first key encrypts, all of them decrypt.

Both ciphers read all three kinds of stored values:

- ``<fernet token>``: made by the legacy app; the plaintext is password + salt;
- ``<fernet token>|argon2id``: the plaintext is a salt id and an argon2id hash;
- ``<fernet token>|foreign``: the plaintext is a hash that another system made without our salt.

The tag is outside the token, so that a password cannot be mistaken for a hash.
"""

import hashlib
import hmac
import logging
from collections.abc import Sequence
from functools import cached_property

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from mlapi.adapters.fernet.imported_hashes import find_hash_error, verify_hash
from mlapi.domain.errors import InvalidFieldsError
from mlapi.domain.users import EncryptedPassword

_ARGON2ID, _IMPORTED = "|argon2id", "|foreign"
# Cost: OWASP Password Storage Cheat Sheet, argon2id with 19 MiB, two passes, one lane. Lengths of salt and hash in
# bytes: RFC 9106, 4.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, salt_len=16, hash_len=32)
_DECOY = "stands in for a missing password"

_logger = logging.getLogger("mlapi")


class _KeyedCipher:
    """The operations that do not depend on the scheme of new passwords."""

    def __init__(self, keys: Sequence[str], *salts: str) -> None:
        self._keys = _KeyRing(keys, salts)

    def reencrypt(self, encrypted: EncryptedPassword) -> EncryptedPassword | None:
        return self._keys.reencrypt(encrypted)

    def is_readable(self, encrypted: EncryptedPassword) -> bool:
        """Return whether one of the keys decrypts it."""
        return self._keys.decrypt(_split_tag(encrypted)[0]) is not None

    def needs_older_salt(self, encrypted: EncryptedPassword) -> bool:
        """Return whether it was made with a salt other than the first."""
        return self._keys.needs_older_salt(encrypted)

    def find_stored_error(self, value: object) -> str | None:
        """Return why `import_stored` would reject a stored password, or None."""
        return self._keys.find_stored_error(value)

    def import_hash(self, text: object) -> EncryptedPassword:
        """Return the value to store for an argon2 or bcrypt hash that another system made.

        Raises:
            InvalidFieldsError: for ``password_hash``, if the hash is not supported or too costly to verify.
        """
        InvalidFieldsError.raise_for([("password_hash", find_hash_error(text))])
        return EncryptedPassword(self._keys.encrypt(str(text)) + _IMPORTED)

    def import_stored(self, value: object) -> EncryptedPassword:
        """Return a stored password of the legacy app or of mlapi, encrypted with the newest key.

        Raises:
            InvalidFieldsError: for ``stored_password``, if it was made with other keys or salts, or is damaged.
        """
        InvalidFieldsError.raise_for([("stored_password", self._keys.find_stored_error(value))])
        encrypted = EncryptedPassword(str(value))
        # `mlapi keys prune` relies on every new value being under the newest key.
        return self.reencrypt(encrypted) or encrypted


class FernetCipher(_KeyedCipher):
    """The scheme of the legacy app, ``Fernet(password + salt)``. The key can decrypt every password.

    For databases that the legacy app still reads, and for hosts that cannot spend 20 ms and 19 MiB on a log-in.

    Args:
        keys: Fernet keys, each 32 bytes in URL-safe base64. The first encrypts.
        salts: the first is appended to new passwords, all are accepted.
    """

    def __init__(self, keys: Sequence[str], *salts: str) -> None:
        super().__init__(keys, *salts)
        self._has_verified_hash = False

    @property
    def is_costly(self) -> bool:
        """True once a stored hash has been verified, which takes 20 ms to a second."""
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
        """Return whether it has an older key or salt. Hashes are kept: they are safer than a reversible value."""
        token, tag = _split_tag(encrypted)
        plaintext = self._keys.decrypt(token)
        if plaintext is None:
            return False
        return self._keys.has_older_key(token) or not (tag or plaintext.endswith(self._keys.salts[0]))

    @cached_property
    def _decoy(self) -> EncryptedPassword:
        return self.encrypt(_DECOY)


class HashingFernetCipher(_KeyedCipher):
    """The default scheme: hash the password with argon2id and encrypt the hash, so it cannot be decrypted.

    A stolen database is useless without the key; together with the key, it yields only argon2id hashes. Passwords go
    through HMAC-SHA256 with the salt as its key first, so that there is no length limit. Every hash also has a random
    salt of its own.

    Args:
        keys: Fernet keys, each 32 bytes in URL-safe base64. The first encrypts.
        salts: secrets shared by all passwords (peppers). The first is used for new passwords, all are accepted.
    """

    is_costly = True

    def __init__(self, keys: Sequence[str], *salts: str) -> None:
        super().__init__(keys, *salts)
        self._decoy = self.encrypt(_DECOY)
        self._decoy_hash = self._keys.hash(_DECOY)

    def encrypt(self, password: str) -> EncryptedPassword:
        return EncryptedPassword(self._keys.encrypt(self._keys.hash(password)) + _ARGON2ID)

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        token, tag = _split_tag(self._decoy if encrypted is None else encrypted)
        plaintext = self._keys.decrypt(token)
        if plaintext is not None and tag == _ARGON2ID:
            return self._keys.verify_argon2id(password, plaintext) and encrypted is not None
        # Spend the time of one hash, so that response times do not reveal old or damaged values. An imported hash
        # takes its own time in addition, for right and wrong passwords alike.
        self._keys.verify_argon2id(password, self._decoy_hash)
        return plaintext is not None and self._keys.verify(password, plaintext, tag)

    def needs_upgrade(self, encrypted: EncryptedPassword) -> bool:
        """Return whether it has another scheme, an older key or salt, or other argon2id parameters."""
        token, tag = _split_tag(encrypted)
        plaintext = self._keys.decrypt(token)
        if plaintext is None:
            return False
        return tag != _ARGON2ID or self._keys.has_older_key(token) or self._keys.needs_rehash(plaintext)


class _KeyRing:
    """The keys and salts, newest first."""

    def __init__(self, keys: Sequence[str], salts: Sequence[str]) -> None:
        fernets = [Fernet(key) for key in keys]
        self._newest = fernets[0]
        self._fernet = MultiFernet(fernets)
        self.salts = salts
        self._salt_by_id = {_salt_id(salt): salt for salt in salts}
        self._salt_by_id[""] = salts[-1]  # early hashes have no salt id; there was only one salt then

    def encrypt(self, plaintext: str) -> str:
        return self._fernet.encrypt(plaintext.encode()).decode("ascii")

    def decrypt(self, token: str) -> str | None:
        """Return the plaintext; log a warning and return None if no key decrypts the token."""
        plaintext = self._try_decrypt(token)
        if plaintext is None:
            _logger.warning("cannot decrypt a stored password: wrong key or damaged value; it matches no password")
        return plaintext

    def _try_decrypt(self, token: str) -> str | None:
        try:
            return self._fernet.decrypt(token.encode()).decode()
        except (InvalidToken, ValueError):  # ValueError: not ASCII, or the plaintext is not UTF-8
            return None

    def find_stored_error(self, value: object) -> str | None:
        """Return why a stored password cannot be imported, or None."""
        if not isinstance(value, str):
            return "must be a string"
        token, tag = _split_tag(EncryptedPassword(value))
        plaintext = self._try_decrypt(token)
        if plaintext is None:
            return "cannot be decrypted with secrets.key: it was made with another key, or is damaged"
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
        if self.decrypt(token) is None:
            return False
        try:
            self._newest.decrypt(token.encode())
        except InvalidToken:
            return True
        return False

    def verify(self, password: str, plaintext: str, tag: str) -> bool:
        """Return whether a decrypted value with this tag was made from the password."""
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

    def verify_argon2id(self, password: str, hashed: str) -> bool:
        salt_id, separator, argon2_hash = hashed.partition("$")
        if (salt := self._salt_by_id.get(salt_id)) is None:
            _logger.warning("a stored password needs a salt that is not in secrets.salt; it matches no password")
            salt = self.salts[0]  # spend the time of a hash in any case
        try:
            return _HASHER.verify(separator + argon2_hash, _apply_pepper(password, salt))
        except (VerificationError, InvalidHashError):
            return False

    def needs_rehash(self, hashed: str) -> bool:
        salt_id, separator, argon2_hash = hashed.partition("$")
        return salt_id != _salt_id(self.salts[0]) or _HASHER.check_needs_rehash(separator + argon2_hash)


def _encode(password: str) -> bytes:
    # A password with a lone surrogate matches nothing, but must not raise either.
    return password.encode("utf-8", "surrogatepass")


def _split_tag(encrypted: EncryptedPassword) -> tuple[str, str]:
    """Return the Fernet token and the tag of a stored value. Values of the legacy app have an empty tag."""
    for tag in (_ARGON2ID, _IMPORTED):
        if encrypted.value.endswith(tag):
            return encrypted.value.removesuffix(tag), tag
    return encrypted.value, ""


def _apply_pepper(password: str, salt: str) -> bytes:
    return hmac.digest(salt.encode(), _encode(password), hashlib.sha256)


def _salt_id(salt: str) -> str:
    return hashlib.sha256(b"mlapi salt id\0" + salt.encode()).hexdigest()[:8]
