"""Key and salt rotation: the effect of each command on the secrets file and the database."""

import errno
import json
import os
from pathlib import Path

import pytest
from sqlalchemy import URL

from mlapi import ConfigurationError, Users
from mlapi.adapters.fernet import HashingFernetCipher
from mlapi.application import secret_reload, secret_rotation
from mlapi.bootstrap import open_secret_rotation, open_service
from mlapi.config import Settings, load_settings
from mlapi.config.files import read_yaml
from mlapi.domain.commands import Reencrypt
from mlapi.domain.users import EncryptedPassword
from mlapi.secret_store import update_secrets_file
from tests.command_line import mlapi
from tests.conftest import KEY, OLDER_KEY, SALT

CHEAP = {"MLAPI_PASSWORDS__SCHEME": "fernet"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, url: URL, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory of a service with settings in environment variables and quick key rotations."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"MLAPI_DATABASE__URL": url.render_as_string(hide_password=False), **CHEAP}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(secret_rotation, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(secret_rotation, "_RELOAD_SECONDS", 0.05)
    monkeypatch.setattr(secret_reload, "RELOAD_CHECK_SECONDS", 0.0)
    return tmp_path


@pytest.fixture
def settings(folder: Path) -> Settings:
    return load_settings()


def register(users: Users, count: int) -> None:
    for number in range(count):
        users.register(username=f"user{number}", password=f"password {number}", email="a@example.com")


def stored_values(users: Users) -> list[str]:
    return [user.password.value for user in users.iterate_users()]


def secrets(folder: Path, name: str) -> list[str]:
    value = read_yaml(folder / "secrets.yml").get(name, [])
    return value if isinstance(value, list) else [value]


def test_rotation_reencrypts_every_password_with_the_new_key(folder: Path, settings: Settings) -> None:
    with open_service(settings) as service:
        register(service.users, 7)
        before = stored_values(service.users)
        result = mlapi("secrets", "rotate")
        after = stored_values(service.users)
        issued = service.access.authenticator.log_in(username="user3", password="password 3")

    assert result.exit_code == 0
    assert result.stdout == "every password is encrypted with the newest key; 7 were encrypted with an older key\n"
    newest, older = secrets(folder, "key")
    (salt,) = secrets(folder, "salt")
    assert not set(before) & set(after)
    assert issued.expires_in == 3600
    newest_cipher = HashingFernetCipher([newest], salt)
    with open_service(settings) as service:
        assert all(newest_cipher.reencrypt(user.password) is None for user in service.users.iterate_users())
        assert all(
            HashingFernetCipher([newest, older], salt).reencrypt(user.password) is None
            for user in service.users.iterate_users()
        )


def test_interrupted_rotation_resumes_without_adding_a_key(folder: Path, settings: Settings) -> None:
    with open_service(settings) as service:
        register(service.users, 3)
    with open_secret_rotation(settings) as rotation:
        next(iter(rotation.rotate_key()))  # stop after the first batch
    interrupted = secrets(folder, "key")

    result = mlapi("secrets", "rotate")

    assert result.exit_code == 0
    assert secrets(folder, "key") == interrupted
    assert mlapi("secrets", "prune").stdout == "pruned\n"
    assert secrets(folder, "key") == interrupted[:1]


def test_key_can_be_rotated_before_any_user_exists(folder: Path) -> None:
    mlapi("db", "upgrade")

    results = [mlapi("secrets", "rotate"), mlapi("secrets", "prune"), mlapi("secrets", "rotate")]

    assert [result.exit_code for result in results] == [0, 0, 0]
    assert len(secrets(folder, "key")) == 2


def test_unfinished_rotation_prevents_pruning(folder: Path, settings: Settings) -> None:
    with open_service(settings) as service:
        register(service.users, 1)
    with open_secret_rotation(settings) as rotation:
        next(iter(rotation.rotate_key()))

    result = mlapi("secrets", "prune")

    assert result.stdout == (
        "kept keys and salts: passwords may be stored under an older key, run `mlapi secrets rotate` first\npruned\n"
    )
    assert len(secrets(folder, "key")) == 2


def test_key_added_during_a_rotation_is_used_too(folder: Path, settings: Settings) -> None:
    with open_service(settings) as service:
        register(service.users, 2)
        with open_secret_rotation(settings) as rotation:
            progress = rotation.rotate_key()
            next(progress)
            update_secrets_file(folder / "secrets.yml", lambda tree: {**tree, "key": [KEY, *tree["key"]]})
            list(progress)
        newest_cipher = HashingFernetCipher([KEY], *secrets(folder, "salt"))
        assert all(newest_cipher.reencrypt(user.password) is None for user in service.users.iterate_users())
    assert mlapi("secrets", "prune").stdout == "pruned\n"
    assert secrets(folder, "key") == [KEY]


@pytest.mark.parametrize("command", [["rotate"], ["rotate", "--salt"], ["rotate", "--tokens"], ["prune"]])
def test_second_concurrent_key_command_is_rejected(folder: Path, settings: Settings, command: list[str]) -> None:
    with open_service(settings) as service:
        register(service.users, 1)
    with open_secret_rotation(settings) as rotation:
        next(iter(rotation.rotate_key()))
        before = (folder / "secrets.yml").read_text()

        result = mlapi("secrets", *command)

        assert (result.exit_code, result.stdout) == (3, "")
        assert result.stderr == f"mlapi: another command is changing {folder}/secrets.yml: wait until it finishes\n"
        assert (folder / "secrets.yml").read_text() == before


def test_undecryptable_password_leaves_rotation_unfinished(folder: Path, settings: Settings) -> None:
    with open_service(settings) as service:
        register(service.users, 2)
        (first, _) = service.users.list_page()
        lost = EncryptedPassword("gAAAAA")
        service.users.apply(Reencrypt(user_id=first.id, password=lost, replacing=first.password))

    failed = mlapi("secrets", "rotate")
    with open_service(settings) as service:
        service.users.set_password(user_id=first.id, password="another")
    repeated = mlapi("secrets", "rotate")

    assert failed.exit_code == 3
    assert (
        f"1 stored passwords cannot be decrypted with any key in {folder}/secrets.yml (users {first.id})"
        in failed.stderr
    )
    assert repeated.exit_code == 0
    assert len(secrets(folder, "key")) == 2


def test_old_salt_is_kept_until_every_user_has_logged_in(folder: Path, settings: Settings) -> None:
    with open_service(settings) as service:
        register(service.users, 2)
        older = secrets(folder, "salt")
        rotated = mlapi("secrets", "rotate", "--salt")
        both = secrets(folder, "salt")
        service.access.authenticator.log_in(username="user0", password="password 0")
        kept = mlapi("secrets", "prune")
        service.access.authenticator.log_in(username="user1", password="password 1")
        pruned = mlapi("secrets", "prune")

    assert rotated.stdout == "added a salt; each user's password is upgraded to it when they next log in\n"
    assert both[1:] == older
    assert kept.stdout == "kept salts: 1 users have not logged in since the newest was added\npruned\n"
    assert pruned.stdout == "pruned\n"
    assert secrets(folder, "salt") == both[:1]
    with open_service(settings) as service:
        assert service.access.authenticator.log_in(username="user1", password="password 1").expires_in == 3600


def test_old_token_key_verifies_tokens_until_it_is_pruned(folder: Path, settings: Settings) -> None:
    with open_service(settings) as service:
        register(service.users, 1)
        former = service.access.authenticator.log_in(username="user0", password="password 0").token
        result = mlapi("secrets", "rotate", "--tokens")
    with open_service(settings) as service:
        guard = service.access.guard
        newer = service.access.authenticator.log_in(username="user0", password="password 0").token
        names = [guard.check(token).username for token in (former, newer)]
        mlapi("secrets", "prune")
    with open_service(settings) as service, pytest.raises(Exception, match="invalid, expired or revoked"):
        service.access.guard.check(former)

    assert result.stdout == "added a token key; tokens signed with the previous key stay valid until they expire\n"
    assert names == ["user0", "user0"]
    assert former.partition(".")[0] != newer.partition(".")[0]
    assert len(secrets(folder, "token_key")) == 1


def set_in_files(folder: Path, monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        file = folder / name
        file.write_text(f"{value}\n")
        file.chmod(0o600)
        monkeypatch.setenv(f"MLAPI_SECRETS__{name.upper()}_FILE", str(file))


def test_key_in_a_mounted_file_is_rotated_in_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_in_files(folder, monkeypatch, key=OLDER_KEY, salt=SALT)
    with open_service(load_settings()) as service:
        register(service.users, 2)

    first = mlapi("secrets", "rotate")
    set_in_files(folder, monkeypatch, key=f"{OLDER_KEY}\n{first.stdout}")
    too_early = mlapi("secrets", "rotate")
    set_in_files(folder, monkeypatch, key=f"{first.stdout}{OLDER_KEY}")
    finished = mlapi("secrets", "rotate")
    pruned = mlapi("secrets", "prune")
    set_in_files(folder, monkeypatch, key=first.stdout.strip())

    assert (first.exit_code, first.stdout.count("\n")) == (4, 1)
    assert first.stderr.splitlines() == [
        (
            f"mlapi cannot change MLAPI_SECRETS__KEY_FILE ({folder}/key), so rotate secrets.key there."
            " The new key is on standard output."
        ),
        f"  1. Add the new key on a line of its own at the end of {folder}/key, and restart every process.",
        "  2. Move it to the front, and restart every process.",
        "  3. Run `mlapi secrets rotate` again. It re-encrypts every password with the new key.",
        "  4. Remove the former key, and restart every process.",
    ]
    assert (too_early.exit_code, too_early.stdout) == (3, "")
    assert "secrets.key has several values already" in too_early.stderr
    assert finished.stdout.startswith("every password is encrypted with the newest key; 2 were")
    assert pruned.stdout == "kept secrets.key: remove all but the first value where it is set\npruned\n"
    assert OLDER_KEY not in f"{first.stderr}{too_early.stderr}{pruned.stdout}"
    with open_service(load_settings()) as service:
        assert service.access.authenticator.log_in(username="user1", password="password 1").expires_in == 3600
    assert not (folder / "secrets.yml").exists()


@pytest.mark.parametrize(
    ("options", "lines", "step"),
    [
        ([], 1, "  1. Add the new key after a comma at the end of MLAPI_SECRETS__KEY, and restart every process."),
        (
            ["--tokens"],
            2,
            "  1. Set secrets.token_key to all lines on standard output, in this order, and restart every process.",
        ),
        (
            ["--salt"],
            1,
            (
                "  1. A variable or its file holds one salt only: remove it, list the current salt and then the new one"
                " as secrets.salt in the configuration file, and restart every process."
            ),
        ),
    ],
)
def test_secret_in_a_variable_is_rotated_by_the_operator(
    options: list[str], lines: int, step: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLAPI_SECRETS__KEY", KEY)
    monkeypatch.setenv("MLAPI_SECRETS__SALT", SALT)
    with open_service(load_settings()):
        pass

    result, as_json = mlapi("secrets", "rotate", *options), mlapi("secrets", "rotate", *options, "--json")

    assert (result.exit_code, as_json.exit_code) == (4, 4)
    assert result.stderr.splitlines()[1] == step
    assert result.stdout.count("\n") == lines
    assert len(json.loads(as_json.stdout)["append"]) == lines
    assert KEY not in result.stderr
    assert not (folder / "secrets.yml").exists()


def test_token_keys_on_standard_output_keep_tokens_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_SECRETS__KEY", KEY)
    monkeypatch.setenv("MLAPI_SECRETS__SALT", SALT)
    with open_service(load_settings()) as service:
        register(service.users, 1)
        token = service.access.authenticator.log_in(username="user0", password="password 0").token

    derived, new = mlapi("secrets", "rotate", "--tokens").stdout.split()

    monkeypatch.setenv("MLAPI_SECRETS__TOKEN_KEY", f"{new},{derived}")
    with open_service(load_settings()) as service:
        assert service.access.guard.check(token).username == "user0"


def test_key_in_a_configuration_file_is_rotated_there(folder: Path) -> None:
    (folder / "config.yml").write_text(f"secrets: {{key: {KEY}, salt: {SALT}, token_key: {OLDER_KEY}}}\n")
    (folder / "config.yml").chmod(0o600)
    with open_service(load_settings()):
        pass

    results = [mlapi("secrets", "rotate", option) for option in ("--salt", "--tokens")]

    place = "at the end of the list in config.yml, and restart every process."
    assert results[0].stderr.splitlines()[1] == f"  1. Add the new salt {place}"
    assert results[1].stderr.splitlines()[1] == f"  1. Add the new token key {place}"


def test_secrets_file_mounted_by_kubernetes_is_left_alone(folder: Path, settings: Settings) -> None:
    with open_service(settings) as service:
        register(service.users, 1)
    (folder / "..2026_01_31").mkdir()
    (folder / "secrets.yml").rename(folder / "..2026_01_31" / "secrets.yml")
    (folder / "..data").symlink_to("..2026_01_31")
    (folder / "secrets.yml").symlink_to("..data/secrets.yml")
    before = (folder / "secrets.yml").read_text()

    result, pruned = mlapi("secrets", "rotate"), mlapi("secrets", "prune")

    assert (result.exit_code, pruned.exit_code) == (4, 0)
    assert result.stderr.splitlines()[1] == (
        f"  1. Add the new key at the end of the list in {folder}/secrets.yml, and wait until every machine has the new"
        f" {folder}/secrets.yml (in Kubernetes, two minutes)."
    )
    assert (folder / "secrets.yml").read_text() == before


def make_read_only(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("mlapi.secret_store.atomic_write", fail)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EBUSY, errno.EACCES])
def test_read_only_secrets_file_is_rotated_by_the_operator(
    folder: Path, settings: Settings, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_service(settings) as service:
        register(service.users, 1)
    before = (folder / "secrets.yml").read_text()

    make_read_only(monkeypatch, code)

    result = mlapi("secrets", "rotate", "--tokens")

    assert result.exit_code == 4
    assert f"mlapi cannot change {folder}/secrets.yml, so rotate secrets.token_key there." in result.stderr
    assert (folder / "secrets.yml").read_text() == before


def test_read_only_secrets_file_is_pruned_by_the_operator(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlapi("db", "upgrade")
    mlapi("secrets", "rotate", "--tokens")
    before = (folder / "secrets.yml").read_text()
    make_read_only(monkeypatch, errno.EROFS)

    result = mlapi("secrets", "prune")

    assert result.exit_code == 0
    assert result.stdout == "kept secrets.token_key: remove all but the first value where it is set\npruned\n"
    assert (folder / "secrets.yml").read_text() == before


@pytest.mark.parametrize("command", [["rotate"], ["rotate", "--tokens"], ["rotate", "--salt"], ["prune"]])
def test_rotation_without_database_changes_nothing(
    command: list[str], folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_service(settings):
        pass
    before = (folder / "secrets.yml").read_text()
    monkeypatch.setenv("MLAPI_SECRETS__KEY", KEY)
    monkeypatch.setenv("MLAPI_SECRETS__SALT", SALT)
    monkeypatch.setenv("MLAPI_DATABASE__URL", "postgresql://u:p@127.0.0.1:1/d")

    result = mlapi("secrets", *command)

    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == (
        "mlapi: the database is unavailable: the connection was refused: check the host and port in database.url\n"
    )
    assert (folder / "secrets.yml").read_text() == before


def test_manually_prepended_key_is_used_as_the_new_key(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("MLAPI_SECRETS__KEY", OLDER_KEY)
    monkeypatch.setenv("MLAPI_SECRETS__SALT", SALT)
    with open_service(load_settings()) as service:
        register(service.users, 3)
    monkeypatch.setenv("MLAPI_SECRETS__KEY", f"{KEY},{OLDER_KEY}")

    result = mlapi("secrets", "rotate")

    assert result.stdout == "every password is encrypted with the newest key; 3 were encrypted with an older key\n"
    monkeypatch.setenv("MLAPI_SECRETS__KEY", KEY)
    with open_service(load_settings()) as service:
        assert service.access.authenticator.log_in(username="user0", password="password 0").expires_in == 3600


def test_failed_write_of_the_secrets_file_changes_nothing(
    folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_service(settings) as service:
        register(service.users, 1)
    before = (folder / "secrets.yml").read_text()

    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with open_secret_rotation(settings) as rotation, pytest.raises(ConfigurationError, match="No space left on device"):
        list(rotation.rotate_key())
    with open_secret_rotation(settings) as rotation, pytest.raises(ConfigurationError, match="No space left on device"):
        rotation.prune()

    assert (folder / "secrets.yml").read_text() == before
    assert sorted(path.suffix for path in folder.iterdir() if "secrets" in path.name) == [".yml"]
