"""Request framing: the server rejects ambiguous or broken requests, and no request can smuggle another one.

The requests come from loopback, so local mode allows them to manage users. If a parser violates RFC 9112 and mistakes
part of a request for a ``DELETE``, a user is removed and the test fails.
"""

import random
import re
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest
import requests
from starlette.testclient import TestClient

from mlapi import Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.wire.error_responses import ambiguous_framing
from mlapi.entrypoints.wire.headers import has_ambiguous_framing
from mlapi.testing.http import LOCAL_MODE
from tests.contract.test_http import asgi_client
from tests.e2e.server import MlapiServer, Server
from tests.torture.conftest import Report, ShortOrFull

SILENCE_SECONDS = 0.3
"""If the server keeps a connection open but sends nothing for this long, its response is complete."""
CLIENTS = 24
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")

VICTIM = b"<victim>"
SMUGGLED = b"DELETE /remove-user/" + VICTIM + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""A ``DELETE`` to hide in another request. The victim's id is padded to six digits, so the length is constant."""
ID_DIGITS = 6
LENGTH = len(SMUGGLED) - len(VICTIM) + ID_DIGITS
LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def get(*lines: bytes, start: bytes = b"GET /health/live HTTP/1.1", host: bytes | None = b"Host: localhost") -> bytes:
    return b"".join(line + b"\r\n" for line in (start, *([] if host is None else [host]), *lines)) + b"\r\n"


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return get(b"Content-Type: application/json", *lines, start=b"POST /register-user HTTP/1.1") + body


def length(value: object) -> bytes:
    return b"Content-Length: " + str(value).encode()


ENCODINGS = {
    "plain": b"Transfer-Encoding: chunked",
    "a space before the colon": b"Transfer-Encoding : chunked",
    "a tab": b"Transfer-Encoding:\tchunked",
    "two spaces": b"Transfer-Encoding:  chunked",
    "a trailing space": b"Transfer-Encoding: chunked ",
    "a vertical tab": b"Transfer-Encoding: \x0bchunked",
    "a NUL": b"Transfer-Encoding: chunked\0",
    "a bare CR": b"Transfer-Encoding: \rchunked",
    "folded": b"Transfer-Encoding:\r\n chunked",
    "a space before the name": b" Transfer-Encoding: chunked",
    "capitals": b"Transfer-Encoding: CHUNKED",
    "quoted": b'Transfer-Encoding: "chunked"',
    "twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "two different headers": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "chunked twice in one header": b"Transfer-Encoding: chunked, chunked",
    "chunked before identity": b"Transfer-Encoding: chunked, identity",
    "gzip before chunked": b"Transfer-Encoding: gzip, chunked",
    "xchunked": b"Transfer-Encoding: xchunked",
    "identity": b"Transfer-Encoding: identity",
    "empty": b"Transfer-Encoding:",
    "a parameter": b"Transfer-Encoding: chunked;q=1",
    "after a bare LF": b"X: y\nTransfer-Encoding: chunked",
    "after a bare CR": b"X: y\rTransfer-Encoding: chunked",
    "another header name": b"Transfer_Encoding: chunked",
}
LENGTHS = {
    "negative": "-1",
    "hexadecimal": hex(LENGTH),
    "a plus sign": f"+{LENGTH}",
    "a space inside": "6 5",
    "empty": "",
    "a fraction": f"{LENGTH}.0",
    "huge": "9" * 30,
    "more than 64 bits": str(2**64 + LENGTH),
    "non-ASCII digits": "٦٥",
    "a semicolon": f"{LENGTH};",
    "an underscore": "6_5",
    "a list of different values": f"0, {LENGTH}",
    "leading zeros": f"00{LENGTH}",
    "surrounding spaces": f"  {LENGTH} \t",
    "a list of equal values": f"{LENGTH}, {LENGTH}",
}
UPGRADE_PROTOCOLS = {"websocket": b"websocket", "h2c": b"h2c", "anything": b"anything"}
BODY = b"5\r\nhello\r\n"
CHUNKS = {
    "junk after the size": b"5zz\r\nhello\r\n0\r\n\r\n",
    "an 0x prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "negative": b"-5\r\nhello\r\n0\r\n\r\n",
    "a plus sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "a leading space": b" 5\r\nhello\r\n0\r\n\r\n",
    "an underscore": b"5_\r\nhello\r\n0\r\n\r\n",
    "bare LFs": b"5\nhello\n0\n\n",
    "a bare CR": b"5\rhello\r\n0\r\n\r\n",
    "no line break after the data": b"5\r\nhello0\r\n\r\n",
    "a size that is too large": b"6\r\nhello\r\n0\r\n\r\n",
    "a size that is too small": b"4\r\nhello\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "more than 64 bits": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "a bare LF in an extension": b"5;a\nhello\r\n0\r\n\r\n",
}

