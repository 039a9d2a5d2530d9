"""Admin access: which requests `AdminPolicy` accepts in each mode."""

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import pytest

from mlapi.config import ManagementSettings, RegistrationSettings, SecretSettings, Settings
from mlapi.domain.addresses import Network
from mlapi.domain.errors import MlapiError
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.local_peers import describe_trusted_peers, trust_any_peer
from mlapi.entrypoints.wire.client import MAX_FORWARDED_ENTRIES, Client
from mlapi.entrypoints.wire.errors import (
    AdminAccessDeniedError,
    AdminTokenRequiredError,
    UserIsNotAdminError,
    WrongAdminTokenError,
)

TOKEN = "an-admin-token-of-32-characters."
USER_TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlLV8"
HOST = ("host", "localhost:8001")


def encode_headers(*headers: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    """Encode headers the way an ASGI server does."""
    return [(name.encode("latin-1"), value.encode("utf-8", "surrogatepass")) for name, value in headers]


LOCAL = Client(
    path="/remove-user/1",
    peer_address="127.0.0.1",
    server_address="127.0.0.1",
    http_version="1.1",
    headers=encode_headers(HOST),
    peer_port=54321,
    server_port=8001,
)
REMOTE = attrs.evolve(
    LOCAL, peer_address="203.0.113.9", server_address="192.0.2.1", headers=encode_headers(("host", "api.example.com"))
)

TOKEN_MODE = AdminPolicy(admin_token=TOKEN)
LOCAL_MODE = AdminPolicy(is_trusted_peer=trust_any_peer)
LOCKED = AdminPolicy(local=False)

LOCKED_MESSAGE = "Management is locked: set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)"
LOCAL_MESSAGE = (
    "Management is open to programs on this machine only, and not through a proxy or a web page: to manage from"
    " elsewhere, set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)"
)


def with_headers(client: Client, *headers: tuple[str, str]) -> Client:
    return attrs.evolve(client, headers=[*client.headers, *encode_headers(*headers)])


# --- modes


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        pytest.param(Settings(), "local", id="development"),
        pytest.param(Settings(management=ManagementSettings(local=False)), "locked", id="development, not local"),
        pytest.param(Settings(secrets=SecretSettings(admin_token=TOKEN)), "token", id="development with a token"),
        pytest.param(Settings(profile="production"), "locked", id="production without a token"),
        pytest.param(
            Settings(profile="production", secrets=SecretSettings(admin_token=TOKEN)), "token", id="production"
        ),
    ],
)
def test_settings_determine_the_mode(settings: Settings, mode: str) -> None:
    assert AdminPolicy.from_settings(settings).mode == mode


@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
def test_setting_opens_or_closes_registration(is_open: bool) -> None:
    policy = AdminPolicy.from_settings(Settings(registration=RegistrationSettings(open=is_open)))

    assert policy == AdminPolicy(registration_open=is_open, docs_open=True)


def test_configured_admin_token_is_used() -> None:
    expected = AdminPolicy(admin_token=TOKEN, docs_open=True)
    assert AdminPolicy.from_settings(Settings(secrets=SecretSettings(admin_token=TOKEN))) == expected
    assert AdminPolicy.from_settings(Settings(secrets=SecretSettings(admin_token="another"))) != TOKEN_MODE


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        pytest.param(
            TOKEN_MODE,
            "management: token mode, open to clients that send the admin token or the token of a manager; registration"
            " is open to everyone",
            id="token",
        ),
        pytest.param(
            LOCAL_MODE,
            f"management: local mode, open to {describe_trusted_peers()}, because secrets.admin_token is not set;"
            " registration is open to everyone",
            id="local",
        ),
        pytest.param(
            AdminPolicy(local=False, registration_open=False),
            "management: locked mode, open to managers with tokens: secrets.admin_token is not set, and"
            " management.local is false; registration is open to admins only",
            id="locked",
        ),
    ],
)
def test_str_describes_the_mode_in_one_line(policy: AdminPolicy, line: str) -> None:
    assert str(policy) == line


def test_repr_and_str_omit_the_token() -> None:
    assert repr(TOKEN_MODE) == "AdminPolicy(local=True, registration_open=True, docs_open=False, metrics_open=False)"
    assert TOKEN not in str(TOKEN_MODE)


def test_parts_of_the_policy_omit_the_token_in_their_repr() -> None:
    assert not any(TOKEN in repr(part) for part in attrs.astuple(TOKEN_MODE, recurse=False))


def test_client_repr_omits_the_headers() -> None:
    client = with_headers(LOCAL, ("authorization", f"Bearer {TOKEN}"))

    assert repr(client) == (
        "Client(path='/remove-user/1', peer_address='127.0.0.1', server_address='127.0.0.1',"
        " http_version='1.1', scheme='http')"
    )


# --- open paths


@pytest.mark.parametrize(
    "path",
    [
        *("/health/live", "/health/ready", "/register-user", "/token", "/token_status"),
        *(
            "/users/me/password",
            "/users/me/tokens",
            "/users/me/keys",
            "/users/me/keys/x",
            "/token_status/",
            "/token_status/x",
            "/token_status/x/y/../z",
        ),
    ],
)
@pytest.mark.parametrize("policy", [TOKEN_MODE, LOCAL_MODE, LOCKED], ids=["token", "local", "locked"])
def test_remote_clients_can_access_open_paths(policy: AdminPolicy, path: str) -> None:
    policy.check(attrs.evolve(REMOTE, path=path))


