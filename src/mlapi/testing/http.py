"""What our HTTP says, whatever framework carries it. A subclass gives `client`: it serves the users it is given."""

import json

import httpx2
import pytest

from mlapi import User, UserId, Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.testing.fakes import UnavailableRepository

ADA = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}
CANARY = "c4n4ry-p4ssw0rd"
ADMIN_TOKEN = "an-admin-token-for-tests"
LOCAL = {"host": "127.0.0.1:8001"}

UNREADABLE = {
    "nothing": b"",
    "no JSON": b"username=ada",
    "cut short": b'{"username": "ada"',
    "two values": b"{}{}",
    "not UTF-8": b'{"username": "\xff", "password": "x", "email": "a@b.c"}',
    "UTF-16": json.dumps(ADA).encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + json.dumps(ADA).encode(),
    "lone surrogate": rb'{"username": "\ud800", "password": "x", "email": "a@b.c"}',
    "lone surrogate as password": rb'{"username": "a", "password": "\udfff", "email": "a@b.c"}',
    "duplicate key": b'{"username": "a", "username": "b", "password": "x", "email": "a@b.c"}',
    "duplicate key by escape": rb'{"username": "a", "\u0075sername": "b", "password": "x", "email": "a@b.c"}',
    "duplicate key inside": b'{"username": {"a": 1, "a": 2}, "password": "x", "email": "a@b.c"}',
    "NaN": b'{"username": NaN, "password": "x", "email": "a@b.c"}',
    "Infinity": b'{"username": -Infinity, "password": "x", "email": "a@b.c"}',
    "raw control character": b'{"username": "a\nb", "password": "x", "email": "a@b.c"}',
    "deeply nested": b"[" * 16000,
    "thousands of digits": b"9" * 5000,
    "single quotes": b"{'username': 'a'}",
    "trailing comma": b'{"username": "a",}',
}
WRONG_FIELDS: dict[str, tuple[object, list[str]]] = {
    "empty object": ({}, ["username", "password", "email"]),
    "list": ([ADA], ["body"]),
    "string": ("ada", ["body"]),
    "null": (None, ["body"]),
    "number": (12, ["body"]),
    "null name": ({**ADA, "username": None}, ["username"]),
    "number as name": ({**ADA, "username": 12345}, ["username"]),
    "boolean as name": ({**ADA, "username": True}, ["username"]),
    "object as name": ({**ADA, "username": {"$ne": ""}}, ["username"]),
    "list as password": ({**ADA, "password": [CANARY]}, ["password"]),
    "number as password": ({**ADA, "password": 123456}, ["password"]),
    "null e-mail": ({**ADA, "email": None}, ["email"]),
    "two at once": ({"username": 1, "password": CANARY}, ["username", "email"]),
    "unknown field": ({**ADA, "enabled": False}, ["body"]),
    "id given": ({**ADA, "id": 7}, ["body"]),
    "empty name": ({**ADA, "username": ""}, ["username"]),
    "empty password": ({**ADA, "password": ""}, ["password"]),
    "empty e-mail": ({**ADA, "email": ""}, ["email"]),
    "all empty": ({"username": "", "password": "", "email": ""}, ["username", "password", "email"]),
    "long name": ({**ADA, "username": "a" * 255}, ["username"]),
    "name that grows": ({**ADA, "username": "\ufdfa" * 20}, ["username"]),
    "long password": ({**ADA, "password": CANARY * 100}, ["password"]),
    "long e-mail": ({**ADA, "email": "a" * 250 + "@b.cd"}, ["email"]),
    "space before": ({**ADA, "username": " ada"}, ["username"]),
    "space after": ({**ADA, "username": "ada\u3000"}, ["username"]),
    "only space": ({**ADA, "username": "   "}, ["username"]),
    "NUL in name": ({**ADA, "username": "a\0da"}, ["username"]),
    "line end in name": ({**ADA, "username": "ada\n"}, ["username"]),
    "right-to-left override": ({**ADA, "username": "a\u202eda"}, ["username"]),
    "zero width": ({**ADA, "username": "a\u200bda"}, ["username"]),
    "no at": ({**ADA, "email": "ada.example.com"}, ["email"]),
    "two ats": ({**ADA, "email": "ada@b@example.com"}, ["email"]),
    "no domain": ({**ADA, "email": "ada@"}, ["email"]),
    "header in e-mail": ({**ADA, "email": "ada@example.com\r\nBcc: x@y.z"}, ["email"]),
    "NUL in e-mail": ({**ADA, "email": "ada\0@example.com"}, ["email"]),
}
NOT_AN_ID = ["abc", "-1", "+1", "1.0", "1e3", "0x1", "1_0", "%201", "1%20", "١", "１", "²", "null", "1%00", "%E2%82%81"]
NOT_A_PERMISSION = ["2", "01", "00", "-1", "true", "yes", "on", "t", "１", "١", "1%20", "%00"]
WRONG_TYPES = [
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/json; charset=latin-1",
    "application/json, text/plain",
    "application/jsonp",
    "application/vnd.api+json",
    "application/json; charset=utf-8; charset=utf-7",
    "",
]


