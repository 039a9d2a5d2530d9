"""Password ciphers that use Fernet from the package cryptography."""

from mlapi.adapters.fernet.ciphers import FernetCipher, HashingFernetCipher

__all__ = ["FernetCipher", "HashingFernetCipher"]
