"""Splitting received data into requests, and taking turns."""

import asyncio
import random
from functools import partial

import httptools
import pytest

from mlapi.entrypoints.server.pipelining import (
    SHORT_READ_BYTES,
    SHORT_READS_PER_ITERATION,
    TURNS_PER_ITERATION,
    RequestSplitter,
    RoundRobin,
)

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SIZED = b"POST / HTTP/1.1\r\nContent-Length: 12\r\n\r\n\r\n\r\nab\r\n\r\ncd"
EMPTY = b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n\r\n\r\nab\r\n0\r\n\r\n"
TRAILER = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r\n0\r\nExpires: never\r\n\r\n"
BLANK_LINES = b"\r\n\r\n\r\n"


class Parser:
    """Counts the requests that begin and end, and finds the length of each body."""

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.begun = self.heads = self.completed = self.content_length = 0

    def on_message_begin(self) -> None:
        self.begun += 1
        self.content_length = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if name == b"Content-Length":
            self.content_length = int(value)

    def on_headers_complete(self) -> None:
        self.heads += 1

    def on_message_complete(self) -> None:
        self.completed += 1


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 4, 5, 7, 16, 1_000_000])
def test_no_piece_contains_parts_of_two_requests(chunk_bytes: int) -> None:
    parts = random.Random(chunk_bytes).choices([GET, SIZED, EMPTY, CHUNKED, TRAILER, BLANK_LINES], k=200)
    data = b"".join(parts)
    parser, splitter = Parser(), RequestSplitter()

    for start in range(0, len(data), chunk_bytes):
        rest = data[start : start + chunk_bytes]
        while rest:
            piece = splitter.next_piece(rest)
            assert piece == rest[: len(piece)] != b""
            rest = rest[len(piece) :]
            heads, completed = parser.heads, parser.completed
            parser.parser.feed_data(piece)
            assert parser.begun - completed <= 1
            if parser.heads > heads and parser.completed == completed:
                splitter.body_bytes_left = parser.content_length

    assert parser.completed == len(parts) - parts.count(BLANK_LINES)


def test_single_request_is_not_copied() -> None:
    assert RequestSplitter().next_piece(GET) is GET


def test_a_few_turns_are_taken_in_each_iteration() -> None:
    taken: list[int] = []
    counts: list[int] = []

    async def take_turns() -> None:
        turns = RoundRobin()
        for number in range(2 * TURNS_PER_ITERATION + 1):
            turns.add(partial(taken.append, number))
        turns.add(lambda: turns.add(partial(taken.append, -1)))
        for _ in range(5):
            await asyncio.sleep(0)
            counts.append(len(taken))

    asyncio.run(take_turns())

    assert counts[:3] == [TURNS_PER_ITERATION, 2 * TURNS_PER_ITERATION, 2 * TURNS_PER_ITERATION + 1]
    assert taken == [*range(2 * TURNS_PER_ITERATION + 1), -1]


def test_long_reads_and_too_many_short_ones_wait_for_their_turn() -> None:
    turns = RoundRobin()

    waits = [turns.must_wait(SHORT_READ_BYTES, 1.0) for _ in range(SHORT_READS_PER_ITERATION + 2)]

    assert waits == [False] * SHORT_READS_PER_ITERATION + [True, True]
    assert not turns.must_wait(SHORT_READ_BYTES, 1.001)
    assert turns.must_wait(SHORT_READ_BYTES + 1, 1.001)


def test_failed_turn_does_not_stop_the_others() -> None:
    taken: list[int] = []

    async def take_turns() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        turns = RoundRobin()
        turns.add(partial(taken.remove, 1))
        turns.add(partial(taken.append, 2))
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(take_turns())

    assert taken == [2]
