"""The description and Swagger UI as they are served: whole, of this package alone, and to whom."""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from urllib.parse import urljoin

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from mlapi import Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.wire.openapi import openapi
from tests.contract.test_http import BASE, asgi_client

ADMIN_TOKEN = "an-admin-token-for-tests"
VENDORED = files("mlapi.entrypoints").joinpath("static/swagger-ui")
POLICY = {
    *("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:", "connect-src 'self'"),
    *("frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"),
}


@pytest.fixture
def users() -> Users:
    return Users(InMemoryUserRepository(), PlainCipher())


@pytest.fixture(params=["", "/accounts"], ids=["alone", "mounted"])
def base(request: pytest.FixtureRequest) -> str:
    """Where the service is."""
    path: str = request.param
    return BASE + path


@pytest.fixture
def http(users: Users, base: str) -> TestClient:
    """A stranger, where the docs are open."""
    app = create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN, docs_open=True))
    path = base.removeprefix(BASE)
    return asgi_client(Starlette(routes=[Mount(path, app)]) if path else app)


class Page(HTMLParser):
    """What a page asks for, and its scripts and styles that stand in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.inline: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.urls += [value for name, value in attrs if name in {"src", "href"} and value]
        self.inline += [name for name, _ in attrs if name == "style" or name.startswith("on")]
        self.inline += [tag] if tag == "style" or (tag == "script" and "src" not in dict(attrs)) else []


def assets(http: TestClient, base: str) -> Iterator[str]:
    """The URLs of what the page asks for, as a browser makes them."""
    for url in Page(http.get(f"{base}/docs").text).urls:
        if not url.startswith("data:"):
            yield urljoin(f"{base}/docs", url)


# --- what is served


def test_the_description_is_served_as_it_is(http: TestClient, base: str) -> None:
    answer = http.get(f"{base}/openapi.json")

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.content == openapi()
    assert answer.headers["cache-control"] == "no-cache"


def test_the_page_asks_for_three_files_that_are_there(http: TestClient, base: str) -> None:
    answers = [http.get(url) for url in assets(http, base)]

    assert [(answer.status_code, answer.headers["content-type"]) for answer in answers] == [
        (200, "text/css; charset=utf-8"),
        (200, "text/javascript; charset=utf-8"),
        (200, "text/javascript; charset=utf-8"),
    ]
    assert answers[0].content == VENDORED.joinpath("swagger-ui.css").read_bytes()
    assert answers[1].content == VENDORED.joinpath("swagger-ui-bundle.js").read_bytes()


def test_the_page_allows_nothing_but_its_own_files(http: TestClient, base: str) -> None:
    answer = http.get(f"{base}/docs")

    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert set(answer.headers["content-security-policy"].split("; ")) == POLICY
    assert Page(answer.text).inline == []


def test_no_file_of_ours_names_another_host(http: TestClient, base: str) -> None:
    script = http.get(list(assets(http, base))[-1]).text

    assert re.findall(r"https?:|//\w", http.get(f"{base}/docs").text + script) == []
    assert "validatorUrl: null" in script


def test_what_is_served_elsewhere_is_not_found(http: TestClient, base: str) -> None:
    paths = ["/docs/", "/docs/x", "/docs/x/docs.js", "/openapi.json/", "/docs/x/..%2fVENDORED.toml"]

    assert [http.get(base + path).status_code for path in paths] == [404] * len(paths)


# --- how it is kept


def test_a_file_is_kept_for_good_as_its_url_names_its_content(http: TestClient, base: str) -> None:
    for url in assets(http, base):
        answer = http.get(url)

        digest = hashlib.sha256(answer.content).hexdigest()[:32]
        assert digest in url
        assert answer.headers["etag"] == f'"{digest}"'
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_who_has_it_already_is_told_so(http: TestClient, base: str, path: str) -> None:
    etag = http.get(base + path).headers["etag"]

    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = http.get(base + path, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert http.get(base + path, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_it_can_be_asked_for_its_headers_alone(http: TestClient, base: str, path: str) -> None:
    asked, got = http.head(base + path), http.get(base + path)

    assert asked.status_code == got.status_code == 200
    assert asked.headers["etag"] == got.headers["etag"]


def test_another_method_is_refused(http: TestClient, base: str) -> None:
    answer = http.post(f"{base}/docs")

    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


# --- to whom


@pytest.mark.parametrize("path", ["/docs", "/docs/x/docs.js", "/openapi.json"])
def test_where_the_docs_are_closed_they_are_for_managers(users: Users, path: str) -> None:
    http = asgi_client(create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN)))

    stranger = http.get(path)
    manager = http.get(path, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})

    assert stranger.status_code == 401
    assert stranger.headers["content-type"] == "application/json"
    assert manager.status_code == (404 if "/x/" in path else 200)


# --- what is kept of others


def test_the_vendored_files_are_those_that_were_published() -> None:
    vendored = tomllib.loads(VENDORED.joinpath("VENDORED.toml").read_text("utf-8"))

    there = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in VENDORED.iterdir()
        if file.name != "VENDORED.toml"
    }
    assert there == vendored["sha256"]
    assert vendored["version"] in vendored["source"]


def test_the_licence_and_the_notice_come_with_them() -> None:
    assert "Apache License" in VENDORED.joinpath("LICENSE").read_text("utf-8")
    assert "SmartBear" in VENDORED.joinpath("NOTICE").read_text("utf-8")


def test_the_description_names_no_host() -> None:
    assert json.loads(openapi())["servers"] == [{"url": ".", "description": "The server of this description."}]
    assert b"http:" not in openapi()
    assert b"https:" not in openapi()