SMUGGLING: dict[str, bytes] = {
    **{
        f"a length and an encoding: {name}": post(length(LENGTH + 5), line, body=LAST_CHUNK + SMUGGLED)
        for name, line in ENCODINGS.items()
    },
    "an encoding and a shorter length": post(
        b"Transfer-Encoding: chunked", length(4), body=b"%x\r\n" % LENGTH + SMUGGLED + b"\r\n" + LAST_CHUNK
    ),
    **{f"a length: {name}": post(length(value), body=SMUGGLED) for name, value in LENGTHS.items()},
    "two lengths, of which the first is 0": post(length(0), length(LENGTH), body=SMUGGLED),
    "two lengths, of which the second is 0": post(length(LENGTH), length(0), body=SMUGGLED),
    "two equal lengths": post(length(LENGTH), length(LENGTH), body=SMUGGLED),
    **{
        f"chunks with {name}": post(b"Transfer-Encoding: chunked", body=body + SMUGGLED)
        for name, body in CHUNKS.items()
    },
    "the data of a chunk": post(
        b"Transfer-Encoding: chunked", body=b"%x\r\n" % LENGTH + SMUGGLED + b"\r\n" + LAST_CHUNK
    ),
    "a chunk extension": post(
        b"Transfer-Encoding: chunked", body=b"5;" + SMUGGLED[:-4] + b"=1\r\nhello\r\n" + LAST_CHUNK
    ),
    "trailers": post(b"Transfer-Encoding: chunked", body=BODY + b"0\r\n" + SMUGGLED),
    "trailers with a bare LF at the end": post(b"Transfer-Encoding: chunked", body=BODY + b"0\r\nX: y\n\n" + SMUGGLED),
    "an encoding after a bare LF": post(b"X: y\nTransfer-Encoding: chunked", body=LAST_CHUNK + SMUGGLED),
    "the body of a GET": get(length(LENGTH)) + SMUGGLED,
    "the body of a DELETE": get(length(LENGTH), start=b"DELETE /remove-user/999999999 HTTP/1.1") + SMUGGLED,
    "a body with an unsupported content type": get(
        b"Content-Type: text/plain", length(LENGTH), start=b"POST /register-user HTTP/1.1"
    )
    + SMUGGLED,
    "a body after Expect: 100-continue": post(length(LENGTH), b"Expect: 100-continue") + b"<pause>" + SMUGGLED,
    "a body after an unknown expectation": post(length(LENGTH), b"Expect: 200-maybe") + b"<pause>" + SMUGGLED,
    **{
        f"a body with an Upgrade to {name}": post(
            b"Connection: Upgrade", b"Upgrade: " + to, length(LENGTH), body=pause + SMUGGLED
        )
        for name, to in UPGRADE_PROTOCOLS.items()
        for pause in (b"<pause>",)
    },
    "a body with an Upgrade, without a pause": post(
        b"Connection: Upgrade", b"Upgrade: h2c", length(LENGTH), body=SMUGGLED
    ),
    "the body of a CONNECT": get(length(LENGTH), start=b"CONNECT /users HTTP/1.1") + b"<pause>" + SMUGGLED,
    "chunks with an Upgrade": post(
        b"Connection: Upgrade",
        b"Upgrade: h2c",
        b"Transfer-Encoding: chunked",
        body=b"<pause>%x\r\n<pause>" % LENGTH + SMUGGLED + b"<pause>\r\n" + LAST_CHUNK,
    ),
    "a header": get(b"X: " + SMUGGLED.replace(b"\r\n", b" ")),
    "a header after a bare CR": get(b"X: y\r\r" + SMUGGLED.replace(b"\r\n", b"\r")),
    "bytes after the last request": get(b"Connection: close") + SMUGGLED,
    "HTTP/1.0 with an encoding": post(
        b"Transfer-Encoding: chunked", b"Connection: keep-alive", body=LAST_CHUNK + SMUGGLED
    ).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED,
    "a TLS greeting": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + SMUGGLED,
    "HTTP/0.9": b"GET /users\r\n" + SMUGGLED,
}
"""Requests that contain the bytes of a ``DELETE`` request somewhere else."""