@pytest.mark.parametrize(
    "path",
    [
        "/toggle-user-permission/1/0",
        "/remove-user/1",
        "/users",
        "/",
        "",
        "*",
        "/register-user/",
        "/register-user/x",
        "/Register-User",
        "//register-user",
        "/register-user\n",
        "/register-user;x",
        "/health",
        "/health/live/",
        "/health/live/../../remove-user/1",
        "/token/",
        "/token/x",
        "/Token",
        "/token_statusx",
        "/Token_status/x",
        "//token_status/x",
        "/x/token_status/x",
        "/users/1",
        "/users/me/",
        "/users/me/password/",
        "/users/me/tokens/x",
        "/users/me/keys/",
        "/users/me/keys/x/y",
        "/users/1/password",
        "/users/1/tokens",
        "/users/1/keys",
        "/keys/0123456789abcdef",
        "/unknown",
    ],
)
def test_remote_clients_cannot_access_other_paths(path: str) -> None:
    remote = attrs.evolve(REMOTE, path=path)

    with pytest.raises(AdminTokenRequiredError):
        TOKEN_MODE.check(remote)
    with pytest.raises(AdminAccessDeniedError):
        LOCAL_MODE.check(remote)
    with pytest.raises(AdminAccessDeniedError):
        LOCKED.check(remote)


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        pytest.param(AdminPolicy(admin_token=TOKEN, registration_open=False), AdminTokenRequiredError, id="token"),
        pytest.param(AdminPolicy(registration_open=False), AdminAccessDeniedError, id="local"),
        pytest.param(AdminPolicy(local=False, registration_open=False), AdminAccessDeniedError, id="locked"),
    ],
)
def test_closed_registration_rejects_remote_clients(policy: AdminPolicy, error: type[MlapiError]) -> None:
    with pytest.raises(error):
        policy.check(attrs.evolve(REMOTE, path="/register-user"))


def test_closed_registration_accepts_admins() -> None:
    registering = attrs.evolve(LOCAL, path="/register-user")

    attrs.evolve(LOCAL_MODE, registration_open=False).check(registering)
    AdminPolicy(admin_token=TOKEN, registration_open=False).check(
        with_headers(registering, ("authorization", f"Bearer {TOKEN}"))
    )


@pytest.mark.parametrize("path", ["/health/live", "/token", "/token_status/x"])
def test_closed_registration_does_not_affect_other_paths(path: str) -> None:
    AdminPolicy(local=False, registration_open=False).check(attrs.evolve(REMOTE, path=path))


def test_docs_are_open_except_in_production() -> None:
    assert AdminPolicy.from_settings(Settings()).docs_open
    assert not AdminPolicy.from_settings(Settings(profile="production")).docs_open


@pytest.mark.parametrize("path", ["/docs", "/docs/x/swagger-ui.css", "/openapi.json"])
def test_remote_clients_can_read_open_docs(path: str) -> None:
    remote = attrs.evolve(REMOTE, path=path)

    AdminPolicy(admin_token=TOKEN, docs_open=True).check(remote)
    with pytest.raises(AdminTokenRequiredError):
        TOKEN_MODE.check(remote)


@pytest.mark.parametrize("path", ["/docsx", "/Docs", "//docs", "/openapi.jsonx", "/openapi", "/x/docs", "/users"])
def test_open_docs_do_not_affect_other_paths(path: str) -> None:
    with pytest.raises(AdminTokenRequiredError):
        AdminPolicy(admin_token=TOKEN, docs_open=True).check(attrs.evolve(REMOTE, path=path))


# --- token mode


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("client", [REMOTE, LOCAL], ids=["remote", "local"])
def test_token_grants_admin_access(client: Client, scheme: str) -> None:
    TOKEN_MODE.check(with_headers(client, ("authorization", f"{scheme} {TOKEN}")))


def test_white_space_around_the_header_value_is_ignored() -> None:
    TOKEN_MODE.check(with_headers(REMOTE, ("authorization", f" Bearer {TOKEN} \t")))