def content(response: httpx2.Response) -> tuple[int, object]:
    assert response.headers["content-type"] == "application/json"
    return response.status_code, response.json()


class HttpContract:
    def client(self, users: Users, management: AdminPolicy) -> httpx2.Client:
        """Return a client on 127.0.0.1 of the framework under test."""
        raise NotImplementedError("a subclass of the suite gives a client of the framework under test")

    @pytest.fixture
    def users(self) -> Users:
        return Users(InMemoryUserRepository(), PlainCipher())

    @pytest.fixture
    def http(self, users: Users) -> httpx2.Client:
        return self.client(users, AdminPolicy())

    @staticmethod
    def stored(users: Users) -> list[User]:
        return users.repository.list_page(after=UserId(0), limit=1000)

    # --- the three endpoints

    def test_the_flow(self, http: httpx2.Client) -> None:
        body = {"username": "test", "password": "test", "email": "test@testmail.com"}

        created = http.post("/register-user", json=body)
        assert content(created) == (201, {"message": "User created successfully", "user_id": 1})
        again = http.post("/register-user", json=body)
        assert content(again) == (409, {"message": "User already exists", "user_id": 1})
        removed = http.delete("/remove-user/1")
        assert content(removed) == (200, {"message": "User deleted successfully"})
        anew = http.post("/register-user", json=body)
        assert content(anew) == (201, {"message": "User created successfully", "user_id": 2})
        toggled = http.put("/toggle-user-permission/2/0")
        assert content(toggled) == (200, {"message": "User permission updated successfully", "user_id": 2})

    def test_a_registered_user_is_stored_as_typed(self, http: httpx2.Client, users: Users) -> None:
        http.post("/register-user", json={**ADA, "username": "Ada Łovelace"})

        (user,) = self.stored(users)
        assert (user.username, user.email, user.enabled) == ("Ada Łovelace", "ada@example.com", True)
        assert users.cipher.matches("difference engine", user.password)

    @pytest.mark.parametrize("name", ["ADA", "Ada", "ａｄａ", "a\u0064a"])
    def test_another_spelling_of_a_name_is_the_same_user(self, http: httpx2.Client, name: str) -> None:
        http.post("/register-user", json=ADA)

        response = http.post("/register-user", json={**ADA, "username": name})

        assert content(response) == (409, {"message": "User already exists", "user_id": 1})

    def test_a_toggle_may_be_repeated_and_moves_the_time(self, http: httpx2.Client, users: Users) -> None:
        http.post("/register-user", json=ADA)

        answers = [content(http.put(f"/toggle-user-permission/1/{flag}")) for flag in "0011"]

        assert answers == [(200, {"message": "User permission updated successfully", "user_id": 1})] * 4
        (user,) = self.stored(users)
        assert user.enabled
        assert user.updated_datetime > user.created_datetime

    @pytest.mark.parametrize("user_id", ["0", "2", "9223372036854775808", "1" + "0" * 30, "9" * 5000])
    def test_an_id_that_nobody_has_is_not_found(self, http: httpx2.Client, users: Users, user_id: str) -> None:
        http.post("/register-user", json=ADA)
        before = self.stored(users)

        toggled = http.put(f"/toggle-user-permission/{user_id}/0")
        removed = http.delete(f"/remove-user/{user_id}")

        assert content(toggled) == content(removed) == (404, {"message": "User not found"})
        assert self.stored(users) == before

    # --- bad input changes nothing, and every refusal says what is wrong

    @pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE.keys())
    def test_a_body_that_is_no_strict_json_is_refused(self, http: httpx2.Client, users: Users, body: bytes) -> None:
        response = http.post("/register-user", content=body, headers={"content-type": "application/json"})

        status, answer = content(response)
        assert status == 400
        assert isinstance(answer, dict)
        assert list(answer) == ["message"]
        assert answer["message"].startswith("The body is not valid JSON: ")
        assert self.stored(users) == []

    @pytest.mark.parametrize(("body", "at_fault"), WRONG_FIELDS.values(), ids=WRONG_FIELDS.keys())
    def test_every_field_at_fault_is_named(
        self, http: httpx2.Client, users: Users, body: object, at_fault: list[str]
    ) -> None:
        response = http.post("/register-user", content=json.dumps(body), headers={"content-type": "application/json"})

        status, answer = content(response)
        assert status == 422
        assert isinstance(answer, dict)
        assert answer["message"] == "Invalid input"
        assert [error["field"] for error in answer["errors"]] == at_fault
        assert all(set(error) == {"field", "message"} for error in answer["errors"])
        assert CANARY not in response.text
        assert self.stored(users) == []

    @pytest.mark.parametrize("text", NOT_AN_ID)
    def test_an_id_that_is_not_ascii_digits_is_refused(self, http: httpx2.Client, users: Users, text: str) -> None:
        http.post("/register-user", json=ADA)
        before = self.stored(users)

        toggled = http.put(f"/toggle-user-permission/{text}/0")
        removed = http.delete(f"/remove-user/{text}")

        errors = [{"field": "user_id", "message": "must be ASCII digits"}]
        assert content(toggled) == content(removed) == (422, {"message": "Invalid input", "errors": errors})
        assert self.stored(users) == before

    @pytest.mark.parametrize("text", NOT_A_PERMISSION)
    def test_a_permission_that_is_not_0_or_1_is_refused(self, http: httpx2.Client, users: Users, text: str) -> None:
        http.post("/register-user", json=ADA)
        before = self.stored(users)

        response = http.put(f"/toggle-user-permission/1/{text}")

        errors = [{"field": "permission", "message": "must be 0 or 1"}]
        assert content(response) == (422, {"message": "Invalid input", "errors": errors})
        assert self.stored(users) == before

    @pytest.mark.parametrize("media_type", WRONG_TYPES)
    def test_another_content_type_is_refused(self, http: httpx2.Client, users: Users, media_type: str) -> None:
        body = json.dumps(ADA).encode()

        response = http.post("/register-user", content=body, headers={"content-type": media_type})

        message = "The Content-Type must be application/json, in UTF-8"
        assert content(response) == (415, {"message": message})
        assert self.stored(users) == []

    def test_no_content_type_is_refused(self, http: httpx2.Client) -> None:
        response = http.post("/register-user", content=json.dumps(ADA).encode())

        assert response.status_code == 415

    @pytest.mark.parametrize("media_type", ["Application/JSON", "application/json; charset=utf-8"])
    def test_json_in_utf_8_is_taken_however_it_is_written(self, http: httpx2.Client, media_type: str) -> None:
        response = http.post("/register-user", content=json.dumps(ADA).encode(), headers={"content-type": media_type})

        assert response.status_code == 201

    def test_a_body_of_16_kib_is_read_and_a_larger_one_is_not(self, http: httpx2.Client, users: Users) -> None:
        body = json.dumps(ADA).encode()
        headers = {"content-type": "application/json"}

        fits = http.post("/register-user", content=body + b" " * (16384 - len(body)), headers=headers)
        larger = http.post("/register-user", content=body + b" " * (16385 - len(body)), headers=headers)

        assert fits.status_code == 201
        assert content(larger) == (413, {"message": "The body is larger than 16384 bytes"})
        assert len(self.stored(users)) == 1

    def test_a_body_of_unknown_length_is_cut_off_too(self, http: httpx2.Client) -> None:
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
    def test_another_method_is_refused_with_those_that_are_allowed(
        self, http: httpx2.Client, method: str, path: str, allow: str
    ) -> None:
        response = http.request(method, path)

        assert content(response) == (405, {"message": "Method Not Allowed"})
        assert response.headers["allow"] == allow

    @pytest.mark.parametrize(
        "path",
        ["/", "/nothing", "/remove-user", "/remove-user/", "/remove-user/1/", "//remove-user/1", "/Remove-User/1"],
    )
    def test_another_path_is_not_found(self, http: httpx2.Client, users: Users, path: str) -> None:
        http.post("/register-user", json=ADA)

        response = http.delete(path)

        assert content(response) == (404, {"message": "Not Found"})
        assert len(self.stored(users)) == 1

    # --- the database is away

    def test_what_needs_the_database_says_when_to_come_again(self) -> None:
        http = self.client(Users(UnavailableRepository(), PlainCipher()), AdminPolicy())

        answers = [
            http.post("/register-user", json=ADA),
            http.put("/toggle-user-permission/1/0"),
            http.delete("/remove-user/1"),
        ]

        for answer in answers:
            assert content(answer) == (503, {"message": "Service unavailable, try again"})
            assert answer.headers["retry-after"] == "1"

    # --- who may manage

    @pytest.mark.parametrize(
        "forged",
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
    def test_local_mode_refuses_what_may_come_from_elsewhere(
        self, http: httpx2.Client, users: Users, forged: dict[str, str]
    ) -> None:
        http.post("/register-user", json=ADA)
        before = self.stored(users)

        answers = [
            http.put("/toggle-user-permission/1/0", headers=forged),
            http.delete("/remove-user/1", headers=forged),
            http.get("/remove-user/x", headers=forged),
            http.get("/nothing", headers=forged),
        ]

        assert [answer.status_code for answer in answers] == [403] * 4
        assert "secrets.admin_token" in answers[0].json()["message"]
        assert self.stored(users) == before

    @pytest.mark.parametrize("origin", ["https://example.com", "http://127.0.0.1:8001", "null"])
    def test_no_other_origin_is_let_read_an_answer(self, http: httpx2.Client, origin: str) -> None:
        asked = {"origin": origin, "access-control-request-method": "POST"}

        preflight = http.options("/register-user", headers=asked)
        answer = http.post("/register-user", json=ADA, headers={"origin": origin})

        granted = [name for name in (*preflight.headers, *answer.headers) if name.lower().startswith("access-control-")]
        assert granted == []
        assert preflight.status_code == 405

    def test_registration_is_open_to_all_in_local_mode(self, http: httpx2.Client) -> None:
        response = http.post("/register-user", json=ADA, headers={"host": "example.com", "x-forwarded-for": "8.8.8.8"})

        assert response.status_code == 201

    @pytest.mark.parametrize("credential", [None, "", "Bearer", "Bearer wrong", ADMIN_TOKEN, f"Basic {ADMIN_TOKEN}"])
    def test_token_mode_refuses_all_others_even_from_this_machine(self, users: Users, credential: str | None) -> None:
        http = self.client(users, AdminPolicy(admin_token=ADMIN_TOKEN))
        http.post("/register-user", json=ADA)
        before = self.stored(users)
        headers = {} if credential is None else {"authorization": credential}

        toggled = http.put("/toggle-user-permission/1/0", headers=headers)
        removed = http.delete("/remove-user/1", headers=headers)

        assert toggled.status_code == removed.status_code == 401
        assert toggled.headers["www-authenticate"] == "Bearer"
        assert ADMIN_TOKEN not in toggled.text
        assert self.stored(users) == before

    def test_token_mode_takes_the_token_from_anywhere(self, users: Users) -> None:
        http = self.client(users, AdminPolicy(admin_token=ADMIN_TOKEN))
        http.post("/register-user", json=ADA)
        headers = {"authorization": f"Bearer {ADMIN_TOKEN}", "host": "example.com", "x-forwarded-for": "8.8.8.8"}

        toggled = http.put("/toggle-user-permission/1/0", headers=headers)

        assert toggled.status_code == 200
        assert not self.stored(users)[0].enabled

    def test_locked_mode_names_the_setting_that_opens_it(self, users: Users) -> None:
        http = self.client(users, AdminPolicy(local=False))

        response = http.delete("/remove-user/1")

        message = "Management is locked: set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)"
        assert content(response) == (403, {"message": message})

    def test_closed_registration_asks_for_the_admin_token(self, users: Users) -> None:
        http = self.client(users, AdminPolicy(admin_token=ADMIN_TOKEN, registration_open=False))

        refused = http.post("/register-user", json=ADA)
        taken = http.post("/register-user", json=ADA, headers={"authorization": f"Bearer {ADMIN_TOKEN}"})

        assert (refused.status_code, taken.status_code) == (401, 201)