UNUSUAL: dict[str, bytes] = {
    **{f"an encoding: {name}": post(line, body=LAST_CHUNK) for name, line in ENCODINGS.items()},
    "chunk extensions": post(b"Transfer-Encoding: chunked", body=b'5;a="b;\\"c";d\r\nhello\r\n0;e\r\n\r\n'),
    "a long chunk extension": post(
        b"Transfer-Encoding: chunked", body=b"5;" + b"a" * 70_000 + b"\r\nhello\r\n0\r\n\r\n"
    ),
    "a long chunk size": post(b"Transfer-Encoding: chunked", body=b"0" * 100 + BODY + LAST_CHUNK),
    "a trailer with a credential": post(
        b"Transfer-Encoding: chunked", body=BODY + b"0\r\nAuthorization: Bearer x\r\n\r\n"
    ),
    "bare LFs": get().replace(b"\r\n", b"\n"),
    "a bare LF": get(b"X: y\nZ: z"),
    "bare CRs": get().replace(b"\r\n", b"\r"),
    "a bare CR": get(b"X: y\rz"),
    "a NUL in a value": get(b"X: y\0z"),
    "a NUL in a name": get(b"X\0: y"),
    "a NUL in the target": get(start=b"GET /health\0/live HTTP/1.1"),
    "Latin-1 in the target": get(start=b"GET /health/\xff\xfe HTTP/1.1"),
    "UTF-8 in the target": get(start="GET /health/é HTTP/1.1".encode()),
    "Latin-1 in a value": get(b"X: \xff"),
    "Latin-1 in a name": get(b"X\xff: y"),
    "Latin-1 in the method": get(start=b"G\xcbT /health/live HTTP/1.1"),
    "an absolute target": get(start=b"GET http://localhost/health/live HTTP/1.1"),
    "an absolute target with another host": get(start=b"GET http://evil.example/users HTTP/1.1"),
    "an absolute target with a bad port": get(start=b"GET http://localhost:99999999/users HTTP/1.1"),
    "an authority as the target": get(start=b"GET localhost:80 HTTP/1.1"),
    "CONNECT": get(start=b"CONNECT localhost:80 HTTP/1.1"),
    "OPTIONS with an asterisk as the target": get(start=b"OPTIONS * HTTP/1.1"),
    "GET with an asterisk as the target": get(start=b"GET * HTTP/1.1"),
    "a query as the target": get(start=b"GET ?x HTTP/1.1"),
    "a fragment": get(start=b"GET /health/live#/x HTTP/1.1"),
    "no slash": get(start=b"GET users HTTP/1.1"),
    "two slashes": get(start=b"GET //users HTTP/1.1"),
    "dots": get(start=b"GET /health/../users HTTP/1.1"),
    "no target": get(start=b"GET HTTP/1.1"),
    "two spaces": get(start=b"GET  /users HTTP/1.1"),
    "tabs": get(start=b"GET\t/users\tHTTP/1.1"),
    "a space in the target": get(start=b"GET /health /live HTTP/1.1"),
    "a trailing space": get(start=b"GET /users HTTP/1.1 "),
    "a leading space": b" " + get(),
    "leading empty lines": b"\r\n\r\n" + get(),
    "no host": get(start=b"GET /users HTTP/1.1", host=None),
    "two equal hosts": get(b"Host: localhost", start=b"GET /users HTTP/1.1"),
    "two different hosts": get(b"Host: evil.example", start=b"GET /users HTTP/1.1"),
    "an empty host": get(start=b"GET /users HTTP/1.1", host=b"Host:"),
    "a space before a colon": get(host=b"Host : localhost"),
    "no colon": get(b"X"),
    "no name": get(b": y"),
    "a folded value": get(b"X: y\r\n z"),
    "a folded first line": get(host=b" Host: localhost"),
    "HTTP/0.9": b"GET /users\r\n\r\n",
    "HTTP/1.0": get(start=b"GET /users HTTP/1.0"),
    "HTTP/1.2": get(start=b"GET /users HTTP/1.2"),
    "HTTP/2.0": get(start=b"GET /users HTTP/2.0"),
    "HTTP/9.9": get(start=b"GET /users HTTP/9.9"),
    "http/1.1": get(start=b"GET /users http/1.1"),
    "an unknown method": get(start=b"BREW /users HTTP/1.1"),
    "a lowercase method": get(start=b"get /users HTTP/1.1"),
    "a long method": get(start=b"A" * 5_000 + b" /users HTTP/1.1"),
    "500 headers": get(*(b"X-%d: y" % number for number in range(500))),
    "20,000 headers": get(*(b"X-%d: y" % number for number in range(20_000))),
    "a long value": get(b"X: " + b"y" * 200_000),
    "a long target": get(start=b"GET /" + b"y" * 200_000 + b" HTTP/1.1"),
    "headers named in Connection": get(b"Connection: close, Host"),
}
"""Unusual requests that the server must either reject or take literally."""

