"""Audits a lock for known weaknesses: ``python -m tests.dependency_audit requirements.lock``, for ``make check``.

It exits with 1 where a version that the lock pins has one, or the lock cannot be read. Where the advisories cannot be
had it says so loudly and exits with 0: what needs no network shall not fail for want of one.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATIENCE = 15.0
"""Seconds for the answers about all packages together; they take two where the advisories are at hand."""

_PIP_AUDIT = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--progress-spinner", "off"]


def audit(lock: Path, *options: str, patience: float = PATIENCE) -> tuple[int, str]:
    """Return the exit code and what to tell.

    Args:
        lock: every requirement with its hash.
        options: of pip-audit: another service to ask, say.
        patience: in seconds.
    """
    command = [*_PIP_AUDIT, "--timeout", "5", "--requirement", str(lock), *options]
    try:
        asked = _run([*command, "--format", "json"], patience)
        found = json.loads(asked.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return 0, _not_audited(lock, f"no answer within {patience:g} seconds")
    except ValueError:  # there is no report
        read = _run([*command, "--dry-run"])  # asks nobody
        if read.returncode:
            return 1, f"{lock.name} cannot be audited: {read.stderr.strip()}"
        return 0, _not_audited(lock, (asked.stderr.strip().splitlines() or ["no reason was given"])[-1])
    return verdict(lock, found)


def verdict(lock: Path, found: Sequence[dict[str, Any]]) -> tuple[int, str]:
    """Judge the ``dependencies`` of pip-audit's report."""
    weak = [
        f"{package['name']} {package['version']}: {weakness['id']},"
        f" mended in {', '.join(weakness['fix_versions']) or 'no version yet'}"
        for package in found
        for weakness in package.get("vulns", [])
    ]
    unknown = [package["name"] for package in found if "skip_reason" in package]
    audited = len(found) - len(unknown)
    if weak:
        return 1, "\n".join([f"{lock.name}: known weaknesses", *weak])
    if not audited:
        return 0, _not_audited(lock, "what answered in the place of the advisory service knows none of its packages")
    rest = f"; not audited, as the advisory service does not know them: {', '.join(unknown)}" if unknown else ""
    return 0, f"{lock.name}: no known weakness in {audited} packages{rest}"


def _run(command: Sequence[str], patience: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience)


def _not_audited(lock: Path, reason: str) -> str:
    bar = "!" * 78
    return f"{bar}\n{lock.name} WAS NOT AUDITED for known weaknesses: {reason}\n{bar}"


if __name__ == "__main__":
    code, told = audit(Path(sys.argv[1]), *sys.argv[2:])
    sys.stderr.write(f"{told}\n")
    sys.exit(code)
