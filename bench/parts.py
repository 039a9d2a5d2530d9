"""The parts of a benchmark. Each measures several targets in turn, and repeats this in every round.

Each round starts, loads and stops every server of the part, so that a slowdown of the machine affects all of them.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench import commands
from bench.builder import CREDENTIALS, DATABASES, PEERS, SERVICE, granian, uvicorn
from bench.bulk import write_credentials
from bench.cores import assign_cores
from bench.part import Part
from bench.targets import Server

CONNECTIONS = (1, 16, 64)
WORKERS = (1, 2, 4)
HASHING_WORKERS = (1, 2)
REMOVALS_PER_SECOND = 20_000
"""More than any server removes."""
SIZES = {"sqlite": (10_000, 1_000_000, 10_000_000), "postgresql": (10_000, 1_000_000)}
"""The numbers of users in the table, for each database."""
STARTS = 5
"""How often a round starts each server and each command."""


def measure_endpoints(part: Part) -> None:
    """Measure the three endpoints: bare Starlette, mlapi, and the peers with the same and with their own hash."""
    build = part.build
    ceiling = build.ceiling()
    ours = [build.mlapi(f"mlapi, {kind}", kind=kind) for kind in DATABASES]
    removable = int(REMOVALS_PER_SECOND * part.arguments.rounds * (1 + len(CONNECTIONS) * part.arguments.seconds))
    removing = [build.mlapi(f"mlapi, {kind}, removing", kind=kind, users=removable) for kind in DATABASES]
    default = [build.mlapi(f"mlapi, {kind}, argon2id", kind=kind, scheme="argon2id") for kind in DATABASES]
    peers = [
        build.peer(f"{framework}, {kind}, {hashing} hash", framework=framework, kind=kind, hashing=hashing)
        for framework in ([] if part.arguments.no_peers else PEERS)
        for kind in DATABASES
        for hashing in ("default", "cheap")
    ]
    for _ in part.rounds():
        part.measure(ceiling, ("register", "toggle", "remove"), CONNECTIONS)
        for target in ours:
            part.measure(target, ("register", "toggle"), CONNECTIONS)
        for target in removing:
            part.measure(target, ("remove",), CONNECTIONS)
        part.measure_bare_argon2id(assign_cores().server)
        for target in default:
            part.measure(target, ("register",), (16,))
            part.measure_concurrent(target)
        for target in peers:
            # Toggles do not hash. Measure them first: queued hashes would slow them down.
            part.measure(target, ("register",) if "default" in target.name else ("toggle", "register"), (16,))


def measure_guard(part: Part) -> None:
    """Measure one endpoint without a guard, behind mlapi's guard, and behind the guard of fastapi-users."""
    build = part.build
    open_model = build.open_model()
    ours = [build.guarded(f"guard, {kind}", kind=kind) for kind in DATABASES]
    peers = [
        build.peer(f"fastapi-users, {kind}, current_user", framework="fastapi-users", kind=kind, hashing="cheap")
        for kind in ([] if part.arguments.no_peers else DATABASES)
    ]
    limited = [
        build.guarded(f"guard, {limit:,} per minute, {kind}", kind=kind, per_minute=limit)
        for kind in DATABASES
        for limit in (1_000, 100_000)
    ]
    # A user's allowance must not be used up during a measurement, so every user has credentials.
    written = [
        build.guarded(f"guard, 10 per minute, {kind}", kind=kind, per_minute=10, credentials=10_000)
        for kind in DATABASES
    ]
    toggled = [build.mlapi(f"toggles beside the guard, {kind}", kind=kind) for kind in DATABASES]
    for _ in part.rounds():
        part.measure(open_model, ("open",), (16, 64))
        for target in ours:
            part.measure(target, ("token", "key"), (16, 64))
        for target in [*limited, *written]:
            part.measure(target, ("key",), (64,))
        for target in toggled:
            part.measure(target, ("toggle",), (64,))
        for target in peers:
            part.measure(target, ("token",), (64,))


def measure_logins(part: Part) -> None:
    """Measure logins from one address and from many, with a cheap hash and with argon2id on one and two workers."""
    build = part.build
    cheap = [build.mlapi(f"logins, {kind}", kind=kind) for kind in DATABASES]
    for target in cheap:
        target.environ["MLAPI_HTTP__TRUSTED_PROXIES"] = "127.0.0.1"
    hashing = [
        build.mlapi(f"logins, {kind}, argon2id, {workers}", kind=kind, scheme="argon2id", workers=workers)
        for kind in DATABASES
        for workers in HASHING_WORKERS
    ]
    for _ in part.rounds():
        for target in cheap:
            part.measure(target, ("log_in", "log_in_many"), (64,))
        for workers in HASHING_WORKERS:
            part.measure_bare_argon2id(",".join(assign_cores(workers).server.split(",")[:workers]))
        for target in hashing:
            part.measure(target, ("log_in",), (16,))


