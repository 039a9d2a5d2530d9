"""The secret store adds missing secrets from a file, and checks, generates, rotates and prunes secrets."""

from pathlib import Path
from unittest.mock import Mock, call

import attrs
import pytest

from mlapi.adapters.memory import InMemoryUserRepository
from mlapi.config import (
    PasswordSettings,
    SecretSettings,
    Settings,
    secrets_file,
)
from mlapi.config.files import read_yaml
from mlapi.domain.errors import ConfigurationError
from mlapi.secret_store import fingerprint, new_admin_token, new_password
from mlapi.testing.samples import registered
from tests.sample_settings import (
    ALL_SECRETS,
    CANARY,
    KEY,
    OLD_KEY,
    OLD_SALT,
    SALT,
    TOKEN,
    TOKEN_KEY,
    load,
    write,
)
from tests.secret_store import make_store, with_secrets

NOWHERE = Path("/nowhere/secrets.yml")


def test_missing_secrets_come_from_the_secrets_file(tmp_path: Path) -> None:
    content = f"key: {KEY}\nsalt: '{SALT}'\ntoken_key: {TOKEN_KEY}\nadmin_token: {TOKEN}\n"
    file = write(tmp_path, content, name="secrets.yml")

    assert with_secrets(Settings(), file) == Settings(secrets=ALL_SECRETS)


def test_settings_override_the_secrets_file(tmp_path: Path) -> None:
    content = f"key: {OLD_KEY}\nsalt: other\ntoken_key: {OLD_KEY}\nadmin_token: other\n"
    file = write(tmp_path, content, name="secrets.yml")

    assert with_secrets(Settings(secrets=ALL_SECRETS), file) == Settings(secrets=ALL_SECRETS)


@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        pytest.param(SecretSettings(key=("other",)), attrs.evolve(ALL_SECRETS, key=("other",)), id="key"),
        pytest.param(SecretSettings(salt=("other",)), attrs.evolve(ALL_SECRETS, salt=("other",)), id="salt"),
        pytest.param(
            SecretSettings(token_key=("other",)), attrs.evolve(ALL_SECRETS, token_key=("other",)), id="token key"
        ),
        pytest.param(
            SecretSettings(admin_token="other"), attrs.evolve(ALL_SECRETS, admin_token="other"), id="admin token"
        ),
    ],
)
def test_secrets_file_supplies_the_secrets_that_are_not_set(
    tmp_path: Path, configured: SecretSettings, expected: SecretSettings
) -> None:
    content = f"key: {KEY}\nsalt: '{SALT}'\ntoken_key: {TOKEN_KEY}\nadmin_token: {TOKEN}\n"
    file = write(tmp_path, content, name="secrets.yml")

    assert with_secrets(Settings(secrets=configured), file) == Settings(secrets=expected)


def test_development_needs_no_admin_token() -> None:
    settings = Settings(secrets=SecretSettings(key=(KEY,), salt=(SALT,)))

    assert with_secrets(settings, NOWHERE) == settings


def test_production_with_all_secrets_is_accepted() -> None:
    settings = Settings(profile="production", secrets=ALL_SECRETS)

    assert with_secrets(settings, NOWHERE) == settings


@pytest.mark.parametrize("profile", ["development", "production"])
def test_token_key_is_optional_in_every_profile(tmp_path: Path, profile: str) -> None:
    settings = attrs.evolve(load(tmp_path, f"profile: {profile}"), secrets=attrs.evolve(ALL_SECRETS, token_key=()))

    assert with_secrets(settings, NOWHERE) == settings


def test_older_keys_and_salts_in_the_secrets_file_are_read(tmp_path: Path) -> None:
    content = f"key:\n- {KEY}\n- {OLD_KEY}\nsalt:\n- '{SALT}'\n- {OLD_SALT}\ntoken_key:\n- {TOKEN_KEY}\n- {OLD_KEY}\n"
    file = write(tmp_path, content, name="secrets.yml")

    assert with_secrets(Settings(), file).secrets == SecretSettings(
        key=(KEY, OLD_KEY), salt=(SALT, OLD_SALT), token_key=(TOKEN_KEY, OLD_KEY)
    )


