"""The sections of RESULTS.md with requests per second."""

from bench.builder import DATABASES
from bench.goals import (
    ARGON2ID_SHARE,
    GROWTH_SHARES,
    GUARD_P99_MILLISECONDS,
    GUARD_SHARES,
    LOGINS_PER_SECOND,
    PEER_FACTOR,
    PLAN_SHARE,
    SHARES,
    WRITE_SHARE,
)
from bench.parts import HASHING_WORKERS, SIZES, WORKERS
from bench.tables import TIMES, Report, render_table, time_cells


def endpoints(report: Report) -> list[str]:
    ceiling = report.figures["ceiling"]
    rows = []
    for (endpoint, kind), shares in SHARES.items():
        name = f"mlapi, {kind}, removing" if endpoint == "remove" else f"mlapi, {kind}"
        for connections, goal in shares.items():
            figure = report.figures[name][f"{endpoint} {connections}"]
            share = figure.per_second / ceiling[f"{endpoint} {connections}"].per_second
            what = f"{endpoint}, {kind}, c={connections}, share of the ceiling"
            compared = report.goals.at_least(what, share, goal)
            rate = f"{figure.per_second:,.0f}"
            rows.append([endpoint, kind, str(connections), rate, f"{share:.2f}", compared, *time_cells(figure)])
    bare = [[*key.split(), f"{figure.per_second:,.0f}", *time_cells(figure)] for key, figure in ceiling.items()]
    return [
        "## Three endpoints",
        "",
        *render_table(
            ["endpoint", "database", "connections", "requests/s", "share of ceiling", "goal", *TIMES],
            rows,
        ),
        "",
        "## The ceiling",
        "",
        *render_table(["endpoint", "connections", "requests/s", *TIMES], bare),
    ]


def default_scheme(report: Report) -> list[str]:
    bare = report.other("argon2id alone, 1")
    rows = []
    for kind in DATABASES:
        measured = report.figures[f"mlapi, {kind}, argon2id"]
        register, toggle = measured["register 16"], measured["toggle 4 concurrent"]
        share = register.per_second / bare
        rows.append([kind, f"{register.per_second:.1f}", f"{share:.2f}", f"{toggle.p50:.1f}", f"{toggle.p99:.1f}"])
    return [
        "## The default scheme, argon2id",
        "",
        f"argon2id alone on the server's core: {bare:.1f} hashes/s.",
        "",
        *render_table(
            [
                "database",
                "registrations/s, 16 connections",
                "share of argon2id alone",
                "concurrent toggles, p50 ms",
                "p99 ms",
            ],
            rows,
        ),
    ]


def peers(report: Report) -> list[str]:
    figures = report.figures
    peers = [name for name in figures if name.endswith("hash")]
    rows = []
    for name in peers:
        _, kind, hashing = name.split(", ")
        scheme = ", argon2id" if hashing == "default hash" else ""
        for endpoint in ("register",) if scheme else ("register", "toggle"):
            figure = figures[name][f"{endpoint} 16"]
            ours = figures[f"mlapi, {kind}{scheme}"][f"{endpoint} 16"].per_second
            competing = [other for other in peers if other.endswith(f", {kind}, cheap hash")]
            fastest = max(competing, key=lambda other: figures[other][f"{endpoint} 16"].per_second)
            is_invalid = figure.errors or not figure.per_second
            factor = 0.0 if is_invalid else ours / figure.per_second
            goal = PEER_FACTOR if name == fastest else None
            compared = report.goals.at_least(f"{endpoint}, factor to {name}", factor, goal)
            shown = "invalid" if is_invalid else f"{factor:.1f}"
            rows.append([name, endpoint, f"{figure.per_second:,.1f}", *time_cells(figure), shown, compared])
    if not rows:
        return []
    return [
        "## Peers, 16 connections",
        "",
        "The `cheap` hash costs about as much as one Fernet encryption, so its rows compare everything except hashing."
        " The `default` hash is the default of each server. The goal applies to the fastest peer. SQLAlchemy is a"
        " handwritten application on Starlette and SQLAlchemy's asyncio extension.",
        "",
        *render_table(
            ["server", "endpoint", "requests/s", *TIMES, "mlapi is faster by a factor of", "goal"],
            rows,
        ),
    ]


