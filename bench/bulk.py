"""Register users through the library, in batches like an import, and write credentials for them."""

import time
from pathlib import Path

from mlapi.application.authentication import VerifiedLogin
from mlapi.bootstrap import open_service, open_users
from mlapi.config import load_settings
from mlapi.domain.commands import Command, Register
from mlapi.domain.users import UserId, utc_now

BATCH_SIZE = 1_000


def register(environ: dict[str, str], count: int, *, passwords: bool = False) -> float:
    """Register ``count`` users and return how many seconds it took.

    Args:
        environ: environment variables that configure mlapi.
        passwords: True to validate and encrypt a different password for each user, like an import of plain-text
            passwords. False to give all of them the same encrypted password, to fill a table quickly.
    """
    with open_users(load_settings(environ=environ)) as users:
        shared = users.cipher.encrypt("correct horse battery")

        def command(number: int) -> Command:
            name = f"seed-{number}"
            if passwords:
                email = f"{name}@example.com"
                return users.prepare_registration(username=name, password=f"battery {number}", email=email)
            return Register(username=name, password=shared, email=f"{name}@example.com", at=utc_now())

        started_at = time.perf_counter()
        for first in range(0, count, BATCH_SIZE):
            users.repository.apply([command(number) for number in range(first, min(count, first + BATCH_SIZE))])
        return time.perf_counter() - started_at


def write_credentials(environ: dict[str, str], count: int, folder: Path, *, users: int) -> None:
    """Write tokens and API keys of ``count`` of the ``users`` users to the files ``tokens`` and ``keys``, one per line.

    The users are spread evenly over the table.
    """
    with open_service(load_settings(environ=environ)) as service:
        repository, authenticator = service.users.repository, service.access.authenticator
        ids = range(0, users, users // count)[:count]
        chosen = [user for after in ids for user in repository.list_page(after=UserId(after), limit=1)]
        logins = [VerifiedLogin(user=user, needs_upgrade=False) for user in chosen]
        tokens = [authenticator.issue_token(login).token for login in logins]
        keys = [service.users.prepare_api_key(user_id=user.id, name="bench", expires_datetime=None) for user in chosen]
        repository.apply([command for command, _ in keys])
    (folder / "tokens").write_text("\n".join(tokens))
    (folder / "keys").write_text("\n".join(secret for _, secret in keys))
