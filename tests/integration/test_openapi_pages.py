"""The OpenAPI description and Swagger UI: complete, without files from other hosts, and optionally for admins only."""

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
    """The base URL of the service."""
    path: str = request.param
    return BASE + path


@pytest.fixture
def http(users: Users, base: str) -> TestClient:
    """A client without credentials, connected to a service with open docs."""
    app = create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN, docs_open=True))
    path = base.removeprefix(BASE)
    return asgi_client(Starlette(routes=[Mount(path, app)]) if path else app)


class Page(HTMLParser):
    """The URLs that a page loads, and its inline scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.inline: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.urls += [value for name, value in attrs if name in {"src", "href"} and value]
        self.inline += [name for name, _ in attrs if name == "style" or name.startswith("on")]
        self.inline += [tag] if tag == "style" or (tag == "script" and "src" not in dict(attrs)) else []


def find_assets(http: TestClient, base: str) -> Iterator[str]:
    """Yield the absolute URLs of the files that the page loads."""
    for url in Page(http.get(f"{base}/docs").text).urls:
        if "/" in url and not url.startswith("data:"):  # without a slash, they lead to other pages
            yield urljoin(f"{base}/docs", url)


# --- content


def test_openapi_description_is_served_unchanged(http: TestClient, base: str) -> None:
    response = http.get(f"{base}/openapi.json")

    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.content == openapi()
    assert response.headers["cache-control"] == "no-cache"


def test_docs_page_loads_four_existing_files(http: TestClient, base: str) -> None:
    responses = [http.get(url) for url in find_assets(http, base)]

    assert [(response.status_code, response.headers["content-type"]) for response in responses] == [
        (200, "text/css; charset=utf-8"),
        (200, "text/css; charset=utf-8"),
        (200, "text/javascript; charset=utf-8"),
        (200, "text/javascript; charset=utf-8"),
    ]
    assert responses[0].content == VENDORED.joinpath("swagger-ui.css").read_bytes()
    assert responses[2].content == VENDORED.joinpath("swagger-ui-bundle.js").read_bytes()


def test_docs_page_has_a_strict_content_security_policy(http: TestClient, base: str) -> None:
    response = http.get(f"{base}/docs")

    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert set(response.headers["content-security-policy"].split("; ")) == POLICY
    assert Page(response.text).inline == []


def test_docs_page_and_script_contain_no_external_urls(http: TestClient, base: str) -> None:
    script = http.get(list(find_assets(http, base))[-1]).text

    assert re.findall(r"https?:|//\w", http.get(f"{base}/docs").text + script) == []
    assert "validatorUrl: null" in script


def test_unknown_docs_paths_are_not_found(http: TestClient, base: str) -> None:
    paths = ["/docs/", "/docs/x", "/docs/x/docs.js", "/openapi.json/", "/docs/x/..%2fVENDORED.toml"]

    assert [http.get(base + path).status_code for path in paths] == [404] * len(paths)


# --- caching


def test_files_with_a_digest_in_their_url_are_immutable(http: TestClient, base: str) -> None:
    for url in find_assets(http, base):
        response = http.get(url)

        digest = hashlib.sha256(response.content).hexdigest()[:32]
        assert digest in url
        assert response.headers["etag"] == f'"{digest}"'
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_matching_etag_returns_304(http: TestClient, base: str, path: str) -> None:
    etag = http.get(base + path).headers["etag"]

    for etag_header in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        response = http.get(base + path, headers={"If-None-Match": etag_header})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)
    assert http.get(base + path, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_docs_support_head_requests(http: TestClient, base: str, path: str) -> None:
    head, get = http.head(base + path), http.get(base + path)

    assert head.status_code == get.status_code == 200
    assert head.headers["etag"] == get.headers["etag"]


def test_docs_reject_other_methods(http: TestClient, base: str) -> None:
    response = http.post(f"{base}/docs")

    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}


# --- access


@pytest.mark.parametrize("path", ["/docs", "/docs/x/docs.js", "/openapi.json"])
def test_closed_docs_require_the_admin_token(users: Users, path: str) -> None:
    http = asgi_client(create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN)))

    anonymous = http.get(path)
    admin = http.get(path, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})

    assert anonymous.status_code == 401
    assert anonymous.headers["content-type"] == "application/json"
    assert admin.status_code == (404 if "/x/" in path else 200)


# --- vendored files


def test_vendored_files_match_their_published_digests() -> None:
    vendored = tomllib.loads(VENDORED.joinpath("VENDORED.toml").read_text("utf-8"))

    digests = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in VENDORED.iterdir()
        if file.name != "VENDORED.toml"
    }
    assert digests == vendored["sha256"]
    assert vendored["version"] in vendored["source"]


def test_vendored_files_include_license_and_notice() -> None:
    assert "Apache License" in VENDORED.joinpath("LICENSE").read_text("utf-8")
    assert "SmartBear" in VENDORED.joinpath("NOTICE").read_text("utf-8")


def test_openapi_description_contains_no_host() -> None:
    assert json.loads(openapi())["servers"] == [
        {"url": ".", "description": "The server that provides this description."}
    ]
    without_examples = openapi().replace(b"https://api.example.com/", b"")
    assert b"http:" not in without_examples
    assert b"https:" not in without_examples