def guard(report: Report) -> list[str]:
    figures = report.figures
    guarded = [name for name in figures if name.startswith("guard, ") or name.endswith("current_user")]
    rows = []
    for name in ("open model", *(name for name in guarded if name.count(",") == 1 or "current_user" in name)):
        kind = name.removeprefix("guard, ")
        for measurement, figure in figures[name].items():
            credential, connections = measurement.split()
            share = figure.per_second / figures["open model"][f"open {connections}"].per_second
            goal = GUARD_SHARES.get((credential, kind)) if connections == "64" else None
            what = f"{name}, {credential}, c={connections}"
            compared = report.goals.at_least(f"{what}, share of the open model", share, goal)
            p99 = report.goals.at_most(f"{what}, p99 in ms", figure.p99, GUARD_P99_MILLISECONDS if goal else None)
            rate = f"{figure.per_second:,.0f}"
            rows.append([name, credential, connections, rate, f"{share:.2f}", compared, *time_cells(figure), p99])
    return [
        "## The guard",
        "",
        "The endpoint returns a constant. It is measured without and with the guard, which reads the user on every"
        " request. The credentials of a thousand users are used in turn. fastapi-users guards its endpoint with"
        " `current_user(active=True)`.",
        "",
        *render_table(
            [
                "server",
                "credential",
                "connections",
                "requests/s",
                "share of open model",
                "goal",
                *TIMES,
                "goal for p99",
            ],
            rows,
        ),
        "",
        *_limits(report),
    ]


def _limits(report: Report) -> list[str]:
    figures = report.figures
    rows = []
    for name in figures:
        if " per minute, " in name:
            figure, kind = figures[name]["key 64"], name.rpartition(", ")[2]
            is_write = name.startswith("guard, 10 ")
            toggles, guarded = figures[f"toggles beside the guard, {kind}"], figures[f"guard, {kind}"]
            share = figure.per_second / (toggles["toggle 64"] if is_write else guarded["key 64"]).per_second
            compared = report.goals.at_least(f"{name}, share", share, WRITE_SHARE if is_write else PLAN_SHARE)
            allowance = name.removeprefix("guard, ")
            rows.append([allowance, f"{figure.per_second:,.0f}", f"{share:.2f}", compared, *time_cells(figure)])
    return [
        "## The guard with plans, 64 connections",
        "",
        "The first column has each user's allowance. With 10 requests per minute, every request is a durable write,"
        " so the rate is compared with that of toggles; otherwise, with the guard without plans.",
        "",
        *render_table(["allowance and database", "requests/s", "share", "goal", *TIMES], rows),
    ]


def logins(report: Report) -> list[str]:
    rows = []
    for kind in DATABASES:
        for measurement, figure in report.figures[f"logins, {kind}"].items():
            endpoint, connections = measurement.split()
            addresses = "many addresses" if endpoint == "log_in_many" else "one address"
            compared = report.goals.at_least(
                f"logins per second, {kind}, {addresses}", figure.per_second, LOGINS_PER_SECOND
            )
            rows.append([kind, addresses, connections, f"{figure.per_second:,.0f}", compared, *time_cells(figure)])
    hashing = []
    for kind in DATABASES:
        for workers in HASHING_WORKERS:
            figure = report.figures[f"logins, {kind}, argon2id, {workers}"]["log_in 16"]
            bare = report.other(f"argon2id alone, {workers}")
            share = figure.per_second / bare
            what = f"logins with argon2id, {kind}, {workers} workers, share of argon2id alone"
            compared = report.goals.at_least(what, share, ARGON2ID_SHARE)
            rates = [f"{figure.per_second:.1f}", f"{bare:.1f}"]
            hashing.append([kind, str(workers), *rates, f"{share:.2f}", compared, *time_cells(figure)])
    return [
        "## Logins",
        "",
        "With the cheap scheme, on one core of plain uvicorn.",
        "",
        *render_table(["database", "clients", "connections", "logins/s", "goal", *TIMES], rows),
        "",
        "With argon2id, on `mlapi serve` and 16 connections. argon2id alone uses as many cores as there are workers.",
        "",
        *render_table(
            ["database", "workers", "logins/s", "argon2id alone, hashes/s", "share", "goal", *TIMES],
            hashing,
        ),
    ]


