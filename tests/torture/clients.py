"""Clients that keep books: what they were told is done, and the one request of each that may or may not be."""

import json
import random
import threading
import time
from collections.abc import Iterable, Sequence
from http.client import HTTPConnection, HTTPException
from typing import Any

import attrs
from sqlalchemy import URL, select

from mlapi.adapters.sql import Database
from mlapi.adapters.sql.tables import audit, users

PASSWORD = "correct horse battery"
TIMEOUT = 10
"""Seconds within which the service answers, whatever has happened to its database."""


def ask(
    connection: HTTPConnection, method: str, path: str, body: object = None, *, bearer: str | None = None
) -> tuple[int, Any]:
    """Return the status and the answer, once all of it is read."""
    send(connection, method, path, body, bearer=bearer)
    return received(connection)


def send(connection: HTTPConnection, method: str, path: str, body: object = None, *, bearer: str | None = None) -> None:
    """Send a request whose answer `received` gives, so that several are under way at once."""
    headers = {} if body is None else {"Content-Type": "application/json"}
    if bearer is not None:
        headers["Authorization"] = f"Bearer {bearer}"
    connection.request(method, path, None if body is None else json.dumps(body), headers)


def received(connection: HTTPConnection) -> tuple[int, Any]:
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def new_user(name: str) -> dict[str, str]:
    return {"username": name, "password": PASSWORD, "email": f"{name}@example.com"}


@attrs.define(eq=False)
class Account:
    """A user as a client knows him."""

    name: str
    user_id: int
    enabled: bool = True
    done: list[str] = attrs.field(factory=lambda: ["register"])
    """The actions that the audit trail must tell of him, in this order."""


@attrs.frozen
class _Request:
    action: str
    name: str
    account: Account | None

    def sent(self, connection: HTTPConnection) -> tuple[int, Any]:
        if self.account is None:
            return ask(connection, "POST", "/register-user", new_user(self.name))
        if self.action == "remove":
            return ask(connection, "DELETE", f"/remove-user/{self.account.user_id}")
        flag = int(self.action == "enable")
        return ask(connection, "PUT", f"/toggle-user-permission/{self.account.user_id}/{flag}")


class Client:
    """Registers, toggles and removes users of its own, one request after the other, each turning something.

    Args:
        name: begins the names of its users.
    """

    def __init__(self, name: str) -> None:
        self.accounts: list[Account] = []
        self.removed: list[Account] = []
        self.acknowledged = 0
        self.slowest = 0.0
        """Seconds to an answer."""
        self.wrong: list[object] = []
        """Answers that it must not get."""
        self.cut_off = 0
        """Requests that were sent and not answered."""
        self._doubt: _Request | None = None
        self._name = name
        self._named = 0
        self._random = random.Random(name)

    def work(self, port: int, stop: threading.Event) -> None:
        """Send requests until one is not done, as far as it knows, or it is told to stop."""
        connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        while self._doubt is None and not stop.is_set():
            self._doubt = request = self._next()
            begin = time.monotonic()
            try:
                status, answer = request.sent(connection)
            except (OSError, HTTPException):
                self.cut_off += 1
                break
            self.slowest = max(self.slowest, time.monotonic() - begin)
            if status == 503:
                break
            if status != (201 if request.action == "register" else 200):
                self.wrong.append((request, status, answer))
                break
            self._doubt = None
            self.acknowledged += 1
            self._conclude(request, answer.get("user_id"))
        connection.close()

    def settle(self, stored: dict[str, tuple[int, bool]]) -> bool:
        """Find out whether the request that was not acknowledged is done; return whether it is."""
        request, self._doubt = self._doubt, None
        if request is None:
            return False
        user_id, enabled = stored.get(request.name, (None, None))
        is_done = {"register": user_id is not None, "remove": user_id is None}.get(
            request.action, enabled is (request.action == "enable")
        )
        if is_done:
            self._conclude(request, user_id)
        return is_done

    @property
    def has_doubt(self) -> bool:
        return self._doubt is not None

    def _next(self) -> _Request:
        chance = self._random.random()
        if chance < 0.4 or not self.accounts:
            self._named += 1
            return _Request("register", f"{self._name}-{self._named}", None)
        account = self._random.choice(self.accounts)
        if chance < 0.6:
            return _Request("remove", account.name, account)
        return _Request("disable" if account.enabled else "enable", account.name, account)

    def _conclude(self, request: _Request, user_id: int | None) -> None:
        account = request.account
        if account is None:
            assert user_id is not None
            self.accounts.append(Account(request.name, user_id))
            return
        account.done.append(request.action)
        if request.action == "remove":
            self.accounts.remove(account)
            self.removed.append(account)
        else:
            account.enabled = request.action == "enable"


def stored_users(url: URL) -> dict[str, tuple[int, bool]]:
    """Return id and flag of every user by his name, read past the service; no name is there twice."""
    with Database(url) as database:
        statement = select(users.c.username, users.c.username_key, users.c.id, users.c.enabled)
        rows = database.read(lambda connection: connection.execute(statement).all())
    assert len({key for _, key, _, _ in rows}) == len(rows)
    return {name: (user_id, enabled) for name, _, user_id, enabled in rows}


def told_actions(url: URL) -> dict[int, list[str]]:
    """Return what the audit trail tells of each user, in its order."""
    with Database(url) as database:
        statement = select(audit.c.user_id, audit.c.action, audit.c.outcome).order_by(audit.c.id)
        rows = database.read(lambda connection: connection.execute(statement).all())
    told: dict[int, list[str]] = {}
    for user_id, action, outcome in rows:
        told.setdefault(user_id, []).append(action if outcome == "done" else f"{action}: {outcome}")
    return told


def known_users(clients: Iterable[Client]) -> dict[str, tuple[int, bool]]:
    """Return what `stored_users` must be."""
    return {account.name: (account.user_id, account.enabled) for client in clients for account in client.accounts}


def known_actions(clients: Sequence[Client]) -> dict[int, list[str]]:
    """Return what `told_actions` must be."""
    return {account.user_id: account.done for client in clients for account in (*client.accounts, *client.removed)}
