"""Proxies with the configurations in deploy/ deny access during outages, and forward only the documented paths."""

import re
import signal
import socket
from pathlib import Path

import pytest
import requests

from tests.e2e.deployed_proxies import SETTINGS, TIMEOUT_SECONDS, Account, Deployment, Replacements, all_proxies
from tests.e2e.model_server import running_model_server
from tests.e2e.server import ROOT, MlapiServer
from tests.postgres_server import free_port


def test_outage_of_the_service_denies_access(tmp_path: Path) -> None:
    settings = {**SETTINGS, "MLAPI_DATABASE__URL": f"postgresql://mlapi@127.0.0.1:{free_port()}/mlapi"}
    headers = {"X-API-Key": f"mlapi_{'0' * 16}_{'0' * 64}"}
    with (
        running_model_server() as model,
        MlapiServer(tmp_path, settings) as service,
        all_proxies(tmp_path, service.port, model.port) as bases,
    ):
        answers = [requests.get(base, headers=headers, timeout=TIMEOUT_SECONDS) for base in bases]
        service.stop(signal.SIGKILL)
        answers += [requests.get(base, headers=headers, timeout=TIMEOUT_SECONDS) for base in bases]
        answers += [requests.put(base, headers=headers, data=bytes(1 << 20), timeout=TIMEOUT_SECONDS) for base in bases]

    for answer in answers:
        assert (answer.status_code, answer.json()) == (503, {"message": "Service unavailable, try again"})
        assert int(answer.headers["Retry-After"]) >= 1
    assert model.request_lines == []


def test_hanging_service_denies_access(tmp_path: Path) -> None:
    headers = {"X-API-Key": "mlapi_1"}
    with (
        running_model_server() as model,
        socket.create_server(("127.0.0.1", 0)) as silent,
        all_proxies(tmp_path, silent.getsockname()[1], model.port) as bases,
    ):
        answers = [requests.get(base, headers=headers, timeout=TIMEOUT_SECONDS) for base in bases]

    for answer in answers:
        assert (answer.status_code, answer.json()) == (503, {"message": "Service unavailable, try again"})
    assert model.request_lines == []


def test_outage_of_the_model_is_reported_in_json(verifier: MlapiServer, ada: Account, tmp_path: Path) -> None:
    with all_proxies(tmp_path, verifier.port, free_port(), ()) as bases:
        answers = [requests.get(base, headers={"X-API-Key": ada.key}, timeout=TIMEOUT_SECONDS) for base in bases]

    assert [answer.status_code for answer in answers] == [502, 502, 503]
    assert [answer.json() for answer in answers] == [{"message": "The model is unavailable"}] * 3


# --- the model servers in docs/any-server.md


MODEL_SERVERS = {
    "vLLM": (
        ["/v1/models", "/v1/chat/completions", "/v1/embeddings"],
        ["/metrics", "/invocations", "/v1/load_lora_adapter", "/docs", "/v1", "/v1/chat/completions/x"],
    ),
    "Ollama": (
        ["/v1/chat/completions", "/api/chat", "/api/tags"],
        ["/api/pull", "/api/delete", "/api/blobs/sha256:0", "/api/chatx", "/"],
    ),
    "Triton": (
        ["/v2/models/m/infer", "/v2/models/m/versions/1/infer", "/v2/models/m", "/v2/models/m/generate_stream"],
        ["/v2/repository/index", "/v2/models/m/trace/setting", "/v2/models/m%2ftrace%2fsetting", "/metrics"],
    ),
    "TensorFlow Serving": (
        ["/v1/models/m:predict", "/v1/models/m/versions/1:predict", "/v1/models/m/metadata"],
        ["/monitoring/prometheus/metrics", "/v1/models/m:predict/x"],
    ),
}


def read_model_paths(server: str) -> Replacements:
    """Return the replacements from the section of a model server for the lines marked with ``model:``."""
    page = (ROOT / "docs/any-server.md").read_text("utf-8")
    section = page.partition(f"### {server}\n")[2]
    block = re.search(r"```\nport +\d+\nopen path +(\S+)\nuser paths +(\S+)\n```", section)
    assert block is not None
    return [("/health", block[1]), ("^/ ", f"{block[2]} ")]


@pytest.mark.parametrize("server", MODEL_SERVERS)
def test_documented_paths_of_model_servers_work(
    server: str, verifier: MlapiServer, ada: Account, tmp_path: Path
) -> None:
    offered, closed = MODEL_SERVERS[server]
    replacements = read_model_paths(server)
    open_path = replacements[0][1]
    hidden = [f"{offered[0]}/..{closed[0]}", f"{offered[0]}/%2e%2e{closed[0]}", f"{open_path}/..{closed[0]}"]
    with running_model_server() as model, all_proxies(tmp_path, verifier.port, model.port, replacements) as bases:
        for base in bases:
            guarded = Deployment(base, model)
            model.request_lines.clear()
            anonymous = [status_of(guarded, path) for path in offered]
            rejected = [status_of(guarded, path, ada.key) for path in closed + hidden]
            assert model.request_lines == []

            admitted = [status_of(guarded, path, ada.key) for path in offered]

            assert (set(anonymous), set(admitted), set(rejected) - {b"400", b"404"}) == ({b"401"}, {b"200"}, set())
            assert (status_of(guarded, open_path), model.request_lines[-1]) == (b"200", f"GET {open_path}")


def status_of(guarded: Deployment, path: str, credential: str = "") -> bytes:
    """Return the status of a request for exactly this path: requests would normalize it."""
    return guarded.send_raw(f"GET {path} HTTP/1.1\nX-API-Key: {credential}")[9:12]
