"""A password cipher that counts how often it encrypts, for tests of what costs a hash."""

from mlapi.adapters.memory import PlainCipher
from mlapi.domain.users import EncryptedPassword


class CountingCipher(PlainCipher):
    is_costly = True

    def __init__(self) -> None:
        self.encrypted = 0

    def encrypt(self, password: str) -> EncryptedPassword:
        self.encrypted += 1
        return super().encrypt(password)
