"""Kill workers that stream responses: the units of every response that a client received completely are stored."""

import random
import signal
import threading
import time
from pathlib import Path

import requests
from sqlalchemy import URL

from mlapi.bootstrap import open_service
from mlapi.config import Settings, load_settings
from tests.e2e.server import Server
from tests.torture.conftest import Report, ShortOrFull
from tests.torture.guarded_app import UNITS

LIMIT = 10**9
CLIENTS = 4


class Client:
    """Streams answers until it is stopped.

    Attributes:
        complete: how many answers it has received to the end.
        cut: how many requests have failed after they were sent.
    """

    def __init__(self, base: str, api_key: str) -> None:
        self._url = f"{base}/generate"
        self._headers = {"X-API-Key": api_key}
        self.complete = self.cut = 0

    def run(self, stop: threading.Event) -> None:
        with requests.Session() as session:
            while not stop.is_set():
                try:
                    response = session.get(self._url, headers=self._headers, timeout=30)
                except requests.ConnectionError as error:
                    if "refused" not in str(error):
                        self.cut += 1
                    time.sleep(0.01)
                except requests.RequestException:
                    self.cut += 1
                else:
                    assert (response.status_code, response.text) == (200, "token " * UNITS)
                    self.complete += 1


def test_units_of_complete_answers_survive_kills(
    durable_url: URL, tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    kills = short_or_full(3, 40)
    (tmp_path / "config.yml").write_text(f"plans: {{metered: {{units_per_day: {LIMIT}}}}}\ndefault_plan: metered\n")
    environ = {
        "MLAPI_CONFIG": str(tmp_path / "config.yml"),
        "MLAPI_DATABASE__URL": durable_url.render_as_string(hide_password=False),
    }
    settings = load_settings(environ=environ)
    api_key = add_api_key(settings)
    with Server(tmp_path, environ, "--no-access-log", app="tests.torture.guarded_app:app") as server:
        clients = [Client(server.base, api_key) for _ in range(CLIENTS)]
        stop = threading.Event()
        threads = [threading.Thread(target=client.run, args=(stop,)) for client in clients]
        for thread in threads:
            thread.start()
        try:
            for _ in range(kills):
                time.sleep(0.3 + random.random() * 0.5)
                server.stop(signal.SIGKILL)
                server.start()
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    complete, cut = sum(client.complete for client in clients), sum(client.cut for client in clients)
    stored = count_units(settings, api_key)
    assert complete > kills
    assert complete * UNITS <= stored <= (complete + cut) * UNITS
    report(f"{kills} kills, {complete:,} answers received, {cut} cut: the units of {stored / UNITS:,.0f} are stored")


def add_api_key(settings: Settings) -> str:
    with open_service(settings) as service:
        user = service.users.register(username="ada", password="difference engine", email="ada@example.com")
        _, api_key = service.users.add_api_key(user_id=user.id, name="job")
        return api_key


def count_units(settings: Settings, api_key: str) -> int:
    with open_service(settings) as service:
        (units,) = service.access.guard.admit(api_key, cost=0).limits
        return LIMIT - units.remaining
