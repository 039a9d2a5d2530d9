"""The locks are whole, and what is known to be weak in them fails `make check`, where it can be known."""

import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.dependency_audit import audit, verdict
from tests.postgres_server import free_port

ROOT = Path(__file__).parents[2]
LOCKS = ["requirements.lock", "requirements-dev.lock", "bench/peers/requirements.lock"]
WEAK = {
    "id": "PYSEC-0000-1",
    "summary": "lets everybody in",
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


Service = Callable[[dict[str, list[Any]]], tuple[str, ...]]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Start an advisory service that knows what is weak by package; return the options that ask it."""
    servers: list[ThreadingHTTPServer] = []

    def start(known: dict[str, list[Any]]) -> tuple[str, ...]:
        class Advisories(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                found = known.get(asked["package"]["name"])
                body = json.dumps({"vulns": found} if found else {}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Advisories))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return asking(servers[-1].server_port, tmp_path)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def asking(port: int, folder: Path) -> tuple[str, ...]:
    url = f"http://127.0.0.1:{port}/"
    return ("--vulnerability-service", "osv", "--osv-url", url, "--cache-dir", str(folder / "cache"))


def test_a_known_weakness_fails_and_is_named_with_the_version_that_mends_it(lock: Path, service: Service) -> None:
    assert audit(lock, *service({"weak": [WEAK]})) == (
        1,
        "a.lock: known weaknesses\nweak 1.2: PYSEC-0000-1, mended in 1.2.1",
    )


def test_a_lock_without_known_weaknesses_passes(lock: Path, service: Service) -> None:
    assert audit(lock, *service({})) == (0, "a.lock: no known weakness in 2 packages")


def test_advisories_that_cannot_be_had_pass_and_are_told_loudly(lock: Path, tmp_path: Path) -> None:
    code, told = audit(lock, *asking(free_port(), tmp_path))

    assert code == 0
    assert "a.lock WAS NOT AUDITED for known weaknesses: " in told
    assert told.startswith("!" * 78)


def test_advisories_that_do_not_come_are_not_waited_for(lock: Path, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as silent:  # it accepts, and nobody answers
        code, told = audit(lock, *asking(silent.server_port, tmp_path), patience=0.5)

    assert code == 0
    assert "a.lock WAS NOT AUDITED for known weaknesses: no answer within 0.5 seconds" in told


def test_a_service_that_knows_no_package_has_audited_nothing() -> None:
    code, told = verdict(Path("a.lock"), [{"name": name, "skip_reason": "not found"} for name in ("sound", "weak")])

    assert code == 0
    assert "a.lock WAS NOT AUDITED for known weaknesses" in told


def test_a_package_that_the_service_does_not_know_is_named() -> None:
    found: list[dict[str, Any]] = [
        {"name": "sound", "version": "3.1", "vulns": []},
        {"name": "own", "skip_reason": "not found"},
    ]

    assert verdict(Path("a.lock"), found) == (
        0,
        "a.lock: no known weakness in 1 packages; not audited, as the advisory service does not know them: own",
    )


def test_a_weakness_that_nobody_has_mended_yet_fails_too() -> None:
    found: list[dict[str, Any]] = [
        {"name": "weak", "version": "1.2", "vulns": [{"id": "PYSEC-0000-1", "fix_versions": []}]}
    ]

    assert verdict(Path("a.lock"), found) == (
        1,
        "a.lock: known weaknesses\nweak 1.2: PYSEC-0000-1, mended in no version yet",
    )


def test_a_lock_without_hashes_fails(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    lock.write_text("sound==3.1\n")

    code, told = audit(lock)

    assert code == 1
    assert told.startswith("a.lock cannot be audited: ")


def test_make_check_audits_what_we_install() -> None:
    planned = subprocess.run(
        ["make", "--dry-run", "check"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert ".venv/bin/python -m tests.dependency_audit requirements.lock\n" in planned


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_pins_every_package_with_hashes_and_names_no_index(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    entries = re.split(r"\n(?=\S)", text.strip())

    pinned = re.compile(r"[a-z0-9-]+==[^\s;]+( ; [^\\]+)? \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n?)+")
    assert [entry for entry in entries if not pinned.fullmatch(entry)] == []
    assert "://" not in text
