"""Determine the address, origin and scheme of a client from its connection and headers."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mlapi.domain.addresses import UNIX_PEER, Address, Network, is_in_any, parse_address
from mlapi.entrypoints.wire.headers import Headers, header_values, wsgi_headers
from mlapi.entrypoints.wire.paths import relative_path

MAX_FORWARDED_ENTRIES = 50
"""How many entries of X-Forwarded-For are parsed, starting from the last: clients can add any number."""
_MAX_PORT_DIGITS = 5
_SCHEMES = frozenset({"http", "https"})
_UNKNOWN = "unknown"
_UNKNOWN_END = ("", 0)
_UNIX_END = (UNIX_PEER, 0)


@attrs.define(kw_only=True)
class Client:
    """The client that sent a request, identified by its connection and headers.

    Do not change it. It is not frozen only because creating it would take twice as long, for every request.

    Attributes:
        path: the path of the request, relative to the mount point of the application.
        peer_address: the address of the other end of the connection, which may be a proxy. ``unix`` for a Unix socket.
            Empty if unknown.
        server_address: the address of our end of the connection. WSGI servers may provide a host name instead; the
            client is then not considered local.
        http_version: the HTTP version, such as ``1.1``.
        headers: the request headers.
        scheme: ``http`` or ``https``.
        peer_port: the port of the other end of the connection; 0 if unknown.
        server_port: the port of our end of the connection; 0 if unknown.
        is_peer_certain: whether the peer address is that of the connection. Otherwise, the server may have replaced it
            with an address from X-Forwarded-For.
        connection: identifies the connection. The requests of one connection may share the same object; requests of
            different connections never do. Compare it by identity.
    """

    path: str
    peer_address: str
    server_address: str
    http_version: str
    headers: Headers = attrs.field(repr=False)
    scheme: str = "http"
    peer_port: int = attrs.field(default=0, repr=False)
    server_port: int = attrs.field(default=0, repr=False)
    is_peer_certain: bool = attrs.field(default=False, repr=False)
    connection: object = attrs.field(factory=object, eq=False, repr=False)

    @classmethod
    def from_asgi(cls, scope: Mapping[str, Any], peer: tuple[str, int] | None = None) -> "Client":
        """Create a client from an ASGI HTTP scope.

        Args:
            scope: of an HTTP request.
            peer: the address and port at the other end of the connection, if they are certain. By default, take them
                from the scope.
        """
        server = scope.get("server") or _UNKNOWN_END
        client = scope.get("client") or (_UNIX_END if server[1] is None else _UNKNOWN_END)
        address, port = peer or client
        return cls(
            path=relative_path(scope),
            peer_address=address,
            server_address=server[0],
            http_version=scope["http_version"],
            headers=scope["headers"],
            scheme=scope.get("scheme", "http"),
            peer_port=int(port or 0),  # Granian sends ports as text
            server_port=int(server[1] or 0),  # None for a Unix socket
            is_peer_certain=peer is not None,
            connection=client,  # servers create it once per connection
        )

    @classmethod
    def from_wsgi(cls, environ: Mapping[str, Any]) -> "Client":
        """Create a client from a WSGI environ."""
        return cls(
            path=environ.get("PATH_INFO", ""),
            peer_address=environ.get("REMOTE_ADDR", ""),
            server_address=environ.get("SERVER_NAME", ""),
            http_version=environ["SERVER_PROTOCOL"].removeprefix("HTTP/"),
            headers=wsgi_headers(environ),
            scheme=environ.get("wsgi.url_scheme", "http"),
            peer_port=_parse_port(environ.get("REMOTE_PORT", "")),
            server_port=_parse_port(environ.get("SERVER_PORT", "")),
        )

    @property
    def origin(self) -> bytes:
        """The origin of the service's own pages, as the browser sees it. Empty unless there is one Host header."""
        hosts = header_values(self.headers, b"host")
        return b"%s://%s" % (self.scheme.encode(), hosts[0]) if len(hosts) == 1 else b""

    @property
    def is_same_origin(self) -> bool:
        """True if a browser sent the request from one of the service's own pages.

        If Sec-Fetch-Site is present, it decides: pages cannot set it, and it is correct even if a proxy changes the
        scheme or host. Browsers omit it over plain HTTP to another machine. In that case, Origin decides.
        """
        sites = header_values(self.headers, b"sec-fetch-site")
        return sites == [b"same-origin"] if sites else [self.origin] == header_values(self.headers, b"origin") != [b""]

    @property
    def reveals_origin(self) -> bool:
        """True if the request has a header that identifies the page that sent it. Only browsers send such headers."""
        return any(name in {b"sec-fetch-site", b"origin"} for name, _ in self.headers)

    def with_forwarded_scheme(self, trusted_proxies: Sequence[Network]) -> "Client":
        """Return a copy of this client with the scheme that the browser uses.

        A trusted proxy that terminates TLS forwards requests over plain HTTP, and sends the original scheme in
        X-Forwarded-Proto. If several proxies add their schemes, the first is the browser's. It replaces the scheme from
        servers such as uvicorn, which use the last.
        """
        values = header_values(self.headers, b"x-forwarded-proto")
        if not values or not self.is_trusted_proxy(trusted_proxies):
            return self
        first, _, _ = b",".join(values).lstrip(b", \t").partition(b",")
        scheme = first.strip().lower().decode("latin-1")
        return attrs.evolve(self, scheme=scheme) if scheme in _SCHEMES else self

    def is_trusted_proxy(self, trusted_proxies: Sequence[Network]) -> bool:
        """Return whether the other end of the connection is a trusted proxy."""
        return is_in_any(self.peer_address, trusted_proxies)

    def resolve_address(self, trusted_proxies: Sequence[Network] = ()) -> str:
        """Return the address of the client behind any proxies.

        X-Forwarded-For is used only if a trusted proxy sent it. Each proxy appends the address that it received the
        request from, so the client is the last address that does not belong to a trusted proxy. Empty entries are
        ignored (RFC 9110, 5.6.1). If a trusted proxy added ``unknown``, the result is the address of that proxy: a
        client may have written the entries before it.

        Servers such as uvicorn trust proxies on the same machine, and may already have replaced the peer address with
        one from that header. Unless the peer address is certain or trusted proxies confirm it, the result is
        ``unknown``.
        """
        values = header_values(self.headers, b"x-forwarded-for")
        if not values:
            return self.peer_address
        entries = b",".join(values).rsplit(b",", MAX_FORWARDED_ENTRIES)
        last_entries = map(bytes.strip, entries[-MAX_FORWARDED_ENTRIES:])
        forwarded = [entry.decode("latin-1") for entry in last_entries if entry]
        is_cut = len(entries) > MAX_FORWARDED_ENTRIES
        may_be_replaced = not self.is_peer_certain and (is_cut or any(map(self._may_be_peer, forwarded)))
        is_trusted = self.is_trusted_proxy(trusted_proxies)
        if not may_be_replaced and not is_trusted:
            return self.peer_address
        checked, nearest = [], self.peer_address if is_trusted else _UNKNOWN
        for entry in reversed(forwarded if trusted_proxies else []):
            address = _parse_forwarded_address(entry)
            if address is None:
                break
            nearest = str(address)
            checked.append(address)
            if not is_in_any(nearest, trusted_proxies):
                break
        # If the server took the peer address from the header, trusted proxies must have confirmed it.
        return nearest if is_trusted or parse_address(self.peer_address) in checked else _UNKNOWN

    def _may_be_peer(self, entry: str) -> bool:
        """Return whether the server may have taken the peer address from this X-Forwarded-For entry.

        The port is then 0 or that of the entry. The real port of a connection is never 0.
        """
        address, port = _split_port(entry)
        if not self.peer_address or (self.peer_port and self.peer_port != port):
            return False
        parsed = parse_address(self.peer_address)
        return (parsed is not None and parsed == parse_address(address)) or self.peer_address in entry


def _parse_port(text: object) -> int:
    """Return a port of a WSGI environ, or 0 if it is unknown. Servers provide it as a string or as an integer."""
    digits = str(text)
    return int(digits) if digits.isdecimal() and len(digits) <= _MAX_PORT_DIGITS else 0


def _parse_forwarded_address(entry: str) -> Address | None:
    """Return the address in an X-Forwarded-For entry, which may have quotation marks, brackets and a port."""
    address, _ = _split_port(entry)
    return parse_address(address)


def _split_port(entry: str) -> tuple[str, int]:
    """Return the address and the port of an X-Forwarded-For entry. The port is 0 if there is none."""
    entry = entry.strip().removeprefix('"').removesuffix('"')
    if entry.startswith("["):
        address, _, rest = entry[1:].partition("]")
        return address, _parse_port(rest.removeprefix(":"))
    if parse_address(entry) is not None:
        return entry, 0
    address, _, port = entry.rpartition(":")
    return address, _parse_port(port)
