"""The policy for admin access, which is checked before a request is routed or its body is read.

Every path needs admin access unless the table of operations makes it public, so new routes are protected by default.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Literal

import attrs

from mlapi.config import Settings
from mlapi.domain.actors import ANYONE
from mlapi.domain.addresses import UNIX_PEER, is_loopback
from mlapi.domain.managers import ADMIN, LOCAL, MANAGER_TOKEN_PREFIX, ManagerIdentity
from mlapi.entrypoints.local_peers import PeerOwners, describe_trusted_peers
from mlapi.entrypoints.wire.client import Client
from mlapi.entrypoints.wire.errors import (
    AdminAccessDeniedError,
    AdminTokenRequiredError,
    UserIsNotAdminError,
    ViewerRoleError,
    WrongAdminTokenError,
    WrongManagerTokenError,
)
from mlapi.entrypoints.wire.headers import Headers, has_user_credential, header_values, parse_authorization
from mlapi.entrypoints.wire.operation import Operation
from mlapi.entrypoints.wire.operations import OPERATIONS
from mlapi.entrypoints.wire.paths import START_PATH, is_docs_path

# Headers that proxies add. A request with any of these headers may come from a different machine.
_PROXY_HEADER = re.compile(
    rb"forwarded(-.*)?|via|(true-|fastly-|fly-|incap-)?client-ip|(wl-)?proxy-.*|(cf|cdn|ali-cdn|surrogate|incap)-.*"
    rb"|max-forwards"
    rb"|x-(forwarded|real|client|cluster|origin|remote|envoy|nginx|vercel|azure|amz|appengine|proxy|coming|host|scheme"
    rb"|arr-|varnish).*",
    re.DOTALL,
)
# Headers that most clients send. They are not matched against the slow regular expression.
_COMMON_HEADERS = frozenset(
    {b"user-agent", b"accept", b"accept-encoding", b"connection", b"content-length", b"content-type"}
)
_MANAGER_TOKEN_PREFIX = MANAGER_TOKEN_PREFIX.encode("ascii")
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_LOCAL_HOST = re.compile(rb"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)


# The paths that viewers may read.
_VIEWER_PATHS = re.compile(
    "|".join(operation.path_pattern for operation in OPERATIONS if operation.callers.admits_viewers), re.DOTALL
)


def find_manager_token(headers: Headers) -> str | None:
    """Return the credential of a request if it has the form of a manager's token, valid or not."""
    scheme, token = parse_authorization(headers)
    return token.decode("latin-1") if scheme == b"bearer" and token.startswith(_MANAGER_TOKEN_PREFIX) else None


def check_role(manager: ManagerIdentity, method: str, path: str) -> None:
    """Check that the role of a manager allows this request. Viewers read users, usage, audit trail, metrics and docs.

    Raises:
        ViewerRoleError: if it does not.
    """
    if manager.is_admin:
        return
    is_readable = path == START_PATH or is_docs_path(path) or _VIEWER_PATHS.fullmatch(path)
    if method not in _SAFE_METHODS or not is_readable:
        raise ViewerRoleError(manager.name)


@attrs.frozen
class _AdminToken:
    """The SHA-256 of the admin token, and the header that clients usually send, which is compared first."""

    digest: bytes = attrs.field(repr=False)
    usual_header: bytes = attrs.field(repr=False)

    def matches(self, token: bytes) -> bool:
        """Compare in constant time. Comparing digests does not even reveal the length."""
        return hmac.compare_digest(hashlib.sha256(token).digest(), self.digest)

    def is_in(self, headers: Headers) -> bool:
        """Return whether the headers contain the token."""
        values = header_values(headers, b"authorization")
        if len(values) == 1 and hmac.compare_digest(values[0], self.usual_header):
            return True
        scheme, token = parse_authorization(headers)
        return scheme == b"bearer" and self.matches(token)


def _to_admin_token(text: str | None) -> _AdminToken | None:
    if text is None:
        return None
    if not text:
        raise ValueError("the admin token is empty: pass None for no token")
    token = text.encode("utf-8")
    return _AdminToken(hashlib.sha256(token).digest(), b"Bearer " + token)


