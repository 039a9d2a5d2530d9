"""Audit a lock file for known vulnerabilities: ``python -m tests.dependency_audit requirements.lock``.

Exits with 1 if a pinned version has a known vulnerability or the lock file is invalid. If the advisories cannot be
downloaded, it prints a warning and exits with 0, so that ``make check`` works without a network.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 15.0
"""Time limit for fetching the advisories of all packages, which usually takes two seconds."""

_PIP_AUDIT = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--progress-spinner", "off"]


def audit(lock: Path, *options: str, timeout_seconds: float = TIMEOUT_SECONDS) -> tuple[int, str]:
    """Audit a lock file; return the exit code and the message to print.

    Args:
        lock: path of the lock file, which must contain a hash for every requirement.
        options: more options for pip-audit, such as a different advisory service.
        timeout_seconds: time limit for fetching the advisories.
    """
    command = [*_PIP_AUDIT, "--timeout", "5", "--requirement", str(lock), *options]
    try:
        report = _run([*command, "--format", "json"], timeout_seconds)
        packages = json.loads(report.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return 0, _not_audited(lock, f"no response within {timeout_seconds:g} seconds")
    except ValueError:  # pip-audit printed no JSON report
        dry_run = _run([*command, "--dry-run"])  # checks the lock file without sending requests
        if dry_run.returncode:
            return 1, f"{lock.name} cannot be audited: {dry_run.stderr.strip()}"
        return 0, _not_audited(lock, (report.stderr.strip().splitlines() or ["no reason was given"])[-1])
    return evaluate_report(lock, packages)


def evaluate_report(lock: Path, packages: Sequence[dict[str, Any]]) -> tuple[int, str]:
    """Return the exit code and the message for the ``dependencies`` of a pip-audit report."""
    vulnerable = [
        f"{package['name']} {package['version']}: {vulnerability['id']}, "
        + (
            f"fixed in {', '.join(fixes)}"
            if (fixes := vulnerability["fix_versions"])
            else "not fixed in any version yet"
        )
        for package in packages
        for vulnerability in package.get("vulns", [])
    ]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    audited = len(packages) - len(unknown)
    if vulnerable:
        return 1, "\n".join([f"{lock.name}: known vulnerabilities", *vulnerable])
    if not audited:
        return 0, _not_audited(lock, "the advisory service knows none of its packages")
    rest = f"; not audited, unknown to the advisory service: {', '.join(unknown)}" if unknown else ""
    return 0, f"{lock.name}: no known vulnerabilities in {audited} packages{rest}"


def _run(command: Sequence[str], timeout_seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_seconds)


def _not_audited(lock: Path, reason: str) -> str:
    bar = "!" * 78
    return f"{bar}\n{lock.name} WAS NOT AUDITED for known vulnerabilities: {reason}\n{bar}"


if __name__ == "__main__":
    code, message = audit(Path(sys.argv[1]), *sys.argv[2:])
    sys.stderr.write(f"{message}\n")
    sys.exit(code)
