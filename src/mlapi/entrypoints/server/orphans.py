"""Serve the connections of listeners whose worker has stopped accepting them."""

import selectors
import socket
import time
from collections.abc import Sequence

from mlapi.entrypoints.server.listeners import is_listening
from mlapi.entrypoints.server.processes import Worker

_PASS_ON_SECONDS = 5.0
"""How long to wait for a worker to take a connection. Then the connection is closed."""
_MAX_ACCEPTS = 100
"""The maximum number of connections that are passed on before other events are handled."""


class OrphanedListeners:
    """The listeners whose worker has died or is draining. Their connections are passed to the other workers.

    Args:
        selector: wakes the supervisor when a connection is waiting. The data of its key is the listener.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._watched: list[socket.socket] = []
        self._passed_on = 0
        """The number of connections that were passed on."""

    def watch(self, listeners: Sequence[socket.socket], serving: Sequence[Worker]) -> None:
        """If any worker is serving, watch the listeners whose own worker has stopped accepting connections."""
        owned = [listener for worker in serving for listener in worker.listeners]
        orphans = [listener for listener in listeners if serving and listener not in owned and is_listening(listener)]
        for listener in self._watched:
            if listener not in orphans:
                self._selector.unregister(listener)
        for listener in orphans:
            if listener not in self._watched:
                self._selector.register(listener, selectors.EVENT_READ, listener)
        self._watched = orphans

    def pass_on_connections(self, listener: socket.socket, serving: Sequence[Worker]) -> None:
        """Accept the waiting connections of a listener and pass each of them to a worker."""
        for _ in range(_MAX_ACCEPTS):
            try:
                connection, _address = listener.accept()
            except OSError:  # no connection is waiting, or its client has closed it
                return
            self._passed_on += 1
            first = self._passed_on % max(len(serving), 1)
            with connection:
                _pass_on(connection, [*serving[first:], *serving[:first]])

    def pass_on_all(self, serving: Sequence[Worker]) -> None:
        """Pass on the connections of all watched listeners, and stop watching them."""
        for listener in self._watched:
            self.pass_on_connections(listener, serving)
        self.watch([], serving)


def _pass_on(connection: socket.socket, workers: Sequence[Worker]) -> None:
    """Pass a connection to the first worker that takes it."""
    give_up_at = time.monotonic() + _PASS_ON_SECONDS
    while not any(worker.serve(connection) for worker in workers) and time.monotonic() < give_up_at:
        time.sleep(0.01)  # the workers have not read their previous orders yet
