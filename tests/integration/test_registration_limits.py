"""Registrations of clients without credentials are limited per address."""

import ipaddress
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from mlapi import TooManyAttemptsError, Users
from mlapi.adapters.memory import InMemoryAttempts, InMemoryUserRepository, PlainCipher
from mlapi.application import address_limits
from mlapi.application.address_limits import AddressLimiter
from mlapi.domain.attempts import AttemptCounts, WindowCount
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from tests.counting_cipher import CountingCipher
from tests.sample_settings import TOKEN

PASSWORD = "difference engine"


class RecordingCounts(InMemoryAttempts):
    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def add(self, keys: Sequence[str], *, window_seconds: float) -> list[WindowCount]:
        self.writes += 1
        return super().add(keys, window_seconds=window_seconds)


def statuses(client: TestClient, usernames: Iterable[str], **headers: str) -> list[int]:
    return [
        client.post(
            "/register-user",
            json={"username": username, "password": PASSWORD, "email": "ada@example.com"},
            headers=headers,
        ).status_code
        for username in usernames
    ]


@contextmanager
def limited_app(counts: AttemptCounts, cipher: PlainCipher, *, per_address: int, **options: Any) -> Iterator[Starlette]:
    limiter = AddressLimiter(counts, per_address=per_address, kind="registration", setting="registrations.per_address")
    users, admin_policy = Users(InMemoryUserRepository(), cipher), AdminPolicy(admin_token=TOKEN)
    app = create_app(users, admin_policy, registration_limiter=limiter, **options)
    yield app
    app.state.runtime.close()


def test_registrations_above_the_limit_cause_no_write(caplog: pytest.LogCaptureFixture) -> None:
    counts, cipher = RecordingCounts(), CountingCipher()
    with limited_app(counts, cipher, per_address=3) as app:
        client = TestClient(app, client=("192.0.2.1", 5))

        found = statuses(client, ["ada", "ada", "bob", *"abcdef"])
        rejected = client.post(
            "/register-user", json={"username": "eve", "password": PASSWORD, "email": "eve@example.com"}
        )

    assert found == [201, 409, 201, *[429] * 6]
    assert rejected.json() == {"message": "Too many attempts, try again later"}
    assert 1 <= int(rejected.headers["retry-after"]) <= 60
    assert (counts.writes, cipher.encrypted) == (4, 2)
    (message,) = caplog.messages
    assert message.startswith("registration from 192.0.2.1: too many in 60 seconds: if it is a proxy, add it to")
    assert message.endswith("registrations.per_address sets the limit")


def test_invalid_registrations_are_not_counted() -> None:
    with limited_app(InMemoryAttempts(), PlainCipher(), per_address=1) as app:
        client = TestClient(app, client=("192.0.2.1", 5))

        assert statuses(client, ["", "", "ada", "bob"]) == [422, 422, 201, 429]


def test_addresses_are_limited_separately() -> None:
    with limited_app(InMemoryAttempts(), PlainCipher(), per_address=1) as app:
        found = [
            statuses(TestClient(app, client=(address, 5)), [f"{number}a", f"{number}b"])
            for number, address in enumerate(["192.0.2.1", "192.0.2.2", "2001:db8::1"])
        ]
        same_network = statuses(TestClient(app, client=("2001:db8::2", 5)), ["same-network"])

    assert found == [[201, 429]] * 3
    assert same_network == [429]


def test_clients_of_a_trusted_proxy_are_limited_separately() -> None:
    proxies = [ipaddress.ip_network("10.0.0.0/8")]
    with limited_app(InMemoryAttempts(), PlainCipher(), per_address=1, trusted_proxies=proxies) as app:
        client = TestClient(app, client=("10.0.0.1", 5))

        first = statuses(client, ["ada", "bob"], **{"X-Forwarded-For": "192.0.2.1"})
        second = statuses(client, ["charles"], **{"X-Forwarded-For": "192.0.2.2"})

    assert (first, second) == ([201, 429], [201])


def test_registrations_with_the_admin_token_are_not_limited() -> None:
    with limited_app(InMemoryAttempts(), PlainCipher(), per_address=1) as app:
        client = TestClient(app, client=("192.0.2.1", 5))
        admin = {"Authorization": f"Bearer {TOKEN}"}

        found = statuses(client, ["ada", "bob"], **admin) + statuses(client, ["charles", "dora"])
        wrong_token = statuses(client, ["eve"], Authorization="Bearer nonsense")
        entries = client.get("/audit", headers=admin).json()["entries"]

    assert found == [201, 201, 201, 429]
    assert wrong_token == [429]
    assert [entry["actor"] for entry in entries] == ["anyone", "admin", "admin"]


def test_limit_starts_again_when_the_window_has_ended() -> None:
    limiter = AddressLimiter(
        InMemoryAttempts(), per_address=1, window_seconds=1, kind="registration", setting="registrations.per_address"
    )
    limiter.count("192.0.2.1")
    with pytest.raises(TooManyAttemptsError) as exc_info:
        limiter.count("192.0.2.1")

    time.sleep(1.1)

    assert exc_info.value.retry_after_seconds == 1
    limiter.check("192.0.2.1")
    limiter.count("192.0.2.1")


def test_number_of_cached_rejections_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_limits, "_MAX_CACHED_REJECTIONS", 2)
    counts = RecordingCounts()
    limiter = AddressLimiter(counts, per_address=1, kind="registration", setting="registrations.per_address")
    addresses = [f"192.0.2.{number}" for number in range(3)]
    for address in addresses * 2:
        with suppress(TooManyAttemptsError):
            limiter.count(address)

    for address in addresses:
        with pytest.raises(TooManyAttemptsError):
            limiter.count(address)

    assert counts.writes > 2 * len(addresses)  # the cache has forgotten some
