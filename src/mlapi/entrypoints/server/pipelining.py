"""Process pipelined requests one at a time, and take turns between connections.

uvicorn parses every request that it receives before it has answered the first one. A client could make it hold
thousands of requests per connection.
"""

import asyncio
from collections import deque
from collections.abc import Callable

TURNS_PER_ITERATION = 32
"""How many connections take their turn in one iteration of the event loop."""
SHORT_READS_PER_ITERATION = 128
"""How many short reads are parsed immediately in one iteration. The others wait for their turn."""
SHORT_READ_BYTES = 4096
"""The maximum length of a read that is parsed immediately. Most requests are shorter."""
_END = b"\r\n\r\n"


class RequestSplitter:
    """Splits received bytes so that no piece contains parts of two requests.

    A request ends with a body of known length, or with an empty line: the end of its headers or of a chunked body. The
    parser rejects other line ends. A piece may also end at an empty line inside a chunked body, which does no harm.
    """

    def __init__(self) -> None:
        self.body_bytes_left = 0
        """The number of bytes still missing from a body of known length."""
        self._last_bytes = b""
        """The last three bytes of an incomplete request, because an empty line may have started in them."""

    def next_piece(self, data: bytes) -> bytes:
        """Return the first piece of the data: up to the end of a request, or all of it."""
        if self.body_bytes_left:
            piece = data[: self.body_bytes_left]
            self.body_bytes_left -= len(piece)
            return piece
        if self._last_bytes:
            found = (self._last_bytes + data[:3]).find(_END)
            end = -1 if found < 0 else found + len(_END) - len(self._last_bytes)
        else:
            end = -1
        if end < 0:
            found = data.find(_END)
            end = -1 if found < 0 else found + len(_END)
        if end < 0:
            self._last_bytes = (self._last_bytes + data[-3:])[-3:]
            return data
        self._last_bytes = b""
        return data[:end]


class RoundRobin:
    """Calls functions in the order in which they were added, a few in each iteration of the event loop.

    In each iteration, the event loop also accepts connections and reads short requests. These clients therefore wait
    only briefly, no matter how much data others have sent.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_scheduled = False
        self._iteration_time = 0.0
        self._short_reads = 0

    def must_wait(self, read_bytes: int, loop_time: float) -> bool:
        """Count a read, and return whether it has to wait for its turn.

        Args:
            read_bytes: how many bytes were read.
            loop_time: the time of the event loop. uvloop updates it once in each iteration.
        """
        if read_bytes > SHORT_READ_BYTES:
            return True
        if loop_time != self._iteration_time:
            self._iteration_time, self._short_reads = loop_time, 0
        self._short_reads += 1
        return self._short_reads > SHORT_READS_PER_ITERATION

    def add(self, function: Callable[[], None]) -> None:
        self._waiting.append(function)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._is_scheduled = False
        try:
            for _ in range(min(len(self._waiting), TURNS_PER_ITERATION)):
                self._waiting.popleft()()
        finally:
            self._schedule()
