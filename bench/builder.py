"""Build the targets of a benchmark: fill their databases, and choose the commands that start them."""

import os
import subprocess
from pathlib import Path

from bench import bulk
from bench.environment import PostgresDatabases, make_flag_reader, mlapi_environ
from bench.targets import BIN, PEERS_BIN, Target

HERE = Path(__file__).parent
CREDENTIALS = 1_000
DATABASES = ("sqlite", "postgresql")
OPTIONS = ("--log-level", "warning", "--no-access-log")
SERVICE = "mlapi.entrypoints.http:app"
GRANIAN = BIN / "granian"
PEERS = {
    "SQLAlchemy": (
        HERE / "peers" / "sqlalchemy_app.py",
        [
            str(PEERS_BIN / "uvicorn"), *OPTIONS, "sqlalchemy_app:app",
            "--app-dir", str(HERE / "peers"), "--port", "{port}",
        ],
    ),
    "fastapi-users": (
        HERE / "peers" / "fastapi_users_app.py",
        [
            str(PEERS_BIN / "uvicorn"), *OPTIONS, "fastapi_users_app:app",
            "--app-dir", str(HERE / "peers"), "--port", "{port}",
        ],
    ),
    "Django REST framework": (
        HERE / "peers" / "drf" / "manage.py",
        [
            str(PEERS_BIN / "gunicorn"), "wsgi:application", "--chdir", str(HERE / "peers" / "drf"),
            "--workers", "1", "--threads", "4", "--bind", "127.0.0.1:{port}", "--log-level", "warning",
        ],
    ),
}  # fmt: skip
"""The programs that create the peers' users, and the commands that start the peers."""
FLAGS = {
    "SQLAlchemy": ("users", "enabled"),
    "fastapi-users": ("user", "is_active"),
    "Django REST framework": ("auth_user", "is_active"),
}
"""The table and the column of each peer's enabled flag."""


def uvicorn(app: str) -> list[str]:
    return [str(BIN / "uvicorn"), app, *OPTIONS, "--app-dir", str(HERE.parent), "--port", "{port}"]


def granian(app: str) -> list[str]:
    """Return the command of docs/production.md, which starts one worker."""
    options = ["--interface", "asgi", "--no-ws", "--log-level", "warning", "--working-dir", str(HERE.parent)]
    return [str(GRANIAN), *options, "--port", "{port}", app]


def mlapi_serve(workers: int) -> list[str]:
    options = ["--connections-per-address", "10000", "--no-access-log"]
    return [str(BIN / "mlapi"), "serve", "--workers", str(workers), *options, "--port", "{port}"]


class Builder:
    """Builds targets in one folder. Each database is new."""

    def __init__(self, folder: Path, new_postgres: PostgresDatabases) -> None:
        self.folder = folder
        self._new_postgres = new_postgres

    def database(self, name: str, kind: str) -> tuple[Path, str]:
        """Return a new folder and the URL of a new database."""
        folder = self._folder(name)
        return folder, f"sqlite:///{folder}/mlapi.db" if kind == "sqlite" else self._new_postgres()

    def mlapi(self, name: str, *, kind: str, users: int = 10_000, scheme: str = "fernet", workers: int = 0) -> Target:
        """Return mlapi with ``users`` users in its database.

        Args:
            name: the name of the target.
            kind: the database.
            users: how many users are in the database.
            scheme: how passwords are encrypted.
            workers: the workers of ``mlapi serve``. 0 for a single process of plain uvicorn.
        """
        folder, url = self.database(name, kind)
        environ = mlapi_environ(url, scheme)
        seconds = bulk.register(environ, users)
        print(f"{name}: {users:,} users in {seconds:.1f} s", flush=True)
        command = mlapi_serve(workers) if workers else uvicorn(SERVICE)
        flag = make_flag_reader(url, "users", "enabled")
        return Target(name, command, folder, environ, flag, users=users, workers=workers or 1)

    def guarded(self, name: str, *, kind: str, per_minute: int | None = None, credentials: int = CREDENTIALS) -> Target:
        """Return a model behind the guard, with the credentials of some of its 10,000 users in its folder.

        Args:
            name: the name of the target.
            kind: the database.
            per_minute: the allowance of each user. None for no plans.
            credentials: how many users have credentials.
        """
        folder, url = self.database(name, kind)
        environ = mlapi_environ(url, "fernet")
        bulk.register(environ, 10_000)
        bulk.write_credentials(environ, credentials, folder, users=10_000)
        if per_minute is not None:
            environ |= {"MLAPI_PLANS__BENCH__PER_MINUTE": str(per_minute), "MLAPI_DEFAULT_PLAN": "bench"}
        return Target(name, uvicorn("bench.guarded:app"), folder, environ)

    def open_model(self) -> Target:
        """Return the same model without the guard."""
        folder = self._folder("open model")
        (folder / "tokens").write_text("\n".join(["x" * 300] * CREDENTIALS))
        return Target("open model", uvicorn("bench.ceiling:app"), folder)

    def ceiling(self, name: str = "ceiling") -> Target:
        """Return bare Starlette with the three endpoints and no database."""
        return Target(name, uvicorn("bench.ceiling:app"), self._folder(name))

    def peer(self, name: str, *, framework: str, kind: str, hashing: str) -> Target:
        """Return a peer with 10,000 users in its database."""
        folder, url = self.database(name, kind)
        environ = {"PEER_DATABASE_URL": url, "PEER_HASH": hashing}
        program, command = PEERS[framework]
        subprocess.run(
            [str(PEERS_BIN / "python"), str(program), "prepare", "10000"],
            env={**os.environ, **environ},
            cwd=folder,
            check=True,
        )
        table, column = FLAGS[framework]
        return Target(name, command, folder, environ, make_flag_reader(url, table, column))

    def _folder(self, name: str) -> Path:
        folder = self.folder / name.replace(" ", "-").replace(",", "")
        folder.mkdir()
        return folder
