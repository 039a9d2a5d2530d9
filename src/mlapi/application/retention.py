"""Delete old audit entries and old usage in the background, in small transactions."""

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import attrs

from mlapi.domain.audit_trail import AuditTrail
from mlapi.domain.errors import MlapiError
from mlapi.domain.logins import Logins
from mlapi.domain.outbox import Outbox
from mlapi.domain.ports import Clock, LinkRepository
from mlapi.domain.sessions import Sessions
from mlapi.domain.usage import UsageRepository
from mlapi.domain.users import to_utc, utc_now
from mlapi.forks import call_in_children

INTERVAL_SECONDS = 600.0
"""The first purge also waits this long, so that it does not slow down startup."""
FAILED_MAIL_AGE = timedelta(days=30)
BATCH_ROWS = 1000
"""Maximum number of rows deleted in one transaction, which takes about 10 ms."""
PAUSE_SECONDS = 0.1
"""Pause between two transactions, so that other writers are not blocked."""

_logger = logging.getLogger("mlapi")


@attrs.frozen
class RetentionRule:
    """How long one kind of data is kept.

    Attributes:
        what: the name of the data in log messages.
        max_age: how long the data is kept.
        purge: deletes at most ``limit`` rows from before a time, and returns the number of deleted rows.
    """

    what: str
    max_age: timedelta
    purge: Callable[[datetime, int], int]

    @classmethod
    def for_audit(cls, trail: AuditTrail, max_age: timedelta) -> "RetentionRule":
        return cls("audit entries", max_age, lambda before, limit: trail.purge(before=before, limit=limit))

    @classmethod
    def for_logins(cls, logins: Logins, max_age: timedelta) -> "RetentionRule":
        return cls("logins", max_age, lambda before, limit: logins.purge(before=before, limit=limit))

    @classmethod
    def for_sessions(cls, sessions: Sessions) -> "RetentionRule":
        """Return the rule for sessions that have expired."""
        return cls("sessions", timedelta(0), lambda before, limit: sessions.purge(before=before, limit=limit))

    @classmethod
    def for_usage(cls, usage: UsageRepository, max_age: timedelta) -> "RetentionRule":
        """Return the rule for whole days of usage. The current day is kept in addition to ``max_age``."""
        return cls("usage", max_age, lambda before, limit: usage.purge(before=to_utc(before).date(), limit=limit))

    @classmethod
    def for_outbox(cls, outbox: Outbox) -> "RetentionRule":
        """Return the rule for mail that could not be sent."""
        return cls("failed mail", FAILED_MAIL_AGE, lambda before, limit: outbox.purge(before=before, limit=limit))

    @classmethod
    def for_links(cls, links: LinkRepository) -> "RetentionRule":
        """Return the rule for one-time links that have expired."""
        return cls("links", timedelta(), lambda before, limit: links.purge(before=before, limit=limit))


class Retention:
    """Deletes old data in a background thread until it is closed.

    Args:
        rules: the data to delete, and its age.
        interval_seconds: the time between two purges; by default `INTERVAL_SECONDS`.
        clock: used to calculate the age of the data.
    """

    def __init__(
        self, rules: Sequence[RetentionRule], *, interval_seconds: float | None = None, clock: Clock = utc_now
    ) -> None:
        self._rules = rules
        self._interval_seconds = INTERVAL_SECONDS if interval_seconds is None else interval_seconds
        self._clock = clock
        self._closing = threading.Event()
        call_in_children(self._stop_closing)
        self._thread = threading.Thread(target=self._run, name="mlapi-retention", daemon=True)
        self._thread.start()

    def _stop_closing(self) -> None:
        """Replace the event in a forked child, which has no purging thread. The parent keeps purging."""
        self._closing = threading.Event()

    def close(self) -> None:
        """Stop purging, and wait for the current transaction to end."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._interval_seconds):
            for rule in self._rules:
                try:
                    self._purge(rule)
                except MlapiError as error:
                    _logger.warning("cannot delete old %s: %s", rule.what, error)

    def _purge(self, rule: RetentionRule) -> None:
        before = self._clock() - rule.max_age
        while rule.purge(before, BATCH_ROWS) == BATCH_ROWS:
            if self._closing.wait(PAUSE_SECONDS):
                return