def measure_servers(part: Part) -> None:
    """Measure the ceiling and mlapi on uvicorn and on Granian, and `mlapi serve`, with one worker each."""
    build = part.build
    commands_by_server = {"uvicorn": uvicorn, "Granian": granian}
    targets = []
    for name, command in commands_by_server.items():
        targets.append(replace(build.ceiling(f"{name}, bare Starlette"), command=command("bench.ceiling:app")))
    for kind in DATABASES:
        for name, command in commands_by_server.items():
            targets.append(replace(build.mlapi(f"{name}, mlapi, {kind}", kind=kind), command=command(SERVICE)))
        targets.append(build.mlapi(f"mlapi serve, mlapi, {kind}", kind=kind, workers=1))
    for _ in part.rounds():
        for target in targets:
            part.measure(target, ("toggle", "register"), (64,))


def measure_workers(part: Part) -> None:
    """Measure `mlapi serve` with several workers."""
    changing, reading = [], []
    for kind in DATABASES:
        for workers in WORKERS:
            changing.append(part.build.mlapi(f"changes, {kind}, {workers}", kind=kind, workers=workers))
            reading.append(part.build.mlapi(f"reads, {kind}, {workers}", kind=kind, workers=workers))
    for workers in WORKERS:
        shared = "shared" if assign_cores(workers).are_shared else "own"
        part.results.texts[f"cores of {workers} workers"] = shared
    for target in reading:
        write_credentials(target.environ, CREDENTIALS, target.folder, users=target.users)
    for _ in part.rounds():
        for changed, read in zip(changing, reading, strict=True):
            part.measure(changed, ("toggle", "register"), (64,))
            part.measure(read, ("verify",), (64,))


def measure_growth(part: Part) -> None:
    """Measure how rates change with the number of users in the table."""
    targets = [
        part.build.mlapi(f"mlapi, {kind}, {users:,} users", kind=kind, users=users)
        for kind in DATABASES
        for users in SIZES[kind]
        if users <= part.arguments.grow_to
    ]
    guarded = []
    for target in targets:
        write_credentials(target.environ, CREDENTIALS, target.folder, users=target.users)
        command = uvicorn("bench.guarded:app")
        guarded.append(replace(target, name=target.name.replace("mlapi", "guard"), command=command, read_flag=None))
    for _ in part.rounds():  # before the toggles, which disable users
        for target in guarded:
            part.measure(target, ("key",), (64,))
    for _ in part.rounds():
        for target in targets:
            part.measure(target, ("register", "toggle"), (64,))


def measure_imports(part: Part) -> None:
    """Measure how long the commands take that import and export users, and how much memory they use."""
    for kind in DATABASES:
        folder, url = part.build.database(f"import, {kind}", kind)
        for command, usage in commands.measure_transfer(folder, url, part.arguments.imports).items():
            part.results.other[f"{command}, {kind}, seconds"].append(usage.seconds)
            part.results.other[f"{command}, {kind}, MiB"].append(usage.peak_mib)
            print(f"    {command}, {kind}: {usage.seconds:.1f} s, {usage.peak_mib:.0f} MiB", flush=True)
    part.results.other["imported users"] = [part.arguments.imports]


def measure_start(part: Part) -> None:
    """Measure the time from the start to the first response, the memory after a load, and ``mlapi --help``."""
    ceiling = part.build.ceiling("start, ceiling")
    ours = [part.build.mlapi(f"start, uvicorn, {kind}", kind=kind) for kind in DATABASES]
    ours += [part.build.mlapi(f"start, mlapi serve, {kind}", kind=kind, workers=1) for kind in DATABASES]
    for _ in part.rounds():
        for target in [ceiling, *ours]:
            for _ in range(STARTS - 1):
                with Server(target) as server:
                    part.results.startup_seconds[target.name].append(server.startup_seconds)
            part.measure(target, ("toggle",), (64,))
        part.results.other["mlapi --help, seconds"] += [
            commands.measure_help(ceiling.folder).seconds for _ in range(STARTS)
        ]


def measure_layers(part: Part) -> None:
    """Measure the processor time of each layer."""
    command = [sys.executable, "-m", "bench.layers"]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    part.results.texts["layers"] = done.stdout
    print(done.stdout, flush=True)


PARTS: dict[str, Callable[[Part], None]] = {
    "endpoints": measure_endpoints,
    "guard": measure_guard,
    "logins": measure_logins,
    "servers": measure_servers,
    "workers": measure_workers,
    "start": measure_start,
    "layers": measure_layers,
    "imports": measure_imports,
    "growth": measure_growth,
}
"""Each part by its name, in the order of a complete run."""
