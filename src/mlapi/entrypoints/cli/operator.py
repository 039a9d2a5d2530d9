"""Open the configured database on behalf of the operator who runs the command."""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mlapi.application.users import Users
from mlapi.bootstrap import open_users
from mlapi.config import load_settings
from mlapi.domain.commands import Actor
from mlapi.entrypoints.cli.output import command_errors


@contextmanager
def open_users_as_operator(*, may_create: bool = False) -> Iterator[Users]:
    """Yield the users of the configured database. The audit trail records the operator as the actor of every change.

    Args:
        may_create: whether to create the database if it does not exist.
    """
    with command_errors(), open_users(load_settings(), must_be_available=True, may_create=may_create) as users:
        yield users.as_actor(Actor(f"command line of {account_name()}"))


def account_name() -> str:
    """Return the name of the account that runs this process, or its user ID if it has no name."""
    with suppress(KeyError):
        return pwd.getpwuid(os.getuid()).pw_name
    return str(os.getuid())