@pytest.mark.parametrize(
    ("profile", "name"),
    [
        ("development", "key"),
        ("development", "salt"),
        ("production", "key"),
        ("production", "salt"),
        ("production", "admin_token"),
    ],
)
def test_missing_secret_error_lists_all_ways_to_set_it(tmp_path: Path, profile: str, name: str) -> None:
    values = {"key": KEY, "salt": SALT, "admin_token": TOKEN}
    environ = {f"MLAPI_SECRETS__{other.upper()}": value for other, value in values.items() if other != name}
    settings = load(tmp_path, f"profile: {profile}", environ)

    with pytest.raises(ConfigurationError) as exc_info:
        with_secrets(settings, NOWHERE)

    assert str(exc_info.value) == (
        f"secrets.{name} is missing: set it in config.yml, as MLAPI_SECRETS__{name.upper()}, in a file named by"
        f" MLAPI_SECRETS__{name.upper()}_FILE, or in /nowhere/secrets.yml; for a new database, `mlapi"
        f" {'secrets' if name == 'key' else 'admin-token'} new` makes one"
    )


@pytest.mark.parametrize(
    "salts", [("salt",), ("SALT",), ("changeme",), ("password",), (SALT, "secret"), ("token", SALT)], ids=", ".join
)
def test_production_rejects_a_sample_salt(salts: tuple[str, ...]) -> None:
    settings = Settings(profile="production", secrets=attrs.evolve(ALL_SECRETS, salt=salts))

    with pytest.raises(ConfigurationError) as exc_info:
        with_secrets(settings, NOWHERE)

    assert str(exc_info.value) == "secrets.salt is a well-known sample: replace it with random characters"


def test_production_rejects_a_short_admin_token() -> None:
    settings = Settings(profile="production", secrets=attrs.evolve(ALL_SECRETS, admin_token="x" * 15))

    with pytest.raises(ConfigurationError) as exc_info:
        with_secrets(settings, NOWHERE)

    assert str(exc_info.value) == (
        "secrets.admin_token must have at least 16 characters in production: make one with `mlapi admin-token new`"
    )


def test_production_accepts_an_admin_token_of_16_characters() -> None:
    settings = Settings(profile="production", secrets=attrs.evolve(ALL_SECRETS, admin_token="x" * 16))

    assert with_secrets(settings, NOWHERE) == settings


def test_production_rejects_a_min_length_below_8() -> None:
    settings = Settings(profile="production", secrets=ALL_SECRETS, passwords=PasswordSettings(min_length=7))

    with pytest.raises(ConfigurationError) as exc_info:
        with_secrets(settings, NOWHERE)

    assert str(exc_info.value) == "passwords.min_length must be at least 8 in production"


def test_production_accepts_a_min_length_of_8() -> None:
    settings = Settings(profile="production", secrets=ALL_SECRETS, passwords=PasswordSettings(min_length=8))

    assert with_secrets(settings, NOWHERE) == settings


def test_development_accepts_weak_secrets() -> None:
    settings = Settings(
        secrets=SecretSettings(key=(KEY,), salt=("salt",), admin_token="short"),
        passwords=PasswordSettings(min_length=1),
    )

    assert with_secrets(settings, NOWHERE) == settings


@pytest.mark.parametrize("profile", ["development", "production"])
def test_world_readable_secrets_file_is_rejected(tmp_path: Path, profile: str) -> None:
    file = write(tmp_path, f"key: {KEY}\nsalt: {SALT}\n", name="secrets.yml", mode=0o644)

    with pytest.raises(ConfigurationError) as exc_info:
        with_secrets(load(tmp_path, f"profile: {profile}"), file)

    assert str(exc_info.value).startswith(f"{file} holds secrets, but other accounts can access it: run `chmod 600")
    "; if that has no effect, move it to a file system that supports permissions"


def test_unknown_key_in_the_secrets_file_is_rejected(tmp_path: Path) -> None:
    file = write(tmp_path, f"keys: {KEY}\n", name="secrets.yml")

    with pytest.raises(ConfigurationError) as exc_info:
        with_secrets(Settings(), file)

    assert str(exc_info.value) == f"{file}: secrets.keys is not a setting; did you mean secrets.key?"


def test_invalid_key_in_the_secrets_file_is_rejected(tmp_path: Path) -> None:
    file = write(tmp_path, "key: short\n", name="secrets.yml")

    with pytest.raises(ConfigurationError) as exc_info:
        with_secrets(Settings(), file)

    assert str(exc_info.value).startswith(f"{file}: secrets.key is not a Fernet key")


