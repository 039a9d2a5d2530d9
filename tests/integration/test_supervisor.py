"""The parent of ``mlapi serve`` and its workers, most of which are small programs here, and obey a file."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from mlapi.entrypoints.cli.serve import bound_sockets
from mlapi.entrypoints.server import supervisor
from mlapi.entrypoints.server.supervisor import Patience, Supervisor, supervise

WORKER = """
import os, select, signal, socket, sys, time
folder, listening, supervised, alive = sys.argv[1], *map(int, sys.argv[2:])
mood = open(folder + "/mood").read()
with open(folder + "/pids", "a") as pids:
    pids.write(f"{os.getpid()} ")
if mood.startswith("exit"):
    sys.exit(int(mood[4:]))
if mood == "never ready":
    time.sleep(60)
drains = []
signal.signal(signal.SIGTERM, lambda *_: drains.append(1))
place = socket.socket(fileno=listening)
place.listen()
os.write(alive, b".")
while not select.select([supervised], [], [], 0.05)[0]:
    if drains:
        os.write(alive, b"-" if len(drains) == 1 else b".")  # what it says later was under way
        drains.append(1)
        place.close()
        if mood != "busy":
            break
    elif mood != "silent":
        os.write(alive, b".")
"""
"""Drains at once, unless it is busy."""


class Supervised:
    """A supervisor in a thread, of workers that are as the file ``mood`` says when they start."""

    def __init__(self, folder: Path, wanted: int, patience: Patience) -> None:
        self.folder = folder
        self.mood("obedient")
        self.places = bound_sockets("127.0.0.1", 0, wanted)
        self.supervisor = Supervisor(self.places, self._command, patience)
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run)

    def _command(self, listening: int, supervised: int, alive: int) -> list[str]:
        descriptors = [str(descriptor) for descriptor in (listening, supervised, alive)]
        return [sys.executable, "-I", "-c", WORKER, str(self.folder), *descriptors]

    def _run(self) -> None:
        self.code = self.supervisor.run()

    def start(self) -> None:
        self._thread.start()

    def mood(self, mood: str) -> None:
        (self.folder / "mood").write_text(mood)

    @property
    def pids(self) -> list[int]:
        """Of all workers so far, in order."""
        file = self.folder / "pids"
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []

    @property
    def running(self) -> list[int]:
        return [pid for pid in self.pids if is_running(pid)]

    def end(self, how: int = signal.SIGTERM) -> int | None:
        if self._thread.is_alive():
            self.supervisor.ask(how)
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.code


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def listen(place: socket.socket) -> bool:
    """Return whether a worker serves there; it obeys signals from then on."""
    return bool(place.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def eventually(is_so: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come so"
        time.sleep(0.02)


@pytest.fixture
def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Supervised]]:
    monkeypatch.setattr(supervisor, "LOOK", 0.1)
    begun: list[Supervised] = []

    def begin(wanted: int = 2, mood: str = "obedient", patience: Patience | None = None) -> Supervised:
        one = Supervised(tmp_path, wanted, patience or Patience(failure=0.1))
        one.mood(mood)
        one.start()
        begun.append(one)
        return one

    yield begin
    for one in begun:
        for pid in one.running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        one.end(signal.SIGINT)


Begin = Callable[..., Supervised]


def test_it_starts_as_many_as_wanted_and_ends_all(supervised: Begin) -> None:
    one = supervised(3)
    eventually(lambda: len(one.running) == 3)

    code = one.end()

    assert code == 0
    assert one.running == []
    assert [place.fileno() for place in one.places] == [-1, -1, -1]


def test_one_that_dies_is_replaced(supervised: Begin) -> None:
    one = supervised()
    eventually(lambda: len(one.running) == 2)
    victim = one.pids[0]

    os.kill(victim, signal.SIGKILL)

    eventually(lambda: len(one.running) == 2 and len(one.pids) == 3)
    assert victim not in one.running


def test_a_restart_replaces_each_when_its_successor_serves(supervised: Begin) -> None:
    one = supervised()
    eventually(lambda: len(one.running) == 2)
    before = one.pids

    one.supervisor.ask(signal.SIGHUP)

    least = 2
    deadline = time.monotonic() + 10
    while set(one.running) & set(before) and time.monotonic() < deadline:
        least = min(least, len(one.running))
    assert least == 2
    assert len(one.pids) == 4  # no successor was turned away by whom it was to replace
    eventually(lambda: len(one.running) == 2)
    assert not set(one.running) & set(before)
    assert one.code is None


def test_a_restart_whose_first_worker_cannot_start_is_given_up(
    supervised: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    one = supervised()
    eventually(lambda: len(one.running) == 2)
    before = one.pids
    one.mood("exit3")

    one.supervisor.ask(signal.SIGHUP)

    eventually(lambda: len(one.pids) == 3)
    time.sleep(0.5)
    assert one.running == before
    assert len(one.pids) == 3
    assert "a new worker could not start (3): those that serve go on" in caplog.messages


def test_the_place_of_one_that_died_is_tried_to_fill_again_and_again(supervised: Begin) -> None:
    one = supervised()
    eventually(lambda: len(one.running) == 2)
    one.mood("exit3")
    os.kill(one.pids[0], signal.SIGKILL)
    eventually(lambda: len(one.pids) >= 5)

    one.mood("obedient")

    eventually(lambda: len(one.running) == 2)


def test_nobody_is_brought_to_a_place_whose_worker_is_gone(supervised: Begin) -> None:
    one = supervised(2)
    eventually(lambda: all(map(listen, one.places)))
    one.mood("exit3")

    os.kill(one.pids[0], signal.SIGKILL)

    eventually(lambda: len(one.pids) == 3)
    assert list(map(listen, one.places)) == [False, True]
    one.mood("obedient")
    eventually(lambda: all(map(listen, one.places)))


def test_the_place_of_the_only_worker_is_kept_for_the_next(supervised: Begin) -> None:
    one = supervised(1)
    eventually(lambda: len(one.running) == 1)
    one.mood("exit3")

    os.kill(one.pids[0], signal.SIGKILL)

    eventually(lambda: len(one.pids) == 2)
    with socket.create_connection(one.places[0].getsockname(), timeout=5):
        one.mood("obedient")
        eventually(lambda: len(one.running) == 1)


def test_one_that_drains_although_nobody_asked_is_replaced_at_once(supervised: Begin) -> None:
    one = supervised(2, mood="busy")
    eventually(lambda: all(map(listen, one.places)))
    leaving = one.pids[0]

    os.kill(leaving, signal.SIGTERM)

    eventually(lambda: len(one.pids) == 3)
    assert leaving in one.running
    eventually(lambda: all(map(listen, one.places)))


@pytest.mark.parametrize(("how", "code"), [("exit3", 3), ("exit0", 1)])
def test_a_first_start_that_is_refused_ends_it_after_one_try(supervised: Begin, how: str, code: int) -> None:
    one = supervised(mood=how)

    eventually(lambda: one.code is not None)
    assert one.code == code
    assert len(one.pids) == 1


@pytest.mark.parametrize("mood", ["silent", "never ready"])
def test_one_that_hangs_is_ended_and_replaced(supervised: Begin, mood: str) -> None:
    one = supervised(1, patience=Patience(start=3, silence=3, failure=0.1))
    eventually(lambda: len(one.running) == 1)
    one.mood(mood)
    os.kill(one.pids[0], signal.SIGKILL)
    eventually(lambda: len(one.pids) == 2)
    one.mood("obedient")

    eventually(lambda: len(one.pids) == 3 and one.running == one.pids[2:])


def test_one_that_does_not_end_in_its_time_is_ended(supervised: Begin) -> None:
    one = supervised(1, mood="busy", patience=Patience(drain=0.3))
    eventually(lambda: all(map(listen, one.places)))

    begun = time.monotonic()
    one.end()

    assert time.monotonic() - begun < 5
    assert one.running == []


def test_whoever_presses_ctrl_c_does_not_wait_for_those_who_are_silent(supervised: Begin) -> None:
    one = supervised(mood="busy")
    eventually(lambda: all(map(listen, one.places)))

    begun = time.monotonic()
    one.end(signal.SIGINT)

    assert time.monotonic() - begun < 3


def test_the_second_ctrl_c_waits_for_nothing(supervised: Begin) -> None:
    one = supervised(mood="busy")
    eventually(lambda: all(map(listen, one.places)))
    for pid in one.running:
        os.kill(pid, signal.SIGSTOP)
    one.supervisor.ask(signal.SIGINT)
    time.sleep(0.3)
    assert len(one.running) == 2

    one.end(signal.SIGINT)

    assert one.running == []


def test_what_is_asked_while_it_ends_does_not_begin_anything(supervised: Begin) -> None:
    one = supervised(mood="busy")
    eventually(lambda: all(map(listen, one.places)))
    one.supervisor.ask(signal.SIGTERM)

    one.supervisor.ask(signal.SIGHUP)

    time.sleep(0.5)
    assert len(one.pids) == 2


@pytest.mark.usefixtures("restore_process_state")
@pytest.mark.parametrize("workers", [1, 2])
def test_real_workers_serve_on_the_socket_that_it_was_given(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = bound_sockets("127.0.0.1", 0, workers)
    base = f"http://127.0.0.1:{places[0].getsockname()[1]}"
    answers: list[int] = []

    def client() -> None:
        answers.append(requests.get(f"{base}/health/ready", timeout=30).status_code)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=client)
    thread.start()
    code = supervise([place.detach() for place in places], connections=100, access_log=False, log_format="text")
    thread.join()

    assert code == 0
    assert answers == [200]
    assert ("PROMETHEUS_MULTIPROC_DIR" in os.environ) == (workers > 1)
    with pytest.raises(requests.ConnectionError):
        requests.get(base, timeout=5)
