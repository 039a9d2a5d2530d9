"""The service with in-memory storage: `database.url` is ``memory://``."""

from pathlib import Path

import requests

from tests.e2e.server import Server


def test_service_runs_in_memory_and_writes_no_file(tmp_path: Path) -> None:
    server = Server(tmp_path, {"MLAPI_DATABASE__URL": "memory://"}).start()
    try:
        log_in = {"username": "ada", "password": "difference engine"}
        registered = requests.post(
            f"{server.base}/register-user", json={**log_in, "email": "ada@example.com"}, timeout=10
        )
        logged_in = requests.post(f"{server.base}/token", json=log_in, timeout=10)
        headers = {"Authorization": f"Bearer {logged_in.json()['token']}"}
        status = requests.get(f"{server.base}/token_status", headers=headers, timeout=10)
        disabled = requests.put(f"{server.base}/toggle-user-permission/1/0", timeout=10)
        rejected = requests.post(f"{server.base}/token", json=log_in, timeout=10)
        guesses = [
            requests.post(f"{server.base}/token", json={**log_in, "username": "bob"}, timeout=10).status_code
            for _ in range(21)
        ]
    finally:
        server.stop()

    responses = [registered, logged_in, status, disabled, rejected]
    assert [response.status_code for response in responses] == [201, 200, 200, 200, 403]
    assert guesses == [401] * 20 + [429]
    assert [path.name for path in tmp_path.iterdir()] == ["server.log"]
    assert "database.url is memory://: all users are lost when this process ends" in server.log