def test_invalid_token_key_in_the_secrets_file_is_rejected(tmp_path: Path) -> None:
    file = write(tmp_path, f"key: {KEY}\nsalt: x\ntoken_key: [{TOKEN_KEY}, short]\n", name="secrets.yml")

    with pytest.raises(ConfigurationError) as exc_info:
        with_secrets(Settings(), file)

    assert str(exc_info.value).startswith(f"{file}: secrets.token_key (number 2 of 2) is not a Fernet key")


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        pytest.param(f"key: {CANARY}\n", 0o600, id="bad key"),
        pytest.param(f"{CANARY}\n", 0o600, id="text"),
        pytest.param(f"key:{CANARY}\n", 0o600, id="no space after the colon"),
        pytest.param(f"{{key:{CANARY}}}\n", 0o600, id="no space after the colon in braces"),
        pytest.param(f"key: '{CANARY}\n", 0o600, id="not YAML"),
        pytest.param(f"salt: {CANARY}\n", 0o600, id="no key"),
        pytest.param(f"slat: {CANARY}\n", 0o600, id="unknown key"),
        pytest.param(f"key: {KEY}\nsalt: x\ntoken_key: {CANARY}\n", 0o600, id="bad token key"),
        pytest.param(f"key: {KEY}\nsalt: [[{CANARY}]]\n", 0o600, id="list in the list of salts"),
        pytest.param(f"salt: {CANARY}\n", 0o644, id="world-readable"),
    ],
)
def test_errors_never_show_the_content_of_the_secrets_file(tmp_path: Path, content: str, mode: int) -> None:
    file = write(tmp_path, content, name="secrets.yml", mode=mode)

    with pytest.raises(ConfigurationError) as exc_info:
        with_secrets(Settings(), file)

    assert CANARY not in str(exc_info.value)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(Settings(secrets=attrs.evolve(ALL_SECRETS, admin_token=CANARY)), id="short token"),
        pytest.param(Settings(secrets=SecretSettings(key=(KEY,), salt=(CANARY,))), id="missing token"),
        pytest.param(
            Settings(secrets=SecretSettings(salt=(CANARY,), token_key=(CANARY,), admin_token=CANARY)), id="missing key"
        ),
        pytest.param(Settings(secrets=attrs.evolve(ALL_SECRETS, salt=(CANARY, "secret"))), id="sample salt"),
        pytest.param(
            Settings(
                secrets=SecretSettings(key=(KEY,), salt=(CANARY,), admin_token=f"{CANARY}-of-many-characters"),
                passwords=PasswordSettings(min_length=7),
            ),
            id="short passwords",
        ),
    ],
)
def test_production_errors_never_contain_a_secret(settings: Settings) -> None:
    with pytest.raises(ConfigurationError) as exc_info:
        with_secrets(attrs.evolve(settings, profile="production"), NOWHERE)

    assert CANARY not in str(exc_info.value)


def test_missing_file_is_created_in_development(tmp_path: Path) -> None:
    store = make_store(Settings(), tmp_path / "secrets.yml")

    store.create_missing(is_database_in_use=lambda: False)

    assert store.exists
    assert store.location == f"{tmp_path}/secrets.yml"
    assert len(store.load().key) == len(store.load().salt) == 1


def test_lost_file_of_a_database_in_use_is_not_regenerated(tmp_path: Path) -> None:
    store = make_store(Settings(), tmp_path / "secrets.yml")

    with pytest.raises(ConfigurationError, match="restore the file"):
        store.create_missing(is_database_in_use=lambda: True)

    assert not store.exists


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(Settings(profile="production"), id="production"),
        pytest.param(Settings(secrets=SecretSettings(key=(KEY,))), id="configured key"),
        pytest.param(Settings(secrets=SecretSettings(salt=(SALT,))), id="configured salt"),
    ],
)
def test_no_secrets_are_generated_if_configured_or_in_production(tmp_path: Path, settings: Settings) -> None:
    make_store(settings, tmp_path / "secrets.yml").create_missing(is_database_in_use=lambda: False)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("configured", [SecretSettings(admin_token=TOKEN), SecretSettings(token_key=(TOKEN_KEY,))])
def test_other_secrets_do_not_prevent_generation(tmp_path: Path, configured: SecretSettings) -> None:
    store = make_store(Settings(secrets=configured), tmp_path / "secrets.yml")

    store.create_missing(is_database_in_use=lambda: False)

    loaded = store.load()
    assert len(loaded.key) == len(loaded.salt) == 1
    assert (loaded.admin_token, loaded.token_key) == (configured.admin_token, configured.token_key)


