"""Open the configured database on behalf of the operator who runs the command."""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import attrs

from mlapi import bootstrap
from mlapi.application.users import Users
from mlapi.config import Settings, load_settings
from mlapi.domain.actors import Actor
from mlapi.entrypoints.cli.output import command_errors

if TYPE_CHECKING:
    from mlapi.bootstrap import Service


@contextmanager
def open_service_as_operator(*, settings: Settings | None = None, may_create: bool = False) -> "Iterator[Service]":
    """Yield the configured service. The audit trail records the operator as the actor of every change.

    Args:
        settings: by default, the settings that `load_settings` returns.
        may_create: whether to create the database if it does not exist.

    Raises:
        CommandError: if the database is unavailable or the configuration is invalid.
    """
    with command_errors():
        settings = load_settings() if settings is None else settings
        with bootstrap.open_service(settings, must_be_available=True, may_create=may_create) as service:
            actor = Actor(f"command line of {account_name()}")
            yield attrs.evolve(service, users=service.users.as_actor(actor), managers=service.managers.as_actor(actor))


@contextmanager
def open_users_as_operator(*, may_create: bool = False) -> Iterator[Users]:
    """Yield the users of the configured service. See `open_service_as_operator`."""
    with open_service_as_operator(may_create=may_create) as service:
        yield service.users


def account_name() -> str:
    """Return the name of the account that runs this process, or its user ID if it has no name."""
    with suppress(KeyError):
        return pwd.getpwuid(os.getuid()).pw_name
    return str(os.getuid())