@attrs.frozen(kw_only=True)
class AdminPolicy:
    """Decides which requests may manage users with the admin token, or without a token.

    The first two arguments determine the mode: ``token`` if there is an admin token, otherwise ``local`` or ``locked``.
    The tokens of managers are valid in every mode. The policy rejects them: the caller then looks them up.

    Args:
        admin_token: the token that grants admin access.
        local: whether programs on this machine have admin access without a token.
        is_trusted_peer: in local mode, decides whether the program at the other end of a connection has admin access.
            By default, programs that run as the same user as this process, or as root. Tests that call the application
            without a connection pass `mlapi.entrypoints.local_peers.trust_any_peer`.
        registration_open: whether anyone may register users.
        docs_open: whether anyone may read the documentation.
        metrics_open: whether anyone may read the metrics.
        page_secret: a secret that all processes share. It signs what browsers keep if there is no admin token.
    """

    _token: _AdminToken | None = attrs.field(alias="admin_token", default=None, converter=_to_admin_token, repr=False)
    local: bool = True
    _is_trusted_peer: Callable[[Client], bool] = attrs.field(
        alias="is_trusted_peer", factory=PeerOwners, eq=False, repr=False
    )
    registration_open: bool = True
    docs_open: bool = False
    metrics_open: bool = False
    page_secret: bytes = attrs.field(default=b"", eq=False, repr=False)
    _open_paths: frozenset[str] = attrs.field(init=False, eq=False, repr=False)
    _open_pattern: re.Pattern[str] = attrs.field(init=False, eq=False, repr=False)

    @_open_paths.default
    def _find_open_paths(self) -> frozenset[str]:
        return frozenset(operation.path for operation in self._open_operations() if not operation.path_parameters)

    @_open_pattern.default
    def _compile_open_pattern(self) -> re.Pattern[str]:
        patterns = [operation.path_pattern for operation in self._open_operations() if operation.path_parameters]
        return re.compile("|".join(patterns) or "(?!)", re.DOTALL)

    def _open_operations(self) -> Iterator[Operation]:
        open_flags = self.open_flags
        for operation in OPERATIONS:
            if not operation.callers.needs_admin or operation.callers.open_if in open_flags:
                yield operation

    @classmethod
    def from_settings(cls, settings: Settings) -> "AdminPolicy":
        return cls(
            admin_token=settings.secrets.admin_token,
            local=settings.management.local and not settings.is_production,
            registration_open=settings.registration.open,
            docs_open=not settings.is_production,
            metrics_open=settings.metrics.open,
            page_secret=f"{settings.secrets.key}{settings.secrets.salt}".encode(),
        )

    @property
    def mode(self) -> Literal["token", "local", "locked"]:
        if self._token is not None:
            return "token"
        return "local" if self.local else "locked"

    @property
    def open_flags(self) -> frozenset[str]:
        """The flags that open operations to everyone; see `Callers.open_if`."""
        flags = {"registration_open": self.registration_open, "metrics_open": self.metrics_open}
        return frozenset(name for name, is_open in flags.items() if is_open)

    @property
    def identity(self) -> ManagerIdentity:
        """The manager whom this policy admits: the holder of the admin token, or a program on this machine."""
        return ADMIN if self._token is not None else LOCAL

    def registration_actor(self, headers: Headers) -> str:
        """Return the name of the actor of a registration that `check` has allowed.

        While registration is open, only the admin token distinguishes an admin from other clients.
        """
        return ANYONE if self.registration_open and not self.has_admin_token(headers) else self.identity.actor

    def __str__(self) -> str:
        admins = {
            "token": "open to clients that send the admin token or the token of a manager",
            "local": f"open to {describe_trusted_peers()}, because secrets.admin_token is not set",
            "locked": "open to managers with tokens: secrets.admin_token is not set, and management.local is false",
        }
        registration = "open to everyone" if self.registration_open else "open to admins only"
        return f"management: {self.mode} mode, {admins[self.mode]}; registration is {registration}"

    def check(self, client: Client) -> None:
        """Check that the client may call its path.

        Raises:
            AdminTokenRequiredError: if the path needs admin access and the token is missing or wrong, or is the token
                of a manager.
            AdminAccessDeniedError: in the other modes, if the path needs admin access and the client does not have it.
        """
        if not self.is_open(client.path):
            self.identify(client)

    def is_open(self, path: str) -> bool:
        """Return whether anyone may call this path."""
        if path in self._open_paths or self._open_pattern.fullmatch(path):
            return True
        return self.docs_open and (path == START_PATH or is_docs_path(path))

    def has_admin_token(self, headers: Headers) -> bool:
        """Return whether the headers contain the admin token. False if no token is configured."""
        return self._token is not None and self._token.is_in(headers)

    def identify(self, client: Client) -> ManagerIdentity:
        """Return the manager with the admin token, or the program on this machine in local mode.

        Raises:
            AdminTokenRequiredError, AdminAccessDeniedError: see `check`.
        """
        if self._token is not None:
            if not self._token.is_in(client.headers):
                raise _token_error(client.headers)
            return ADMIN
        if find_manager_token(client.headers) is not None:
            raise WrongManagerTokenError  # even on this machine, so that an expired or revoked token gets an error
        self._check_without_token(client)
        return LOCAL

    def is_admin(self, client: Client) -> bool:
        """Return whether the client has admin access without the token of a manager, on any path."""
        try:
            self.identify(client)
        except (AdminTokenRequiredError, AdminAccessDeniedError):
            return False
        return True

    def check_page(self, client: Client) -> None:
        """Check that the client may open a console page. In token mode, the page itself asks for a login.

        If no token is configured, apply the same checks as `check`, but accept requests that a browser sends from the
        service's own pages. For forms, also check `Client.is_same_origin`.

        Raises:
            AdminAccessDeniedError: if the client has no access. The message names the setting that grants access.
        """
        if self._token is None:
            own_origin = (b"origin", client.origin)
            self._check_without_token(
                attrs.evolve(client, headers=[header for header in client.headers if tuple(header) != own_origin])
            )

    def is_admin_token(self, token: str) -> bool:
        """Return whether this is the admin token, comparing in constant time. False if no token is configured."""
        return self._token is not None and self._token.matches(token.encode("utf-8", "surrogatepass"))

    @property
    def session_key(self) -> bytes:
        """The key that signs notices, page tokens and docs cookies, which browsers keep.

        It is derived from the admin token or ``page_secret``, so all processes share it. In tests and applications that
        use neither, it is not secret.
        """
        return hmac.digest(
            self._token.digest if self._token else self.page_secret, b"mlapi session key", hashlib.sha256
        )

    @property
    def session_epoch(self) -> str | None:
        """The epoch of sessions that started with the admin token: a new token ends them. None without a token."""
        if self._token is None:
            return None
        return hmac.digest(self._token.digest, b"mlapi session epoch", hashlib.sha256).hex()

    def _check_without_token(self, client: Client) -> None:
        if not self.local:
            raise AdminAccessDeniedError("Management is locked: set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)")
        if client.peer_address == UNIX_PEER:
            # A proxy may run as the same user as this process, and send no header that reveals the proxy.
            raise AdminAccessDeniedError(
                "Management through a Unix socket needs a token, because a proxy may be at its other end: connect to a"
                " loopback address, use the mlapi command, or set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)"
            )
        if not _looks_local(client):
            raise AdminAccessDeniedError(
                "Management is open to programs on this machine only, and not through a proxy or a web page: to manage"
                " from elsewhere, set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)"
            )
        if not self._is_trusted_peer(client):
            raise AdminAccessDeniedError(
                "Management is open to programs that run as the same user as the service, or as root: run the program"
                " as that user, or set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)"
            )


