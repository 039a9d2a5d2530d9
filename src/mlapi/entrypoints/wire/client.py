"""The client of a request: its address and what its headers say."""

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mlapi.entrypoints.wire.headers import Headers, wsgi_headers

_UNKNOWN = "unknown"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@attrs.frozen(kw_only=True)
class Client:
    """Where a request comes from, as its connection and its headers tell."""

    path: str
    client: str
    """Address of the other end of the connection, empty if unknown."""
    server: str
    """Address at our end. Under WSGI it may be a name, which is no address: local mode is then closed."""
    http_version: str
    headers: Headers = attrs.field(repr=False)
    scheme: str = "http"

    @classmethod
    def from_asgi(cls, scope: Mapping[str, Any]) -> "Client":
        """Read an ASGI HTTP scope."""
        path, root = scope["path"], scope.get("root_path", "")
        return cls(
            path=path.removeprefix(root) if path.startswith(f"{root}/") else path,
            client=(scope.get("client") or ("",))[0],
            server=(scope.get("server") or ("",))[0],
            http_version=scope["http_version"],
            headers=scope["headers"],
            scheme=scope.get("scheme", "http"),
        )

    @classmethod
    def from_wsgi(cls, environ: Mapping[str, Any]) -> "Client":
        """Read a WSGI environ. It has joined what was sent twice, which then is no valid value."""
        return cls(
            path=environ.get("PATH_INFO", ""),
            client=environ.get("REMOTE_ADDR", ""),
            server=environ.get("SERVER_NAME", ""),
            http_version=environ["SERVER_PROTOCOL"].removeprefix("HTTP/"),
            headers=wsgi_headers(environ),
            scheme=environ.get("wsgi.url_scheme", "http"),
        )

    @property
    def origin(self) -> bytes:
        """The origin that our own pages have for this caller; empty unless there is exactly one ``Host``."""
        hosts = self._values(b"host")
        return b"%s://%s" % (self.scheme.encode(), hosts[0]) if len(hosts) == 1 else b""

    @property
    def is_same_origin(self) -> bool:
        """Whether a browser says that a page of our own origin has sent this, as it does of every form and script.

        ``Sec-Fetch-Site`` decides where it is sent: no page can set it, and it holds too where a proxy has changed
        scheme or host. Browsers leave it out of plain HTTP to another machine, and send ``Origin`` there.
        """
        sites = self._values(b"sec-fetch-site")
        return sites == [b"same-origin"] if sites else [self.origin] == self._values(b"origin") != [b""]

    def _values(self, name: bytes) -> list[bytes]:
        return [value for header, value in self.headers if header == name]

    def with_forwarded_scheme(self, trusted: Sequence[Network]) -> "Client":
        """Return the caller with the scheme that his browser has, as far as it can be known.

        That is what a trusted proxy says in ``X-Forwarded-Proto``: it ends TLS, and asks us in plain HTTP.
        """
        is_encrypted = self._values(b"x-forwarded-proto") == [b"https"] and self.is_trusted_proxy(trusted)
        return attrs.evolve(self, scheme="https") if is_encrypted else self

    def is_trusted_proxy(self, proxies: Sequence[Network]) -> bool:
        """Whether the other end of the connection is one of these proxies."""
        return _is_in_any(self.client, proxies)

    def resolve_address(self, trusted: Sequence[Network] = ()) -> str:
        """Return the address that the request comes from, as far as it can be known.

        ``X-Forwarded-For`` is believed from trusted proxies alone; its addresses are gone through from the last, which
        the proxy nearest to us has added, to the first that is no trusted proxy's. A server such as uvicorn may have
        put an address of that header in the place of its client's, for it believes whoever is on this machine. Who
        that was cannot be known then, and ``unknown`` stands for all of them, unless proxies are trusted.
        """
        forwarded = [
            entry.strip().decode("latin-1")
            for name, value in self.headers
            if name == b"x-forwarded-for"
            for entry in value.split(b",")
        ]
        was_replaced = bool(self.client) and any(self.client in entry for entry in forwarded)
        is_trusted_proxy = self.is_trusted_proxy(trusted)
        if not was_replaced and not is_trusted_proxy:
            return self.client
        passed, nearest = [], self.client if is_trusted_proxy else _UNKNOWN
        for entry in reversed(forwarded if trusted else []):
            address = _address_in(entry)
            if address is None:
                break
            nearest = str(address)
            passed.append(address)
            if not _is_in_any(nearest, trusted):
                break
        # What the server has chosen is among those that were passed, or it was chosen by nobody whom we trust.
        return nearest if is_trusted_proxy or parse_address(self.client) in passed else _UNKNOWN


def _is_in_any(address: str, networks: Sequence[Network]) -> bool:
    parsed = parse_address(address)
    return parsed is not None and any(parsed in network for network in networks)


def _address_in(entry: str) -> Address | None:
    """Return the address of an entry of ``X-Forwarded-For``, which may be in brackets and have a port."""
    bare = entry.strip()
    if bare.startswith("["):
        return parse_address(bare[1:].partition("]")[0])
    return parse_address(bare) or parse_address(bare.rpartition(":")[0])


def parse_address(address: str) -> Address | None:
    """Return an address, one of IPv4 as such also where it is mapped into IPv6."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed
