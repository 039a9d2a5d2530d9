"""A model behind the guard, in a process of its own beside the service: that lets users in, this refuses the others."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
import requests
from examples.model_api import fastapi_app, flask_app, starlette_app
from flask import Flask
from werkzeug.serving import make_server

from mlapi.bootstrap import open_guard, open_users
from mlapi.config import load_settings
from mlapi.testing.guarded_routes import assert_all_routes_guarded
from tests.contract.test_http import Quiet
from tests.e2e.server import Server

SETOSA = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}
VIRGINICA = {"sepal_length": 6.3, "sepal_width": 3.3, "petal_length": 6.0, "petal_width": 2.5}
ADA = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model_api")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[str]:
    with Server(folder) as server:
        yield server.base


@pytest.fixture(scope="module", params=["starlette", "fastapi", "flask"])
def model(request: pytest.FixtureRequest, service: str, folder: Path) -> Iterator[str]:
    """The base URL of the model in each framework, over the database of the service."""
    if request.param == "flask":
        environ = {"MLAPI_DATABASE__URL": f"sqlite:///{folder}/mlapi.db"}
        with open_guard(load_settings(environ=environ)) as guard, served(flask_app.create_app(guard)) as base:
            yield base
    else:
        with Server(folder, app=f"examples.model_api.{request.param}_app:app") as server:
            yield server.base


@pytest.fixture(autouse=True)
def nobody(service: str, folder: Path) -> None:
    """The users of the tests before this one are gone."""
    with open_users(load_settings(environ={"MLAPI_DATABASE__URL": f"sqlite:///{folder}/mlapi.db"})) as users:
        for user in users.iterate_users():
            users.remove(user_id=user.id)


@contextmanager
def served(app: Flask) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()


def registered(service: str) -> int:
    user_id: int = requests.post(f"{service}/register-user", json=ADA, timeout=10).json()["user_id"]
    return user_id


def token(service: str) -> str:
    body = {"username": "ada", "password": "difference engine"}
    issued: str = requests.post(f"{service}/token", json=body, timeout=10).json()["token"]
    return issued


def asked(model: str, credential: str | None, flower: object = SETOSA) -> tuple[int, object]:
    headers = {} if credential is None else {"authorization": f"Bearer {credential}"}
    response = requests.post(f"{model}/predict", json=flower, headers=headers, timeout=10)
    return response.status_code, response.json()


def test_who_registers_and_logs_in_is_answered_and_who_is_disabled_is_refused(service: str, model: str) -> None:
    user_id = registered(service)
    credential = token(service)

    assert asked(model, credential) == (200, {"species": "setosa", "asked_by": "ada"})
    assert asked(model, credential, VIRGINICA) == (200, {"species": "virginica", "asked_by": "ada"})

    requests.put(f"{service}/toggle-user-permission/{user_id}/0", timeout=10)
    assert asked(model, credential) == (403, {"message": "User is disabled"})

    requests.put(f"{service}/toggle-user-permission/{user_id}/1", timeout=10)
    assert asked(model, credential) == (401, {"message": "Invalid token"})
    assert asked(model, token(service))[0] == 200


def test_an_api_key_is_as_good_as_a_token_and_works_again_when_its_user_does(service: str, model: str) -> None:
    user_id = registered(service)
    made = requests.post(f"{service}/users/{user_id}/keys", json={"name": "batch"}, timeout=10).json()

    before = asked(model, made["key"])
    requests.put(f"{service}/toggle-user-permission/{user_id}/0", timeout=10)
    shut_out = asked(model, made["key"])
    requests.put(f"{service}/toggle-user-permission/{user_id}/1", timeout=10)
    let_in = asked(model, made["key"])
    requests.delete(f"{service}/keys/{made['key_id']}", timeout=10)
    removed = asked(model, made["key"])

    assert before == let_in == (200, {"species": "setosa", "asked_by": "ada"})
    assert shut_out == (403, {"message": "User is disabled"})
    assert removed == (401, {"message": "Invalid token"})


def test_who_shows_nothing_or_what_is_not_his_is_refused(service: str, model: str) -> None:
    user_id = registered(service)
    credential = token(service)
    requests.delete(f"{service}/remove-user/{user_id}", timeout=10)

    answers = [asked(model, shown) for shown in (None, "", "nonsense", credential, credential[:-1], "mlapi_0_0")]

    assert answers == [(401, {"message": "Invalid token"})] * 6


def test_a_refusal_says_how_to_be_let_in(model: str) -> None:
    response = requests.post(f"{model}/predict", json=SETOSA, timeout=10)

    assert response.headers["www-authenticate"] == "Bearer"


def test_what_is_no_flower_is_told_so(service: str, model: str) -> None:
    registered(service)
    credential = token(service)

    flowers: list[object] = [{}, [], {**SETOSA, "petal_width": None}]
    answers = [asked(model, credential, flower)[0] for flower in flowers]

    assert answers == [422] * 3


@pytest.mark.parametrize("parser", ["httptools", "h11"])
def test_no_request_is_found_in_the_body_of_another(service: str, folder: Path, parser: str) -> None:
    head = b"POST /health HTTP/1.1\r\nHost: localhost\r\n"
    hidden = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    upgrade = head + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(hidden)
    two_lengths = head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"

    with Server(folder, None, "--http", parser, app="examples.model_api.starlette_app:app") as server:
        answers = [
            answer
            for one in (upgrade, two_lengths)
            for answer in (server.send_raw(one + hidden), server.send_raw(one, then=hidden))
        ]
        lives = requests.get(f"{server.base}/health", timeout=10).status_code

    assert [(answer[:12], answer.count(b"HTTP/1.1 ")) for answer in answers] == [(b"HTTP/1.1 400", 1)] * 4
    assert lives == 200


def test_every_route_of_the_models_is_guarded() -> None:
    assert_all_routes_guarded(starlette_app.app, exempt=["/health"])
    with pytest.raises(AssertionError, match="GET /health"):
        assert_all_routes_guarded(starlette_app.app)


def test_a_dependency_is_found_as_a_middleware_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_guard(load_settings(environ={})) as guard:
        monkeypatch.setattr(fastapi_app.app.state, "guard", guard, raising=False)

        assert_all_routes_guarded(fastapi_app.app)
