"""``mlapi backup`` and ``mlapi restore``."""

from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import click

from mlapi import bootstrap
from mlapi.config import load_settings
from mlapi.domain.backups import Affected, RestoreEffects
from mlapi.entrypoints.cli.output import command_errors, format_count, json_option, show
from mlapi.entrypoints.cli.selection import confirm, require_terminal, yes_option

_EFFECTS = {
    "enabled": "users enabled again: they were disabled after the backup",
    "disabled": "users disabled again: they were enabled after the backup",
    "reverted": "users with their earlier expiry, plan, metadata, name or e-mail address: changed after the backup",
    "returning": "users restored: they were removed after the backup",
    "lost": "users lost: they were registered after the backup",
    "returning_api_keys": "API keys that work again: they were removed after the backup",
    "lost_api_keys": "API keys lost: they were added after the backup",
    "returning_managers": "managers whose tokens work again: they were removed or rotated after the backup",
    "lost_managers": "managers whose tokens stop working: they were added or rotated after the backup",
    "revived_tokens": "users with tokens that are valid again, although they were revoked after the backup",
}


def file_argument(command: Callable[..., None]) -> Callable[..., None]:
    """Add the FILE argument."""
    return click.argument("file", type=click.Path(path_type=Path, readable=False))(command)


@click.command("backup")
@file_argument
@click.option("--force", is_flag=True, help="Replace FILE if it is an earlier backup.")
@click.option("--without-secrets", is_flag=True, help="Do not copy the secrets file.")
@json_option
def backup_command(file: Path, *, force: bool, without_secrets: bool, as_json: bool) -> None:
    """Back up the SQLite database to FILE while the service is running.

    The secrets file is copied to FILE.secrets.yml: without its key, no password in the backup can be verified. Only the
    current account can read the files. For PostgreSQL, the command prints how to use pg_dump.
    """
    with command_errors():
        done = bootstrap.back_up(load_settings(), file, replace=force, with_secrets=not without_secrets)
    lines = [f"backed up {format_count(done.users, 'user')} to {done.file}"]
    if done.secrets_copy is None:
        lines.append(f"keep {done.secrets_location}, too: without the key, no password in this backup can be verified")
    else:
        lines.append(
            f"copied the secrets to {done.secrets_copy}: without this key, no password in the backup can be verified."
            " Keep the two files in different places, because a thief who has both can guess passwords"
        )
    details = {
        "file": str(done.file),
        "users": done.users,
        "secrets": None if done.secrets_copy is None else str(done.secrets_copy),
    }
    show("\n".join(lines), details, as_json=as_json)


@click.command("restore")
@file_argument
@click.option(
    "--end-tokens/--keep-tokens",
    default=None,
    help="Revoke all tokens, so that every user must log in again. Default: ask, or keep them.",
)
@yes_option
@json_option
def restore_command(file: Path, *, end_tokens: bool | None, yes: bool, as_json: bool) -> None:
    """Replace the SQLite database with the backup FILE.

    Stop the service and every application with the guard first. The command checks the backup, shows what the restore
    changes, and asks for confirmation. Without a terminal, --yes is required. The replaced database is kept beside the
    restored one. If the service has no secrets, they are restored from FILE.secrets.yml.
    """
    if not yes:
        require_terminal()
    with command_errors(), bootstrap.open_restore(load_settings(), file) as restore:
        found = restore.effects
        effects = _without_revoked(found, end_tokens=end_tokens)
        click.echo("\n".join(_describe(file, restore, effects)), err=as_json)
        if not yes:
            confirm("Replace the database?")
            if end_tokens is None:
                question = "Revoke all tokens, so that every user must log in again?"
                end_tokens = click.confirm(question, default=True, err=True)
        kept = restore.carry_out(end_tokens=bool(end_tokens))
    effects = _without_revoked(found, end_tokens=end_tokens)  # the answer may have changed them
    lines = [f"restored {format_count(restore.users, 'user')} to {restore.target}"]
    if kept is not None:
        lines.append(f"the replaced database is kept in {kept}: delete it when you no longer need it")
    lines.append("all tokens were revoked" if end_tokens else "tokens were kept; --end-tokens revokes them")
    details = {
        "users": restore.users,
        "database": str(restore.target),
        "kept": None if kept is None else str(kept),
        "secrets": None if restore.secrets_source is None else str(restore.secrets_source),
        "tokens_ended": bool(end_tokens),
        "effects": None if effects is None else {name: value.count for name, value in _items(effects)},
    }
    show("\n".join(lines), details, as_json=as_json)


def _without_revoked(effects: RestoreEffects | None, *, end_tokens: bool | None) -> RestoreEffects | None:
    """Return the effects. No token becomes valid again if all are revoked."""
    return attrs.evolve(effects, revived_tokens=Affected()) if effects is not None and end_tokens else effects


def _describe(file: Path, restore: "bootstrap.PreparedRestore", effects: RestoreEffects | None) -> Iterator[str]:
    yield f"{file} contains {format_count(restore.users, 'user')}. Restoring it changes {restore.target}:"
    if restore.secrets_source is not None:
        yield f"  the secrets are restored from {restore.secrets_source}"
    if effects is None:
        exists = restore.target.exists() and restore.target.stat().st_size
        yield "  the current database cannot be compared with it" if exists else "  there is no database yet"
        return
    affected = [(_EFFECTS[name], value) for name, value in _items(effects) if value.count]
    if not affected:
        yield "  no user, API key or token is affected"
    for effect, value in affected:
        more = ", ..." if value.count > len(value.examples) else ""
        yield f"  {effect}: {value.count} ({', '.join(value.examples)}{more})"


def _items(effects: RestoreEffects) -> Iterator[tuple[str, Affected]]:
    return ((name, getattr(effects, name)) for name in attrs.fields_dict(RestoreEffects))
