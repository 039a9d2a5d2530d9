"""``mlapi db``: upgrade, check and adopt the configured database."""

from collections.abc import Iterator

import click

from mlapi import bootstrap
from mlapi.config import load_settings
from mlapi.entrypoints.cli.output import EXIT_ERROR, CommandError, CommandGroup, command_errors, json_option, show

_MAX_SHOWN_USERS = 20
_MAX_SHOWN_NAME_CHARS = 60
_OPTIONS: "dict[bootstrap.Choice, str]" = {
    "rename_duplicates": "--rename-duplicates",
    "rename_invalid": "--rename-invalid",
    "lock_passwordless": "--lock-passwordless",
}
_OWNERS = {
    "mlapi": "belongs to mlapi",
    "legacy": "belongs to the legacy app",
    "other": "belongs to another program",
    "empty": "does not exist",
}


@click.group("db", cls=CommandGroup)
def database_commands() -> None:
    """Manage the configured database."""


@database_commands.command("upgrade")
@json_option
def db_upgrade(*, as_json: bool) -> None:
    """Upgrade the schema to the newest revision."""
    with command_errors():
        before, after = bootstrap.upgrade_database(load_settings())
    show(f"schema: {before or 'none'} -> {after}", {"before": before, "after": after}, as_json=as_json)


@database_commands.command("adopt")
@click.option(
    "--rename-duplicates",
    is_flag=True,
    help="If several users have the same name, rename all but the first to name-<id>.",
)
@click.option("--rename-invalid", is_flag=True, help="Rename users with an invalid name to user-<id>.")
@click.option("--lock-passwordless", is_flag=True, help="Keep users without a password; they cannot log in.")
@click.option("--timezone", metavar="ZONE", help="IANA time zone of the stored times. Default: UTC.")
@click.option("--dry-run", is_flag=True, help="Report without changing anything.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one line per user with a finding, then a summary.")
def db_adopt(*, timezone: str | None, dry_run: bool, as_json: bool, **choices: bool) -> None:
    """Take over the users table of the legacy app, the application that mlapi replaces.

    Stop the legacy app and back up its database first. The command reports its findings. If a finding needs a decision,
    it names the options and changes nothing. All users keep their ids, times and stored passwords.
    """
    chosen = [choice for choice in _OPTIONS if choices[choice]]
    with command_errors(), bootstrap.open_adoption(load_settings(), timezone=timezone, plan_only=dry_run) as adoption:
        if (revision := adoption.revision) is not None:
            result = {"adopted": False, "revision": revision}
            show(
                f"nothing to do: the database already belongs to mlapi, at revision {revision}", result, as_json=as_json
            )
            return
        _report(adoption, as_json=as_json)
        undecided = adoption.find_undecided(chosen)
        summary = {
            "users": adoption.survey.users,
            "findings": {finding.kind: finding.users for finding in adoption.survey.findings},
            "extra_columns": adoption.table.extra_columns,
            "references": adoption.table.references,
            "hindrances": adoption.obstacles,
            "undecided": [_OPTIONS[choice] for choice in undecided],
        }
        obstacle = _find_obstacle(adoption.obstacles, undecided)
        if obstacle is None and not dry_run:
            revision = adoption.carry_out()
    if obstacle is None:
        done = f"adopted {summary['users']} users; schema: revision {revision}" if revision else "nothing was changed"
        show(done, {"adopted": revision is not None, "revision": revision, **summary}, as_json=as_json)
        return
    if as_json:
        show("", {"adopted": False, "revision": None, **summary}, as_json=True)
    raise CommandError(obstacle)


@database_commands.command("check")
@json_option
def db_check(*, as_json: bool) -> None:
    """Check the database without changing anything. Exits with code 3 if there are problems."""
    with command_errors():
        check = bootstrap.check_database(load_settings())
    found, problems = check.found, list(find_problems(check))
    facts = {
        "kind": "origin" if found.kind == "legacy" else found.kind,
        "revision": found.revision,
        "newest_revision": found.newest_revision,
        "users": found.users,
        "misnamed": found.misnamed,
        "problems": problems,
    }
    lines = [
        f"users table: {_OWNERS[found.kind]}",
        f"schema: revision {found.revision or 'none'}, newest {found.newest_revision}",
        f"users: {found.users}",
        *(f"problem: {problem}" for problem in problems or ["none"]),
    ]
    show("\n".join(lines), facts, as_json=as_json)
    if problems:
        raise click.exceptions.Exit(EXIT_ERROR)


