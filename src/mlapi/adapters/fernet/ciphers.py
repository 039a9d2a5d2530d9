"""The two password ciphers, both on cryptography's Fernet and one list of keys: the first writes, all of them read.

A stored value is one of three, and both ciphers read them all:

- ``<fernet token>``, the origin's, whose plaintext is password + salt;
- ``<fernet token>|argon2id``, whose plaintext is an argon2id hash, with the id of the salt before it;
- ``<fernet token>|foreign``, whose plaintext is a hash that another system has made without our salt.

The tag stands outside the token, so that no password can pass for a hash.
"""

import hashlib
import hmac
import logging
from collections.abc import Sequence
from functools import cached_property

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from mlapi.adapters.fernet import foreign
from mlapi.domain.errors import InvalidFieldsError
from mlapi.domain.users import EncryptedPassword

_HASHED, _FOREIGN = "|argon2id", "|foreign"
# Cost: OWASP Password Storage Cheat Sheet, argon2id with 19 MiB, two passes, one lane. Lengths of salt and hash in
# bytes: RFC 9106, 4.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, salt_len=16, hash_len=32)

_logger = logging.getLogger("mlapi")


class _OfKeysAndSalts:
    """What both ciphers do with the keys and salts, whatever was made with them."""

    def __init__(self, keys: Sequence[str], *salts: str) -> None:
        self._secret = _Secret(keys, salts)

    def reencrypt(self, encrypted: EncryptedPassword) -> EncryptedPassword | None:
        return self._secret.reencrypt(encrypted)

    def is_readable(self, encrypted: EncryptedPassword) -> bool:
        """Whether one of the keys opens it."""
        return self._secret.open(_untagged(encrypted)[0]) is not None

    def needs_older_salt(self, encrypted: EncryptedPassword) -> bool:
        """Whether only a salt after the first makes it known again."""
        return self._secret.needs_older_salt(encrypted)

    def adopted_hash(self, text: object) -> EncryptedPassword:
        """Return what to store for a hash that another system has made: argon2 or bcrypt, without our salt.

        Raises:
            InvalidFieldsError: for the field ``password_hash``, if it is neither, or too costly to check at a log-in.
        """
        InvalidFieldsError.raise_for([("password_hash", foreign.find_hash_error(text))])
        return EncryptedPassword(self._secret.seal(str(text)) + _FOREIGN)

    def adopted_value(self, value: object) -> EncryptedPassword:
        """Return a stored password that the origin or mlapi has made with these keys and salts, under the newest key.

        Raises:
            InvalidFieldsError: for the field ``stored_password``, if it was made with others, or is damaged.
        """
        InvalidFieldsError.raise_for([("stored_password", self._secret.find_value_error(value))])
        encrypted = EncryptedPassword(str(value))
        return self.reencrypt(encrypted) or encrypted  # nothing looks again whether an older key is in use


class FernetCipher(_OfKeysAndSalts):
    """The origin's scheme to the letter, ``Fernet(password + salt)``: whoever holds the key reads every password.

    For databases that the origin still reads, and for hosts that cannot spend 20 ms and 19 MiB on a log-in.

    Args:
        keys: Fernet keys, 32 bytes in URL-safe base64 each; the first encrypts.
        salts: the first is appended to every password, all are known again.
    """

    def __init__(self, keys: Sequence[str], *salts: str) -> None:
        super().__init__(keys, *salts)
        self._has_met_hash = False

    @property
    def is_costly(self) -> bool:
        """Whether there are hashes among the stored values, as far as is known: those take 20 ms to a second."""
        return self._has_met_hash

    def encrypt(self, password: str) -> EncryptedPassword:
        return EncryptedPassword(self._secret.seal(password + self._secret.salts[0]))

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        token, tag = _untagged(self._decoy if encrypted is None else encrypted)
        plaintext = self._secret.open(token)
        if plaintext is None:
            return False
        if tag:
            self._has_met_hash = True
        return self._secret.is_made_of(password, plaintext, tag) and encrypted is not None

    def needs_upgrade(self, encrypted: EncryptedPassword) -> bool:
        """Whether an older key or salt is in it. A hash, whosever, is never turned into what can be read back."""
        token, tag = _untagged(encrypted)
        plaintext = self._secret.open(token)
        if plaintext is None:
            return False
        return self._secret.is_of_older_key(token) or not (tag or plaintext.endswith(self._secret.salts[0]))

    @cached_property
    def _decoy(self) -> EncryptedPassword:
        return self.encrypt("a value for when there is none to compare with")


