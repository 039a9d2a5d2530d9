"""Who may manage users, decided from the facts of a request before any of it is routed or read.

Everything that is not open by name needs a manager, so a route that is added later begins closed.
"""

import hashlib
import hmac
import re
from functools import lru_cache
from typing import Literal

import attrs

from mlapi.config import Settings
from mlapi.entrypoints.wire.client import Client, parse_address
from mlapi.entrypoints.wire.errors import AdminAccessDeniedError, AdminTokenRequiredError
from mlapi.entrypoints.wire.headers import parse_authorization
from mlapi.entrypoints.wire.requests import TOKEN_PATH_PREFIX

OPEN_PATHS = frozenset(
    {"/health/live", "/health/ready", "/token", "/token_status", "/users/me", "/users/me/password", "/users/me/tokens"}
)
"""Not for managers: open to all, or to whoever shows there that he is a user. So is what `TOKEN_PATH_PREFIX` begins."""
METRICS_PATH = "/metrics"
REGISTRATION_PATH = "/register-user"
"""Open to all unless registration is closed."""
DOCS_PATH, OPENAPI_PATH = "/docs", "/openapi.json"
"""The first with all that is below it. Open to all where the docs are."""

# What proxies add: the request may come from anywhere. Most are X-Forwarded-* or of the same make.
_PROXY_HEADER = re.compile(
    rb"forwarded(-.*)?|via|(true-|fastly-|fly-|incap-)?client-ip|(wl-)?proxy-.*|(cf|cdn|ali-cdn|surrogate|incap)-.*"
    rb"|max-forwards"
    rb"|x-(forwarded|real|client|cluster|origin|remote|envoy|nginx|vercel|azure|amz|appengine|proxy|coming|host|scheme"
    rb"|arr-|varnish).*",
    re.DOTALL,
)
# Names that every client sends: looked at first, as the pattern above costs some.
_HARMLESS = frozenset({b"user-agent", b"accept", b"accept-encoding", b"connection", b"content-length", b"content-type"})
_DOCS = (f"{DOCS_PATH}/", f"{OPENAPI_PATH}/")


_LOCAL_HOST = re.compile(rb"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)


def _digest(token: str | None) -> bytes | None:
    if token is None:
        return None
    if not token:
        raise ValueError("an empty admin token would let everybody in: give None for no token")
    return hashlib.sha256(token.encode("utf-8")).digest()


@attrs.frozen(kw_only=True)
class AdminPolicy:
    """The mode and its check. Token mode if there is a token, else local mode if that is allowed, else locked."""

    _token_digest: bytes | None = attrs.field(alias="admin_token", default=None, converter=_digest, repr=False)
    local: bool = True
    registration_open: bool = True
    docs_open: bool = False
    metrics_open: bool = False

    @classmethod
    def from_settings(cls, settings: Settings) -> "AdminPolicy":
        return cls(
            admin_token=settings.secrets.admin_token,
            local=settings.management.local and not settings.is_production,
            registration_open=settings.registration.open,
            docs_open=not settings.is_production,
            metrics_open=settings.metrics.open,
        )

    @property
    def mode(self) -> Literal["token", "local", "locked"]:
        if self._token_digest is not None:
            return "token"
        return "local" if self.local else "locked"

    @property
    def actor(self) -> str:
        """Who a manager is, as far as it can be known: the name that the audit trail has for him."""
        return "admin" if self.mode == "token" else "local"

    def __str__(self) -> str:
        who = {
            "token": "whoever sends the admin token",
            "local": "programs on this machine, as secrets.admin_token is not set",
            "locked": "nobody, as secrets.admin_token is not set and management.local is false",
        }
        registration = "open to all" if self.registration_open else "for managers"
        return f"management: {self.mode} mode, open to {who[self.mode]}; registration is {registration}"

    def check(self, caller: Client) -> None:
        """Return if the caller may go on to this path.

        Raises:
            AdminTokenRequiredError: in token mode.
            AdminAccessDeniedError: in the other modes, naming the setting.
        """
        if caller.path in OPEN_PATHS or (caller.path == REGISTRATION_PATH and self.registration_open):
            return
        if caller.path == METRICS_PATH and self.metrics_open:
            return
        if caller.path.startswith(TOKEN_PATH_PREFIX):
            return
        if self.docs_open and f"{caller.path}/".startswith(_DOCS):
            return
        if self._token_digest is not None:
            scheme, token = parse_authorization(caller.headers)
            if not self._matches(token) or scheme != b"bearer":
                raise AdminTokenRequiredError
        else:
            self._check_without_token(caller)

    def check_page(self, caller: Client) -> None:
        """Return if a page of ours may be shown to the caller, and be used by him; in token mode once he has logged in.

        Where no token is set that is whoever is on this machine, as for `check`, but in a browser too: it may name our
        own origin, and no other. That it was our page that sent a form is for `Client.is_same_origin` to say.

        Raises:
            AdminAccessDeniedError: naming the setting.
        """
        if self._token_digest is None:
            ours = (b"origin", caller.origin)
            self._check_without_token(
                attrs.evolve(caller, headers=[header for header in caller.headers if tuple(header) != ours])
            )

    def is_admin_token(self, token: str) -> bool:
        """Whether this is the admin token, found out in constant time. Where none is set, nothing is."""
        return self._matches(token.encode("utf-8", "surrogatepass"))

    def _matches(self, token: bytes) -> bool:
        return self._token_digest is not None and hmac.compare_digest(
            hashlib.sha256(token).digest(), self._token_digest
        )

    @property
    def session_key(self) -> bytes:
        """What sessions of managers are signed with: of one admin token every process has the same, of another another.

        Where none is set nobody logs in, and this is no secret.
        """
        return hmac.digest(self._token_digest or b"", b"mlapi session key", hashlib.sha256)

    def _check_without_token(self, caller: Client) -> None:
        if not self.local:
            raise AdminAccessDeniedError("Management is locked: set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)")
        if not _is_of_this_machine(caller):
            raise AdminAccessDeniedError(
                "Management is open to programs on this machine only, and not through a proxy or a web page: to manage"
                " from elsewhere, set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)"
            )


def _is_of_this_machine(caller: Client) -> bool:
    """Whether only a program on this machine can have sent this: no proxy, no other host, no page in a browser."""
    hosts = 0
    for name, value in caller.headers:
        if name == b"host":
            hosts += 1
            if not _LOCAL_HOST.fullmatch(value):
                return False  # a foreign name was pointed at us (DNS rebinding)
        elif name == b"sec-fetch-site":
            if value not in {b"none", b"same-origin"}:
                return False
        elif name not in _HARMLESS and (name == b"origin" or _PROXY_HEADER.fullmatch(name)):
            return False
    return (
        hosts == 1
        and caller.http_version == "1.1"  # HTTP/1.0 is what a proxy speaks by default
        and _is_loopback(caller.client)
        and _is_loopback(caller.server)
    )


@lru_cache(maxsize=1024)
def _is_loopback(address: str) -> bool:
    parsed = parse_address(address)
    return parsed is not None and parsed.is_loopback