def test_token_is_accepted_through_proxies_and_over_http_1_0() -> None:
    client = attrs.evolve(with_headers(REMOTE, ("x-forwarded-for", "203.0.113.9"), ("via", "x")), http_version="1.0")

    TOKEN_MODE.check(with_headers(client, ("authorization", f"Bearer {TOKEN}")))


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="missing"),
        pytest.param([""], id="empty"),
        pytest.param(["Bearer"], id="no token"),
        pytest.param(["Bearer "], id="empty token"),
        pytest.param([TOKEN], id="no scheme"),
        pytest.param([f" {TOKEN}"], id="empty scheme"),
        pytest.param([f"Basic {TOKEN}"], id="Basic scheme"),
        pytest.param([f"Token {TOKEN}"], id="Token scheme"),
        pytest.param([f"Bearer{TOKEN}"], id="no space"),
        pytest.param([f"Bearer\t{TOKEN}"], id="tab"),
        pytest.param([f"Bearer {TOKEN[:-1]}"], id="one character missing"),
        pytest.param([f"Bearer {TOKEN}x"], id="one extra character"),
        pytest.param([f"Bearer {TOKEN.upper()}"], id="wrong case"),
        pytest.param(["Bearer another"], id="wrong"),
        pytest.param(["Bearer \xff\xfe"], id="non-ASCII token"),
        pytest.param(["\xff\xfe"], id="non-ASCII scheme"),
        pytest.param([f"Bearer {TOKEN}", f"Bearer {TOKEN}"], id="two headers"),
        pytest.param([f"Bearer {TOKEN}", "Bearer another"], id="a wrong token in a second header"),
        pytest.param([f"Bearer {TOKEN},Bearer {TOKEN}"], id="two headers joined by WSGI"),
    ],
)
@pytest.mark.parametrize("client", [REMOTE, LOCAL], ids=["remote", "local"])
def test_missing_or_wrong_token_is_rejected(client: Client, values: list[str]) -> None:
    with pytest.raises(AdminTokenRequiredError):
        TOKEN_MODE.check(with_headers(client, *(("authorization", value) for value in values)))


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (("accept", "*/*"), AdminTokenRequiredError),
        (("authorization", "Bearer"), AdminTokenRequiredError),
        (("authorization", f"Basic {TOKEN}"), AdminTokenRequiredError),
        (("authorization", "Bearer another"), WrongAdminTokenError),
        (("authorization", f"Bearer {USER_TOKEN}"), UserIsNotAdminError),
        (("authorization", f"Bearer mlapi_{'0' * 16}_{'0' * 64}"), UserIsNotAdminError),
        (("authorization", USER_TOKEN), UserIsNotAdminError),
        (("x-api-key", f"mlapi_{'0' * 16}_{'0' * 64}"), UserIsNotAdminError),
    ],
)
def test_error_tells_missing_wrong_and_user_credentials_apart(
    header: tuple[str, str], error: type[AdminTokenRequiredError]
) -> None:
    with pytest.raises(AdminTokenRequiredError) as raised:
        TOKEN_MODE.check(with_headers(REMOTE, header))

    assert raised.type is error


@pytest.mark.parametrize("separator", [" ", "  ", "     "])
def test_admin_token_may_follow_several_spaces(separator: str) -> None:
    TOKEN_MODE.check(with_headers(REMOTE, ("authorization", f"Bearer{separator}{TOKEN}")))


@pytest.mark.parametrize("value", ["Bearer", "Bearer ", "bearer "])
def test_empty_token_grants_no_access(value: str) -> None:
    with pytest.raises((MlapiError, ValueError)):
        AdminPolicy(admin_token="").check(with_headers(REMOTE, ("authorization", value)))


def test_token_in_another_header_is_rejected() -> None:
    with pytest.raises(AdminTokenRequiredError):
        TOKEN_MODE.check(with_headers(LOCAL, ("x-authorization", f"Bearer {TOKEN}"), ("cookie", f"token={TOKEN}")))


# --- local mode


@pytest.mark.parametrize(
    "client",
    [
        pytest.param(LOCAL, id="IPv4"),
        pytest.param(
            attrs.evolve(
                LOCAL, peer_address="::1", server_address="::1", headers=encode_headers(("host", "[::1]:8001"))
            ),
            id="IPv6",
        ),
        pytest.param(
            attrs.evolve(LOCAL, peer_address="::ffff:127.0.0.1", server_address="::ffff:127.0.0.1"),
            id="IPv4 on an IPv6 socket",
        ),
        pytest.param(attrs.evolve(LOCAL, peer_address="127.8.9.10"), id="another loopback address"),
        pytest.param(attrs.evolve(LOCAL, headers=encode_headers(("host", "localhost"))), id="host without port"),
        pytest.param(attrs.evolve(LOCAL, headers=encode_headers(("host", "LocalHost:80"))), id="mixed-case host"),
        pytest.param(attrs.evolve(LOCAL, headers=encode_headers(("host", "127.0.0.1:8001"))), id="IP address as host"),
        pytest.param(with_headers(LOCAL, ("sec-fetch-site", "none")), id="browser address bar"),
        pytest.param(with_headers(LOCAL, ("sec-fetch-site", "same-origin")), id="same-origin page"),
        pytest.param(
            with_headers(
                LOCAL,
                ("user-agent", "python-requests/2.34"),
                ("accept-encoding", "gzip, deflate"),
                ("accept", "*/*"),
                ("connection", "keep-alive"),
                ("content-length", "70"),
                ("content-type", "application/json"),
            ),
            id="headers of the requests library",
        ),
        pytest.param(with_headers(LOCAL, ("x-request-id", "7"), ("x-api-key", "7")), id="unrelated headers"),
    ],
)
def test_local_program_has_admin_access(client: Client) -> None:
    LOCAL_MODE.check(client)


