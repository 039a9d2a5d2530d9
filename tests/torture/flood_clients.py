"""Send requests from another address: ``python -m tests.torture.flood_clients PORT ADDRESS CONNECTIONS``.

Runs in a separate process. It reads the request as JSON from the first line of its standard input, prints ``open``, and
sends the request again and again over all connections until its standard input closes. A username of ``{}`` is replaced
with a new one each time. Then it prints the number of responses by status as JSON.
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

NEW_NAME = "{}"


def encode(request: Mapping[str, Any], number: int) -> bytes:
    content = request["body"]
    if isinstance(content, dict) and content.get("username") == NEW_NAME:
        content = {**content, "username": f"flood{number}"}
    body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    authorization = f"Authorization: Bearer {request['bearer']}\r\n" if "bearer" in request else ""
    head = (
        f"{request['method']} {request['path']} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"{authorization}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class FloodClients:
    """Connections that all send the same request."""

    def __init__(self, port: int, address: str, request: Mapping[str, Any]) -> None:
        self._port = port
        self._address = address
        self._request = request
        self._sent = 0
        self.statuses: Counter[str] = Counter()

    async def run(self, connections: int) -> None:
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(self._keep_sending()) for _ in range(connections)]
        print("open", flush=True)  # noqa: T201 - for the test
        await loop.run_in_executor(None, sys.stdin.read)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_sending(self) -> None:
        while True:
            with suppress(OSError, EOFError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(self._address, 0))
                try:
                    while True:
                        await self._send(reader, writer)
                finally:
                    writer.close()
            self.statuses["closed"] += 1
            await asyncio.sleep(0.05)

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._sent += 1
        writer.write(encode(self._request, self._sent))
        head = await reader.readuntil(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length: ")
        await reader.readexactly(int(length.split(b"\r\n")[0]))
        self.statuses[head[9:12].decode()] += 1


def main(port: int, address: str, connections: int) -> None:
    clients = FloodClients(port, address, json.loads(sys.stdin.readline()))
    asyncio.run(clients.run(connections))
    print(json.dumps(clients.statuses), flush=True)  # noqa: T201 - for the test


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
