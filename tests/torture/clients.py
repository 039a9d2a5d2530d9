"""Clients that record which of their requests were acknowledged, so that tests can check the database after a fault."""

import json
import random
import threading
import time
from collections.abc import Iterable, Sequence
from http.client import HTTPConnection, HTTPException
from typing import Any

import attrs
from sqlalchemy import URL, select

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.tables import audit, users

PASSWORD = "correct horse battery"
TIMEOUT_SECONDS = 10
"""The service responds within this time even if its database is down."""


def call(
    connection: HTTPConnection, method: str, path: str, body: object = None, *, bearer: str | None = None
) -> tuple[int, Any]:
    """Send a request and read the whole response; return its status and its decoded body."""
    send(connection, method, path, body, bearer=bearer)
    return receive(connection)


def send(connection: HTTPConnection, method: str, path: str, body: object = None, *, bearer: str | None = None) -> None:
    """Send a request. `receive` reads the response, so a test can have several requests in flight."""
    headers = {} if body is None else {"Content-Type": "application/json"}
    if bearer is not None:
        headers["Authorization"] = f"Bearer {bearer}"
    connection.request(method, path, None if body is None else json.dumps(body), headers)


def receive(connection: HTTPConnection) -> tuple[int, Any]:
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def new_user(name: str) -> dict[str, Any]:
    """Return a registration request body."""
    return {"username": name, "password": PASSWORD, "email": f"{name}@example.com"}


@attrs.define(eq=False)
class Account:
    """The expected state of a user, according to the responses that the client received."""

    name: str
    user_id: int
    enabled: bool = True
    actions: list[str] = attrs.field(factory=lambda: ["register"])
    """Acknowledged actions. The audit trail must contain exactly these, in this order."""


@attrs.frozen
class _Request:
    action: str
    name: str
    account: Account | None

    def send(self, connection: HTTPConnection) -> tuple[int, Any]:
        if self.account is None:
            return call(connection, "POST", "/register-user", new_user(self.name))
        if self.action == "remove":
            return call(connection, "DELETE", f"/remove-user/{self.account.user_id}")
        flag = int(self.action == "enable")
        return call(connection, "PUT", f"/toggle-user-permission/{self.account.user_id}/{flag}")


class Client:
    """Registers, toggles and removes its own users, one request at a time. Every request is a change.

    Args:
        name: prefix of the usernames it registers.
    """

    def __init__(self, name: str) -> None:
        self.accounts: list[Account] = []
        self.removed: list[Account] = []
        self.acknowledged = 0
        self.slowest_seconds = 0.0
        self.unexpected: list[object] = []
        """Responses with an unexpected status."""
        self.unanswered = 0
        """Requests without a response."""
        self._unresolved: _Request | None = None
        self._name = name
        self._names_used = 0
        self._random = random.Random(name)

    def work(self, port: int, stop: threading.Event) -> None:
        """Send requests until one is not acknowledged or ``stop`` is set."""
        connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
        while self._unresolved is None and not stop.is_set():
            self._unresolved = request = self._next()
            begin = time.monotonic()
            try:
                status, body = request.send(connection)
            except (OSError, HTTPException):
                self.unanswered += 1
                break
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - begin)
            if status == 503:
                break
            if status != (201 if request.action == "register" else 200):
                self.unexpected.append((request, status, body))
                break
            self._unresolved = None
            self.acknowledged += 1
            self._record(request, body.get("user_id"))
        connection.close()

    def resolve(self, stored: dict[str, tuple[int, bool]]) -> bool:
        """Return whether the unacknowledged request was applied, according to the stored users. If so, record it."""
        request, self._unresolved = self._unresolved, None
        if request is None:
            return False
        user_id, enabled = stored.get(request.name, (None, None))
        was_applied = {"register": user_id is not None, "remove": user_id is None}.get(
            request.action, enabled is (request.action == "enable")
        )
        if was_applied:
            self._record(request, user_id)
        return was_applied

    @property
    def has_unresolved_request(self) -> bool:
        return self._unresolved is not None

    def _next(self) -> _Request:
        chance = self._random.random()
        if chance < 0.4 or not self.accounts:
            self._names_used += 1
            return _Request("register", f"{self._name}-{self._names_used}", None)
        account = self._random.choice(self.accounts)
        if chance < 0.6:
            return _Request("remove", account.name, account)
        return _Request("disable" if account.enabled else "enable", account.name, account)

    def _record(self, request: _Request, user_id: int | None) -> None:
        account = request.account
        if account is None:
            assert user_id is not None
            self.accounts.append(Account(request.name, user_id))
            return
        account.actions.append(request.action)
        if request.action == "remove":
            self.accounts.remove(account)
            self.removed.append(account)
        else:
            account.enabled = request.action == "enable"


def stored_users(url: URL) -> dict[str, tuple[int, bool]]:
    """Return the id and the enabled flag of every stored user, by username; fail if a name is stored twice."""
    with Database(url) as database:
        statement = select(users.c.username, users.c.username_key, users.c.id, users.c.enabled)
        rows = database.read(lambda connection: connection.execute(statement).all())
    assert len({key for _, key, _, _ in rows}) == len(rows)
    return {name: (user_id, enabled) for name, _, user_id, enabled in rows}


def audited_actions(url: URL) -> dict[int, list[str]]:
    """Return the actions that the audit trail contains for each user id, in order."""
    with Database(url) as database:
        statement = select(audit.c.user_id, audit.c.action, audit.c.outcome).order_by(audit.c.id)
        rows = database.read(lambda connection: connection.execute(statement).all())
    actions: dict[int, list[str]] = {}
    for user_id, action, outcome in rows:
        actions.setdefault(user_id, []).append(action if outcome == "done" else f"{action}: {outcome}")
    return actions


def expected_users(clients: Iterable[Client]) -> dict[str, tuple[int, bool]]:
    """Return the users that must be stored, in the format of `stored_users`."""
    return {account.name: (account.user_id, account.enabled) for client in clients for account in client.accounts}


def expected_actions(clients: Sequence[Client]) -> dict[int, list[str]]:
    """Return the actions that the audit trail must contain, in the format of `audited_actions`."""
    return {account.user_id: account.actions for client in clients for account in (*client.accounts, *client.removed)}
