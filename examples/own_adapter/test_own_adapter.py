"""The contract, for an adapter of one's own: a fixture is all it takes. Below it, what this one promises beyond."""

import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from examples.own_adapter.journal import Journal, JournaledUserRepository

from mlapi import ApiKey, AuditEntry, ConfigurationError, RepositoryUnavailableError, User, UserRepository, Users
from mlapi.testing import PlainCipher, UserRepositoryContract


class TestJournaledUserRepository(UserRepositoryContract):
    @pytest.fixture
    def repository(self, tmp_path: Path) -> Iterator[UserRepository]:
        with closing(Journal(tmp_path / "users.jsonl")) as journal:
            yield JournaledUserRepository(journal)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a journal in which ada was registered and shut out, and has an API key."""
    path = tmp_path / "users.jsonl"
    with closing(Journal(path)) as journal:
        users = Users(JournaledUserRepository(journal), PlainCipher())
        ada = users.register(username="ada", password="difference engine", email="ada@example.com")
        users.set_enabled(user_id=ada.id, enabled=False)
        users.add_api_key(user_id=ada.id, name="nightly job")
    return path


def everything(path: Path) -> tuple[list[User], list[ApiKey], list[AuditEntry]]:
    with closing(Journal(path)) as journal:
        repository = JournaledUserRepository(journal)
        users = Users(repository, PlainCipher()).list_page()
        keys = [key for user in users for key in repository.list_api_keys(user.id)]
        return users, keys, repository.audit.list_page(limit=100)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file of this process become larger, in bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_it_knows_its_users_when_it_is_opened_again(path: Path) -> None:
    (ada,), (key,), entries = first = everything(path)

    assert (ada.username, ada.enabled, key.name, len(entries)) == ("ada", False, "nightly job", 3)
    assert everything(path) == first


def test_a_line_that_a_crash_cut_short_was_never_applied(path: Path) -> None:
    before = everything(path)
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines()[0][:-7])

    assert everything(path) == before
    assert path.read_bytes().endswith(b"]\n")


@pytest.mark.parametrize(
    "damage", [b"[", b'[["Invent", {}]]', b'[["Remove", {}]]', b'[["Remove", {"user_id": "x"}]]', b"7"]
)
def test_a_damaged_line_is_named(path: Path, damage: bytes) -> None:
    with path.open("ab") as file:
        file.write(damage + b"\n")

    with pytest.raises(ConfigurationError, match=r"line 4 of .*users\.jsonl is damaged"):
        everything(path)


def test_what_was_purged_does_not_come_back(path: Path) -> None:
    with closing(Journal(path)) as journal:
        trail = JournaledUserRepository(journal).audit
        (_, _, oldest) = trail.list_page(limit=3)
        purged = trail.purge(before=oldest.at + timedelta(days=1), limit=2)
        left = trail.list_page(limit=3)

    assert (purged, len(left)) == (2, 1)
    assert everything(path)[-1] == left


def test_no_two_have_it_open(path: Path) -> None:
    with closing(Journal(path)), pytest.raises(ConfigurationError, match="is open in another process"):
        Journal(path)


def test_what_finds_no_room_on_the_disk_is_not_applied(path: Path) -> None:
    before = everything(path)
    with closing(Journal(path)) as journal:
        users = Users(JournaledUserRepository(journal), PlainCipher())

        with room_for(path.stat().st_size + 10), pytest.raises(RepositoryUnavailableError, match="No space left"):
            users.register(username="eve", password="x", email="eve@example.com")

        assert users.find("eve") is None
        with pytest.raises(RepositoryUnavailableError, match="the journal is closed"):
            users.repository.check()

    assert everything(path) == before


def test_only_its_owner_may_read_it(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