PROXY_HEADERS = [
    *("forwarded", "x-forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto"),
    *("x-forwarded-server", "x-forwarded-prefix", "x-forwarded-scheme", "x-forwarded-client-cert"),
    *("x-real-ip", "via", "client-ip", "true-client-ip", "x-client-ip", "x-cluster-client-ip"),
    *("cf-connecting-ip", "cf-ray", "fastly-client-ip", "fly-client-ip", "x-original-forwarded-for"),
    *("x-original-host", "x-remote-ip", "x-remote-addr", "x-envoy-external-address", "x-proxyuser-ip"),
    *("x-azure-clientip", "x-amzn-trace-id", "x-appengine-user-ip", "x-coming-from", "x-host", "x-scheme"),
]
FOREIGN_ADDRESSES = [
    *("203.0.113.9", "192.168.0.2", "10.0.0.1", "169.254.0.1", "0.0.0.0", "::", "2001:db8::1"),
    *("::ffff:203.0.113.9", "::127.0.0.1", "", "localhost", "testclient", "/run/mlapi.sock", "127.1"),
]
NOT_LOCAL_HOSTS = [
    *("", "example.com", "localhost.evil.com", "evil.com:localhost", "localhost@evil.com", "notlocalhost"),
    *("localhost.", "localhost:", "localhost:x", "localhost:123456", "localhost:80:80", "localhost:-1"),
    *("localhost, evil.com", "localhost ", " localhost", "localhost\n", "localhost/", "127.0.0.2"),
    *("127.0.0.1.nip.io", "2130706433", "0.0.0.0", "::1", "[::]", "[::ffff:127.0.0.1]", "192.0.2.1:8001"),
    *("localhost:\u0661", "\u217cocalhost", "\xff"),
]


@pytest.mark.parametrize(
    "client",
    [
        *(
            pytest.param(attrs.evolve(LOCAL, peer_address=address), id=f"client {address}")
            for address in FOREIGN_ADDRESSES
        ),
        *(
            pytest.param(attrs.evolve(LOCAL, server_address=address), id=f"server {address}")
            for address in FOREIGN_ADDRESSES
        ),
        *(pytest.param(with_headers(LOCAL, (name, "127.0.0.1")), id=name) for name in PROXY_HEADERS),
        *(pytest.param(with_headers(LOCAL, (name, "")), id=f"{name}, empty") for name in PROXY_HEADERS),
        *(
            pytest.param(attrs.evolve(LOCAL, headers=encode_headers(("host", host))), id=f"host {host!a}")
            for host in NOT_LOCAL_HOSTS
        ),
        pytest.param(attrs.evolve(LOCAL, headers=[]), id="no host"),
        pytest.param(with_headers(LOCAL, HOST), id="duplicate host"),
        pytest.param(with_headers(LOCAL, ("host", "evil.com")), id="two different hosts"),
        pytest.param(with_headers(LOCAL, ("origin", "https://evil.com")), id="origin"),
        pytest.param(with_headers(LOCAL, ("origin", "http://localhost:8001")), id="local origin"),
        pytest.param(with_headers(LOCAL, ("origin", "null")), id="origin null"),
        pytest.param(with_headers(LOCAL, ("origin", "")), id="origin, empty"),
        pytest.param(with_headers(LOCAL, ("sec-fetch-site", "cross-site")), id="cross-site"),
        pytest.param(with_headers(LOCAL, ("sec-fetch-site", "same-site")), id="same-site"),
        pytest.param(with_headers(LOCAL, ("sec-fetch-site", "")), id="sec-fetch-site, empty"),
        pytest.param(
            with_headers(LOCAL, ("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")),
            id="two sec-fetch-site headers",
        ),
        *(
            pytest.param(attrs.evolve(LOCAL, http_version=version), id=f"HTTP/{version}")
            for version in ("0.9", "1.0", "2", "2.0", "3", "")
        ),
    ],
)
def test_any_sign_of_a_remote_client_denies_access(client: Client) -> None:
    with pytest.raises(AdminAccessDeniedError) as raised:
        LOCAL_MODE.check(client)

    assert str(raised.value) == LOCAL_MESSAGE


def test_local_mode_does_not_accept_a_token() -> None:
    with pytest.raises(AdminAccessDeniedError):
        LOCAL_MODE.check(with_headers(REMOTE, ("authorization", f"Bearer {TOKEN}")))


# --- locked mode


@pytest.mark.parametrize(
    "client",
    [LOCAL, REMOTE, with_headers(LOCAL, ("authorization", f"Bearer {TOKEN}"))],
    ids=["local", "remote", "with a token"],
)
def test_locked_mode_rejects_everyone_and_names_the_setting(client: Client) -> None:
    with pytest.raises(AdminAccessDeniedError) as raised:
        LOCKED.check(client)

    assert str(raised.value) == LOCKED_MESSAGE


# --- clients from ASGI and WSGI


def asgi(**more: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "path": "/remove-user/1",
        "headers": [(b"host", b"localhost:8001")],
        "client": ("127.0.0.1", 54321),
        "server": ("127.0.0.1", 8001),
    } | more


def wsgi(**more: str) -> dict[str, Any]:
    return {
        "PATH_INFO": "/remove-user/1",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "54321",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8001",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost:8001",
        "wsgi.url_scheme": "http",
    } | more


