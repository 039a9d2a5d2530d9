"""The real server in a separate process: start it, send it requests, stop it or kill it."""

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

from tests.postgres_server import free_port

START_TIMEOUT_SECONDS = 60
ROOT = Path(__file__).parents[2]


class Server:
    """Runs uvicorn on a free port, without the test process's ``MLAPI_`` variables.

    Args:
        folder: working directory of the server.
        environ: settings, as environment variables.
        options: command-line options of uvicorn.
        app: import string of the application.
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
        """Start the server; return when it responds to a request, with any status."""
        self._spawn()
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline and self.is_running:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()  # cheaper than a request
                requests.get(f"{self.base}/health/live", timeout=5)
            except OSError:  # including timeouts of requests while workers start on a busy machine
                time.sleep(0.02)
            else:
                return self
        raise RuntimeError(f"the server did not start:\n{self.log}")

    def run_until_exit(self) -> int:
        """Start a server that is expected to exit during startup; return its exit code."""
        return self._spawn().wait(START_TIMEOUT_SECONDS)

    def stop(self, signal_number: signal.Signals = signal.SIGTERM) -> None:
        """Stop the server. SIGTERM shuts down gracefully; SIGKILL kills all its processes, which simulates a crash."""
        if self._process is not None:
            if signal_number is signal.SIGKILL:
                os.killpg(self._process.pid, signal_number)
            elif self.is_running:
                self._process.send_signal(signal_number)
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
        """Return the peak resident memory of the server so far, or of the process with this id."""
        (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid or self.pid}/status").read_text())
        return int(line) / 1024

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def send_raw(self, request: bytes, host: str = "127.0.0.1", then: bytes = b"") -> bytes:
        """Send raw bytes; return everything received until the server closes the connection or is silent for a second.

        Args:
            request: bytes to send.
            host: address to connect to.
            then: bytes to send 0.2 seconds later.
        """
        with socket.create_connection((host, self.port), timeout=10) as connection:
            received = b""
            # The server may close the connection before it has read everything.
            with suppress(TimeoutError, ConnectionResetError, BrokenPipeError):
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
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLAPI_")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**inherited, **self.environ},
                start_new_session=True,  # a process group, so that `stop` can kill the workers too
            )
        return self._process

    def _command(self) -> list[str]:
        uvicorn = Path(sys.executable).with_name("uvicorn")
        return [str(uvicorn), self.app, "--app-dir", str(ROOT), "--port", str(self.port), *self.options]


class MlapiServer(Server):
    """Runs ``mlapi serve`` instead of uvicorn, with the options of ``mlapi serve``."""

    @property
    def workers(self) -> set[int]:
        """Process ids of all workers, including starting and draining ones."""
        return {int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()}

    def _command(self) -> list[str]:
        mlapi = Path(sys.executable).with_name("mlapi")
        return [str(mlapi), "serve", "--port", str(self.port), *self.options]
