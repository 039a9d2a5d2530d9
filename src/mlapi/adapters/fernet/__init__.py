"""Password ciphers built on Fernet from the cryptography package."""

from mlapi.adapters.fernet.ciphers import FernetCipher, HashingFernetCipher

__all__ = ["FernetCipher", "HashingFernetCipher"]