def test_client_is_read_from_an_asgi_scope() -> None:
    assert Client.from_asgi(asgi()) == LOCAL


def test_ports_in_an_asgi_scope_may_be_text() -> None:
    scope = {**asgi(), "client": ("127.0.0.1", "50000"), "server": ("127.0.0.1", "8001")}

    client = Client.from_asgi(scope)

    assert (client.peer_port, client.server_port) == (50_000, 8_001)


def test_client_is_read_from_a_wsgi_environ() -> None:
    assert Client.from_wsgi(wsgi()) == LOCAL


@pytest.mark.parametrize(
    ("root_path", "path", "relative"),
    [
        ("", "/register-user", "/register-user"),
        ("/api", "/api/register-user", "/register-user"),
        ("/api", "/register-user", "/register-user"),
        ("/api", "/apiary/register-user", "/apiary/register-user"),
        ("/api", "/api/api/register-user", "/api/register-user"),
        ("/register-user", "/register-user", "/register-user"),
    ],
)
def test_asgi_path_is_relative_to_the_root_path(root_path: str, path: str, relative: str) -> None:
    assert Client.from_asgi(asgi(root_path=root_path, path=path)).path == relative


@pytest.mark.parametrize("scope", [asgi(client=None, server=None), {}], ids=["None", "missing"])
def test_asgi_client_without_addresses_is_not_local(scope: Mapping[str, Any]) -> None:
    full = dict(scope) or {name: value for name, value in asgi().items() if name not in {"client", "server"}}
    client = Client.from_asgi(full)

    assert client == attrs.evolve(LOCAL, peer_address="", server_address="", peer_port=0, server_port=0)
    with pytest.raises(AdminAccessDeniedError):
        LOCAL_MODE.check(client)


def test_asgi_client_on_a_unix_socket_is_not_local() -> None:
    client = Client.from_asgi(asgi(client=None, server=("/run/mlapi.sock", None)))

    with pytest.raises(AdminAccessDeniedError):
        LOCAL_MODE.check(client)


def test_repeated_asgi_headers_are_kept() -> None:
    client = Client.from_asgi(asgi(headers=[(b"x-real-ip", b"a"), (b"host", b"b"), (b"host", b"c")]))

    assert client.headers == encode_headers(("x-real-ip", "a"), ("host", "b"), ("host", "c"))


@pytest.mark.parametrize("value", [b"Bearer \xff\x00\xfe", b"\xc3\xbc", b"Bearer \xed\xa0\x80"])
def test_token_with_non_ascii_bytes_is_rejected(value: bytes) -> None:
    client = Client.from_asgi(asgi(headers=[(b"authorization", value)]))

    with pytest.raises(AdminTokenRequiredError):
        TOKEN_MODE.check(client)


def test_untrusted_peer_has_no_local_admin_access() -> None:
    policy = AdminPolicy(is_trusted_peer=lambda _client: False)

    for check in (policy.check, policy.check_page):
        with pytest.raises(AdminAccessDeniedError, match="same user as the service, or as root"):
            check(LOCAL)
    policy.check(attrs.evolve(LOCAL, path="/token"))


def test_peer_is_not_looked_up_for_public_or_foreign_requests() -> None:
    asked: list[Client] = []

    def is_trusted(client: Client) -> bool:
        asked.append(client)
        return True

    policy = AdminPolicy(is_trusted_peer=is_trusted)

    policy.check(attrs.evolve(LOCAL, path="/token"))
    with pytest.raises(AdminAccessDeniedError):
        policy.check(attrs.evolve(REMOTE))
    with pytest.raises(AdminAccessDeniedError):
        policy.check(with_headers(LOCAL, ("x-forwarded-for", "203.0.113.9")))

    assert asked == []


def test_other_headers_may_contain_non_ascii_bytes() -> None:
    client = Client.from_asgi(asgi(headers=[(b"host", b"localhost"), (b"x-n\xe4me", b"\xff\xfe")]))

    LOCAL_MODE.check(client)


def test_original_names_of_wsgi_headers_are_restored() -> None:
    client = Client.from_wsgi(
        wsgi(HTTP_X_FORWARDED_FOR="203.0.113.9", CONTENT_TYPE="application/json", CONTENT_LENGTH="5")
    )

    assert client.headers == encode_headers(
        HOST, ("x-forwarded-for", "203.0.113.9"), ("content-type", "application/json"), ("content-length", "5")
    )


def test_wsgi_client_behind_a_proxy_is_not_local() -> None:
    client = Client.from_wsgi(wsgi(HTTP_X_FORWARDED_FOR=""))

    with pytest.raises(AdminAccessDeniedError):
        LOCAL_MODE.check(client)


