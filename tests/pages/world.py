"""A server with users in every state, and with names that are hard to lay out, for the tests that visit its pages."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import attrs

from mlapi import User, UserId, Users
from mlapi.adapters.memory import PlainCipher
from mlapi.bootstrap import Service, open_service
from mlapi.config import load_settings, make_plans
from mlapi.domain.logins import Login
from mlapi.domain.usage import UsageRow
from mlapi.domain.users import Pending
from tests.e2e.server import Server

ADMIN_TOKEN = "an-admin-token-for-tests"
PASSWORD = "difference engine 1843"
MAIL = {
    "MLAPI_MAIL__URL": "smtp://127.0.0.1:1",  # no mail server listens there: mail stays in the outbox
    "MLAPI_MAIL__FROM": "mlapi@example.com",
    "MLAPI_HTTP__PUBLIC_URL": "https://api.example.com",
}
CONFIG = "plans: {free: {per_minute: 60, per_month: 100000}, pro: {per_minute: 600}}\ndefault_plan: free\n"
USERS = (
    ("longest", "W" * 254, f"{'w' * 60}@{'example' * 8}.com"),
    ("spaced", "a name of several words " * 8 + "end", "several.words@example.com"),
    ("bidi", "עדה לאבלייס (ada)", "hebrew@example.com"),
    ("html", '<b>markup</b> & "quotes"', "markup@example.com"),
    ("ada", "ada.lovelace", "ada@analytical.example"),
    ("alan", "alan.turing", "turing@bletchley.example"),
    ("grace", "grace.hopper", "grace@navy.example"),
    ("katherine", "katherine.johnson", "kj@langley.example"),
    ("edsger", "edsger.dijkstra", "edsger@eindhoven.example"),
    ("barbara", "barbara.liskov", "liskov@mit.example"),
    ("claude", "claude.shannon", "claude@bell-labs.example"),
    ("radia", "radia.perlman", "radia@sun.example"),
    ("karen", "karen.spärck-jones", "ksj@cam.example"),
    ("tony", "tony.hoare", "tony@oxford.example"),
    ("frances", "frances.allen", "fran@ibm.example"),
    ("batch", "nightly-batch", "ml-platform@example.com"),
)
"""A key for the tests, the name and the e-mail address of each user, the oldest first."""
PENDING: tuple[tuple[str, str, Pending], ...] = (
    ("waiting", "mary.shaw", "approval"),
    ("unconfirmed", "lynn.conway", "email"),
)
DISABLED = ("edsger", "tony")
EXPIRY_DAYS = {"ada": 2, "grace": 5, "radia": 40, "claude": -3, "batch": 90, "longest": 20, "bidi": 6}
"""The days until access expires."""
SIGNING_IN = ("ada", "longest", "claude")
"""The users whose password works."""
DAYS = 30
SATURDAY = 5


@attrs.frozen
class World:
    """A running server, the ids of its users by the keys in `USERS`, and the tokens of managers and one-time links."""

    server: Server
    values: dict[str, int | str]

    @classmethod
    def start(cls, folder: Path) -> Self:
        """Create a database and start a server on it. The caller stops the server."""
        values = create_database(folder)
        server = Server(folder, {"MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN, **MAIL}).start()
        return cls(server, values)

    def name(self, key: str) -> str:
        """Return the name of a user."""
        return next(name for known, name, _email in USERS if known == key)

    def path(self, template: str) -> str:
        """Return a path with the values in place of their names: ``/console/users/{ada}``."""
        return template.format_map(self.values)


def create_database(folder: Path) -> dict[str, int | str]:
    """Create the users, and guests who were added and removed in the last month. Return the values for `World`."""
    config = folder / "config.yml"
    config.write_text(CONFIG)
    settings = load_settings(config, environ={"MLAPI_DATABASE__URL": f"sqlite:///{folder}/mlapi.db"})
    with open_service(settings) as service:
        clock = _Clock(datetime.now(UTC).replace(hour=9, minute=30))
        users = Users(
            service.users.repository, PlainCipher(), clock=lambda: clock.at, plans=lambda: make_plans(settings)
        )
        ids = _register(users, clock)
        _change(service, users, ids, clock.at)
        for name in SIGNING_IN:
            service.users.set_password(user_id=ids[name], password=PASSWORD)
        keys = {"key": users.list_api_keys(ids["batch"])[0].id, "long_key": users.list_api_keys(ids["longest"])[0].id}
        return {**ids, **keys, **_add_links(users, ids), **_add_managers(service)}


@attrs.define
class _Clock:
    at: datetime


def _register(users: Users, clock: _Clock) -> dict[str, UserId]:
    rng = random.Random(7)  # a fixed seed, so that only the dates on the pages change
    now = clock.at
    remaining, ids = list(USERS), dict[str, UserId]()
    removals: dict[int, list[UserId]] = {}  # the guests to remove on each day
    for day in range(DAYS):
        clock.at = now - timedelta(days=DAYS - 1 - day)
        for number in range(min((DAYS - 1 - day) // 2, rng.randint(0, 3) + day // 6)):
            guest = users.register(username=f"guest-{day}-{number}", password="-", email="guest@example.com")
            removals.setdefault(min(day + rng.randint(1, 9), DAYS - 1), []).append(guest.id)
        for key, name, email in remaining[: day % 2] if day < DAYS - 2 else remaining:
            ids[key] = users.register(username=name, password=PASSWORD, email=email).id
            remaining = remaining[1:]
        for user_id in removals.pop(day, []):
            users.remove(user_id=user_id)
    ids["invited"] = users.invite(username="hedy.lamarr", email="hedy@example.com").id
    for key, name, pending in PENDING:
        command = users.prepare_registration(username=name, password=PASSWORD, email="new@example.com", pending=pending)
        (registered,) = users.repository.apply([command])
        assert isinstance(registered, User)
        ids[key] = registered.id
    return ids


def _change(service: Service, users: Users, ids: dict[str, UserId], now: datetime) -> None:
    for key in DISABLED:
        users.set_enabled(user_id=ids[key], enabled=False)
    for key, days in EXPIRY_DAYS.items():
        users.update(user_id=ids[key], expires=now + timedelta(days=days), plan="pro")
    users.update(user_id=ids["longest"], metadata={"customer": "c" * 100})
    users.add_api_key(user_id=ids["batch"], name="nightly scoring job")
    users.add_api_key(user_id=ids["ada"], name="notebook")
    users.add_api_key(user_id=ids["longest"], name="k" * 100)
    users.add_api_key(user_id=ids["batch"], name="backfill", expires_datetime=now + timedelta(days=90))
    addresses = ("192.0.2.17", "2001:db8:4:17::2b", "198.51.100.200")
    logins = [
        Login(ids["ada"], now - timedelta(hours=31 * (number + 1)), each) for number, each in enumerate(addresses)
    ]
    service.storage.logins.add(logins)
    service.usage.add(list(_create_usage(users, ids, now)))


def _add_links(users: Users, ids: dict[str, UserId]) -> dict[str, str]:
    """Create a link of each purpose. Return their tokens."""
    links = {
        "password_link": users.prepare_link(user_id=ids["longest"]),
        "invitation_link": users.prepare_link(user_id=ids["invited"]),
        "email_link": users.prepare_link(user_id=ids["unconfirmed"], purpose="verify_email"),
        "new_email_link": users.prepare_link(user_id=ids["alan"], purpose="change_email", new_email="alan@example.com"),
    }
    users.repository.apply([command for command, _token in links.values()])
    return {name: token for name, (_command, token) in links.items()}


def _add_managers(service: Service) -> dict[str, str]:
    """Create managers of each role. Return their tokens."""
    add = service.managers.add
    managers = add(name="alice", role="admin"), add(name="bob", role="viewer"), add(name="m" * 64, role="viewer")
    return {f"{created.manager.name}_token": created.token for created in managers}


def _create_usage(users: Users, ids: dict[str, UserId], now: datetime) -> Iterator[UsageRow]:
    """Yield the usage of all users in the last month. They send fewer requests on weekends."""
    rng = random.Random(7)
    keys = [key for name in ("batch", "longest") for key in users.list_api_keys(ids[name])]
    credentials = [*((user_id, None) for user_id in ids.values()), *((key.user_id, key.id) for key in keys)]
    for day in range(DAYS):
        at = now - timedelta(days=day)
        for user_id, key_id in credentials:
            requests = rng.randint(1, 4 if at.weekday() >= SATURDAY else 400)
            yield UsageRow(
                day=at.date(),
                user_id=user_id,
                key_id=key_id,
                requests=requests,
                units=requests * rng.randint(200, 900) if key_id else 0,
                seen_datetime=at,
            )
