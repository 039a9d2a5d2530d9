"""The contract suite for the HTTP API, for any web framework."""

import json

import httpx2
import pytest

from mlapi import User, UserId, Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.local_peers import trust_any_peer
from mlapi.testing.fakes import UnavailableRepository
from mlapi.testing.http_samples import (
    ADA,
    CANARY,
    IGNORED_FIELDS,
    INVALID_BODIES,
    INVALID_CONTENT_TYPES,
    INVALID_PERMISSIONS,
    INVALID_USER_IDS,
    UNREADABLE_BODIES,
)

ADMIN_TOKEN = "an-admin-token-for-tests"
LOCAL_MODE = AdminPolicy(is_trusted_peer=trust_any_peer)
"""Local mode for tests that call an application in their own process, without a connection."""


def content(response: httpx2.Response) -> tuple[int, object]:
    assert response.headers["content-type"] == "application/json"
    return response.status_code, response.json()


class HttpContract:
    """The contract of the three user endpoints and of admin access.

    Subclass it and override `client`. The tests of invalid input also check that no user changes.
    """

    def client(self, users: Users, admin_policy: AdminPolicy) -> httpx2.Client:
        """Return a client at 127.0.0.1 for an application with these users and this policy."""
        raise NotImplementedError("override client() to return a client for your application")

    @pytest.fixture
    def users(self) -> Users:
        return Users(InMemoryUserRepository(), PlainCipher())

    @pytest.fixture
    def http(self, users: Users) -> httpx2.Client:
        return self.client(users, LOCAL_MODE)

    @staticmethod
    def stored(users: Users) -> list[User]:
        return users.repository.list_page(after=UserId(0), limit=1000)

    # --- the three endpoints

    def test_users_are_registered_removed_and_toggled(self, http: httpx2.Client) -> None:
        body = {"username": "test", "password": "test", "email": "test@testmail.com"}

        created = http.post("/register-user", json=body)
        assert content(created) == (201, {"message": "User created successfully", "user_id": 1})
        again = http.post("/register-user", json=body)
        assert content(again) == (409, {"message": "User already exists", "user_id": 1})
        removed = http.delete("/remove-user/1")
        assert content(removed) == (200, {"message": "User deleted successfully"})
        registered_again = http.post("/register-user", json=body)
        assert content(registered_again) == (201, {"message": "User created successfully", "user_id": 2})
        toggled = http.put("/toggle-user-permission/2/0")
        assert content(toggled) == (200, {"message": "User permission updated successfully", "user_id": 2})

    def test_registered_username_keeps_its_original_spelling(self, http: httpx2.Client, users: Users) -> None:
        http.post("/register-user", json={**ADA, "username": "Ada Łovelace"})

        (user,) = self.stored(users)
        assert (user.username, user.email, user.enabled) == ("Ada Łovelace", "ada@example.com", True)
        assert users.cipher.matches("difference engine", user.password)

    @pytest.mark.parametrize("name", ["ADA", "Ada", "ａｄａ", "a\u0064a"])
    def test_equivalent_spelling_of_a_username_is_the_same_user(self, http: httpx2.Client, name: str) -> None:
        http.post("/register-user", json=ADA)

        response = http.post("/register-user", json={**ADA, "username": name})

        assert content(response) == (409, {"message": "User already exists", "user_id": 1})

    def test_toggling_is_idempotent_and_updates_the_time(self, http: httpx2.Client, users: Users) -> None:
        http.post("/register-user", json=ADA)

        responses = [content(http.put(f"/toggle-user-permission/1/{flag}")) for flag in "0011"]

        assert responses == [(200, {"message": "User permission updated successfully", "user_id": 1})] * 4
        (user,) = self.stored(users)
        assert user.enabled
        assert user.updated_datetime > user.created_datetime

    @pytest.mark.parametrize("user_id", ["0", "2", "9223372036854775808", "1" + "0" * 30, "9" * 4000])
    def test_unknown_user_id_is_not_found(self, http: httpx2.Client, users: Users, user_id: str) -> None:
        http.post("/register-user", json=ADA)
        before = self.stored(users)

        toggled = http.put(f"/toggle-user-permission/{user_id}/0")
        removed = http.delete(f"/remove-user/{user_id}")

        assert content(toggled) == content(removed) == (404, {"message": "User not found"})
        assert self.stored(users) == before

    # --- invalid input

    @pytest.mark.parametrize("body", UNREADABLE_BODIES.values(), ids=UNREADABLE_BODIES.keys())
    def test_body_that_is_not_strict_json_is_rejected(self, http: httpx2.Client, users: Users, body: bytes) -> None:
        response = http.post("/register-user", content=body, headers={"content-type": "application/json"})

        status, error = content(response)
        assert status == 400
        assert isinstance(error, dict)
        assert list(error) == ["message"]
        assert error["message"].startswith("The body is not valid JSON: ")
        assert self.stored(users) == []

    @pytest.mark.parametrize(("body", "fields"), INVALID_BODIES.values(), ids=INVALID_BODIES.keys())
    def test_all_invalid_fields_are_reported(
        self, http: httpx2.Client, users: Users, body: object, fields: list[str]
    ) -> None:
        response = http.post("/register-user", content=json.dumps(body), headers={"content-type": "application/json"})

        status, error = content(response)
        assert status == 422
        assert isinstance(error, dict)
        assert error["message"] == "Invalid input"
        assert [field_error["field"] for field_error in error["errors"]] == fields
        assert all(set(field_error) == {"field", "message"} for field_error in error["errors"])
        assert CANARY not in response.text
        assert self.stored(users) == []

    @pytest.mark.parametrize("name", IGNORED_FIELDS)
    def test_unknown_fields_are_ignored(self, http: httpx2.Client, users: Users, name: str) -> None:
        response = http.post("/register-user", json={name: IGNORED_FIELDS[name], **ADA})

        assert content(response) == (201, {"message": "User created successfully", "user_id": 1})
        (user,) = self.stored(users)
        assert (user.username, user.enabled) == ("ada", True)

    def test_unknown_fields_are_not_repeated_in_errors(self, http: httpx2.Client, users: Users) -> None:
        response = http.post("/register-user", json=IGNORED_FIELDS)

        status, error = content(response)
        assert (status, CANARY in response.text) == (422, False)
        assert isinstance(error, dict)
        assert [field_error["field"] for field_error in error["errors"]] == ["username", "password", "email"]

    @pytest.mark.parametrize("text", INVALID_USER_IDS)
    def test_user_id_must_be_ascii_digits(self, http: httpx2.Client, users: Users, text: str) -> None:
        http.post("/register-user", json=ADA)
        before = self.stored(users)

        toggled = http.put(f"/toggle-user-permission/{text}/0")
        removed = http.delete(f"/remove-user/{text}")

        errors = [{"field": "user_id", "message": "must be ASCII digits"}]
        assert content(toggled) == content(removed) == (422, {"message": "Invalid input", "errors": errors})
        assert self.stored(users) == before

    @pytest.mark.parametrize("text", INVALID_PERMISSIONS)
    def test_permission_must_be_0_or_1(self, http: httpx2.Client, users: Users, text: str) -> None:
        http.post("/register-user", json=ADA)
        before = self.stored(users)

        response = http.put(f"/toggle-user-permission/1/{text}")

        errors = [{"field": "permission", "message": "must be 0 or 1"}]
        assert content(response) == (422, {"message": "Invalid input", "errors": errors})
        assert self.stored(users) == before

    @pytest.mark.parametrize("media_type", INVALID_CONTENT_TYPES)
    def test_other_content_types_are_rejected(self, http: httpx2.Client, users: Users, media_type: str) -> None:
        body = json.dumps(ADA).encode()

        response = http.post("/register-user", content=body, headers={"content-type": media_type})

        message = "The Content-Type must be application/json, in UTF-8"
        assert content(response) == (415, {"message": message})
        assert self.stored(users) == []

    def test_missing_content_type_is_rejected(self, http: httpx2.Client) -> None:
        response = http.post("/register-user", content=json.dumps(ADA).encode())

        assert response.status_code == 415

    @pytest.mark.parametrize(
        "media_type",
        [
            "Application/JSON",
            "application/json;",
            "application/json; charset=utf-8",
            'application/json;charset="UTF-8"; profile="a;b"',
        ],
    )
    def test_content_type_variants_are_accepted(self, http: httpx2.Client, media_type: str) -> None:
        response = http.post("/register-user", content=json.dumps(ADA).encode(), headers={"content-type": media_type})

        assert response.status_code == 201

    @pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", "aes128gcm"])
    def test_compressed_body_is_rejected(self, http: httpx2.Client, users: Users, coding: str) -> None:
        response = http.post("/register-user", json=ADA, headers={"content-encoding": coding})

        assert content(response) == (415, {"message": "The body is compressed: send it without Content-Encoding"})
        assert response.headers["accept-encoding"] == "identity"
        assert self.stored(users) == []

    @pytest.mark.parametrize("coding", ["", "identity", "Identity"])
    def test_content_encoding_identity_is_accepted(self, http: httpx2.Client, coding: str) -> None:
        assert http.post("/register-user", json=ADA, headers={"content-encoding": coding}).status_code == 201

    def test_body_larger_than_16_kib_is_rejected(self, http: httpx2.Client, users: Users) -> None:
        body = json.dumps(ADA).encode()
        headers = {"content-type": "application/json"}

        at_limit = http.post("/register-user", content=body + b" " * (16384 - len(body)), headers=headers)
        over_limit = http.post("/register-user", content=body + b" " * (16385 - len(body)), headers=headers)

        assert at_limit.status_code == 201
        assert content(over_limit) == (413, {"message": "The body is larger than 16384 bytes"})
        assert len(self.stored(users)) == 1

    def test_body_of_unknown_length_is_limited_too(self, http: httpx2.Client) -> None:
        response = http.post(
            "/register-user", content=(b" " * 1024 for _ in range(20)), headers={"content-type": "application/json"}
        )

        assert response.status_code == 413

    @pytest.mark.parametrize(
        ("method", "path", "allow"),
        [
            ("GET", "/register-user", "POST"),
            ("PUT", "/register-user", "POST"),
            ("OPTIONS", "/register-user", "POST"),
            ("POST", "/toggle-user-permission/1/0", "PUT"),
            ("GET", "/toggle-user-permission/1/0", "PUT"),
            ("GET", "/remove-user/1", "DELETE"),
            ("POST", "/remove-user/1", "DELETE"),
            ("PATCH", "/remove-user/1", "DELETE"),
        ],
    )
    def test_wrong_method_response_lists_the_allowed_methods(
        self, http: httpx2.Client, method: str, path: str, allow: str
    ) -> None:
        response = http.request(method, path)

        assert content(response) == (405, {"message": "Method Not Allowed"})
        assert response.headers["allow"] == allow

    @pytest.mark.parametrize(
        "path",
        ["/nothing", "/remove-user", "/remove-user/", "/remove-user/1/", "//remove-user/1", "/Remove-User/1"],
    )
    def test_unknown_path_is_not_found(self, http: httpx2.Client, users: Users, path: str) -> None:
        http.post("/register-user", json=ADA)

        response = http.delete(path)

        assert content(response) == (404, {"message": "Not Found"})
        assert len(self.stored(users)) == 1

    # --- unavailable database

    def test_unavailable_database_gives_503_with_retry_after(self) -> None:
        http = self.client(Users(UnavailableRepository(), PlainCipher()), LOCAL_MODE)

        responses = [
            http.post("/register-user", json=ADA),
            http.put("/toggle-user-permission/1/0"),
            http.delete("/remove-user/1"),
        ]

        for response in responses:
            assert content(response) == (503, {"message": "Service unavailable, try again"})
            assert response.headers["retry-after"] == "1"

    # --- admin access

    @pytest.mark.parametrize(
        "headers",
        [
            {"host": "example.com"},
            {"host": "localhost.example.com"},
            {"origin": "http://127.0.0.1:8001"},
            {"origin": ""},
            {"sec-fetch-site": "cross-site"},
            {"x-forwarded-for": "127.0.0.1"},
            {"forwarded": ""},
            {"via": "1.1 proxy"},
            {"x-real-ip": "127.0.0.1"},
        ],
        ids=lambda headers: ",".join(headers) + "=" + ",".join(headers.values()),
    )
    def test_local_mode_rejects_requests_that_may_be_remote(
        self, http: httpx2.Client, users: Users, headers: dict[str, str]
    ) -> None:
        http.post("/register-user", json=ADA)
        before = self.stored(users)

        responses = [
            http.put("/toggle-user-permission/1/0", headers=headers),
            http.delete("/remove-user/1", headers=headers),
            http.get("/remove-user/x", headers=headers),
            http.get("/nothing", headers=headers),
        ]

        assert [response.status_code for response in responses] == [403] * 4
        assert "secrets.admin_token" in responses[0].json()["message"]
        assert self.stored(users) == before

    @pytest.mark.parametrize("origin", ["https://example.com", "http://127.0.0.1:8001", "null"])
    def test_cross_origin_requests_get_no_cors_headers(self, http: httpx2.Client, origin: str) -> None:
        preflight_headers = {"origin": origin, "access-control-request-method": "POST"}

        preflight = http.options("/register-user", headers=preflight_headers)
        registered = http.post("/register-user", json=ADA, headers={"origin": origin})

        permissions = [
            name for name in (*preflight.headers, *registered.headers) if name.lower().startswith("access-control-")
        ]
        assert permissions == []
        assert preflight.status_code == 405

    def test_registration_is_open_to_everyone_in_local_mode(self, http: httpx2.Client) -> None:
        response = http.post("/register-user", json=ADA, headers={"host": "example.com", "x-forwarded-for": "8.8.8.8"})

        assert response.status_code == 201

    @pytest.mark.parametrize("credential", [None, "", "Bearer", "Bearer wrong", ADMIN_TOKEN, f"Basic {ADMIN_TOKEN}"])
    def test_token_mode_rejects_requests_without_the_token(self, users: Users, credential: str | None) -> None:
        http = self.client(users, AdminPolicy(admin_token=ADMIN_TOKEN))
        http.post("/register-user", json=ADA)
        before = self.stored(users)
        headers = {} if credential is None else {"authorization": credential}

        toggled = http.put("/toggle-user-permission/1/0", headers=headers)
        removed = http.delete("/remove-user/1", headers=headers)

        assert toggled.status_code == removed.status_code == 401
        error = ' error="invalid_token"' if credential == "Bearer wrong" else ""
        assert toggled.headers["www-authenticate"] == f"Bearer{error}"
        assert ADMIN_TOKEN not in toggled.text
        assert self.stored(users) == before

    def test_token_mode_accepts_the_token_from_anywhere(self, users: Users) -> None:
        http = self.client(users, AdminPolicy(admin_token=ADMIN_TOKEN))
        http.post("/register-user", json=ADA)
        headers = {"authorization": f"Bearer {ADMIN_TOKEN}", "host": "example.com", "x-forwarded-for": "8.8.8.8"}

        toggled = http.put("/toggle-user-permission/1/0", headers=headers)

        assert toggled.status_code == 200
        assert not self.stored(users)[0].enabled

    def test_locked_mode_names_the_setting_that_unlocks_it(self, users: Users) -> None:
        http = self.client(users, AdminPolicy(local=False))

        response = http.delete("/remove-user/1")

        message = "Management is locked: set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)"
        assert content(response) == (403, {"message": message})

    def test_closed_registration_needs_the_admin_token(self, users: Users) -> None:
        http = self.client(users, AdminPolicy(admin_token=ADMIN_TOKEN, registration_open=False))

        rejected = http.post("/register-user", json=ADA)
        accepted = http.post("/register-user", json=ADA, headers={"authorization": f"Bearer {ADMIN_TOKEN}"})

        assert (rejected.status_code, accepted.status_code) == (401, 201)
