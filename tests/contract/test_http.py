"""The HTTP contract on Starlette, FastAPI and Flask."""

from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest
from examples import fastapi_app, flask_app
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from mlapi import Users
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from mlapi.testing import HttpContract
from tests.wsgi_server import serving

BASE = "http://127.0.0.1:8001"


def asgi_client(app: ASGIApp) -> TestClient:
    return TestClient(app, base_url=BASE, client=("127.0.0.1", 50000))


class TestStarlette(HttpContract):
    def client(self, users: Users, admin_policy: AdminPolicy) -> httpx2.Client:
        return asgi_client(create_app(users, admin_policy))


class TestFastAPI(HttpContract):
    def client(self, users: Users, admin_policy: AdminPolicy) -> httpx2.Client:
        return asgi_client(fastapi_app.create_app(users, admin_policy))


class TestFlask(HttpContract):
    """Uses a real server, because WSGI applications leave much of HTTP to the server."""

    @pytest.fixture(autouse=True)
    def _servers(self) -> Iterator[None]:
        self.resources = ExitStack()
        with self.resources:
            yield

    def client(self, users: Users, admin_policy: AdminPolicy) -> httpx2.Client:
        app = flask_app.create_app(users, admin_policy)
        base = self.resources.enter_context(serving(app))
        return self.resources.enter_context(httpx2.Client(base_url=base))
