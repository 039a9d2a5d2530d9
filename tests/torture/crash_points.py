"""Run an ``mlapi`` command and kill it at a chosen step: before or after a call that writes to a file or database."""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any

STEPS = frozenset(
    {"backup", "fsync", "fchown", "fchmod", "chown", "chmod", "replace", "rename", "link", "unlink", "commit"}
)
"""Names of the functions in `os`, `sqlite3` and psycopg that count as steps."""
FORK_SERVER = get_context("forkserver")
"""Starts each command in 50 ms instead of a second, by forking a process that has already imported everything."""
FORK_SERVER.set_forkserver_preload(["tests.torture.crash_points", "mlapi.entrypoints.cli", "psycopg"])


def run(
    folder: Path,
    environ: Mapping[str, str],
    arguments: Sequence[str],
    *,
    kill_at: int | None = None,
    in_flight_seconds: float = 0.1,
) -> int:
    """Run ``mlapi`` in a separate process.

    Args:
        folder: working directory.
        environ: settings, as environment variables.
        arguments: command-line arguments of ``mlapi``.
        kill_at: number of the step at which to kill the process; None lets it finish.
        in_flight_seconds: how long a key rotation waits for requests in flight; 10 in production.

    Returns:
        The exit code, or the negative signal number if the process was killed.
    """
    process = FORK_SERVER.Process(
        target=_run, args=(folder, dict(environ), tuple(arguments), kill_at, in_flight_seconds)
    )
    process.start()
    process.join(60)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{' '.join(arguments)} did not exit within 60 seconds")
    return process.exitcode


def _run(
    folder: Path, environ: dict[str, str], arguments: tuple[str, ...], kill_at: int | None, in_flight_seconds: float
) -> None:
    # Import here, so that only the forked process is patched.
    from mlapi.application import secret_reload, secret_rotation  # noqa: PLC0415
    from mlapi.entrypoints.cli import main  # noqa: PLC0415

    os.chdir(folder)
    for name in [name for name in os.environ if name.startswith("MLAPI_")]:
        del os.environ[name]
    os.environ |= environ
    output = os.open(folder / "command.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    secret_rotation.SETTLE_SECONDS, secret_rotation._RELOAD_SECONDS = in_flight_seconds, in_flight_seconds / 5
    secret_reload.RELOAD_CHECK_SECONDS = in_flight_seconds / 10
    if kill_at is not None:
        sys.setprofile(_make_killer(kill_at))
    main(arguments, prog_name="mlapi")


def _make_killer(kill_at: int) -> Callable[[FrameType, str, Any], None]:
    """Return a profile function that counts the start and end of every step and kills this process at ``kill_at``."""
    count = 0

    def on_event(frame: FrameType, event: str, called: Any) -> None:
        nonlocal count
        if event in {"c_call", "c_return"}:
            library = called.__module__ or type(called.__self__).__module__
            is_step = called.__name__ in STEPS and library in {"posix", "sqlite3"}
        else:  # call or return of a Python function
            code = frame.f_code
            is_step = code.co_name == "commit" and Path(code.co_filename).parent.name == "psycopg"
        if is_step:
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    return on_event
