"""The real server in a process of its own: started, asked, stopped and killed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import requests

START_TIMEOUT = 30
ROOT = Path(__file__).parents[2]


class Server:
    """Uvicorn in a folder, on a free port, with nothing of our own environment.

    Args:
        folder: that it runs in.
        environ: settings.
        options: of uvicorn.
        app: what it serves.
    """

    def __init__(
        self,
        folder: Path,
        environ: dict[str, str] | None = None,
        *options: str,
        app: str = "mlapi.entrypoints.http:app",
    ) -> None:
        self.folder = folder
        self.app = app
        self.environ = environ or {}
        self.options = options
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self._log = folder / ("server.log" if app.startswith("mlapi.") else f"{app.partition(':')[0]}.log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        self._spawn()
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self.is_running:
            try:
                requests.get(f"{self.base}/health/live", timeout=5)
            except requests.ConnectionError:
                time.sleep(0.02)
            else:
                return self  # whatever it answers
        raise RuntimeError(f"the server did not start:\n{self.log}")

    def run_until_it_ends(self) -> int:
        """Start a server that is expected to refuse; return its exit code."""
        return self._spawn().wait(START_TIMEOUT)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """SIGTERM asks; SIGKILL kills every process of the server at once, as a crash does."""
        if self._process is not None:
            if how is signal.SIGKILL:
                os.killpg(self._process.pid, how)
            elif self.is_running:
                self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def peak_memory_mib(self, pid: int | None = None) -> float:
        """The most that has been resident so far, of the server or a process of its."""
        (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid or self.pid}/status").read_text())
        return int(line) / 1024

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def raw(self, request: bytes, host: str = "127.0.0.1", then: bytes = b"") -> bytes:
        """Send bytes as they are; return all that comes back until the server closes or is silent for a second."""
        with socket.create_connection((host, self.port), timeout=10) as connection:
            received = b""
            with suppress(TimeoutError, ConnectionResetError, BrokenPipeError):  # it has closed before it read all
                connection.sendall(request)
                if then:
                    time.sleep(0.2)
                    connection.sendall(then)
                connection.settimeout(1)
                while chunk := connection.recv(65536):
                    received += chunk
            return received

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def _spawn(self) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLAPI_")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**kept, **self.environ},
                start_new_session=True,  # a group of its own, so that its workers can be killed with it
            )
        return self._process

    def _command(self) -> list[str]:
        uvicorn = Path(sys.executable).with_name("uvicorn")
        return [str(uvicorn), self.app, "--app-dir", str(ROOT), "--port", str(self.port), *self.options]


class Serve(Server):
    """``mlapi serve`` instead of uvicorn; the options are its own."""

    @property
    def workers(self) -> set[int]:
        """The processes of its workers, whether they serve yet or drain."""
        return {int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()}

    def _command(self) -> list[str]:
        mlapi = Path(sys.executable).with_name("mlapi")
        return [str(mlapi), "serve", "--port", str(self.port), *self.options]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
