"""The format of API keys, managers' tokens and one-time links: a prefix, a public id, and a secret."""

import hashlib
import re
import secrets

ID_CHARS = 16
"""The length of the id: 64 bits in hex."""
_SECRET_BYTES = 32  # impossible to guess, so a fast hash is sufficient
_ID_AND_SECRET = re.compile(r"([0-9a-f]{16})_[0-9a-f]{64}")


class TokenFormat:
    """The format ``<prefix><id>_<secret>``, with the id and the secret in hex.

    Args:
        prefix: the beginning of every token of a kind.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def generate(self, token_id: str | None = None) -> str:
        """Return a new token. ``token_id`` is its id; None for a random one."""
        return f"{self._prefix}{token_id or secrets.token_hex(ID_CHARS // 2)}_{secrets.token_hex(_SECRET_BYTES)}"

    def parse(self, text: str) -> tuple[str, str] | None:
        """Return the id and the SHA-256 of a token, or None if the text is not in this format."""
        match = _ID_AND_SECRET.fullmatch(text, len(self._prefix)) if text.startswith(self._prefix) else None
        return None if match is None else (match[1], hashlib.sha256(text.encode("ascii")).hexdigest())
