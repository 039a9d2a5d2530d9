"""Serve WSGI applications in a thread of the test process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING

from werkzeug.serving import WSGIRequestHandler, make_server

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


class _SilentRequestHandler(WSGIRequestHandler):
    def log(self, *_args: object) -> None:
        pass


@contextmanager
def serving(app: "WSGIApplication") -> Iterator[str]:
    """Serve an application on a free port. Yield its base URL."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_SilentRequestHandler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()


def empty_page(_environ: object, start_response: Callable[[str, list[tuple[str, str]]], object]) -> list[bytes]:
    """Respond to every request with an HTML page. Served on another port, it is a page of another origin."""
    start_response("200 OK", [("Content-Type", "text/html")])
    return [b"<!doctype html><title>Page</title>"]
