"""Every framework that carries our HTTP says the same."""

from collections.abc import Iterator
from contextlib import ExitStack
from threading import Thread

import httpx2
import pytest
from examples import fastapi_app, flask_app
from starlette.testclient import TestClient
from starlette.types import ASGIApp
from werkzeug.serving import WSGIRequestHandler, make_server

from mlapi import Users
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from mlapi.testing import HttpContract

BASE = "http://127.0.0.1:8001"


def asgi_client(app: ASGIApp) -> TestClient:
    return TestClient(app, base_url=BASE, client=("127.0.0.1", 50000))


class TestStarlette(HttpContract):
    def client(self, users: Users, management: AdminPolicy) -> httpx2.Client:
        return asgi_client(create_app(users, management))


class TestFastAPI(HttpContract):
    def client(self, users: Users, management: AdminPolicy) -> httpx2.Client:
        return asgi_client(fastapi_app.create_app(users, management))


class TestFlask(HttpContract):
    """Over a socket: WSGI leaves much of HTTP to the server."""

    @pytest.fixture(autouse=True)
    def _servers(self) -> Iterator[None]:
        self.opened = ExitStack()
        with self.opened:
            yield

    def client(self, users: Users, management: AdminPolicy) -> httpx2.Client:
        app = flask_app.create_app(users, management)
        server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.opened.callback(thread.join)
        self.opened.callback(server.shutdown)
        return self.opened.enter_context(httpx2.Client(base_url=f"http://127.0.0.1:{server.port}"))


class Quiet(WSGIRequestHandler):
    def log(self, *_args: object) -> None:
        pass
