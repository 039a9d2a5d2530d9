"""What is counted for Prometheus: requests, how long they take, and what becomes of changes. No names, no ids.

Where several processes serve one port, each writes into the folder that ``PROMETHEUS_MULTIPROC_DIR`` names, and any of
them answers for all; ``mlapi serve`` sees to that.
"""

import logging
import os
from collections import Counter as Multiset
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlapi import __version__
from mlapi.domain.audit import get_action, get_result
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram, Metric

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus, "Exposition formats", text-based format

# Seconds. A toggle takes a millisecond, a hash 20 to 50; at 10 a client has been told to come again.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_logger = logging.getLogger("mlapi")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class Metrics:
    """The counts of one process.

    Raises:
        ConfigurationError: if ``PROMETHEUS_MULTIPROC_DIR`` names no folder that can be written to.
    """

    def __init__(self) -> None:
        folder = os.environ.get(FOLDER)
        if folder is not None and not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigurationError(f"{FOLDER} must name a folder that this process can write to, or be unset")
        # Takes 25 ms, and looks at the environment for that folder.
        import prometheus_client as prometheus  # noqa: PLC0415 - as said

        self._shown = counted = prometheus.CollectorRegistry()
        if folder is not None:
            counted = prometheus.CollectorRegistry()
            self._shown.register(_OfAllProcesses(Path(folder)))
        self._requests = prometheus.Counter(
            "mlapi_requests", "Requests that were answered.", ["endpoint", "method", "status"], registry=counted
        )
        self._seconds = prometheus.Histogram(
            "mlapi_request_seconds", "Seconds to the answer.", ["endpoint"], buckets=_BUCKETS, registry=counted
        )
        self._changes = prometheus.Counter(
            "mlapi_changes", "Changes to the users, made or refused.", ["action", "outcome"], registry=counted
        )
        version = prometheus.Gauge(
            "mlapi_info", "The version that runs.", ["version"], registry=counted, multiprocess_mode="max"
        )
        version.labels(__version__).set(1)
        self._of_request: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def request(self, endpoint: str, method: str, status: int, seconds: float) -> None:
        """Count one request."""
        request = (endpoint, method, status)
        children = self._of_request.get(request)
        if children is None:
            shown = method if method in _METHODS else "other"  # a stranger must not fill the memory with his own
            request = (endpoint, shown, status)
            children = self._requests.labels(endpoint, shown, status), self._seconds.labels(endpoint)
            self._of_request[request] = children
        requests, durations = children
        requests.inc()
        durations.observe(seconds)

    def commands(self, commands: Sequence[Command], outcomes: Sequence[Outcome]) -> None:
        """Count a batch that is durable."""
        counts = Multiset(zip(map(get_action, commands), map(get_result, outcomes), strict=True))
        for (action, result), count in counts.items():
            if action is not None:
                self._changes.labels(action, result).inc(count)

    def exposition(self) -> bytes:
        """Return all counts in Prometheus' text format, of every process."""
        from prometheus_client import generate_latest  # noqa: PLC0415 - imported already

        return generate_latest(self._shown)


class _OfAllProcesses:
    """Collects from the files of all processes. One that is cut short, or not begun yet, does not hide the others."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable["Metric"]:
        files = sorted(self._folder.glob("*.db"))
        try:
            return _merged(files)
        except Exception:  # noqa: BLE001 - of whatever is in one of them
            return _merged([file for file in files if _is_readable(file)])


def _is_readable(file: Path) -> bool:
    try:
        _merged([file])
    except Exception as error:  # noqa: BLE001 - as above
        _logger.warning("the counts in %s are left out, they cannot be read: %s", file, type(error).__name__)
        return False
    return True


def _merged(files: Iterable[Path]) -> Iterable["Metric"]:
    from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415 - imported already

    metrics: Iterable[Metric] = MultiProcessCollector.merge(map(str, files))  # type: ignore[no-untyped-call]  # of prometheus_client
    return metrics