def _token_error(headers: Headers) -> AdminTokenRequiredError:
    """Return the error for a request without the admin token.

    The message depends on the form of a user's credential, not on its validity. It therefore does not reveal which
    credentials are valid.
    """
    if find_manager_token(headers) is not None:
        return WrongManagerTokenError()
    if has_user_credential(headers):
        return UserIsNotAdminError()
    scheme, credential = parse_authorization(headers)
    return WrongAdminTokenError() if scheme == b"bearer" and credential else AdminTokenRequiredError()


_is_loopback = lru_cache(maxsize=1024)(is_loopback)


def _looks_local(client: Client) -> bool:
    """Return whether a request seems to come from a program on this machine, and not through a known proxy.

    This also detects requests of web pages. The owner of the connection cannot reveal those, because they come from
    the user's own browser.
    """
    host_headers = 0
    for name, value in client.headers:
        if name == b"host":
            host_headers += 1
            if not _LOCAL_HOST.fullmatch(value):
                return False  # DNS rebinding: a foreign host name resolves to this machine
        elif name == b"sec-fetch-site":
            if value not in {b"none", b"same-origin"}:
                return False
        elif name not in _COMMON_HEADERS and (name == b"origin" or _PROXY_HEADER.fullmatch(name)):
            return False
    return (
        host_headers == 1
        and client.http_version == "1.1"  # proxies use HTTP/1.0 by default
        and _is_loopback(client.peer_address)
        and _is_loopback(client.server_address)
    )