def test_secrets_without_a_file_are_kept_in_memory() -> None:
    store = make_store(Settings(), None)
    before = store.exists

    store.create_missing(is_database_in_use=lambda: True)
    first = store.load()
    store.create_missing(is_database_in_use=lambda: True)

    assert (before, store.exists, store.location) == (False, True, "memory")
    assert store.load() == first
    with store.lock():
        store.prune({"key", "salt"})
    assert store.load() == first
    assert store.reloader.get(check_now=True) is store.reloader.get()


def test_secrets_in_memory_cannot_be_rotated() -> None:
    store = make_store(Settings(), None)
    store.create_missing(is_database_in_use=lambda: False)

    with pytest.raises(ConfigurationError, match="this database has no secrets file"):
        store.add("key")


def test_missing_secret_error_omits_the_file_if_none_is_used() -> None:
    with pytest.raises(ConfigurationError) as exc_info:
        make_store(Settings(profile="production"), None).load()

    assert str(exc_info.value).endswith("_FILE; for a new database, `mlapi secrets new` makes one")


def test_added_secret_comes_first_and_survives_pruning(tmp_path: Path) -> None:
    file = write(tmp_path, f"key: {KEY}\nsalt: old\n", name="secrets.yml")
    store = make_store(Settings(), file)

    store.add("key")
    store.add("salt")
    added = store.load()
    store.prune({"key"})

    assert (added.key[1:], added.salt[1:]) == ((KEY,), ("old",))
    assert store.load() == attrs.evolve(added, key=added.key[:1])


def test_adding_a_token_key_keeps_existing_tokens_valid(tmp_path: Path) -> None:
    store = make_store(Settings(), write(tmp_path, f"key: {KEY}\nsalt: x\n", name="secrets.yml"))
    user = registered(InMemoryUserRepository())
    token = store.current().tokens.issue(user).token

    store.add("token_key")

    assert store.current().tokens.verify(token).user_id == user.id
    assert len(store.load().token_key) == 2


def test_fingerprints_have_a_row_per_key_and_a_column_per_salt(tmp_path: Path) -> None:
    content = f"key: [{KEY}, {OLD_KEY}]\nsalt: [{OLD_SALT}, x]\n"
    store = make_store(Settings(), write(tmp_path, content, name="secrets.yml"))

    assert store.current().fingerprints == [
        [fingerprint(key, salt) for salt in (OLD_SALT, "x")] for key in (KEY, OLD_KEY)
    ]


def test_current_cipher_reflects_changes_to_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, f"key: {KEY}\nsalt: x\n", name="secrets.yml")
    store = make_store(Settings(), file)
    former = store.reloader.get().cipher

    store.add("key")
    current = store.reloader.get(check_now=True).cipher

    assert current.needs_upgrade(former.encrypt("secret"))
    assert not former.is_readable(current.encrypt("secret"))


def test_each_version_of_the_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, f"key: {KEY}\nsalt: x\n", name="secrets.yml")
    store = make_store(Settings(), file)
    read = Mock(wraps=read_yaml)
    monkeypatch.setattr(secrets_file, "read_yaml", read)

    first = [store.current(), store.reloader.get(), store.reloader.get(check_now=True), store.current()]
    replacement = write(tmp_path, f"key: [{OLD_KEY}, {KEY}]\nsalt: x\n", name="new.yml")
    replacement.replace(file)
    second = [store.current(), store.reloader.get(check_now=True), store.current()]

    assert {id(loaded) for loaded in first} == {id(first[0])}
    assert {id(loaded) for loaded in second} == {id(second[0])}
    assert (first[0].secrets.key, second[0].secrets.key) == ((KEY,), (OLD_KEY, KEY))
    assert read.mock_calls == [call(file)] * 2


def test_invalid_file_is_rejected_and_services_keep_the_old_one(tmp_path: Path) -> None:
    file = write(tmp_path, f"key: {KEY}\nsalt: x\n", name="secrets.yml")
    store = make_store(Settings(), file)
    previous = store.reloader.get()

    write(tmp_path, "key: short\n", name="secrets.yml")

    assert store.reloader.get(check_now=True) is previous
    for _ in range(2):
        with pytest.raises(ConfigurationError):
            store.current()


def test_generated_admin_tokens_and_passwords_are_unique() -> None:
    assert len({new_admin_token() for _ in range(100)} | {new_password() for _ in range(100)}) == 200