def test_wsgi_client_without_addresses_is_not_local() -> None:
    client = Client.from_wsgi({"SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "localhost:8001"})

    assert client == Client(
        path="", peer_address="", server_address="", http_version="1.1", headers=encode_headers(HOST)
    )
    with pytest.raises(AdminAccessDeniedError):
        LOCAL_MODE.check(client)


def test_wsgi_client_with_the_token_has_admin_access() -> None:
    TOKEN_MODE.check(Client.from_wsgi(wsgi(REMOTE_ADDR="203.0.113.9", HTTP_AUTHORIZATION=f"Bearer {TOKEN}")))


# --- addresses behind proxies


PROXY = attrs.evolve(REMOTE, peer_address="10.0.0.1")
REPLACED = attrs.evolve(REMOTE, peer_port=0)
"""A client whose address the server has taken from a header without a port."""
TRUSTED = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8:ffff::/48")]


def forwarded(client: Client, *values: str) -> Client:
    return with_headers(client, *(("x-forwarded-for", value) for value in values))


def connected(client: Client, peer: str) -> Client:
    return attrs.evolve(client, peer_address=peer, peer_port=50001, is_peer_certain=True)


@pytest.mark.parametrize("trusted", [[], TRUSTED], ids=["no proxies", "proxies"])
@pytest.mark.parametrize("peer", ["203.0.113.9", "2001:db8::1", "10.0.0.1", "", "testclient"])
def test_peer_address_is_used_without_forwarding_headers(peer: str, trusted: Sequence[Network]) -> None:
    client = with_headers(attrs.evolve(REMOTE, peer_address=peer), ("forwarded", "for=192.0.2.1"))

    assert client.resolve_address(trusted) == peer


@pytest.mark.parametrize("values", [["192.0.2.1"], ["192.0.2.1", "192.0.2.2, nonsense"], [""], ["192.0.2.1:80"]])
def test_forwarding_headers_are_ignored_by_default(values: list[str]) -> None:
    assert forwarded(REMOTE, *values).resolve_address() == "203.0.113.9"


@pytest.mark.parametrize("values", [["192.0.2.1"], ["192.0.2.1, 10.0.0.2"], ["nonsense"]])
def test_forwarding_headers_from_untrusted_peers_are_ignored(values: list[str]) -> None:
    assert forwarded(REMOTE, *values).resolve_address(TRUSTED) == "203.0.113.9"


@pytest.mark.parametrize(
    ("peer", "values"),
    [
        pytest.param("203.0.113.9", ["203.0.113.9"], id="only entry"),
        pytest.param("203.0.113.9", ["192.0.2.1, 203.0.113.9"], id="last entry"),
        pytest.param("203.0.113.9", ["203.0.113.9, 127.0.0.1"], id="before a local proxy"),
        pytest.param("203.0.113.9", ["192.0.2.1", " 203.0.113.9 "], id="last entry in a second header"),
        pytest.param("203.0.113.9", ["203.0.113.9:50000"], id="with a port"),
        pytest.param("2001:db8::1", ["2001:db8::1"], id="IPv6"),
        pytest.param("2001:db8::1", ["[2001:db8::1]:50000"], id="IPv6 with a port"),
        pytest.param("nonsense", ["nonsense"], id="not an address"),
    ],
)
def test_address_is_unknown_if_server_replaced_the_peer_address(peer: str, values: list[str]) -> None:
    assert forwarded(attrs.evolve(REPLACED, peer_address=peer), *values).resolve_address() == "unknown"


@pytest.mark.parametrize(
    "value",
    [f"203.0.113.9:{'9' * 5_000}", "9" * 16_000, "[" + ":" * 16_000, "203.0.113.9%" + "x" * 16_000, "1," * 8_000 + "x"],
)
def test_long_forwarding_header_is_not_parsed_at_full_length(value: str) -> None:
    assert forwarded(REMOTE, value).resolve_address() in {"203.0.113.9", "unknown"}
    via_proxy = forwarded(attrs.evolve(REMOTE, peer_address="10.0.0.1"), value).resolve_address(TRUSTED)
    assert via_proxy in {"10.0.0.1", "203.0.113.9"}


def test_address_is_unknown_if_it_may_be_in_a_skipped_entry() -> None:
    entries = ", ".join(["203.0.113.9", *["192.0.2.1"] * MAX_FORWARDED_ENTRIES])

    assert forwarded(REPLACED, entries).resolve_address() == "unknown"


def test_trusted_proxies_confirm_a_replaced_peer_address() -> None:
    client = attrs.evolve(REMOTE, peer_address="203.0.113.9")

    assert forwarded(client, "203.0.113.9").resolve_address(TRUSTED) == "203.0.113.9"
    assert forwarded(client, "192.0.2.1, 203.0.113.9, 10.0.0.2").resolve_address(TRUSTED) == "203.0.113.9"


def test_invalid_replaced_peer_address_is_unknown() -> None:
    assert forwarded(attrs.evolve(REPLACED, peer_address="nonsense"), "nonsense").resolve_address(TRUSTED) == "unknown"


@pytest.mark.parametrize(
    ("values", "address"),
    [
        pytest.param(["203.0.113.9"], "203.0.113.9", id="single entry"),
        pytest.param(["192.0.2.1, 203.0.113.9"], "203.0.113.9", id="last entry"),
        pytest.param(["192.0.2.1", "203.0.113.9"], "203.0.113.9", id="last entry of two headers"),
        pytest.param(["192.0.2.1,203.0.113.9,10.9.9.9,10.0.0.2"], "203.0.113.9", id="before trusted proxies"),
        pytest.param(["10.0.0.3, 203.0.113.9, 10.0.0.2"], "203.0.113.9", id="last untrusted entry"),
        pytest.param(["10.0.0.3, 10.0.0.2"], "10.0.0.3", id="all entries trusted"),
        pytest.param(["nonsense, 203.0.113.9"], "203.0.113.9", id="malformed entry before"),
        pytest.param(["203.0.113.9, nonsense"], "10.0.0.1", id="malformed entry after"),
        pytest.param(["203.0.113.9, nonsense, 10.0.0.2"], "10.0.0.2", id="malformed entry between"),
        pytest.param(["203.0.113.9, ,"], "203.0.113.9", id="empty entries after"),
        pytest.param(["203.0.113.9", ""], "203.0.113.9", id="empty header after"),
        pytest.param(["203.0.113.9,, 10.0.0.2,\t, 10.0.0.3"], "203.0.113.9", id="empty entries between"),
        pytest.param([", 203.0.113.9"], "203.0.113.9", id="empty entry before"),
        pytest.param(["unknown, 203.0.113.9, 10.0.0.2"], "203.0.113.9", id="unknown before"),
        pytest.param(["203.0.113.9, unknown, 10.0.0.2"], "10.0.0.2", id="unknown between"),
        pytest.param(["203.0.113.9, Unknown"], "10.0.0.1", id="unknown after"),
        pytest.param(['"[2001:db8::1]:4711"'], "2001:db8::1", id="quoted IPv6 with a port"),
        pytest.param(['"203.0.113.9"'], "203.0.113.9", id="quoted"),
        pytest.param([""], "10.0.0.1", id="empty header"),
        pytest.param(["unknown"], "10.0.0.1", id="unknown"),
        pytest.param(["203.0.113.256"], "10.0.0.1", id="not an address"),
        pytest.param(["203.0.113.9\xe4"], "10.0.0.1", id="not ASCII"),
        pytest.param(["203.0.113.9:50000"], "203.0.113.9", id="with a port"),
        pytest.param(["203.0.113.9:50000, 10.0.0.2:443"], "203.0.113.9", id="with two ports"),
        pytest.param(["2001:db8::1"], "2001:db8::1", id="IPv6"),
        pytest.param(["[2001:db8::1]:50000"], "2001:db8::1", id="IPv6 with a port"),
        pytest.param(["203.0.113.9, 2001:db8:ffff::2"], "203.0.113.9", id="trusted IPv6"),
        pytest.param(["203.0.113.9, [2001:db8:ffff::2]:443"], "203.0.113.9", id="trusted IPv6 with a port"),
        pytest.param(["::ffff:203.0.113.9"], "203.0.113.9", id="mapped IPv4"),
        pytest.param(["203.0.113.9, ::ffff:10.0.0.2"], "203.0.113.9", id="trusted mapped IPv4"),
    ],
)
@pytest.mark.parametrize("proxy", ["10.0.0.1", "::ffff:10.0.0.1"], ids=["IPv4", "mapped IPv4"])
def test_trusted_proxy_forwards_the_address_of_its_client(proxy: str, values: list[str], address: str) -> None:
    client = forwarded(attrs.evolve(PROXY, peer_address=proxy), *values)

    assert client.resolve_address(TRUSTED) == (proxy if address == "10.0.0.1" else address)


def test_trusted_proxy_works_with_a_wsgi_server() -> None:
    client = Client.from_wsgi(wsgi(REMOTE_ADDR="10.0.0.1", HTTP_X_FORWARDED_FOR="192.0.2.1, 203.0.113.9,10.0.0.2"))

    assert client.resolve_address(TRUSTED) == "203.0.113.9"


@pytest.mark.parametrize("values", [["203.0.113.9, 9.9.9.9"], ["203.0.113.9", "9.9.9.9"], ["9.9.9.9, 203.0.113.9, x"]])
def test_replaced_address_is_unknown_unless_a_proxy_confirms_it(values: list[str]) -> None:
    assert forwarded(REPLACED, *values).resolve_address(TRUSTED) == "unknown"


def test_address_is_unknown_if_its_port_may_be_from_a_header() -> None:
    client = attrs.evolve(REMOTE, peer_port=50001)

    assert forwarded(client, "203.0.113.9:50001").resolve_address() == "unknown"
    assert forwarded(client, "203.0.113.9:50002").resolve_address() == "203.0.113.9"


def test_proxies_are_trusted_if_the_server_replaced_the_address() -> None:
    client = forwarded(attrs.evolve(REPLACED, peer_address="198.51.100.4"), "198.51.100.4, 203.0.113.9")

    assert connected(client, "10.0.0.1").resolve_address(TRUSTED) == "203.0.113.9"
    assert connected(client, "192.0.2.9").resolve_address(TRUSTED) == "192.0.2.9"


OWN_ADDRESSES = {
    "203.0.113.9": [
        ["203.0.113.9"],
        ["203.0.113.9:80"],
        ["203.0.113.9:50001"],
        ["[203.0.113.9]"],
        ["::ffff:203.0.113.9"],
        ["::FFFF:CB00:7109"],
        ["[::ffff:203.0.113.9]:443"],
        ["203.000.113.009"],
        [" 203.0.113.9 , 203.0.113.9"],
        ["203.0.113.9", "203.0.113.9"],
        ["9.9.9.9, 203.0.113.9"],
        ["203.0.113.9, 9.9.9.9"],
    ],
    "2001:db8::1": [
        ["2001:db8::1"],
        ["2001:DB8:0:0:0:0:0:1"],
        ["2001:0db8::0001"],
        ["[2001:db8::1]:50001"],
        ["2001:db8::1%eth0"],
    ],
    "fe80::1%eth0": [["fe80::1"], ["fe80::1%eth0"], ["[fe80::1%eth0]:1"]],
    "::ffff:203.0.113.9": [["203.0.113.9"], ["::ffff:203.0.113.9"]],
}


@pytest.mark.parametrize("trusted", [[], TRUSTED], ids=["no proxies", "proxies"])
@pytest.mark.parametrize(
    ("peer", "values"), [(peer, values) for peer, spellings in OWN_ADDRESSES.items() for values in spellings]
)
def test_client_cannot_hide_by_forwarding_its_own_address(
    peer: str, values: list[str], trusted: Sequence[Network]
) -> None:
    client = connected(forwarded(REPLACED, *values), peer)
    uncertain = forwarded(attrs.evolve(REMOTE, peer_address=peer, peer_port=50000), *values)

    assert client.resolve_address(trusted) == uncertain.resolve_address(trusted) == peer


@pytest.mark.parametrize(
    ("peer", "entry"),
    [
        ("2001:db8::1", "[2001:db8::1]"),
        ("1.2.3.4", "[1.2.3.4]"),
        ("1.2.3.4", "\xa01.2.3.4"),
        ("[x", "[[x]:80"),
        ("1.2.3.4", "1.2.3.4:80"),
    ],
)
def test_peer_address_contained_in_forwarded_entry_is_unknown(peer: str, entry: str) -> None:
    assert forwarded(attrs.evolve(REPLACED, peer_address=peer), entry).resolve_address() == "unknown"


@pytest.mark.parametrize("entry", ["[2001:db8::1]", "[2001:db8::1]:443", "2001:db8::1"])
def test_forwarded_address_may_be_in_brackets(entry: str) -> None:
    assert forwarded(PROXY, entry).resolve_address(TRUSTED) == "2001:db8::1"


def test_replaced_peer_address_of_a_proxy_is_skipped() -> None:
    client = forwarded(attrs.evolve(REMOTE, peer_address="10.0.0.7"), "198.51.100.4, 10.0.0.7")

    assert client.resolve_address(TRUSTED) == "198.51.100.4"


@pytest.mark.parametrize("entry", ["10.0.0.7, 203.0.113.5", "210.0.0.77, 203.0.113.5", "203.0.113.5"])
def test_client_cannot_hide_by_forwarding_the_proxy_address(entry: str) -> None:
    client = forwarded(attrs.evolve(REMOTE, peer_address="10.0.0.7"), entry)

    assert client.resolve_address(TRUSTED) == "203.0.113.5"


def test_forwarding_headers_without_a_peer_are_ignored() -> None:
    assert forwarded(attrs.evolve(REMOTE, peer_address=""), "9.9.9.9", "9.9.9.9:80").resolve_address(TRUSTED) == ""


# --- schemes behind proxies


@pytest.mark.parametrize(
    "values", [["HTTPS"], ["https, http"], ["https,https"], ["https", "http"], [" Https "], ["", ",https"]]
)
def test_first_forwarded_scheme_is_that_of_the_browser(values: list[str]) -> None:
    client = with_headers(PROXY, *(("x-forwarded-proto", value) for value in values))

    assert client.with_forwarded_scheme(TRUSTED).scheme == "https"


@pytest.mark.parametrize("values", [[], ["http"], ["http, https"], ["http", "https"], ["ftp"], [""], [","], ["https;"]])
def test_other_forwarded_schemes_are_ignored(values: list[str]) -> None:
    client = with_headers(PROXY, *(("x-forwarded-proto", value) for value in values))

    assert client.with_forwarded_scheme(TRUSTED) == client


@pytest.mark.parametrize("values", [["http"], ["HTTP, https"], ["http", "https"]])
def test_forwarded_scheme_replaces_the_one_of_the_server(values: list[str]) -> None:
    client = with_headers(PROXY, *(("x-forwarded-proto", value) for value in values))
    of_server = attrs.evolve(client, scheme="https")  # uvicorn takes the last value of a repeated header

    assert of_server.with_forwarded_scheme(TRUSTED).scheme == "http"


def test_only_trusted_proxies_can_set_the_scheme() -> None:
    from_proxy, from_remote = (with_headers(client, ("x-forwarded-proto", "https")) for client in (PROXY, REMOTE))

    assert from_proxy.with_forwarded_scheme(TRUSTED) == attrs.evolve(from_proxy, scheme="https")
    assert from_remote.with_forwarded_scheme(TRUSTED) == from_remote
    assert from_proxy.with_forwarded_scheme([]) == from_proxy
