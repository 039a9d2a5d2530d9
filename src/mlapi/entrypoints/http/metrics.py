"""Prometheus metrics: requests, changes to users, and decisions of the guard. They contain no usernames or ids.

If several processes serve the same port, each writes its metrics to the folder in ``PROMETHEUS_MULTIPROC_DIR``, and any
of them can report the sum. ``mlapi serve`` sets the variable. An application in the same processes may write its own
metrics to the folder; they are left out.
"""

import logging
import os
from collections import Counter as Multiset
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlapi import __version__
from mlapi.domain.audit import get_action, get_result
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.errors import ConfigurationError
from mlapi.forks import new_lock

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram, Metric

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

# Enabling or disabling a user takes 1 ms, a password hash 20 to 50 ms. Requests time out within 10 seconds.
_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_REQUESTS, _REQUEST_SECONDS, _CHANGES, _INFO = "mlapi_requests", "mlapi_request_seconds", "mlapi_changes", "mlapi_info"
_DECISIONS = "mlapi_guard_decisions"
_MAILS, _MAILS_QUEUED = "mlapi_mails", "mlapi_mails_queued"
_NAMES = frozenset({_REQUESTS, _REQUEST_SECONDS, _CHANGES, _DECISIONS, _MAILS, _INFO})
GUARD_ENDPOINT = "verify"
"""The only endpoint that counts requests toward the limits and usage of users."""

_logger = logging.getLogger("mlapi")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class Metrics:
    """The metrics of one process.

    Args:
        read_decisions: returns the number of times that the guard has made each decision, since the process started.

    Raises:
        ConfigurationError: if ``PROMETHEUS_MULTIPROC_DIR`` is not a writable folder.
    """

    def __init__(self, read_decisions: Callable[[], Mapping[str, int]] = dict) -> None:
        folder = os.environ.get(FOLDER_VARIABLE)
        if folder is not None and not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigurationError(
                f"{FOLDER_VARIABLE} is not a folder that this process can write to: change or unset it"
            )
        # Imported here, because importing takes 25 ms and reads the environment variable.
        import prometheus_client as prometheus  # noqa: PLC0415
        from prometheus_client.values import MutexValue, ValueClass  # noqa: PLC0415

        self._exposed = registry = prometheus.CollectorRegistry()
        if folder is not None and ValueClass is not MutexValue:
            registry = prometheus.CollectorRegistry()
            self._exposed.register(_MultiprocessCollector(Path(folder)))
        self._requests = prometheus.Counter(
            _REQUESTS, "HTTP requests.", ["endpoint", "method", "status"], registry=registry
        )
        self._seconds = prometheus.Histogram(
            _REQUEST_SECONDS,
            "Duration of requests in seconds.",
            ["endpoint"],
            buckets=_BUCKETS_SECONDS,
            registry=registry,
        )
        self._changes = prometheus.Counter(
            _CHANGES, "Changes to users, applied or rejected.", ["action", "outcome"], registry=registry
        )
        self._decisions = prometheus.Counter(
            _DECISIONS, "Requests that the guard admitted or rejected.", ["decision"], registry=registry
        )
        self._mails = prometheus.Counter(_MAILS, "Attempts to send a mail.", ["result"], registry=registry)
        version = prometheus.Gauge(
            _INFO, "The running version.", ["version"], registry=registry, multiprocess_mode="max"
        )
        version.labels(__version__).set(1)
        self._read_decisions = read_decisions
        self._counted_decisions: Mapping[str, int] = {}
        self._decisions_lock = new_lock()
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def count_request(self, endpoint: str, method: str, status: int, seconds: float) -> None:
        """Count one request."""
        labels = (endpoint, method, status)
        children = self._children.get(labels)
        if children is None:
            known_method = (
                method if method in _METHODS else "other"
            )  # each label uses memory, so clients must not be able to create any
            labels = (endpoint, known_method, status)
            children = self._requests.labels(*labels), self._seconds.labels(endpoint)
            self._children[labels] = children
        requests, durations = children
        requests.inc()
        durations.observe(seconds)
        if endpoint == GUARD_ENDPOINT:
            self._count_decisions()

    def count_commands(self, commands: Sequence[Command], outcomes: Sequence[Outcome]) -> None:
        """Count the commands of a committed batch."""
        counts = Multiset(zip(map(get_action, commands), map(get_result, outcomes), strict=True))
        for (action, result), count in counts.items():
            if action is not None:
                self._changes.labels(action, result).inc(count)

    def count_rejected_registration(self) -> None:
        """Count a registration that was rejected without a command, because its username is taken."""
        self._changes.labels("register", "user_exists").inc()

    def count_mail(self, result: str) -> None:
        """Count an attempt to send a mail."""
        self._mails.labels(result).inc()

    def watch_mail_queue(self, read_queued: Callable[[], int]) -> None:
        """Report how many mails wait to be sent. All processes share them, so any of them can report the number."""
        from prometheus_client import Gauge  # noqa: PLC0415 - see __init__

        Gauge(_MAILS_QUEUED, "Mails that wait to be sent.", registry=self._exposed).set_function(read_queued)

    def _count_decisions(self) -> None:
        """Count the decisions that the guard has made since the last call."""
        with self._decisions_lock:
            decisions = self._read_decisions()
            for decision, count in decisions.items():
                if new := count - self._counted_decisions.get(decision, 0):
                    self._decisions.labels(decision).inc(new)
            self._counted_decisions = decisions

    def exposition(self) -> bytes:
        """Return the metrics of all processes in Prometheus' text format."""
        from prometheus_client import generate_latest  # noqa: PLC0415 - see __init__

        self._count_decisions()
        return generate_latest(self._exposed)


class _MultiprocessCollector:
    """Collects the metrics of all processes from their files. Truncated or empty files are skipped.

    The files also contain the metrics of an application that runs in the same process. Those metrics are left out.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable["Metric"]:
        return [metric for metric in self._collect_all() if metric.name in _NAMES]

    def _collect_all(self) -> Iterable["Metric"]:
        files = sorted(self._folder.glob("*.db"))
        try:
            return _merge(files)
        except Exception:  # noqa: BLE001 - a damaged file can raise any exception
            return _merge([file for file in files if _is_readable(file)])


def _is_readable(file: Path) -> bool:
    try:
        _merge([file])
    except Exception as error:  # noqa: BLE001 - see above
        _logger.warning("metrics file %s is unreadable and was skipped: %s", file, type(error).__name__)
        return False
    return True


def _merge(files: Iterable[Path]) -> Iterable["Metric"]:
    from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415 - see Metrics

    metrics: Iterable[Metric] = MultiProcessCollector.merge(map(str, files))  # type: ignore[no-untyped-call]  # of prometheus_client
    return metrics
