"""Keys, salts and token keys are rotated while users log in at two servers."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import URL

from tests.e2e.server import Server
from tests.e2e.test_access import is_accepted, issue_token, log_in, register
from tests.torture.crash_points import run

IN_FLIGHT_SECONDS = 2.0
"""How long a rotation waits here. Servers reload the keys every second and answer requests well within that time."""
PRUNE_TIMEOUT_SECONDS = 30


def test_no_login_fails_during_key_rotation(url: URL, tmp_path: Path) -> None:
    environ = {"MLAPI_DATABASE__URL": url.render_as_string(hide_password=False)}
    statuses: list[int] = []
    done = threading.Event()

    with ExitStack() as stack:
        servers = [stack.enter_context(Server(tmp_path, environ)) for _ in range(2)]
        for number in range(5):
            register(servers[number % 2], f"user{number}")
        token = issue_token(servers[0], "user0")

        def log_in_repeatedly(number: int) -> None:
            while not done.wait(0.1):
                statuses.append(log_in(servers[len(statuses) % 2], username=f"user{number}").status_code)

        def run_command(*arguments: str) -> str:
            (tmp_path / "command.log").unlink(missing_ok=True)
            code = run(tmp_path, environ, ["secrets", *arguments], in_flight_seconds=IN_FLIGHT_SECONDS)
            output = (tmp_path / "command.log").read_text()
            assert code == 0, output
            return output

        with ThreadPoolExecutor(3) as pool, ExitStack() as before_joining:
            before_joining.callback(done.set)  # otherwise a failure below would wait for the clients forever
            clients = [pool.submit(log_in_repeatedly, number) for number in range(3)]
            rotated = run_command("rotate")
            run_command("rotate", "--salt")
            run_command("rotate", "--tokens")
            time.sleep(1.5)  # servers reload the keys every second
            valid_after_rotation = [is_accepted(server, token) for server in servers]
            pruned = run_command("prune")
            deadline = time.monotonic() + PRUNE_TIMEOUT_SECONDS
            while any(is_accepted(server, token) for server in servers) and time.monotonic() < deadline:
                time.sleep(0.05)
            valid_after_pruning = [is_accepted(server, token) for server in servers]
        for client in clients:
            client.result()
        statuses_at_the_end = [log_in(servers[0], username=f"user{number}").status_code for number in range(5)]

    assert "every password is encrypted with the newest key; " in rotated
    assert valid_after_rotation == [True, True]
    assert "kept salts: 2 users have not logged in since the newest was added\npruned\n" in pruned
    assert valid_after_pruning == [False, False]
    assert set(statuses) == {200}
    assert len(statuses) > 20
    assert statuses_at_the_end == [200] * 5
