"""Model APIs behind the guard, each in a separate process next to the service."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import requests

from mlapi.bootstrap import open_guard, open_users
from mlapi.config import load_settings
from mlapi.entrypoints.wire.errors import MissingCredentialError
from mlapi.testing import assert_all_routes_guarded
from tests.e2e.server import Server
from tests.wsgi_server import serving

SETOSA = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}
VIRGINICA = {"sepal_length": 6.3, "sepal_width": 3.3, "petal_length": 6.0, "petal_width": 2.5}
ADA = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}


def import_example(framework: str) -> Any:
    """Import an example on demand, so that no other test worker spends 2 seconds importing scikit-learn."""
    return import_module(f"examples.model_api.{framework}_app")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model_api")
    (folder / "config.yml").write_text("plans: {small: {per_day: 2}}\n")
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[str]:
    with Server(folder) as server:
        yield server.base


@pytest.fixture(scope="module", params=["starlette", "fastapi", "flask"])
def model(request: pytest.FixtureRequest, service: str, folder: Path) -> Iterator[str]:
    """The base URL of a model API, once for each framework. It uses the service's database."""
    if request.param == "flask":
        environ = {"MLAPI_CONFIG": str(folder / "config.yml")}
        create_app = import_example("flask").create_app
        with open_guard(load_settings(environ=environ)) as guard, serving(create_app(guard)) as base:
            yield base
    else:
        with Server(folder, app=f"examples.model_api.{request.param}_app:app") as server:
            yield server.base


@pytest.fixture(autouse=True)
def remove_users(service: str, folder: Path) -> None:
    """Remove all users before each test."""
    with open_users(load_settings(environ={"MLAPI_DATABASE__URL": f"sqlite:///{folder}/mlapi.db"})) as users:
        for user in users.iterate_users():
            users.remove(user_id=user.id)


def register(service: str) -> int:
    user_id: int = requests.post(f"{service}/register-user", json=ADA, timeout=10).json()["user_id"]
    return user_id


def log_in(service: str) -> str:
    body = {"username": "ada", "password": "difference engine"}
    token: str = requests.post(f"{service}/token", json=body, timeout=10).json()["token"]
    return token


def predict(model: str, credential: str | None, flower: object = SETOSA) -> tuple[int, object]:
    headers = {} if credential is None else {"authorization": f"Bearer {credential}"}
    response = requests.post(f"{model}/predict", json=flower, headers=headers, timeout=10)
    return response.status_code, response.json()


def test_model_api_accepts_enabled_and_rejects_disabled_users(service: str, model: str) -> None:
    user_id = register(service)
    token = log_in(service)

    assert predict(model, token) == (200, {"species": "setosa", "asked_by": "ada"})
    assert predict(model, token, VIRGINICA) == (200, {"species": "virginica", "asked_by": "ada"})

    requests.put(f"{service}/toggle-user-permission/{user_id}/0", timeout=10)
    assert predict(model, token) == (403, {"message": "User is disabled"})

    requests.put(f"{service}/toggle-user-permission/{user_id}/1", timeout=10)
    assert predict(model, token) == (401, {"message": "Invalid token"})
    assert predict(model, log_in(service))[0] == 200


def test_api_key_is_rejected_while_its_user_is_disabled(service: str, model: str) -> None:
    user_id = register(service)
    api_key = requests.post(f"{service}/users/{user_id}/keys", json={"name": "batch"}, timeout=10).json()

    before = predict(model, api_key["key"])
    own_header = requests.post(f"{model}/predict", json=SETOSA, headers={"X-API-Key": api_key["key"]}, timeout=10)
    requests.put(f"{service}/toggle-user-permission/{user_id}/0", timeout=10)
    while_disabled = predict(model, api_key["key"])
    requests.put(f"{service}/toggle-user-permission/{user_id}/1", timeout=10)
    enabled_again = predict(model, api_key["key"])
    requests.delete(f"{service}/keys/{api_key['key_id']}", timeout=10)
    removed = predict(model, api_key["key"])

    assert before == enabled_again == (200, {"species": "setosa", "asked_by": "ada"})
    assert own_header.json() == before[1]
    assert while_disabled == (403, {"message": "User is disabled"})
    assert removed == (401, {"message": "Invalid token"})


