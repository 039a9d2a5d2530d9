"""Read from connections in small pieces."""

import asyncio
from typing import Any

from uvicorn.config import Config

from mlapi.entrypoints.server.connections import Connection, State


class BufferedReader(asyncio.BufferedProtocol):
    """Reads the data of a connection into `State.read_buffer`, at most 16 KiB at a time. asyncio would read 256 KiB."""

    def __init__(
        self,
        config: Config,
        server_state: State,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._connection = Connection(config, server_state, app_state, _loop)
        self._buffer = server_state.read_buffer

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - of asyncio
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.data_received(self._buffer[:nbytes].tobytes())

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        self._connection.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
