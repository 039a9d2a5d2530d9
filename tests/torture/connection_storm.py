"""Open new connections at a constant rate, send one request on each, and count how each of them ended.

Run as a program: it prints the counts as JSON when its standard input is closed.
"""

import asyncio
import json
import sys
import time
from collections import Counter

REQUEST = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
CONNECT_TIMEOUT_SECONDS = 5.0
"""Longer than the kernel's first two retries of a handshake."""
RESPONSE_TIMEOUT_SECONDS = 20.0


async def request_once(port: int, outcomes: Counter[str]) -> None:
    """Open a connection, send a request and count the outcome: ``served``, ``refused`` or ``cut: ...``."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:  # includes TimeoutError
        outcomes["refused"] += 1
        return
    try:
        writer.write(REQUEST)
        async with asyncio.timeout(RESPONSE_TIMEOUT_SECONDS):
            response = await reader.readuntil(b"}")
        outcomes["served" if response.startswith(b"HTTP/1.1 200 ") else f"cut: {response[:12]!r}"] += 1
    except (OSError, asyncio.IncompleteReadError) as error:
        outcomes[f"cut: {type(error).__name__}"] += 1
    finally:
        writer.close()


async def storm(port: int, connections_per_second: int) -> Counter[str]:
    """Open connections until standard input is closed; return the number of connections by outcome."""
    loop = asyncio.get_running_loop()
    stop = loop.run_in_executor(None, sys.stdin.read)
    outcomes: Counter[str] = Counter()
    started = 0
    begin = time.monotonic()
    async with asyncio.TaskGroup() as requests:
        while not stop.done():
            due = int((time.monotonic() - begin) * connections_per_second)
            # Skip connections that a slow machine could not open in time, instead of opening thousands at once.
            for _ in range(min(due - started, connections_per_second // 10)):
                requests.create_task(request_once(port, outcomes))
            started = due
            await asyncio.sleep(0.005)
    return outcomes


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(storm(int(sys.argv[1]), int(sys.argv[2])))))