class HashingFernetCipher(_OfKeysAndSalts):
    """The default: the password is hashed with argon2id, and the hash encrypted. Nobody can read it back.

    A stolen database is useless without the key; with both there are only argon2id hashes. The salt enters as the key
    of an HMAC-SHA256, so that no length limit arises; every hash has its own random salt besides.

    Args:
        keys: Fernet keys, 32 bytes in URL-safe base64 each; the first encrypts.
        salts: secrets shared by all passwords (peppers): the first enters new ones, all are known again.
    """

    is_costly = True

    def __init__(self, keys: Sequence[str], *salts: str) -> None:
        super().__init__(keys, *salts)
        self._decoy = self.encrypt("a value for when there is none to compare with")
        self._decoy_hash = self._secret.hashed("a value for when there is none to verify")

    def encrypt(self, password: str) -> EncryptedPassword:
        return EncryptedPassword(self._secret.seal(self._secret.hashed(password)) + _HASHED)

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        token, tag = _untagged(self._decoy if encrypted is None else encrypted)
        plaintext = self._secret.open(token)
        if plaintext is not None and tag == _HASHED:
            return self._secret.hash_matches(password, plaintext) and encrypted is not None
        # The cost of a hash all the same: that a value is old or damaged must not show in the time of an answer. One
        # from elsewhere costs what it costs there besides, for right and wrong passwords alike.
        self._secret.hash_matches(password, self._decoy_hash)
        return plaintext is not None and self._secret.is_made_of(password, plaintext, tag)

    def needs_upgrade(self, encrypted: EncryptedPassword) -> bool:
        """Whether another scheme or system, an older key or salt, or other parameters of argon2id made it."""
        token, tag = _untagged(encrypted)
        plaintext = self._secret.open(token)
        if plaintext is None:
            return False
        return tag != _HASHED or self._secret.is_of_older_key(token) or self._secret.is_of_older_make(plaintext)


def key_fingerprint(key: str, salt: str) -> str:
    """What a database may keep to know a key and a salt by: a value in hex that tells nothing of them."""
    return hmac.digest(key.encode(), b"mlapi key check\0" + salt.encode(), hashlib.sha256).hex()