def _report(adoption: "bootstrap.Adoption", *, as_json: bool) -> None:
    survey = adoption.survey
    if as_json:
        for finding in survey.findings:
            for found in survey.iterate_users(finding):
                show("", _as_json(finding, found), as_json=True)
        return
    click.echo(f"users: {survey.users}")
    for column in adoption.table.extra_columns:
        click.echo(f"column {column!r}: kept; mlapi leaves it empty for new users")
    for table in adoption.table.references:
        click.echo(f"table {table!r} references users: kept; it may prevent users from being removed")
    for finding in survey.findings:
        option = "" if finding.choice is None else f" ({_OPTIONS[finding.choice]})"
        click.echo(f"{finding.title}: {finding.users}; {finding.effect}{option}")
        for found in survey.iterate_users(finding, _MAX_SHOWN_USERS):
            click.echo(_as_line(finding, found))
        if finding.users > _MAX_SHOWN_USERS:
            click.echo(f"         ... and {finding.users - _MAX_SHOWN_USERS} more; --json lists all")


def _as_line(finding: "bootstrap.Finding", found: "bootstrap.Found") -> str:
    shown = repr(found.username)  # escapes terminal control characters
    shown = shown if len(shown) <= _MAX_SHOWN_NAME_CHARS else f"{shown[:_MAX_SHOWN_NAME_CHARS]}..."
    detail = f" {found.detail}" if isinstance(found.detail, str) else ""
    if finding.choice in {"rename_duplicates", "rename_invalid"}:
        detail += " keeps the name" if found.becomes is None else f" -> {found.becomes!r}"
    return f"{found.user_id:>8} {shown}{detail}"


def _as_json(finding: "bootstrap.Finding", found: "bootstrap.Found") -> dict[str, object]:
    name = found.username
    if name is not None:
        name = str(name).encode("utf-8", "backslashreplace").decode()  # SQLite may return bytes or invalid Unicode
    line = {"finding": finding.kind, "user_id": found.user_id, "username": name, "becomes": found.becomes}
    if finding.kind == "duplicate_names":
        return {**line, "first_user_id": found.detail}
    return line if found.detail is None else {**line, "problem": found.detail}


def _find_obstacle(obstacles: list[str], undecided: "list[bootstrap.Choice]") -> str | None:
    if obstacles:
        return f"nothing was changed: {'; '.join(obstacles)}"
    if undecided:
        return f"nothing was changed: to proceed, add {' '.join(_OPTIONS[choice] for choice in undecided)}"
    return None


def find_problems(check: "bootstrap.DatabaseCheck") -> Iterator[str]:
    """Yield a message for each problem, which includes the solution."""
    found = check.found
    if found.kind == "legacy":
        yield "the legacy app's users have not been adopted yet: run `mlapi db adopt`"
    elif found.other_namespaces:
        names = " or ".join(found.other_namespaces)
        yield f"tables of mlapi are in the schema {names}: set database.schema, or run `mlapi db upgrade` for new ones"
    elif found.kind == "other":
        yield "the table `users` belongs to another program: point database.url at a different database"
    elif found.revision is None or found.revision < found.newest_revision:
        yield "the schema is outdated: run `mlapi db upgrade`"
    elif found.revision > found.newest_revision:
        yield "the schema was created by a newer version of mlapi: upgrade mlapi"
    if check.key_error is not None:
        yield check.key_error
    if found.misnamed:
        shown = ", ".join(map(str, found.misnamed[:_MAX_SHOWN_USERS]))
        count = len(found.misnamed)
        yield f"users that cannot be found by name because their username_key is wrong: {count}, ids {shown}"
    yield from found.obstacles
    for damage in found.damage:
        yield f"the file is damaged: {damage}; replace it with a backup, and delete its -wal and -shm files"
