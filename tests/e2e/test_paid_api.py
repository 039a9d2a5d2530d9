"""examples/paid_api sells a model by the month, in a process next to the service."""

import hmac
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
import requests

from tests.e2e.server import ROOT, MlapiServer, Server

EXAMPLE = ROOT / "examples/paid_api"
SECRET = "a secret of the payment provider"
SETOSA = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}
LIMITED = {"PAYMENT_SECRET": SECRET, "MLAPI_PLANS__BASIC__PER_MONTH": "2"}
MAX_LINES = 80


@attrs.frozen
class PaidApi:
    """A running service and the example, with helpers that call both."""

    service: str
    model: str

    def sign_up(self, username: str) -> int:
        """Register a customer, and return the id."""
        body = {"username": username, "password": "difference engine", "email": "ada@example.com"}
        response = requests.post(f"{self.model}/sign-up", json=body, timeout=30)
        assert response.status_code == 201
        return int(response.json()["user_id"])

    def pay(self, username: str, payment_id: str, plan: str, secret: str = SECRET) -> tuple[int, Any]:
        body = json.dumps({"id": payment_id, "username": username, "plan": plan}).encode()
        signature = hmac.digest(secret.encode(), body, "sha256").hex()
        headers = {"Payment-Signature": signature, "Content-Type": "application/json"}
        response = requests.post(f"{self.model}/payments", data=body, headers=headers, timeout=30)
        return response.status_code, response.json()

    def log_in(self, username: str) -> tuple[int, dict[str, Any]]:
        body = {"username": username, "password": "difference engine"}
        response = requests.post(f"{self.service}/token", json=body, timeout=30)
        return response.status_code, response.json()

    def predict(self, token: str, flower: object = SETOSA) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"}
        response = requests.post(f"{self.model}/predict", json=flower, headers=headers, timeout=30)
        return response.status_code, response.json()

    def get_end(self, user_id: int) -> datetime:
        """Return the expiry of a customer's access."""
        user = requests.get(f"{self.service}/users/{user_id}", timeout=30).json()
        return datetime.fromisoformat(user["expires_at"])

    def end_month(self, user_id: int) -> None:
        """Let the access of a customer expire, as if a month had passed."""
        changes = {"expires_at": (datetime.now(UTC) - timedelta(seconds=1)).isoformat()}
        requests.patch(f"{self.service}/users/{user_id}", json=changes, timeout=30).raise_for_status()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PaidApi]:
    folder = tmp_path_factory.mktemp("paid_api")
    shutil.copy(EXAMPLE / "config.yml", folder)
    with (
        MlapiServer(folder) as service,
        Server(folder, LIMITED, app="examples.paid_api.app:app") as model,
    ):
        yield PaidApi(service.base, model.base)


def test_customer_pays_predicts_and_pays_again(api: PaidApi) -> None:
    user_id = api.sign_up("ada")
    assert api.log_in("ada") == (403, {"message": "Access has expired"})

    assert api.pay("ada", "evt_1", "basic") == (200, {"message": "Payment received"})
    token = api.log_in("ada")[1]["token"]
    assert [api.predict(token) for _ in range(2)] == [(200, {"species": "setosa"})] * 2
    assert api.predict(token) == (429, {"message": "Request limit reached: 2 per month"})

    api.end_month(user_id)
    assert api.predict(token) == (403, {"message": "Access has expired"})

    api.pay("ada", "evt_2", "pro")
    assert api.predict(token) == (200, {"species": "setosa"})


def test_each_payment_adds_one_month(api: PaidApi) -> None:
    user_id = api.sign_up("grace")

    api.pay("grace", "evt_1", "pro")
    first = api.get_end(user_id)
    api.pay("grace", "evt_1", "pro")  # providers repeat their messages
    repeated = api.get_end(user_id)
    api.pay("grace", "evt_2", "pro")
    second = api.get_end(user_id)
    api.pay("grace", "evt_1", "pro")  # also later, and several at once
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda payment_id: api.pay("grace", payment_id, "pro"), ["evt_3"] * 4))
    third = api.get_end(user_id)

    assert timedelta(days=27) < first - datetime.now(UTC) < timedelta(days=32)
    assert repeated == first
    assert timedelta(days=27) < second - first < timedelta(days=32)
    assert timedelta(days=27) < third - second < timedelta(days=32)


def test_forged_and_invalid_payments_change_nothing(api: PaidApi) -> None:
    user_id = api.sign_up("eve")
    before = api.get_end(user_id)

    forged = api.pay("eve", "evt_1", "pro", secret="a guess")
    invalid = [api.pay("nobody", "evt_1", "pro")[0], api.pay("eve", "evt_1", "gold")[0]]

    assert forged == (401, {"detail": "Invalid signature"})
    assert invalid == [404, 422]
    assert api.get_end(user_id) == before


def test_sign_up_is_the_only_way_to_register(api: PaidApi) -> None:
    body = {"username": "mallory", "password": "difference engine", "email": "mallory@example.com"}
    proxied = {"X-Forwarded-For": "203.0.113.7"}  # not a program on this machine, so not an admin

    response = requests.post(f"{api.service}/register-user", json=body, headers=proxied, timeout=30)

    assert response.status_code == 403


def test_example_is_short_and_its_readme_matches() -> None:
    readme, code = ((EXAMPLE / name).read_text("utf-8") for name in ("README.md", "app.py"))

    assert len(code.splitlines()) < MAX_LINES
    assert re.findall(r"`POST (/[\w-]+)`", readme) == re.findall(r'@app.post\("(/[\w-]+)"', code)
