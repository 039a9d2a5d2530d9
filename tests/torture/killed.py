"""A command of ours that is killed at one of its steps: before or after whatever it does to a file or a database."""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any

STEPS = frozenset({"fsync", "fchown", "fchmod", "chown", "chmod", "replace", "rename", "link", "unlink", "commit"})
"""Functions, by their names, whichever library they are of."""
FORKED = get_context("forkserver")
"""A process that has imported everything, and is forked for each command: 50 ms instead of a second."""
FORKED.set_forkserver_preload(["tests.torture.killed", "mlapi.entrypoints.cli", "psycopg"])


def run(
    folder: Path, environ: Mapping[str, str], arguments: Sequence[str], *, at: int | None = None, under_way: float = 0.1
) -> int:
    """Run ``mlapi`` in a process of its own.

    Args:
        folder: that it runs in.
        environ: its settings.
        arguments: of ``mlapi``.
        at: the number of the step at which it is killed; None for none.
        under_way: seconds for which requests of a service may be under way; in truth ten.

    Returns:
        its exit code; of one that was killed, the signal's number below 0.
    """
    process = FORKED.Process(target=_run, args=(folder, dict(environ), tuple(arguments), at, under_way))
    process.start()
    process.join(60)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{' '.join(arguments)} does not end")
    return process.exitcode


def _run(folder: Path, environ: dict[str, str], arguments: tuple[str, ...], at: int | None, under_way: float) -> None:
    from mlapi.application import key_reload as rotation  # noqa: PLC0415 - as below
    from mlapi.application import key_rotation  # noqa: PLC0415 - in the process that is killed alone
    from mlapi.entrypoints.cli import main  # noqa: PLC0415 - in the process that is killed alone

    os.chdir(folder)
    for name in [name for name in os.environ if name.startswith("MLAPI_")]:
        del os.environ[name]
    os.environ |= environ
    output = os.open(folder / "command.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    key_rotation.UNDER_WAY, key_rotation._SEEN = under_way, under_way / 5
    rotation.RELOAD_CHECK_SECONDS = under_way / 10
    if at is not None:
        sys.setprofile(_killer(at))
    main(arguments, prog_name="mlapi")


def _killer(at: int) -> Callable[[FrameType, str, Any], None]:
    """Return what counts the steps, each before and after it, and kills this process at one of them."""
    count = 0

    def look(frame: FrameType, event: str, called: Any) -> None:
        nonlocal count
        if event in {"c_call", "c_return"}:
            library = called.__module__ or type(called.__self__).__module__
            is_step = called.__name__ in STEPS and library in {"posix", "sqlite3"}
        else:  # of a function in Python
            code = frame.f_code
            is_step = code.co_name == "commit" and Path(code.co_filename).parent.name == "psycopg"
        if is_step:
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    return look
