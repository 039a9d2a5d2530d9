"""The server says what its description says: schemathesis asks each operation for what it promises, and for the rest.

Every check runs. One finds nothing to do, as there is no read by id that is a user's own and not a manager's:
``object_level_authorization``.

The same requests each time; with ``MLAPI_SCHEMATHESIS_EXAMPLES=500`` others, so many for each operation, and so in
``make torture``.
"""

import os
import subprocess
import sys
from pathlib import Path

import requests
from sqlalchemy import URL

from mlapi.entrypoints.wire.operations import OPERATIONS
from tests.e2e.server import ROOT, Server

ADMIN_TOKEN = "an-admin-token-for-tests"
WALTER = {"username": "walter", "password": "a password that nobody guesses", "email": "walter@example.com"}
EXAMPLES = int(os.environ.get("MLAPI_SCHEMATHESIS_EXAMPLES", "0"))

CONFIG = """
hooks = "tests.e2e.schemathesis_hooks"

[auth.openapi.adminToken]
bearer = "%(admin_token)s"

[auth.dynamic.openapi.userToken]
path = "/token"
payload = {username = "%(username)s", password = "%(password)s"}
extract_selector = "/token"

[generation]
deterministic = %(deterministic)s
database = "none"

[cache]
enabled = false
"""


def test_the_server_keeps_what_the_description_promises(url: URL, tmp_path: Path) -> None:
    found = asked_by_schemathesis(url, tmp_path, EXAMPLES)

    assert found.returncode == 0, found.stdout + found.stderr
    assert f"Tested: {len(OPERATIONS)}" in found.stdout


def asked_by_schemathesis(url: URL, folder: Path, examples: int = 0) -> "subprocess.CompletedProcess[str]":
    """Let schemathesis ask a server, of each operation so many examples; by default a few, and each time the same."""
    many = "1000000000"
    environ = {
        "MLAPI_DATABASE__URL": url.render_as_string(hide_password=False),
        "MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN,
        "MLAPI_PASSWORDS__SCHEME": "fernet",  # whose hashes cost nothing
        **{f"MLAPI_LOGINS__{name}": many for name in ("PER_ADDRESS", "PER_NAME", "PER_NAME_AND_ADDRESS")},
    }
    deterministic = "false" if examples else "true"
    config = CONFIG % {**WALTER, "admin_token": ADMIN_TOKEN, "deterministic": deterministic}
    (folder / "schemathesis.toml").write_text(config)
    with Server(folder, environ) as server:
        registered = requests.post(f"{server.base}/register-user", json=WALTER, timeout=10)
        assert registered.json()["user_id"] == 1  # whom the hooks leave alone
        return subprocess.run(
            [
                *(Path(sys.executable).with_name("schemathesis"), "run", f"{server.base}/openapi.json"),
                *("--checks", "all", "--max-response-time", "10", "--max-examples", str(examples or 5)),
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