def servers(report: Report) -> list[str]:
    rows = []
    for app in ("bare Starlette", *(f"mlapi, {kind}" for kind in DATABASES)):
        base = report.figures[f"uvicorn, {app}"]
        for server in ("uvicorn", "Granian", "mlapi serve"):
            for measurement, figure in report.figures.get(f"{server}, {app}", {}).items():
                factor = figure.per_second / base[measurement].per_second
                endpoint = measurement.split()[0]
                rows.append([app, server, endpoint, f"{figure.per_second:,.0f}", f"{factor:.2f}", *time_cells(figure)])
    return [
        "## Servers, one worker, 64 connections",
        "",
        "The same applications on several servers. [docs/production.md](../docs/production.md#granian) lists what mlapi"
        " does not do on Granian.",
        "",
        *render_table(["application", "server", "endpoint", "requests/s", "factor to uvicorn", *TIMES], rows),
    ]


def workers(report: Report) -> list[str]:
    rows = []
    for kind in DATABASES:
        for workers in WORKERS:
            changes, reads = (report.figures[f"{name}, {kind}, {workers}"] for name in ("changes", "reads"))
            for measurement, figure in (changes | reads).items():
                base = report.figures[f"{'changes' if measurement in changes else 'reads'}, {kind}, {WORKERS[0]}"]
                factor = figure.per_second / base[measurement].per_second
                endpoint = measurement.split()[0]
                rates = [f"{figure.per_second:,.0f}", f"{factor:.2f}"]
                memory = f"{report.other(f'PSS, changes, {kind}, {workers}') / workers:.0f}"
                cores = report.results.texts[f"cores of {workers} workers"]
                rows.append([kind, endpoint, str(workers), *rates, *time_cells(figure), memory, cores])
    return [
        "## Workers, 64 connections",
        "",
        "`mlapi serve --workers`, with the cheap scheme. `verify` is `GET /verify` with an API key. Where the cores are"
        " shared, the workers compete with wrk and PostgreSQL, so more workers gain less than on a larger machine.",
        "",
        *render_table(
            [
                "database",
                "endpoint",
                "workers",
                "requests/s",
                "factor to one worker",
                *TIMES,
                "MiB per worker",
                "cores",
            ],
            rows,
        ),
    ]


def growth(report: Report) -> list[str]:
    rows = []
    for kind in DATABASES:
        for endpoint, name in (("register", "mlapi"), ("toggle", "mlapi"), ("key", "guard")):
            smallest = report.figures[f"{name}, {kind}, {SIZES[kind][0]:,} users"][f"{endpoint} 64"]
            for users in SIZES[kind]:
                if not (measured := report.figures.get(f"{name}, {kind}, {users:,} users")):
                    continue
                figure = measured[f"{endpoint} 64"]
                share = figure.per_second / smallest.per_second
                what = f"{endpoint}, {kind}, {users:,} users, share of the rate with {SIZES[kind][0]:,} users"
                compared = report.goals.at_least(what, share, GROWTH_SHARES.get((endpoint, kind, users)))
                rate = f"{figure.per_second:,.0f}"
                rows.append([kind, f"{users:,}", endpoint, rate, f"{share:.2f}", compared, *time_cells(figure)])
    return [
        "## Growth, 64 connections",
        "",
        "`key` is the guarded endpoint with an API key. The toggled users are scattered over the table.",
        "",
        *render_table(
            ["database", "users", "endpoint", "requests/s", "share of 10,000 users", "goal", *TIMES],
            rows,
        ),
    ]
