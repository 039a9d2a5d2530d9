"""A credential as a WebSocket subprotocol: browsers cannot set other headers of a WebSocket's handshake.

``new WebSocket(url, ["bearer", token])`` sends ``Sec-WebSocket-Protocol: bearer, <token>``. All characters of tokens
and API keys are allowed there (RFC 6455, 4.1).
"""

from collections.abc import Sequence

import attrs

from mlapi.domain.errors import InvalidTokenError
from mlapi.entrypoints.wire.headers import Headers

_BEARER = "bearer"
_HEADER = b"sec-websocket-protocol"


@attrs.frozen
class BearerSubprotocol:
    """The subprotocol ``bearer``, as the client spelled it, and the credential that followed it.

    Attributes:
        name: the server must select it unless the application selects another subprotocol. Otherwise, browsers fail the
            connection.
        credential: a token or an API key.
        others: the other subprotocols that the client offered.
    """

    name: str
    credential: str = attrs.field(repr=False)
    others: list[str]

    def remove_from(self, headers: Headers) -> Headers:
        """Return the headers of the handshake without the credential."""
        kept = [(name, value) for name, value in headers if name != _HEADER]
        return [*kept, (_HEADER, ", ".join(self.others).encode("latin-1"))] if self.others else kept


def find_bearer_subprotocol(offered: Sequence[str]) -> BearerSubprotocol | None:
    """Return the credential among the subprotocols that a client offers, or None.

    Raises:
        InvalidTokenError: if ``bearer`` is repeated, or no credential follows it.
    """
    positions = [position for position, name in enumerate(offered) if name.lower() == _BEARER]
    if not positions:
        return None
    position = positions[0]
    if len(positions) > 1 or position + 1 == len(offered):
        raise InvalidTokenError
    others = [*offered[:position], *offered[position + 2 :]]
    return BearerSubprotocol(offered[position], offered[position + 1], others)
