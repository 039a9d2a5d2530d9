"""Faults that delay a database: a hanging server, slow responses, and another process that holds the write lock."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.postgres_server import PostgresServer, free_port

_HOLD_LOCK = (
    "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1], isolation_level=None);"
    " connection.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read()"
)


@contextmanager
def write_lock_held(file: Path) -> Iterator[None]:
    """Hold the write lock of an SQLite file in another process during the block."""
    command = [sys.executable, "-c", _HOLD_LOCK, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        try:
            yield
        finally:
            process.communicate(timeout=30)


@contextmanager
def hanging(postgres: PostgresServer) -> Iterator[None]:
    """Stop all processes of a server during the block, while its connections stay open."""
    postgres.signal_all(signal.SIGSTOP)
    try:
        yield
    finally:
        postgres.signal_all(signal.SIGCONT)


class SlowProxy:
    """A TCP proxy that delays everything the server sends by ``delay_seconds``, which may change at any time."""

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.delay_seconds = 0.0
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()
        self._stopped = asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_error: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)
        self._started.set()
        await self._stopped.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        try:
            await asyncio.gather(
                self._copy(reader, server_writer, is_slow=False), self._copy(server_reader, writer, is_slow=True)
            )
        finally:
            writer.close()
            server_writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_slow: bool) -> None:
        try:
            while chunk := await reader.read(65536):
                if is_slow and self.delay_seconds:
                    self._loop.call_later(self.delay_seconds, writer.write, chunk)
                else:
                    writer.write(chunk)
        except ConnectionError:
            pass  # the other end was reset
        writer.close()
