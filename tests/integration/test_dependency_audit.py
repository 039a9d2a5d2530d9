"""Lock files are complete, and `make check` fails if a pinned version has a known vulnerability."""

import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.dependency_audit import audit, evaluate_report
from tests.postgres_server import free_port

ROOT = Path(__file__).parents[2]
LOCKS = ["requirements.lock", "requirements-dev.lock", "bench/peers/requirements.lock"]
VULNERABILITY = {
    "id": "PYSEC-0000-1",
    "summary": "authentication bypass",
    "affected": [
        {
            "package": {"name": "weak", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.2.1"}]}],
        }
    ],
}


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    file = tmp_path / "a.lock"
    file.write_text(f"sound==3.1 --hash=sha256:{'0' * 64}\nweak==1.2 --hash=sha256:{'1' * 64}\n")
    return file


StartService = Callable[[dict[str, list[Any]]], tuple[str, ...]]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[StartService]:
    """Return a function that starts an advisory service and returns the pip-audit options for it."""
    servers: list[ThreadingHTTPServer] = []

    def start(advisories: dict[str, list[Any]]) -> tuple[str, ...]:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                vulnerabilities = advisories.get(request["package"]["name"])
                body = json.dumps({"vulns": vulnerabilities} if vulnerabilities else {}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return options_for(servers[-1].server_port, tmp_path)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def options_for(port: int, folder: Path) -> tuple[str, ...]:
    url = f"http://127.0.0.1:{port}/"
    return ("--vulnerability-service", "osv", "--osv-url", url, "--cache-dir", str(folder / "cache"))


def test_audit_fails_and_names_the_fixed_version(lock: Path, service: StartService) -> None:
    assert audit(lock, *service({"weak": [VULNERABILITY]})) == (
        1,
        "a.lock: known vulnerabilities\nweak 1.2: PYSEC-0000-1, fixed in 1.2.1",
    )


def test_lock_without_vulnerabilities_passes() -> None:
    packages: list[dict[str, Any]] = [{"name": name, "version": "1", "vulns": []} for name in ("sound", "weak")]

    assert evaluate_report(Path("a.lock"), packages) == (0, "a.lock: no known vulnerabilities in 2 packages")


def test_unreachable_advisory_service_causes_a_warning(lock: Path, tmp_path: Path) -> None:
    code, message = audit(lock, *options_for(free_port(), tmp_path))

    assert code == 0
    assert "a.lock WAS NOT AUDITED for known vulnerabilities: " in message
    assert message.startswith("!" * 78)


def test_silent_advisory_service_times_out(lock: Path, tmp_path: Path) -> None:
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), BaseHTTPRequestHandler
    ) as silent:  # it accepts connections and never responds
        code, message = audit(lock, *options_for(silent.server_port, tmp_path), timeout_seconds=0.5)

    assert code == 0
    assert "a.lock WAS NOT AUDITED for known vulnerabilities: no response within 0.5 seconds" in message


def test_audit_warns_if_the_service_knows_no_package() -> None:
    code, message = evaluate_report(
        Path("a.lock"), [{"name": name, "skip_reason": "not found"} for name in ("sound", "weak")]
    )

    assert code == 0
    assert "a.lock WAS NOT AUDITED for known vulnerabilities" in message


def test_packages_unknown_to_the_service_are_listed() -> None:
    packages: list[dict[str, Any]] = [
        {"name": "sound", "version": "3.1", "vulns": []},
        {"name": "own", "skip_reason": "not found"},
    ]

    assert evaluate_report(Path("a.lock"), packages) == (
        0,
        "a.lock: no known vulnerabilities in 1 packages; not audited, unknown to the advisory service: own",
    )


def test_audit_fails_for_vulnerability_without_a_fix() -> None:
    packages: list[dict[str, Any]] = [
        {"name": "weak", "version": "1.2", "vulns": [{"id": "PYSEC-0000-1", "fix_versions": []}]}
    ]

    assert evaluate_report(Path("a.lock"), packages) == (
        1,
        "a.lock: known vulnerabilities\nweak 1.2: PYSEC-0000-1, not fixed in any version yet",
    )


def test_lock_without_hashes_fails(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    lock.write_text("sound==3.1\n")

    code, message = audit(lock)

    assert code == 1
    assert message.startswith("a.lock cannot be audited: ")


def test_make_check_audits_the_installed_versions() -> None:
    commands = subprocess.run(
        ["make", "--dry-run", "check"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert ".venv/bin/python -m tests.dependency_audit requirements.lock\n" in commands


@pytest.mark.parametrize("name", LOCKS)
def test_lock_files_pin_hashes_and_name_no_index(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    entries = re.split(r"\n(?=\S)", text.strip())

    pinned = re.compile(r"[a-z0-9-]+==[^\s;]+( ; [^\\]+)? \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n?)+")
    assert [entry for entry in entries if not pinned.fullmatch(entry)] == []
    assert "://" not in text
