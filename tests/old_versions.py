"""Let the tests run on the lowest supported versions, whose test tools differ: `make test-lowest`.

Only test tools are adapted here. The code in ``src`` has to work as it is.
"""

from inspect import signature
from typing import Any

from click.testing import CliRunner, Result
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send


def adapt_test_tools() -> None:
    """Add the features of newer test tools that the tests need."""
    if "mix_stderr" in signature(CliRunner.__init__).parameters:  # click < 8.2
        _capture_both_streams()
    if "client" not in signature(TestClient.__init__).parameters:  # Starlette < 0.44
        _accept_client_address()


def _capture_both_streams() -> None:
    """Capture stdout and stderr separately, and return both as the output."""
    create = CliRunner.__init__

    def create_separating(runner: CliRunner, *arguments: Any, **options: Any) -> None:
        create(runner, *arguments, **{"mix_stderr": False, **options})

    CliRunner.__init__ = create_separating  # type: ignore[assignment, method-assign]  # replaced on purpose
    output = property(lambda result: result.stdout + result.stderr)
    Result.output = output  # type: ignore[assignment, method-assign]  # replaced on purpose


def _accept_client_address() -> None:
    """Let `TestClient` take the address and port of the client."""
    create = TestClient.__init__

    def create_with_address(
        http: TestClient, app: Any, *arguments: Any, client: tuple[str, int] | None = None, **options: Any
    ) -> None:
        async def app_with_address(scope: Scope, receive: Receive, send: Send) -> None:
            if "client" in scope:
                scope["client"] = client
            await app(scope, receive, send)

        create(http, app if client is None else app_with_address, *arguments, **options)
        http.app = app

    TestClient.__init__ = create_with_address  # type: ignore[assignment, method-assign]  # replaced on purpose
