"""Registrations by the library, as an import does them: the same `apply`, a thousand at a time."""

import time

from mlapi.bootstrap import open_users
from mlapi.config import load_settings
from mlapi.domain.changes import Change, Register
from mlapi.domain.model import utc_now

BATCH = 1_000


def register(environ: dict[str, str], count: int, *, passwords: bool = False) -> float:
    """Register so many users and return the seconds it took.

    Args:
        environ: the configuration.
        count: of users.
        passwords: whether each has a password of his own, checked and encrypted, as an import of plain ones has it. All
            share one else: to fill a table for a measurement.
    """
    with open_users(load_settings(environ=environ)) as users:
        shared = users.cipher.encrypt("correct horse battery")

        def change(number: int) -> Change:
            name = f"seed-{number}"
            if passwords:
                email = f"{name}@example.com"
                return users.prepare_registration(username=name, password=f"battery {number}", email=email)
            return Register(username=name, password=shared, email=f"{name}@example.com", at=utc_now())

        begin = time.perf_counter()
        for first in range(0, count, BATCH):
            users.repository.apply([change(number) for number in range(first, min(count, first + BATCH))])
        return time.perf_counter() - begin
