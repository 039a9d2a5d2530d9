"""``mlapi db``: the schema of the configured database, and whether all is well with it."""

from collections.abc import Iterator

import click

from mlapi.adapters.sql import HEAD
from mlapi.adapters.sql.adoption import Adoption, Choice, Finding, Found
from mlapi.bootstrap import DatabaseCheck, check_database, open_adoption, upgrade_database
from mlapi.config import load_settings
from mlapi.entrypoints.cli.output import EXIT_REFUSED, Refused, in_one_line, json_option, show

_SHOWN = 20  # users of each finding
_NAME_SHOWN = 60  # characters


@click.group("db")
def database_commands() -> None:
    """The database of the configuration."""


@database_commands.command("upgrade")
@json_option
def db_upgrade(*, as_json: bool) -> None:
    """Bring the schema to the newest revision."""
    with in_one_line():
        before, after = upgrade_database(load_settings())
    show(f"schema: {before or 'none'} -> {after}", {"before": before, "after": after}, as_json=as_json)


@database_commands.command("adopt")
@click.option("--rename-duplicates", is_flag=True, help="Of users with one name, all but the first get name-<id>.")
@click.option("--rename-invalid", is_flag=True, help="Users with a name that nobody may have get user-<id>.")
@click.option("--lock-passwordless", is_flag=True, help="Keep users without a password, whom nobody can log in as.")
@click.option("--timezone", metavar="ZONE", help="The IANA zone that times are stored in; without it, UTC.")
@click.option("--dry-run", is_flag=True, help="Report, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a line for each user of a finding, and a last one.")
def db_adopt(*, timezone: str | None, dry_run: bool, as_json: bool, **choices: bool) -> None:
    """Take over the users table of the application that mlapi takes the place of.

    Reports what it finds. If something has to be decided first, it names the options that do, and changes nothing.
    Every user, id, time and stored password is kept. Stop that application before, and keep a copy of its database.
    """
    chosen = [choice for choice in _OPTIONS if choices[choice]]
    with in_one_line(), open_adoption(load_settings(), timezone=timezone, is_planned=dry_run) as adoption:
        if (revision := adoption.revision) is not None:
            result = {"adopted": False, "revision": revision}
            show(f"nothing to do: the database is mlapi's already, at revision {revision}", result, as_json=as_json)
            return
        _report(adoption, as_json=as_json)
        undecided = adoption.undecided(chosen)
        summary = {
            "users": adoption.survey.users,
            "findings": {finding.kind: finding.users for finding in adoption.survey.findings},
            "extra_columns": adoption.table.extra_columns,
            "references": adoption.table.references,
            "hindrances": adoption.obstacles,
            "undecided": [_OPTIONS[choice] for choice in undecided],
        }
        refused = _refusal(adoption.obstacles, undecided)
        if refused is None and not dry_run:
            revision = adoption.carry_out()
    if refused is None:
        done = f"adopted {summary['users']} users; schema: revision {revision}" if revision else "nothing was changed"
        show(done, {"adopted": revision is not None, "revision": revision, **summary}, as_json=as_json)
        return
    if as_json:
        show("", {"adopted": False, "revision": None, **summary}, as_json=True)
    raise Refused(refused)


@database_commands.command("check")
@json_option
def db_check(*, as_json: bool) -> None:
    """Look whether all is well with the database; change nothing. Exits with 3 if it is not."""
    with in_one_line():
        check = check_database(load_settings())
    found, problems = check.found, list(problems_of(check))
    facts = {
        "kind": "origin" if found.kind == "legacy" else found.kind,
        "revision": found.revision,
        "newest_revision": HEAD,
        "users": found.users,
        "misnamed": found.misnamed,
        "problems": problems,
    }
    lines = [
        f"users table: {_OWNERS[found.kind]}",
        f"schema: revision {found.revision or 'none'}, the newest is {HEAD}",
        f"users: {found.users}",
        *(f"problem: {problem}" for problem in problems or ["none"]),
    ]
    show("\n".join(lines), facts, as_json=as_json)
    if problems:
        raise click.exceptions.Exit(EXIT_REFUSED)


_OPTIONS: dict[Choice, str] = {
    "rename_duplicates": "--rename-duplicates",
    "rename_invalid": "--rename-invalid",
    "lock_passwordless": "--lock-passwordless",
}
_OWNERS = {
    "mlapi": "mlapi's",
    "legacy": "of the application that mlapi takes the place of",
    "other": "somebody else's",
    "empty": "none",
}


def _report(adoption: Adoption, *, as_json: bool) -> None:
    survey = adoption.survey
    if as_json:
        for finding in survey.findings:
            for found in survey.rows(finding):
                show("", _as_json(finding, found), as_json=True)
        return
    click.echo(f"users: {survey.users}")
    for column in adoption.table.extra_columns:
        click.echo(f"column {column!r}: kept; mlapi does not fill it")
    for table in adoption.table.references:
        click.echo(f"table {table!r} refers to users: kept; whom it refers to cannot be removed, unless it says so")
    for finding in survey.findings:
        option = "" if finding.choice is None else f" ({_OPTIONS[finding.choice]})"
        click.echo(f"{finding.title}: {finding.users}; {finding.effect}{option}")
        for found in survey.rows(finding, _SHOWN):
            click.echo(_as_line(finding, found))
        if finding.users > _SHOWN:
            click.echo(f"         ... and {finding.users - _SHOWN} more, which --json shows")


def _as_line(finding: Finding, found: Found) -> str:
    shown = repr(found.username)  # escapes whatever a terminal would act upon
    shown = shown if len(shown) <= _NAME_SHOWN else f"{shown[:_NAME_SHOWN]}..."
    detail = f" {found.detail}" if isinstance(found.detail, str) else ""
    if finding.choice in {"rename_duplicates", "rename_invalid"}:
        detail += " keeps it" if found.becomes is None else f" -> {found.becomes!r}"
    return f"{found.user_id:>8} {shown}{detail}"


def _as_json(finding: Finding, found: Found) -> dict[str, object]:
    name = found.username
    if name is not None:
        name = str(name).encode("utf-8", "backslashreplace").decode()  # bytes, and text that is not Unicode
    line = {"finding": finding.kind, "user_id": found.user_id, "username": name, "becomes": found.becomes}
    if finding.kind == "duplicate_names":
        return {**line, "first_user_id": found.detail}
    return line if found.detail is None else {**line, "problem": found.detail}


def _refusal(hindrances: list[str], undecided: list[Choice]) -> str | None:
    if hindrances:
        return f"nothing was changed: {'; '.join(hindrances)}"
    if undecided:
        return f"nothing was changed: decide with {' '.join(_OPTIONS[choice] for choice in undecided)}"
    return None


def problems_of(check: DatabaseCheck) -> Iterator[str]:
    """Yield what is not well with a database, each with what to do."""
    found = check.found
    if found.kind == "legacy":
        yield "the users are not adopted: run `mlapi db adopt`"
    elif found.kind == "other":
        yield "the table `users` is none that mlapi knows: point database.url at another database"
    elif found.revision is None or found.revision < HEAD:
        yield "the schema is behind: run `mlapi db upgrade`"
    elif found.revision > HEAD:
        yield "the schema is of a newer mlapi: upgrade mlapi"
    if check.key_problem is not None:
        yield check.key_problem
    if found.misnamed:
        some = ", ".join(map(str, found.misnamed[:_SHOWN]))
        yield f"users who are not found by their name, as its stored form is another: {len(found.misnamed)}, ids {some}"
    for damage in found.damage:
        yield f"the file is damaged: {damage}; put a copy in its place, without -wal and -shm"
