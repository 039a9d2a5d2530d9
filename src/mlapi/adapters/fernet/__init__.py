"""The password ciphers on cryptography's Fernet."""

from mlapi.adapters.fernet.ciphers import FernetCipher, HashingFernetCipher, key_fingerprint

__all__ = ["FernetCipher", "HashingFernetCipher", "key_fingerprint"]
