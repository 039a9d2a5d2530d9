"""The server matches its OpenAPI description: schemathesis sends valid and invalid requests to every operation.

All schemathesis checks are enabled. ``object_level_authorization`` never applies, because only admins can read other
users by id. The hooks name the values that the description cannot exclude.

``make test`` always sends the same requests in token mode: the documented examples, and valid and invalid values of
every field. ``make faults`` also sends them in local mode, with sequences of requests and more values, and
``make torture`` sends random ones. ``MLAPI_SCHEMATHESIS_EXAMPLES=500`` sends up to 500 random requests for each
operation.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import requests
from httptools import HttpParserError, HttpRequestParser
from sqlalchemy import URL

from mlapi.entrypoints.wire.operations import OPERATIONS
from tests.e2e.server import ROOT, Server

Mode = Literal["token", "local"]
DETERMINISTIC_PHASES = "examples,coverage"
ALL_PHASES = "examples,coverage,fuzzing,stateful"
ADMIN_TOKEN = "an-admin-token-for-tests"
WALTER = {"username": "walter", "password": "a long and unusual password", "email": "walter@example.com"}
EXAMPLES = int(os.environ.get("MLAPI_SCHEMATHESIS_EXAMPLES", "0"))

CONFIG = """
hooks = "tests.e2e.schemathesis_hooks"

[auth.dynamic.openapi.userToken]
path = "/token"
payload = {username = "%(username)s", password = "%(password)s"}
extract_selector = "/token"

[checks]
enabled = true

[generation]
deterministic = %(deterministic)s
database = "none"

[[operations]]
include-path = "/verify"
checks.unsupported_method.enabled = false

[[operations]] # JSON Schema cannot describe the positions in a sorted list
include-path = "/users"
checks.positive_data_acceptance.enabled = false

[[operations]] # JSON Schema cannot describe which fields an action needs
include-path = "/users/batch"
checks.positive_data_acceptance.enabled = false

[cache]
enabled = false
"""
CONFIG_OF_TOKEN_MODE = f"""
[auth.openapi.adminToken]
bearer = "{ADMIN_TOKEN}"
"""


def test_server_matches_its_openapi_description(postgres_url: URL, tmp_path: Path) -> None:
    phases = ALL_PHASES if EXAMPLES else DETERMINISTIC_PHASES
    result = run_schemathesis(postgres_url, tmp_path, "token", EXAMPLES, phases)

    assert result.returncode == 0, result.stdout + result.stderr
    assert f"Tested: {len(OPERATIONS)}" in result.stdout


def parses_query_method() -> bool:
    """Return whether httptools knows the method QUERY. With version 0.6, the server answers 400 instead of 405."""
    try:
        HttpRequestParser(object()).feed_data(b"QUERY / HTTP/1.1\r\n\r\n")
    except HttpParserError:
        return False
    return True


def run_schemathesis(
    url: URL, folder: Path, mode: Mode, examples: int = 0, phases: str = ALL_PHASES
) -> "subprocess.CompletedProcess[str]":
    """Run schemathesis against a server.

    Args:
        url: the server's database.
        folder: working directory.
        mode: the management mode of the server.
        examples: number of random examples for each operation; 0 uses a few fixed examples.
        phases: which kinds of requests schemathesis sends.
    """
    unlimited = "1000000000"
    environ = {
        "MLAPI_DATABASE__URL": url.render_as_string(hide_password=False),
        "MLAPI_PASSWORDS__SCHEME": "fernet",  # the fast scheme
        **({"MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN} if mode == "token" else {}),
        **{f"MLAPI_LOGINS__{name}": unlimited for name in ("PER_ADDRESS", "PER_NAME", "PER_NAME_AND_ADDRESS")},
    }
    config = CONFIG % {**WALTER, "deterministic": "false" if examples else "true"}
    (folder / "schemathesis.toml").write_text(config + (CONFIG_OF_TOKEN_MODE if mode == "token" else ""))
    with Server(folder, environ) as server:
        response = requests.post(f"{server.base}/register-user", json=WALTER, timeout=10)
        assert response.json()["user_id"] == 1  # the hooks protect this user
        return subprocess.run(
            [
                *(Path(sys.executable).with_name("schemathesis"), "run", f"{server.base}/openapi.json"),
                *("--max-response-time", "10", "--max-examples", str(examples or 3)),
                *("--phases", phases, *([] if parses_query_method() else ["--exclude-checks", "unsupported_method"])),
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
