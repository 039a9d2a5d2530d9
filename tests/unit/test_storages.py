"""The scheme of `database.url` selects the storage. Also tests the in-memory storage."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import NoResultFound

from mlapi import ConfigurationError
from mlapi.adapters.memory import InMemoryAttempts, InMemoryStorage
from mlapi.adapters.sql.sqlite.dialect import SqliteDialect
from mlapi.bootstrap import open_storage, register_storage
from mlapi.bootstrap.storage_registry import registered_storages
from mlapi.config import Settings
from mlapi.config.settings import DatabaseSettings


def settings_for(url: str) -> Settings:
    return Settings(database=DatabaseSettings(url=url))


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Remove the schemes that a test registers."""
    before = dict(registered_storages)
    yield
    registered_storages.clear()
    registered_storages.update(before)


def test_scheme_selects_the_storage() -> None:
    opened = open_storage(settings_for("memory://"))

    assert isinstance(opened, InMemoryStorage)


def test_registered_scheme_selects_its_storage() -> None:
    urls = []

    def from_url(url: str) -> InMemoryStorage:
        urls.append(url)
        return InMemoryStorage()

    register_storage("archive", from_url)

    opened = open_storage(settings_for("archive://shelf/7"))

    assert isinstance(opened, InMemoryStorage)
    assert urls == ["archive://shelf/7"]


def test_installed_package_can_declare_a_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "archive-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.4\nName: archive\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[mlapi.storages]\narchive = tests.unit.test_storages:from_any_url\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])

    opened = open_storage(settings_for("archive://shelf"))

    assert isinstance(opened, InMemoryStorage)


def test_missing_database_is_named_unless_it_may_be_created(tmp_path: Path) -> None:
    settings = settings_for(f"sqlite:///{tmp_path}/users.db")

    with pytest.raises(
        ConfigurationError, match=rf"no database at {tmp_path}/users\.db: set MLAPI_CONFIG .*MLAPI_DATABASE__URL"
    ):
        open_storage(settings, may_create=False)
    (tmp_path / "users.db").touch()
    with pytest.raises(ConfigurationError, match=rf"the database {tmp_path}/users\.db is empty \(0 bytes\)"):
        open_storage(settings, may_create=False)
    (tmp_path / "users.db").write_text("not empty")
    open_storage(settings, may_create=False).close()


def from_any_url(url: str) -> InMemoryStorage:
    return InMemoryStorage()


@pytest.mark.parametrize("url", ["mysql://ada:c4n4ry@host/db", "memory://c4n4ry", "c4n4ry", "sqlite+c4n4ry"])
def test_unusable_url_is_rejected_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"database\.url") as error_info:
        open_storage(settings_for(url))

    assert "c4n4ry" not in str(error_info.value)


def test_in_memory_storage_drops_expired_attempts() -> None:
    now = 1_000.0
    attempts = InMemoryAttempts(clock=lambda: now)
    attempts.add(["old"], window_seconds=5)
    attempts.add(["new"], window_seconds=60)

    now += 10
    attempts.add(["newest"], window_seconds=60)

    assert set(attempts._counts) == {"new", "newest"}


def test_folder_that_may_not_be_entered_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path) -> Path:
        raise PermissionError

    monkeypatch.setattr(Path, "resolve", fail)  # root may enter every folder

    with pytest.raises(ConfigurationError, match="this account may not access the folder"):
        open_storage(Settings(database=DatabaseSettings(url=f"sqlite:///{tmp_path}/users.db")))


def test_unreadable_data_of_sqlite_is_described() -> None:
    assert SqliteDialect().describe_error(NoResultFound()) == (
        "the database file contains unreadable data (NoResultFound); run `mlapi doctor`"
    )
