"""The options for the expiry, plan and metadata of a user."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

import click

from mlapi.domain.expiry import Extension
from mlapi.domain.metadata import Metadata
from mlapi.domain.plans import NO_PLAN
from mlapi.entrypoints.cli.output import command_errors
from mlapi.entrypoints.cli.times import ExpiryTime

NewExpiry = datetime | Extension | Literal["never"]


def details_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options ``--expires``, ``--plan`` and ``--metadata`` for a new user. See `parse_changes`."""
    options = (
        click.option("--expires", type=ExpiryTime(), metavar="TIME", help="When access expires. Default: never."),
        click.option("--plan", metavar="NAME", help="A plan in the configuration. Default: default_plan."),
        click.option("--metadata", metavar="JSON", help='A JSON object, such as \'{"customer": "cus_123"}\'.'),
    )
    for option in reversed(options):
        command = option(command)
    return command


def parse_changes(*, expires: NewExpiry | None, metadata: str | None, **fields: str | None) -> dict[str, Any]:
    """Return the arguments for `Users.prepare_update`, without the options that were omitted."""
    changes: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    if changes.get("plan") == NO_PLAN:
        changes["plan"] = None
    if expires is not None:
        changes["expires"] = None if expires == "never" else expires
    if metadata is not None:
        with command_errors():
            changes["metadata"] = Metadata.from_json(metadata).as_dict()
    return changes
