"""Fork while a guard, users or an asynchronous guard are open, and use them in the parent and in all children.

Run as a script by test_forks.py. For each kind of work, prints the number of checks in all processes. Exits with the
first error.
"""

import asyncio
import os
import sys
import threading
import traceback
from collections.abc import Callable

from mlapi import InvalidTokenError, RepositoryUnavailableError
from mlapi.bootstrap import Service, async_guard, open_service
from mlapi.config import load_settings

PASSWORD = "difference engine"


class Credentials:
    """A token or API key of each user."""

    def __init__(self, service: Service, count: int) -> None:
        self.by_name: dict[str, str] = {}
        for number in range(count):
            user = service.users.register(username=f"user{number}", password=PASSWORD, email="user@example.com")
            _, secret = service.users.add_api_key(user_id=user.id, name="test")
            self.by_name[user.username] = secret


def check_all(service: Service, credentials: Credentials, rounds: int) -> int:
    guard, checks = service.access.guard, 0
    for _ in range(rounds):
        for name, credential in credentials.by_name.items():
            found = guard.check(credential).username
            assert found == name, f"{found} instead of {name}"
            checks += 1
        try:
            guard.check("mlapi_0123456789abcdef_" + "0" * 64)
        except InvalidTokenError:
            checks += 1
    return checks


def check_in_threads(service: Service, credentials: Credentials, rounds: int) -> int:
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda: counts.append(check_all(service, credentials, rounds))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counts) == len(threads), "a thread failed"
    return sum(counts)


async def check_concurrently(service: Service, credentials: Credentials, rounds: int) -> int:
    with async_guard(service.access.guard) as guard:
        for _ in range(rounds):
            found = await asyncio.gather(*map(guard.check, credentials.by_name.values()))
            assert [user.username for user in found] == list(credentials.by_name)
    return rounds * len(credentials.by_name)


def change(service: Service, credentials: Credentials, rounds: int) -> int:
    """Disable and enable the user of this process, and log in."""
    user = service.users.register(username=f"user-{os.getpid()}", password=PASSWORD, email="user@example.com")
    for number in range(rounds):
        changed = service.users.set_enabled(user_id=user.id, enabled=number % 2 == 1)
        assert service.users.get(user.id) == changed
    service.users.set_enabled(user_id=user.id, enabled=True)
    assert service.access.authenticator.log_in(username=user.username, password=PASSWORD).token
    return rounds + len(credentials.by_name)


WORK: dict[str, Callable[[Service, Credentials, int], int]] = {
    "guard": check_all,
    "threads": check_in_threads,
    "async": lambda *arguments: asyncio.run(check_concurrently(*arguments)),
    "users": change,
}


def fork(work: Callable[[], int]) -> tuple[int, int]:
    """Run a function in a child. Return its process id and a pipe that its result can be read from."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            result = str(work())
        except BaseException:  # noqa: BLE001 - sent to the parent
            result = traceback.format_exc()
        os.write(writing, result.encode())
        os._exit(0)
    os.close(writing)
    return pid, reading


def collect(children: list[tuple[int, int]]) -> int:
    checks = 0
    for pid, reading in children:
        with os.fdopen(reading) as stream:
            text = stream.read()
        os.waitpid(pid, 0)
        if not text.isdigit():
            sys.exit(text)
        checks += int(text)
    return checks


def keep_busy(service: Service, credentials: Credentials, stop: threading.Event, failures: list[str]) -> None:
    """Use the service in another thread of the parent while it forks."""
    while not stop.is_set():
        try:
            check_all(service, credentials, 1)
            service.users.set_enabled(user_id=service.users.list_page()[0].id, enabled=True)
        except RepositoryUnavailableError as error:
            failures.append(str(error))


def main(children: int, rounds: int) -> None:
    with open_service(load_settings()) as service:
        credentials = Credentials(service, 20)
    for kind, work in WORK.items():
        sys.stdout.write(f"{kind} {fork_during(work, credentials, children, rounds)}\n")


def fork_during(
    work: Callable[[Service, Credentials, int], int], credentials: Credentials, children: int, rounds: int
) -> int:
    """Open a service, fork, and do the work in all children. Return the number of checks in all processes."""
    with open_service(load_settings()) as service:
        work(service, credentials, 1)  # opens connections and threads
        stop, failures = threading.Event(), list[str]()
        busy = threading.Thread(target=keep_busy, args=(service, credentials, stop, failures))
        busy.start()
        forked = [fork(lambda: work(service, credentials, rounds)) for _ in range(children)]
        checks = check_all(service, credentials, rounds)
        stop.set()
        busy.join()
        checks += collect(forked)
        checks += check_all(service, credentials, rounds)  # the children have not ended the parent's sessions
        assert not failures, failures[0]
    return checks


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