class _Secret:
    """The keys and the salts that both ciphers share."""

    def __init__(self, keys: Sequence[str], salts: Sequence[str]) -> None:
        fernets = [Fernet(key) for key in keys]
        self._newest = fernets[0]
        self._fernet = MultiFernet(fernets)
        self.salts = salts
        self._salt_of_id = {_salt_id(salt): salt for salt in salts}
        self._salt_of_id[""] = salts[-1]  # hashes were made without an id while there was one salt

    def seal(self, plaintext: str) -> str:
        return self._fernet.encrypt(plaintext.encode()).decode("ascii")

    def open(self, token: str) -> str | None:
        """Return the plaintext, or None and one log line if no key opens it."""
        plaintext = self._opened(token)
        if plaintext is None:
            _logger.warning("a stored password cannot be read: wrong key or damaged value; it matches nothing")
        return plaintext

    def _opened(self, token: str) -> str | None:
        try:
            return self._fernet.decrypt(token.encode()).decode()
        except (InvalidToken, ValueError):  # ValueError: characters or bytes that no key of ours has written
            return None

    def find_value_error(self, value: object) -> str | None:
        """What is wrong with a stored value that somebody brings along, or None."""
        if not isinstance(value, str):
            return "must be a string"
        token, tag = _untagged(EncryptedPassword(value))
        plaintext = self._opened(token)
        if plaintext is None:
            return "cannot be read with secrets.key: it was made with another key, or is damaged"
        if tag == _FOREIGN:
            return foreign.find_hash_error(plaintext)
        is_of_known_salt = (
            plaintext.partition("$")[0] in self._salt_of_id
            if tag == _HASHED
            else any(plaintext.endswith(salt) for salt in self.salts)
        )
        return None if is_of_known_salt else "was made with a salt that is not in secrets.salt"

    def reencrypt(self, encrypted: EncryptedPassword) -> EncryptedPassword | None:
        token, _ = _untagged(encrypted)
        if not self.is_of_older_key(token):
            return None
        return EncryptedPassword(
            self._fernet.rotate(token.encode()).decode("ascii") + encrypted.value.removeprefix(token)
        )

    def needs_older_salt(self, encrypted: EncryptedPassword) -> bool:
        token, tag = _untagged(encrypted)
        plaintext = self.open(token)
        if plaintext is None or tag == _FOREIGN:
            return False
        newest = self.salts[0]
        if tag == _HASHED:
            return self._salt_of_id.get(plaintext.partition("$")[0]) != newest
        return not plaintext.endswith(newest)

    def is_of_older_key(self, token: str) -> bool:
        if self.open(token) is None:
            return False
        try:
            self._newest.decrypt(token.encode())
        except InvalidToken:
            return True
        return False

    def is_made_of(self, password: str, plaintext: str, tag: str) -> bool:
        """Whether the plaintext of a stored value with that tag, or with none, was made of a password."""
        if tag == _HASHED:
            return self.hash_matches(password, plaintext)
        if tag != _FOREIGN:
            return self._is_origins(password, plaintext)
        if foreign.find_hash_error(plaintext) is not None:
            _logger.warning("a stored password holds no hash that can be checked; it matches nothing")
            return False
        return foreign.is_made_of(_encoded(password), plaintext)

    def _is_origins(self, password: str, plaintext: str) -> bool:
        plain, given = plaintext.encode(), _encoded(password)
        return any([hmac.compare_digest(plain, given + salt.encode()) for salt in self.salts])  # noqa: C419 - all of them

    def hashed(self, password: str) -> str:
        salt = self.salts[0]
        return _salt_id(salt) + _HASHER.hash(_peppered(password, salt))

    def hash_matches(self, password: str, hashed: str) -> bool:
        salt_id, separator, rest = hashed.partition("$")
        if (salt := self._salt_of_id.get(salt_id)) is None:
            _logger.warning("a stored password is of a salt that is not in secrets.salt; it matches nothing")
            salt = self.salts[0]  # the cost of a hash all the same
        try:
            return _HASHER.verify(separator + rest, _peppered(password, salt))
        except (VerificationError, InvalidHashError):
            return False

    def is_of_older_make(self, hashed: str) -> bool:
        salt_id, separator, rest = hashed.partition("$")
        return salt_id != _salt_id(self.salts[0]) or _HASHER.check_needs_rehash(separator + rest)


def _encoded(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")  # a lone surrogate is no password, but asking is no error


def _untagged(encrypted: EncryptedPassword) -> tuple[str, str]:
    """Return the Fernet token of a stored value and the tag behind it, which is empty for the origin's."""
    for tag in (_HASHED, _FOREIGN):
        if encrypted.value.endswith(tag):
            return encrypted.value.removesuffix(tag), tag
    return encrypted.value, ""


def _peppered(password: str, salt: str) -> bytes:
    return hmac.digest(salt.encode(), _encoded(password), hashlib.sha256)


def _salt_id(salt: str) -> str:
    return hashlib.sha256(b"mlapi salt id\0" + salt.encode()).hexdigest()[:8]