KNOWN_SMUGGLING = {"uvicorn, h11": {"an encoding after a bare LF", "trailers with a bare LF at the end"}}
"""Smuggling attempts that are known to succeed, by parser. h11 ends a line at a bare LF, which RFC 9112, section 2.2
allows; a proxy might not. Do not use h11 behind a proxy. ``mlapi serve`` uses httptools, and so does uvicorn by default
if it is installed with mlapi."""


@attrs.frozen
class Response:
    statuses: list[int]
    closed: bool
    text: bytes = attrs.field(repr=False)


SERVERS: dict[str, tuple[type[Server], tuple[str, ...]]] = {
    "uvicorn, httptools": (Server, ("--http", "httptools")),
    "uvicorn, h11": (Server, ("--http", "h11")),
    "mlapi serve": (MlapiServer, ()),
}


@pytest.fixture(scope="module", params=SERVERS)
def parser(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def server(parser: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    kind, options = SERVERS[parser]
    with kind(tmp_path_factory.mktemp("framing"), {"MLAPI_PASSWORDS__SCHEME": "fernet"}, *options) as server:
        yield server
        assert " 500 " not in server.log
        # If garbage follows a request, uvicorn with h11 fails to send the response.
        assert parser == "uvicorn, h11" or "Traceback" not in server.log


def exchange(server: Server, request: bytes, *, victim: int = 0, disconnect: bool = False) -> Response:
    """Send bytes, with a pause at each ``<pause>``; read until the server closes the connection or falls silent."""
    text, closed = b"", False
    pieces = request.replace(VICTIM, str(victim).zfill(ID_DIGITS).encode()).split(b"<pause>")
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        try:
            for number, piece in enumerate(pieces):
                if number:
                    connection.settimeout(SILENCE_SECONDS)
                    text += _read(connection)
                connection.settimeout(10)
                connection.sendall(piece)
            if disconnect:
                return Response([], closed=True, text=b"")
            connection.settimeout(SILENCE_SECONDS)
            while chunk := connection.recv(65536):
                text += chunk
            closed = True
        except TimeoutError:
            pass
        except ConnectionError:  # the server closed the connection while the test was sending
            closed = True
    return Response([int(status) for status in _STATUS.findall(text)], closed, text)


def _read(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except TimeoutError:
        return b""


def list_users(server: Server) -> dict[int, str]:
    usernames: dict[int, str] = {}
    after = 0
    while True:
        page = requests.get(f"{server.base}/users?limit=500&after={after}", timeout=10).json()
        usernames |= {user["user_id"]: user["username"] for user in page["users"]}
        if page["next"] is None:
            return usernames
        after = page["next"]


def register(server: Server, session: requests.Session, name: str) -> int:
    body = {"username": name, "password": "difference engine", "email": "ada@example.com"}
    user_id: int = session.post(f"{server.base}/register-user", json=body, timeout=10).json()["user_id"]
    return user_id


def exchange_all(server: Server, cases: Sequence[bytes], victims: Sequence[int] | None = None) -> list[Response]:
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(
            pool.map(
                lambda case: exchange(server, case[0], victim=case[1]),
                zip(cases, victims or [0] * len(cases), strict=True),
            )
        )


def is_alive(server: Server) -> bool:
    return requests.get(f"{server.base}/health/live", timeout=10).status_code == 200


def test_no_request_is_smuggled_inside_another(server: Server, parser: str, report: Report) -> None:
    with requests.Session() as session:
        victims = [register(server, session, name) for name in SMUGGLING]
    before = list_users(server)

    responses = dict(zip(SMUGGLING, exchange_all(server, list(SMUGGLING.values()), victims), strict=True))

    after = list_users(server)
    removed = {name for name, victim in zip(SMUGGLING, victims, strict=True) if victim not in after}
    assert removed <= KNOWN_SMUGGLING.get(parser, set())
    assert {user_id: name for user_id, name in before.items() if name not in removed} == {
        user_id: name for user_id, name in after.items() if name in SMUGGLING
    }
    assert [name for name, response in responses.items() if max(response.statuses, default=0) >= 500] == []
    assert is_alive(server)
    report(f"{parser}: {len(SMUGGLING)} smuggling attempts, {len(removed)} successful")


def test_unusual_request_is_rejected_or_taken_literally(server: Server, parser: str, report: Report) -> None:
    before = list_users(server)

    responses = dict(zip(UNUSUAL, exchange_all(server, list(UNUSUAL.values())), strict=True))

    assert {
        name: response.statuses
        for name, response in responses.items()
        if not set(response.statuses[:1]) <= {200, 400, 403, 404, 405, 413, 414, 415, 422, 431, 501}
        or not set(response.statuses[1:]) <= {400}  # the response to any bytes after the request
    } == {}
    assert list_users(server) == before
    assert is_alive(server)
    rejected = sum(response.statuses != [200] for response in responses.values())
    report(f"{parser}: {len(UNUSUAL)} unusual requests: {rejected} rejected or closed, 0 5xx responses")


def test_pipelined_requests_are_answered_once_and_in_order(server: Server) -> None:
    paths = [b"/health/live", b"/nowhere", b"/users?limit=1", b"/health/live", b"/remove-user/x", b"/health/ready"] * 5
    methods = [b"DELETE" if path.startswith(b"/remove") else b"GET" for path in paths]
    expected = {b"/health/live": 200, b"/nowhere": 404, b"/users?limit=1": 200, b"/remove-user/x": 422}

    response = exchange(
        server,
        b"".join(get(start=b"%s %s HTTP/1.1" % (method, path)) for method, path in zip(methods, paths, strict=True)),
    )

    assert response.statuses == [expected.get(path, 200) for path in paths]
    assert not response.closed


def test_pipelined_registrations_are_applied_once(server: Server) -> None:
    bodies = [b'{"username":"piped%d","password":"x","email":"a@example.com"}' % number for number in range(50)]

    response = exchange(server, b"".join(post(length(len(body)), body=body) for body in bodies))

    assert response.statuses == [201] * 50
    ids = [int(found) for found in re.findall(rb'"user_id":(\d+)', response.text)]
    assert [list_users(server)[user_id] for user_id in ids] == [f"piped{number}" for number in range(50)]


def test_connection_is_closed_after_an_upgrade_request(server: Server) -> None:
    upgrade = get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__")

    response = exchange(server, upgrade + LIVE)

    assert (response.statuses, response.closed) == ([200], True)
    assert b"connection: close" in response.text.lower()


def test_upgrade_request_with_a_body_is_rejected(server: Server) -> None:
    body = b'{"username":"upgraded","password":"x","email":"a@example.com"}'

    response = exchange(server, post(b"Connection: Upgrade", b"Upgrade: h2c", length(len(body)), body=body))

    assert (response.statuses, response.closed) == ([400], True)
    assert ambiguous_framing().body in response.text
    assert "upgraded" not in list_users(server).values()


def test_expect_continue_gets_a_single_100_response(server: Server) -> None:
    body = b'{"username":"expected","password":"x","email":"a@example.com"}'

    response = exchange(server, post(length(len(body)), b"Expect: 100-continue") + b"<pause>" + body)

    assert response.statuses == [100, 201]


def test_request_cut_off_at_any_byte_changes_nothing(
    server: Server, parser: str, short_or_full: ShortOrFull, report: Report
) -> None:
    body = b'{"username":"cut","password":"x","email":"a@example.com"}'
    request = post(length(len(body)), body=body)
    step = short_or_full(13, 1)

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda end: exchange(server, request[:end], disconnect=True), range(0, len(request), step)))

    assert is_alive(server)
    assert "cut" not in list_users(server).values()
    report(f"{parser}: a registration cut off at {len(range(0, len(request), step))} different bytes created 0 users")


def test_request_split_in_two_gets_the_same_response(server: Server, short_or_full: ShortOrFull) -> None:
    body = b'{"username":"ADA\xc3\xa9","password":"","email":"a@example.com"}'
    request = post(length(len(body)), b"Connection: close", body=body)
    whole = exchange(server, request)

    ends = range(1, len(request), short_or_full(23, 1))
    with ThreadPoolExecutor(CLIENTS) as pool:
        halves = list(pool.map(lambda end: send_in_two_pieces(server, request, end), ends))

    assert whole.statuses == [422]
    assert [statuses for statuses in halves if statuses != [422]] == []


def send_in_two_pieces(server: Server, request: bytes, end: int) -> list[int]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(request[:end])
        connection.settimeout(0.02)
        text = _read(connection)
        connection.settimeout(10)
        connection.sendall(request[end:])
        while chunk := connection.recv(65536):
            text += chunk
    return [int(status) for status in _STATUS.findall(text)]


def test_damaged_framing_never_breaks_the_server(
    server: Server, parser: str, short_or_full: ShortOrFull, report: Report
) -> None:
    count = short_or_full(60, 3_000)
    rng = random.Random(f"framing {parser}")
    cases = [case for case in (*SMUGGLING.values(), *UNUSUAL.values()) if len(case) < 5_000]
    mutations = [mutate(rng, rng.choice(cases)) for _ in range(count)]

    responses = exchange_all(server, mutations)

    assert [request for request, response in zip(mutations, responses, strict=True) if is_server_error(response)] == []
    assert is_alive(server)
    report(f"{parser}: {count} requests with damaged framing, 0 5xx responses")


def is_server_error(response: Response) -> bool:
    return max(response.statuses, default=0) >= 500


def mutate(rng: random.Random, request: bytes) -> bytes:
    data = bytearray(request)
    for _ in range(rng.choice([1, 1, 2, 5])):
        index = rng.randrange(len(data) + 1)
        match rng.randrange(9):
            case 0 | 1:
                data[index : index + 1] = bytes([rng.randrange(256)])
            case 2 | 3:
                data[index:index] = rng.choice([b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b"0", b"\r\n\r\n"])
            case 4 | 5:
                del data[index : index + rng.randrange(1, 8)]
            case 6 | 7:
                data[index:index] = data[index : index + rng.randrange(1, 40)]
            case _:
                del data[index:]
    return bytes(data)


def make_client() -> TestClient:
    return asgi_client(create_app(Users(InMemoryUserRepository(), PlainCipher()), LOCAL_MODE))


def test_ambiguous_framing_reaches_no_endpoint() -> None:
    chunked = make_client().post(
        "/register-user",
        content=b'{"username":"ada","password":"x","email":"a@example.com"}',
        headers={"content-type": "application/json", "transfer-encoding": "chunked"},
    )
    http = make_client()
    upgraded = http.post(
        "/register-user",
        json={"username": "ada", "password": "x", "email": "a@example.com"},
        headers={"connection": "upgrade", "upgrade": "h2c"},
    )

    assert chunked.status_code == 201  # only one header defines the length
    assert (upgraded.status_code, upgraded.headers["connection"]) == (400, "close")
    assert upgraded.content == ambiguous_framing().body
    assert http.get("/users").json()["users"] == []


def test_connect_is_rejected_and_closes_the_connection() -> None:
    response = make_client().request("CONNECT", "/users")

    assert (response.status_code, response.headers["connection"]) == (405, "close")


def test_upgrade_request_is_served_and_closes_the_connection() -> None:
    plain, upgraded = (
        make_client().get("/health/live"),
        make_client().get("/health/live", headers={"connection": "upgrade", "upgrade": "h2c"}),
    )

    assert (upgraded.status_code, upgraded.content) == (plain.status_code, plain.content)
    assert ("connection" in plain.headers, upgraded.headers["connection"]) == (False, "close")


UPGRADE = ((b"connection", b"Upgrade"), (b"upgrade", b"h2c"))
LENGTH_CASES: list[tuple[list[tuple[bytes, bytes]], bool]] = [
    ([], True),
    ([(b"content-length", b"5")], True),
    ([(b"transfer-encoding", b"chunked")], True),
    ([(b"content-length", b"5"), (b"transfer-encoding", b"chunked")], False),
    ([(b"content-length", b"0"), (b"transfer-encoding", b"chunked")], False),
    ([(b"upgrade", b"h2c"), (b"content-length", b"5")], True),  # no upgrade without a Connection header
    ([(b"connection", b"upgrade"), (b"content-length", b"5")], True),
    ([*UPGRADE], True),
    ([*UPGRADE, (b"content-length", b"0")], True),
    ([*UPGRADE, (b"content-length", b" 0 ")], True),
    ([*UPGRADE, (b"content-length", b"5")], False),
    ([*UPGRADE, (b"content-length", b"0"), (b"content-length", b"5")], False),
    ([*UPGRADE, (b"transfer-encoding", b"chunked")], False),
    (
        [(b"connection", b"close"), (b"connection", b"HTTP2-Settings,UPGRADE"), UPGRADE[1], (b"content-length", b"5")],
        False,
    ),
]


@pytest.mark.parametrize(("headers", "is_unambiguous"), LENGTH_CASES)
def test_ambiguous_framing_is_detected(headers: list[tuple[bytes, bytes]], is_unambiguous: bool) -> None:
    assert has_ambiguous_framing(headers) is not is_unambiguous
