"""Who may manage users, decided from the facts of a request."""

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import pytest

from mlapi.config import ManagementSettings, RegistrationSettings, SecretSettings, Settings
from mlapi.domain.errors import MlapiError
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.wire.client import Client, Network
from mlapi.entrypoints.wire.errors import AdminAccessDeniedError, AdminTokenRequiredError

TOKEN = "an-admin-token-of-32-characters."
HOST = ("host", "localhost:8001")


def sent(*headers: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers as they are sent."""
    return [(name.encode("latin-1"), value.encode("utf-8", "surrogatepass")) for name, value in headers]


LOCAL = Client(path="/remove-user/1", client="127.0.0.1", server="127.0.0.1", http_version="1.1", headers=sent(HOST))
STRANGER = attrs.evolve(LOCAL, client="203.0.113.9", server="192.0.2.1", headers=sent(("host", "api.example.com")))

BY_TOKEN = AdminPolicy(admin_token=TOKEN)
BY_MACHINE = AdminPolicy()
LOCKED = AdminPolicy(local=False)

LOCKED_REASON = "Management is locked: set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)"
LOCAL_REASON = (
    "Management is open to programs on this machine only, and not through a proxy or a web page: to manage from"
    " elsewhere, set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)"
)


def with_headers(caller: Client, *headers: tuple[str, str]) -> Client:
    return attrs.evolve(caller, headers=[*caller.headers, *sent(*headers)])


# --- which mode


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
def test_the_settings_decide_the_mode(settings: Settings, mode: str) -> None:
    assert AdminPolicy.from_settings(settings).mode == mode


@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
def test_the_settings_decide_whether_registration_is_open(is_open: bool) -> None:
    management = AdminPolicy.from_settings(Settings(registration=RegistrationSettings(open=is_open)))

    assert management == AdminPolicy(registration_open=is_open, docs_open=True)


def test_the_settings_token_is_the_one_that_is_checked() -> None:
    by_token = AdminPolicy(admin_token=TOKEN, docs_open=True)
    assert AdminPolicy.from_settings(Settings(secrets=SecretSettings(admin_token=TOKEN))) == by_token
    assert AdminPolicy.from_settings(Settings(secrets=SecretSettings(admin_token="another"))) != BY_TOKEN


@pytest.mark.parametrize(
    ("management", "line"),
    [
        pytest.param(
            BY_TOKEN,
            "management: token mode, open to clients that send the admin token; registration is open to everyone",
            id="token",
        ),
        pytest.param(
            BY_MACHINE,
            "management: local mode, open to programs on this machine, because secrets.admin_token is not set;"
            " registration is open to everyone",
            id="local",
        ),
        pytest.param(
            AdminPolicy(local=False, registration_open=False),
            "management: locked mode, closed, because secrets.admin_token is not set and management.local is false;"
            " registration is open to admins only",
            id="locked",
        ),
    ],
)
def test_one_line_says_the_mode(management: AdminPolicy, line: str) -> None:
    assert str(management) == line


def test_nothing_shows_the_token() -> None:
    assert repr(BY_TOKEN) == "AdminPolicy(local=True, registration_open=True, docs_open=False, metrics_open=False)"
    assert TOKEN not in str(BY_TOKEN)


def test_a_caller_does_not_show_his_headers() -> None:
    caller = with_headers(LOCAL, ("authorization", f"Bearer {TOKEN}"))

    assert repr(caller) == (
        "Client(path='/remove-user/1', client='127.0.0.1', server='127.0.0.1', http_version='1.1', scheme='http')"
    )


# --- which paths


@pytest.mark.parametrize(
    "path",
    [
        *("/health/live", "/health/ready", "/register-user", "/token", "/token_status"),
        *("/users/me/password", "/users/me/tokens", "/token_status/", "/token_status/x", "/token_status/x/y/../z"),
    ],
)
@pytest.mark.parametrize("management", [BY_TOKEN, BY_MACHINE, LOCKED], ids=["token", "local", "locked"])
def test_a_stranger_may_register_log_in_and_ask_for_health(management: AdminPolicy, path: str) -> None:
    management.check(attrs.evolve(STRANGER, path=path))


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
        "/users/me/keys",
        "/users/1/password",
        "/users/1/tokens",
        "/users/1/keys",
        "/keys/0123456789abcdef",
        "/nothing-of-ours",
    ],
)
def test_every_other_path_is_closed_to_a_stranger(path: str) -> None:
    stranger = attrs.evolve(STRANGER, path=path)

    with pytest.raises(AdminTokenRequiredError):
        BY_TOKEN.check(stranger)
    with pytest.raises(AdminAccessDeniedError):
        BY_MACHINE.check(stranger)
    with pytest.raises(AdminAccessDeniedError):
        LOCKED.check(stranger)


@pytest.mark.parametrize(
    ("management", "refusal"),
    [
        pytest.param(AdminPolicy(admin_token=TOKEN, registration_open=False), AdminTokenRequiredError, id="token"),
        pytest.param(AdminPolicy(registration_open=False), AdminAccessDeniedError, id="local"),
        pytest.param(AdminPolicy(local=False, registration_open=False), AdminAccessDeniedError, id="locked"),
    ],
)
def test_closed_registration_is_closed_to_a_stranger(management: AdminPolicy, refusal: type[MlapiError]) -> None:
    with pytest.raises(refusal):
        management.check(attrs.evolve(STRANGER, path="/register-user"))


def test_closed_registration_is_open_to_who_may_manage() -> None:
    registering = attrs.evolve(LOCAL, path="/register-user")

    AdminPolicy(registration_open=False).check(registering)
    AdminPolicy(admin_token=TOKEN, registration_open=False).check(
        with_headers(registering, ("authorization", f"Bearer {TOKEN}"))
    )


@pytest.mark.parametrize("path", ["/health/live", "/token", "/token_status/x"])
def test_all_else_is_open_where_registration_is_closed(path: str) -> None:
    AdminPolicy(local=False, registration_open=False).check(attrs.evolve(STRANGER, path=path))


def test_the_docs_are_open_to_all_but_in_production() -> None:
    assert AdminPolicy.from_settings(Settings()).docs_open
    assert not AdminPolicy.from_settings(Settings(profile="production")).docs_open


@pytest.mark.parametrize("path", ["/docs", "/docs/x/swagger-ui.css", "/openapi.json"])
def test_open_docs_are_open_to_a_stranger(path: str) -> None:
    stranger = attrs.evolve(STRANGER, path=path)

    AdminPolicy(admin_token=TOKEN, docs_open=True).check(stranger)
    with pytest.raises(AdminTokenRequiredError):
        BY_TOKEN.check(stranger)


@pytest.mark.parametrize("path", ["/docsx", "/Docs", "//docs", "/openapi.jsonx", "/openapi", "/x/docs", "/users"])
def test_open_docs_open_nothing_else(path: str) -> None:
    with pytest.raises(AdminTokenRequiredError):
        AdminPolicy(admin_token=TOKEN, docs_open=True).check(attrs.evolve(STRANGER, path=path))


# --- token mode


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("caller", [STRANGER, LOCAL], ids=["stranger", "local"])
def test_whoever_sends_the_token_may_manage(caller: Client, scheme: str) -> None:
    BY_TOKEN.check(with_headers(caller, ("authorization", f"{scheme} {TOKEN}")))


def test_white_space_around_a_header_is_not_of_the_token() -> None:
    BY_TOKEN.check(with_headers(STRANGER, ("authorization", f" Bearer {TOKEN} \t")))


def test_the_token_opens_through_proxies_and_old_versions_of_http() -> None:
    caller = attrs.evolve(with_headers(STRANGER, ("x-forwarded-for", "203.0.113.9"), ("via", "x")), http_version="1.0")

    BY_TOKEN.check(with_headers(caller, ("authorization", f"Bearer {TOKEN}")))


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="missing"),
        pytest.param([""], id="empty"),
        pytest.param(["Bearer"], id="no token"),
        pytest.param(["Bearer "], id="empty token"),
        pytest.param([TOKEN], id="no scheme"),
        pytest.param([f" {TOKEN}"], id="empty scheme"),
        pytest.param([f"Basic {TOKEN}"], id="other scheme"),
        pytest.param([f"Token {TOKEN}"], id="another scheme"),
        pytest.param([f"Bearer{TOKEN}"], id="no space"),
        pytest.param([f"Bearer  {TOKEN}"], id="two spaces"),
        pytest.param([f"Bearer\t{TOKEN}"], id="tab"),
        pytest.param([f"Bearer {TOKEN[:-1]}"], id="one character less"),
        pytest.param([f"Bearer {TOKEN}x"], id="one character more"),
        pytest.param([f"Bearer {TOKEN.upper()}"], id="other case"),
        pytest.param(["Bearer another"], id="wrong"),
        pytest.param(["Bearer \xff\xfe"], id="not ASCII"),
        pytest.param(["\xff\xfe"], id="scheme that is not ASCII"),
        pytest.param([f"Bearer {TOKEN}", f"Bearer {TOKEN}"], id="twice"),
        pytest.param([f"Bearer {TOKEN}", "Bearer another"], id="and a wrong one"),
        pytest.param([f"Bearer {TOKEN},Bearer {TOKEN}"], id="twice in one, as WSGI joins them"),
    ],
)
@pytest.mark.parametrize("caller", [STRANGER, LOCAL], ids=["stranger", "local"])
def test_without_the_token_nobody_may_manage(caller: Client, values: list[str]) -> None:
    with pytest.raises(AdminTokenRequiredError):
        BY_TOKEN.check(with_headers(caller, *(("authorization", value) for value in values)))


@pytest.mark.parametrize("value", ["Bearer", "Bearer ", "bearer "])
def test_an_empty_token_lets_nobody_in(value: str) -> None:
    with pytest.raises((MlapiError, ValueError)):
        AdminPolicy(admin_token="").check(with_headers(STRANGER, ("authorization", value)))


def test_a_token_elsewhere_than_in_its_header_opens_nothing() -> None:
    with pytest.raises(AdminTokenRequiredError):
        BY_TOKEN.check(with_headers(LOCAL, ("x-authorization", f"Bearer {TOKEN}"), ("cookie", f"token={TOKEN}")))


# --- local mode


@pytest.mark.parametrize(
    "caller",
    [
        pytest.param(LOCAL, id="IPv4"),
        pytest.param(attrs.evolve(LOCAL, client="::1", server="::1", headers=sent(("host", "[::1]:8001"))), id="IPv6"),
        pytest.param(
            attrs.evolve(LOCAL, client="::ffff:127.0.0.1", server="::ffff:127.0.0.1"), id="IPv4 on a socket of IPv6"
        ),
        pytest.param(attrs.evolve(LOCAL, client="127.8.9.10"), id="another address of the loopback network"),
        pytest.param(attrs.evolve(LOCAL, headers=sent(("host", "localhost"))), id="host without port"),
        pytest.param(attrs.evolve(LOCAL, headers=sent(("host", "LocalHost:80"))), id="host in other case"),
        pytest.param(attrs.evolve(LOCAL, headers=sent(("host", "127.0.0.1:8001"))), id="host as address"),
        pytest.param(with_headers(LOCAL, ("sec-fetch-site", "none")), id="typed into a browser"),
        pytest.param(with_headers(LOCAL, ("sec-fetch-site", "same-origin")), id="our own page"),
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
            id="as requests sends it",
        ),
        pytest.param(with_headers(LOCAL, ("x-request-id", "7"), ("x-api-key", "7")), id="other headers"),
    ],
)
def test_a_program_on_this_machine_may_manage(caller: Client) -> None:
    BY_MACHINE.check(caller)


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
NO_LOCAL_HOSTS = [
    *("", "example.com", "localhost.evil.com", "evil.com:localhost", "localhost@evil.com", "notlocalhost"),
    *("localhost.", "localhost:", "localhost:x", "localhost:123456", "localhost:80:80", "localhost:-1"),
    *("localhost, evil.com", "localhost ", " localhost", "localhost\n", "localhost/", "127.0.0.2"),
    *("127.0.0.1.nip.io", "2130706433", "0.0.0.0", "::1", "[::]", "[::ffff:127.0.0.1]", "192.0.2.1:8001"),
    *("localhost:\u0661", "\u217cocalhost", "\xff"),
]


@pytest.mark.parametrize(
    "caller",
    [
        *(pytest.param(attrs.evolve(LOCAL, client=address), id=f"client {address}") for address in FOREIGN_ADDRESSES),
        *(pytest.param(attrs.evolve(LOCAL, server=address), id=f"server {address}") for address in FOREIGN_ADDRESSES),
        *(pytest.param(with_headers(LOCAL, (name, "127.0.0.1")), id=name) for name in PROXY_HEADERS),
        *(pytest.param(with_headers(LOCAL, (name, "")), id=f"{name}, empty") for name in PROXY_HEADERS),
        *(
            pytest.param(attrs.evolve(LOCAL, headers=sent(("host", host))), id=f"host {host!a}")
            for host in NO_LOCAL_HOSTS
        ),
        pytest.param(attrs.evolve(LOCAL, headers=[]), id="no host"),
        pytest.param(with_headers(LOCAL, HOST), id="host twice"),
        pytest.param(with_headers(LOCAL, ("host", "evil.com")), id="two hosts"),
        pytest.param(with_headers(LOCAL, ("origin", "https://evil.com")), id="origin"),
        pytest.param(with_headers(LOCAL, ("origin", "http://localhost:8001")), id="origin of this machine"),
        pytest.param(with_headers(LOCAL, ("origin", "null")), id="origin null"),
        pytest.param(with_headers(LOCAL, ("origin", "")), id="origin, empty"),
        pytest.param(with_headers(LOCAL, ("sec-fetch-site", "cross-site")), id="cross-site"),
        pytest.param(with_headers(LOCAL, ("sec-fetch-site", "same-site")), id="same-site"),
        pytest.param(with_headers(LOCAL, ("sec-fetch-site", "")), id="sec-fetch-site, empty"),
        pytest.param(with_headers(LOCAL, ("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")), id="two sites"),
        *(
            pytest.param(attrs.evolve(LOCAL, http_version=version), id=f"HTTP/{version}")
            for version in ("0.9", "1.0", "2", "2.0", "3", "")
        ),
    ],
)
def test_one_fact_that_may_come_from_elsewhere_is_enough_to_refuse(caller: Client) -> None:
    with pytest.raises(AdminAccessDeniedError) as refusal:
        BY_MACHINE.check(caller)

    assert str(refusal.value) == LOCAL_REASON


def test_local_mode_asks_for_no_token_and_takes_none() -> None:
    with pytest.raises(AdminAccessDeniedError):
        BY_MACHINE.check(with_headers(STRANGER, ("authorization", f"Bearer {TOKEN}")))


# --- locked mode


@pytest.mark.parametrize(
    "caller",
    [LOCAL, STRANGER, with_headers(LOCAL, ("authorization", f"Bearer {TOKEN}"))],
    ids=["local", "stranger", "with a token"],
)
def test_locked_is_locked_and_names_the_setting(caller: Client) -> None:
    with pytest.raises(AdminAccessDeniedError) as refusal:
        LOCKED.check(caller)

    assert str(refusal.value) == LOCKED_REASON


# --- callers as frameworks tell of them


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
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8001",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost:8001",
        "wsgi.url_scheme": "http",
    } | more


def test_a_caller_is_read_from_an_asgi_scope() -> None:
    assert Client.from_asgi(asgi()) == LOCAL


def test_a_caller_is_read_from_a_wsgi_environ() -> None:
    assert Client.from_wsgi(wsgi()) == LOCAL


@pytest.mark.parametrize(
    ("root_path", "path", "seen"),
    [
        ("", "/register-user", "/register-user"),
        ("/api", "/api/register-user", "/register-user"),
        ("/api", "/register-user", "/register-user"),
        ("/api", "/apiary/register-user", "/apiary/register-user"),
        ("/api", "/api/api/register-user", "/api/register-user"),
        ("/register-user", "/register-user", "/register-user"),
    ],
)
def test_the_path_of_an_asgi_caller_is_the_one_below_the_root(root_path: str, path: str, seen: str) -> None:
    assert Client.from_asgi(asgi(root_path=root_path, path=path)).path == seen


@pytest.mark.parametrize("scope", [asgi(client=None, server=None), {}], ids=["none", "left out"])
def test_an_asgi_caller_of_unknown_addresses_is_not_of_this_machine(scope: Mapping[str, Any]) -> None:
    full = dict(scope) or {name: value for name, value in asgi().items() if name not in {"client", "server"}}
    caller = Client.from_asgi(full)

    assert caller == attrs.evolve(LOCAL, client="", server="")
    with pytest.raises(AdminAccessDeniedError):
        BY_MACHINE.check(caller)


def test_an_asgi_caller_on_a_socket_file_is_not_of_this_machine() -> None:
    caller = Client.from_asgi(asgi(client=None, server=("/run/mlapi.sock", None)))

    with pytest.raises(AdminAccessDeniedError):
        BY_MACHINE.check(caller)


def test_the_headers_of_an_asgi_caller_are_all_that_were_sent() -> None:
    caller = Client.from_asgi(asgi(headers=[(b"x-real-ip", b"a"), (b"host", b"b"), (b"host", b"c")]))

    assert caller.headers == sent(("x-real-ip", "a"), ("host", "b"), ("host", "c"))


@pytest.mark.parametrize("value", [b"Bearer \xff\x00\xfe", b"\xc3\xbc", b"Bearer \xed\xa0\x80"])
def test_header_bytes_that_are_not_ascii_are_a_wrong_token(value: bytes) -> None:
    caller = Client.from_asgi(asgi(headers=[(b"authorization", value)]))

    with pytest.raises(AdminTokenRequiredError):
        BY_TOKEN.check(caller)


def test_header_bytes_that_are_not_ascii_do_not_hinder_who_is_of_this_machine() -> None:
    caller = Client.from_asgi(asgi(headers=[(b"host", b"localhost"), (b"x-n\xe4me", b"\xff\xfe")]))

    BY_MACHINE.check(caller)


def test_headers_of_a_wsgi_caller_have_their_names_back() -> None:
    caller = Client.from_wsgi(
        wsgi(HTTP_X_FORWARDED_FOR="203.0.113.9", CONTENT_TYPE="application/json", CONTENT_LENGTH="5")
    )

    assert caller.headers == sent(
        HOST, ("x-forwarded-for", "203.0.113.9"), ("content-type", "application/json"), ("content-length", "5")
    )


def test_a_wsgi_caller_through_a_proxy_is_not_of_this_machine() -> None:
    caller = Client.from_wsgi(wsgi(HTTP_X_FORWARDED_FOR=""))

    with pytest.raises(AdminAccessDeniedError):
        BY_MACHINE.check(caller)


def test_a_wsgi_caller_of_unknown_addresses_is_not_of_this_machine() -> None:
    caller = Client.from_wsgi({"SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "localhost:8001"})

    assert caller == Client(path="", client="", server="", http_version="1.1", headers=sent(HOST))
    with pytest.raises(AdminAccessDeniedError):
        BY_MACHINE.check(caller)


def test_the_token_of_a_wsgi_caller_opens() -> None:
    BY_TOKEN.check(Client.from_wsgi(wsgi(REMOTE_ADDR="203.0.113.9", HTTP_AUTHORIZATION=f"Bearer {TOKEN}")))


# --- which address a caller has


PROXY = attrs.evolve(STRANGER, client="10.0.0.1")
TRUSTED = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8:ffff::/48")]


def forwarded(caller: Client, *values: str) -> Client:
    return with_headers(caller, *(("x-forwarded-for", value) for value in values))


@pytest.mark.parametrize("trusted", [[], TRUSTED], ids=["no proxies", "proxies"])
@pytest.mark.parametrize("client", ["203.0.113.9", "2001:db8::1", "10.0.0.1", "", "testclient"])
def test_an_address_that_nothing_is_said_of_is_that_of_the_connection(client: str, trusted: Sequence[Network]) -> None:
    caller = with_headers(attrs.evolve(STRANGER, client=client), ("forwarded", "for=192.0.2.1"))

    assert caller.resolve_address(trusted) == client


@pytest.mark.parametrize("values", [["192.0.2.1"], ["192.0.2.1", "192.0.2.2, nonsense"], [""], ["192.0.2.1:80"]])
def test_nobody_is_believed_where_no_proxy_is_trusted(values: list[str]) -> None:
    assert forwarded(STRANGER, *values).resolve_address() == "203.0.113.9"


@pytest.mark.parametrize("values", [["192.0.2.1"], ["192.0.2.1, 10.0.0.2"], ["nonsense"]])
def test_who_is_no_trusted_proxy_is_not_believed(values: list[str]) -> None:
    assert forwarded(STRANGER, *values).resolve_address(TRUSTED) == "203.0.113.9"


@pytest.mark.parametrize(
    ("client", "values"),
    [
        pytest.param("203.0.113.9", ["203.0.113.9"], id="the only one"),
        pytest.param("203.0.113.9", ["192.0.2.1, 203.0.113.9"], id="the last one"),
        pytest.param("203.0.113.9", ["203.0.113.9, 127.0.0.1"], id="one before a proxy of the server's"),
        pytest.param("203.0.113.9", ["192.0.2.1", " 203.0.113.9 "], id="in a second header"),
        pytest.param("203.0.113.9", ["203.0.113.9:50000"], id="with its port"),
        pytest.param("2001:db8::1", ["2001:db8::1"], id="IPv6"),
        pytest.param("2001:db8::1", ["[2001:db8::1]:50000"], id="IPv6 with its port"),
        pytest.param("nonsense", ["nonsense"], id="no address"),
    ],
)
def test_a_client_that_the_server_has_replaced_is_unknown(client: str, values: list[str]) -> None:
    assert forwarded(attrs.evolve(STRANGER, client=client), *values).resolve_address() == "unknown"


def test_a_replaced_client_is_looked_up_where_proxies_are_trusted() -> None:
    caller = attrs.evolve(STRANGER, client="203.0.113.9")

    assert forwarded(caller, "203.0.113.9").resolve_address(TRUSTED) == "203.0.113.9"
    assert forwarded(caller, "192.0.2.1, 203.0.113.9, 10.0.0.2").resolve_address(TRUSTED) == "203.0.113.9"


def test_a_client_that_was_replaced_by_no_address_is_unknown_also_where_proxies_are_trusted() -> None:
    assert forwarded(attrs.evolve(STRANGER, client="nonsense"), "nonsense").resolve_address(TRUSTED) == "unknown"


@pytest.mark.parametrize(
    ("values", "address"),
    [
        pytest.param(["203.0.113.9"], "203.0.113.9", id="one"),
        pytest.param(["192.0.2.1, 203.0.113.9"], "203.0.113.9", id="the last one"),
        pytest.param(["192.0.2.1", "203.0.113.9"], "203.0.113.9", id="the last one of two headers"),
        pytest.param(["192.0.2.1,203.0.113.9,10.9.9.9,10.0.0.2"], "203.0.113.9", id="before trusted ones"),
        pytest.param(["10.0.0.3, 203.0.113.9, 10.0.0.2"], "203.0.113.9", id="not beyond it"),
        pytest.param(["10.0.0.3, 10.0.0.2"], "10.0.0.3", id="all trusted"),
        pytest.param(["nonsense, 203.0.113.9"], "203.0.113.9", id="malformed before it"),
        pytest.param(["203.0.113.9, nonsense"], "10.0.0.1", id="malformed after it"),
        pytest.param(["203.0.113.9, nonsense, 10.0.0.2"], "10.0.0.2", id="malformed between"),
        pytest.param(["203.0.113.9,"], "10.0.0.1", id="empty after it"),
        pytest.param([""], "10.0.0.1", id="empty"),
        pytest.param(["unknown"], "10.0.0.1", id="unknown"),
        pytest.param(["203.0.113.256"], "10.0.0.1", id="no address"),
        pytest.param(["203.0.113.9\xe4"], "10.0.0.1", id="not ASCII"),
        pytest.param(["203.0.113.9:50000"], "203.0.113.9", id="port"),
        pytest.param(["203.0.113.9:50000, 10.0.0.2:443"], "203.0.113.9", id="ports"),
        pytest.param(["2001:db8::1"], "2001:db8::1", id="IPv6"),
        pytest.param(["[2001:db8::1]:50000"], "2001:db8::1", id="IPv6 with a port"),
        pytest.param(["203.0.113.9, 2001:db8:ffff::2"], "203.0.113.9", id="trusted IPv6"),
        pytest.param(["203.0.113.9, [2001:db8:ffff::2]:443"], "203.0.113.9", id="trusted IPv6 with a port"),
        pytest.param(["::ffff:203.0.113.9"], "203.0.113.9", id="mapped IPv4"),
        pytest.param(["203.0.113.9, ::ffff:10.0.0.2"], "203.0.113.9", id="trusted mapped IPv4"),
    ],
)
@pytest.mark.parametrize("proxy", ["10.0.0.1", "::ffff:10.0.0.1"], ids=["IPv4", "mapped IPv4"])
def test_a_trusted_proxy_tells_the_address_of_its_client(proxy: str, values: list[str], address: str) -> None:
    caller = forwarded(attrs.evolve(PROXY, client=proxy), *values)

    assert caller.resolve_address(TRUSTED) == (proxy if address == "10.0.0.1" else address)


def test_a_trusted_proxy_in_front_of_a_wsgi_server_is_believed_too() -> None:
    caller = Client.from_wsgi(wsgi(REMOTE_ADDR="10.0.0.1", HTTP_X_FORWARDED_FOR="192.0.2.1, 203.0.113.9,10.0.0.2"))

    assert caller.resolve_address(TRUSTED) == "203.0.113.9"


@pytest.mark.parametrize("values", [["203.0.113.9, 9.9.9.9"], ["203.0.113.9", "9.9.9.9"], ["9.9.9.9, 203.0.113.9, x"]])
def test_who_comes_directly_gains_nothing_by_naming_his_own_address(values: list[str]) -> None:
    caller = forwarded(attrs.evolve(STRANGER, client="203.0.113.9"), *values)

    assert caller.resolve_address(TRUSTED) == "unknown"


@pytest.mark.parametrize(
    ("client", "entry"),
    [
        ("2001:db8::1", "[2001:db8::1]"),
        ("1.2.3.4", "[1.2.3.4]"),
        ("1.2.3.4", "\xa01.2.3.4"),
        ("[x", "[[x]:80"),
        ("1.2.3.4", "1.2.3.4:80"),
    ],
)
def test_whatever_a_server_makes_of_an_entry_is_nobodys_address(client: str, entry: str) -> None:
    assert forwarded(attrs.evolve(STRANGER, client=client), entry).resolve_address() == "unknown"


@pytest.mark.parametrize("entry", ["[2001:db8::1]", "[2001:db8::1]:443", "2001:db8::1"])
def test_an_entry_may_be_in_brackets(entry: str) -> None:
    assert forwarded(PROXY, entry).resolve_address(TRUSTED) == "2001:db8::1"


def test_what_the_server_has_chosen_is_gone_beyond_where_it_is_a_trusted_proxy_too() -> None:
    caller = forwarded(attrs.evolve(STRANGER, client="10.0.0.7"), "198.51.100.4, 10.0.0.7")

    assert caller.resolve_address(TRUSTED) == "198.51.100.4"


@pytest.mark.parametrize("entry", ["10.0.0.7, 203.0.113.5", "210.0.0.77, 203.0.113.5", "203.0.113.5"])
def test_nobody_behind_a_trusted_proxy_hides_by_naming_it(entry: str) -> None:
    caller = forwarded(attrs.evolve(STRANGER, client="10.0.0.7"), entry)

    assert caller.resolve_address(TRUSTED) == "203.0.113.5"


def test_a_client_without_address_is_not_believed() -> None:
    assert forwarded(attrs.evolve(STRANGER, client=""), "9.9.9.9", "9.9.9.9:80").resolve_address(TRUSTED) == ""


# --- which scheme his browser has


@pytest.mark.parametrize("told", [[], ["http"], ["HTTPS"], ["https, http"], ["https", "https"], ["ftp"]])
def test_a_scheme_that_a_trusted_proxy_does_not_plainly_say_is_that_of_the_connection(told: list[str]) -> None:
    caller = with_headers(PROXY, *(("x-forwarded-proto", value) for value in told))

    assert caller.with_forwarded_scheme(TRUSTED) == caller


def test_a_trusted_proxy_tells_the_scheme_and_nobody_else() -> None:
    by_proxy, by_stranger = (with_headers(caller, ("x-forwarded-proto", "https")) for caller in (PROXY, STRANGER))

    assert by_proxy.with_forwarded_scheme(TRUSTED) == attrs.evolve(by_proxy, scheme="https")
    assert by_stranger.with_forwarded_scheme(TRUSTED) == by_stranger
    assert by_proxy.with_forwarded_scheme([]) == by_proxy
