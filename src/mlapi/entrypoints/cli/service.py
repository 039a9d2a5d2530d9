"""The users, for a command: what it changes is told of whoever runs it."""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mlapi.application.users import Users
from mlapi.bootstrap import open_users
from mlapi.config import load_settings
from mlapi.domain.commands import Actor
from mlapi.entrypoints.cli.output import in_one_line


@contextmanager
def opened_users() -> Iterator[Users]:
    """Yield the users of the configured database. What is refused is told in one line."""
    with in_one_line(), open_users(load_settings()) as users:
        yield users.as_actor(Actor(f"command line of {os_user()}"))


def os_user() -> str:
    """Return the account that this runs under: its name, or its number if it has none."""
    with suppress(KeyError):
        return pwd.getpwuid(os.getuid()).pw_name
    return str(os.getuid())