def test_requests_over_the_limit_of_a_plan_are_rejected(service: str, model: str) -> None:
    user_id = register(service)
    requests.patch(f"{service}/users/{user_id}", json={"plan": "small"}, timeout=10)
    headers = {"Authorization": f"Bearer {log_in(service)}"}

    responses = [requests.post(f"{model}/predict", json=SETOSA, headers=headers, timeout=10) for _ in range(3)]

    assert [response.status_code for response in responses] == [200, 200, 429]
    assert responses[-1].json() == {"message": "Request limit reached: 2 per day"}
    assert {response.headers["RateLimit-Policy"] for response in responses} == {'"requests per day";q=2;w=86400'}
    assert [response.headers["RateLimit"].partition(";t=")[0] for response in responses] == [
        f'"requests per day";r={left}' for left in (1, 0, 0)
    ]


def test_missing_and_invalid_credentials_are_rejected(service: str, model: str) -> None:
    user_id = register(service)
    token = log_in(service)
    requests.delete(f"{service}/remove-user/{user_id}", timeout=10)

    missing = [predict(model, value) for value in (None, "")]
    invalid = [predict(model, value) for value in ("nonsense", token, token[:-1], "mlapi_0_0")]

    assert missing == [(401, {"message": str(MissingCredentialError())})] * 2
    assert invalid == [(401, {"message": "Invalid token"})] * 4


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_credential_of_a_legacy_or_other_client_works(service: str, model: str, header: str) -> None:
    user_id = register(service)
    key = requests.post(f"{service}/users/{user_id}/keys", json={"name": "job"}, timeout=10).json()["key"]
    credential = log_in(service) if header == "Authorization" else key

    response = requests.post(f"{model}/predict", json=SETOSA, headers={header: credential}, timeout=10)

    assert response.status_code == 200


def test_rejection_names_the_authentication_scheme(model: str) -> None:
    response = requests.post(f"{model}/predict", json=SETOSA, timeout=10)

    assert response.headers["www-authenticate"] == "Bearer"


def test_invalid_model_input_is_rejected(service: str, model: str) -> None:
    register(service)
    token = log_in(service)

    flowers: list[object] = [{}, [], {**SETOSA, "petal_width": None}]
    responses = [predict(model, token, flower)[0] for flower in flowers]

    assert responses == [422] * 3


@pytest.mark.parametrize("parser", ["httptools", "h11"])
def test_no_request_can_be_smuggled_to_the_model(service: str, folder: Path, parser: str) -> None:
    head = b"POST /health HTTP/1.1\r\nHost: localhost\r\n"
    smuggled = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    upgrade = head + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(smuggled)
    two_lengths = head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"

    with Server(folder, None, "--http", parser, app="tests.torture.guarded_app:app") as server:  # starts quickly
        responses = [
            response
            for request in (upgrade, two_lengths)
            for response in (server.send_raw(request + smuggled), server.send_raw(request, then=smuggled))
        ]
        status = requests.get(f"{server.base}/health", timeout=10).status_code

    assert [(response[:12], response.count(b"HTTP/1.1 ")) for response in responses] == [(b"HTTP/1.1 400", 1)] * 4
    assert status == 200


def test_all_model_routes_are_guarded() -> None:
    app = import_example("starlette").app

    assert_all_routes_guarded(app, exempt=["/health"])
    with pytest.raises(AssertionError, match="GET /health"):
        assert_all_routes_guarded(app)


def test_routes_with_guard_dependency_count_as_guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = import_example("fastapi").app
    settings = load_settings(environ={})
    with open_users(settings), open_guard(settings) as guard:
        monkeypatch.setattr(app.state, "guard", guard, raising=False)

        assert_all_routes_guarded(app)
