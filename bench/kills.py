"""Kill the service again and again under load, and look for what it had acknowledged: ``python -m bench.kills``.

The longer form of the test in tests/e2e. Prints the counts for SQLite and PostgreSQL; exits with 1 if a change is lost.
"""

import argparse
import signal
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import requests
from sqlalchemy import text
from tests.e2e.server import Server
from tests.postgres_server import running_postgres

from mlapi.adapters.sql import Database, database_url

CLIENTS = 8


def keep_changing(server: Server, prefix: str, acknowledged: dict[int, bool]) -> None:
    """Register users and disable every other one until the server is gone; keep what it said it had done."""
    session = requests.Session()
    number = 0
    while True:
        number += 1
        name = f"{prefix}-{number}"
        body = {"username": name, "password": "correct horse battery", "email": f"{name}@example.com"}
        try:
            user_id = session.post(f"{server.base}/register-user", json=body, timeout=30).json()["user_id"]
            acknowledged[user_id] = True
            if number % 2:
                session.put(f"{server.base}/toggle-user-permission/{user_id}/0", timeout=30).raise_for_status()
                acknowledged[user_id] = False
        except requests.RequestException:
            return


def torture(url: str, folder: Path, kills: int) -> int:
    """Return how many acknowledged changes are lost."""
    environ = {"MLAPI_DATABASE__URL": url, "MLAPI_PASSWORDS__SCHEME": "fernet"}
    acknowledged: dict[int, bool] = {}
    restarts = []
    for number in range(kills):
        begin = time.monotonic()
        server = Server(folder, environ).start()
        restarts.append(time.monotonic() - begin)
        clients = [
            threading.Thread(target=keep_changing, args=(server, f"{number}-{client}", acknowledged))
            for client in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        time.sleep(0.3)
        server.stop(signal.SIGKILL)
        for client in clients:
            client.join()
    with Database(database_url(url)) as database, database.reading() as connection:
        rows = connection.execute(text("SELECT id, enabled FROM users")).all()
        stored = {row.id: row.enabled for row in rows}
        names = connection.execute(text("SELECT count(*), count(DISTINCT username_key) FROM users")).one()
    # A user may be disabled without our knowing: the kill came between the commit and the answer.
    lost = [i for i, enabled in acknowledged.items() if i not in stored or (stored[i] and not enabled)]
    kind = url.partition(":")[0]
    print(
        f"{kind}: {kills} kills, {len(acknowledged):,} acknowledged users, {len(lost)} lost,"
        f" {names[0] - names[1]} names twice, ready again after {max(restarts):.1f} s at most",
        flush=True,
    )
    return len(lost)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of each database's service")
    kills = parser.parse_args().kills
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlapi-kills-"))) for _ in range(2)]
        postgres = stack.enter_context(running_postgres(durable=True))
        url = stack.enter_context(postgres.new_database()).render_as_string(hide_password=False)
        lost = torture(f"sqlite:///{folders[0]}/mlapi.db", folders[0], kills) + torture(url, folders[1], kills)
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
