"""An application that mounts the service and a guarded model, on the real server and in a browser."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.e2e.browser import MISSING, find_chromium, running_browser
from tests.e2e.server import Server
from tests.wsgi_server import empty_page, serving

ADA = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}
CREDENTIALS = {"username": "ada", "password": "difference engine"}
TIMEOUT_SECONDS = 30


@pytest.fixture(scope="module", params=["httptools", "h11"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("embedding")
    environ = {"MLAPI_HTTP__CORS_ORIGINS": "https://app.example.com"}
    with Server(folder, environ, "--http", request.param, app="tests.e2e.embedding_app:app") as running:
        yield running


@pytest.fixture
def user_id(server: Server) -> Iterator[int]:
    registered: int = requests.post(f"{server.base}/people/register-user", json=ADA, timeout=10).json()["user_id"]
    yield registered
    requests.delete(f"{server.base}/people/remove-user/{registered}", timeout=10)


@pytest.fixture
def token(server: Server, user_id: int) -> str:
    issued: str = requests.post(f"{server.base}/people/token", json=CREDENTIALS, timeout=10).json()["token"]
    return issued


@pytest.fixture
def disable(server: Server, user_id: int) -> Callable[[], None]:
    def call() -> None:
        requests.put(f"{server.base}/people/toggle-user-permission/{user_id}/0", timeout=10).raise_for_status()

    return call


@pytest.mark.parametrize("path", ["/model/stream", "/model/silence"])
def test_stream_is_cut_soon_after_its_user_is_disabled(
    server: Server, token: str, disable: Callable[[], None], path: str
) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    with requests.get(f"{server.base}{path}", headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        chunks = response.iter_content(None)
        first = next(chunks)
        disable()
        disabled_at = time.monotonic()
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            list(chunks)

    assert first == b"chunk\n"
    assert time.monotonic() - disabled_at < TIMEOUT_SECONDS / 2
    assert "Traceback" not in server.log


def connect_to_echo(server: Server, *subprotocols: str) -> ClientConnection:
    url = f"{server.base.replace('http', 'ws')}/model/echo"
    return connect(url, subprotocols=[*map(Subprotocol, subprotocols)])


def test_websocket_is_closed_with_the_reason(server: Server, token: str, disable: Callable[[], None]) -> None:
    with connect_to_echo(server, "bearer", token, "chat") as socket:
        greeting = json.loads(socket.recv(timeout=TIMEOUT_SECONDS))
        socket.send("still here")
        echoed = socket.recv(timeout=TIMEOUT_SECONDS)
        disable()
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=TIMEOUT_SECONDS)

    assert (socket.subprotocol, greeting, echoed) == ("bearer", ["ada", ["chat"]], "still here")
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "User is disabled")
    assert token not in server.log
    with pytest.raises(InvalidStatus):
        connect_to_echo(server, "bearer", token)


def test_upgrade_to_a_websocket_does_not_bypass_the_guard(server: Server) -> None:
    with pytest.raises(InvalidStatus) as rejected:
        connect_to_echo(server, "bearer", "nonsense")

    assert rejected.value.response.status_code == 403


SCRIPT = """
async ([base, user]) => {
    const call = async (path, options) => {
        const response = await fetch(base + path, {headers: {"Content-Type": "application/json"}, ...options});
        return [response.status, await response.json(), response.headers.get("x-request-id")];
    };
    const fails = (path, options) => fetch(base + path, options).then(() => "readable", () => "blocked");
    const post = (path, body) => call(path, {method: "POST", body: JSON.stringify(body)});
    const registered = await post("/people/register-user", user);
    const wrong = await post("/people/token", {...user, password: "wrong"});
    const [, {token}] = await post("/people/token", {username: user.username, password: user.password});
    const headers = {Authorization: `Bearer ${token}`};
    const me = await call("/people/users/me", {headers});
    const management = await fails("/people/users", {headers});
    const predicted = await call("/model/predict", {method: "POST", headers});
    const rejected = await call("/model/predict", {method: "POST", headers: {Authorization: "Bearer nonsense"}});
    const socket = new WebSocket(base.replace("http", "ws") + "/model/echo", ["bearer", token]);
    const greeting = await new Promise((resolve, reject) => {
        socket.onmessage = (event) => resolve(JSON.parse(event.data));
        socket.onclose = reject;
    });
    window.ended = new Promise((resolve) => { socket.onclose = (event) => resolve([event.code, event.reason]); });
    return {
        statuses: [registered[0], wrong[0], me[0], predicted[0], rejected[0]], hasRequestId: wrong[2] !== null,
        userId: registered[1].user_id, username: me[1].username, management, greeting, protocol: socket.protocol,
    };
}
"""


@pytest.mark.skipif(find_chromium() is None, reason=MISSING)
def test_page_of_another_origin_uses_the_service_and_the_model(tmp_path: Path) -> None:
    # Another port is another origin. Chromium blocks pages of other machines from calling this one.
    with (
        serving(empty_page) as page_origin,
        Server(tmp_path, {"MLAPI_HTTP__CORS_ORIGINS": page_origin}, app="tests.e2e.embedding_app:app") as server,
        running_browser() as browser,
        browser.new_context() as context,
    ):
        page = context.new_page()
        page.goto(page_origin)
        found: dict[str, Any] = page.evaluate(SCRIPT, [server.base, ADA])
        requests.put(f"{server.base}/people/toggle-user-permission/{found['userId']}/0", timeout=10).raise_for_status()
        closed = page.evaluate("window.ended")
        page.goto(f"{server.base}/people/docs")
        live = page.locator("[id$='-isAlive']")
        live.locator(".opblock-summary-control").click()
        live.locator("button.execute").click()
        response = live.locator(".live-responses-table .response")
        response.wait_for()
        documented = response.inner_text()

    assert found == {
        "statuses": [201, 401, 200, 200, 401],
        "hasRequestId": True,
        "userId": found["userId"],
        "username": "ada",
        "management": "blocked",
        "greeting": ["ada", []],
        "protocol": "bearer",
    }
    assert closed == [1008, "User is disabled"]
    assert "Alive" in documented  # the description below the mount names the right server
