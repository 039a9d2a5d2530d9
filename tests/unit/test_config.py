"""Settings: read from a file and the environment, and refused with what to do about it."""

import base64
import ipaddress
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

from mlapi.config import (
    ConnectionSettings,
    DatabaseSettings,
    HttpSettings,
    LoginSettings,
    ManagementSettings,
    PasswordSettings,
    RegistrationSettings,
    SecretSettings,
    Settings,
    TokenSettings,
    load_settings,
)
from mlapi.domain.errors import ConfigurationError
from tests.secret_store import with_secrets

ROOT = Path(__file__).parents[2]

KNOWN = (
    "the settings are profile, database, connection, secrets, passwords, tokens, logins, http, registration,"
    " management, audit, logging, metrics"
)


def fernet_key(first_byte: int) -> str:
    return base64.urlsafe_b64encode(bytes(range(first_byte, first_byte + 32))).decode()


KEY, OLD_KEY, TOKEN_KEY = fernet_key(0), fernet_key(100), fernet_key(200)
PUBLISHED_KEY = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="  # of the Fernet specification's test vectors
SALT, OLD_SALT = "a salt, of many characters", "an older one"
TOKEN = "an-admin-token-of-32-characters."
ALL_SECRETS = SecretSettings(key=(KEY,), salt=(SALT,), token_key=(TOKEN_KEY,), admin_token=TOKEN)
CANARY = "CANARY"

NOWHERE = Path("/nowhere/secrets.yml")
NO_LINES = "must contain `key: value` lines"


def written(folder: Path, content: str | bytes, *, name: str = "config.yml", mode: int = 0o600) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    file.chmod(mode)
    return file


def load(folder: Path, content: str | bytes, environ: Mapping[str, str] | None = None) -> Settings:
    return load_settings(written(folder, content), environ or {})


def refusal_of(folder: Path, content: str | bytes, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigurationError) as refusal:
        load(folder, content, environ)
    return str(refusal.value).replace(str(folder), "FOLDER")


# --- what is read, and from where


def test_everything_has_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert load_settings(environ={}) == Settings(
        profile="development",
        database=DatabaseSettings(url=None),
        connection=None,
        secrets=SecretSettings(key=(), salt=(), token_key=(), admin_token=None),
        passwords=PasswordSettings(scheme="argon2id", min_length=None),
        tokens=TokenSettings(minutes=60, issuer="mlapi", audience="mlapi"),
        logins=LoginSettings(per_address=200, per_name=200, per_name_and_address=20),
        http=HttpSettings(trusted_proxies=()),
        registration=RegistrationSettings(open=True),
        management=ManagementSettings(local=True),
    )


def test_the_shipped_file_says_the_defaults() -> None:
    settings = load_settings(ROOT / "config.yml", {})

    assert settings == Settings(database=DatabaseSettings(url="sqlite:///mlapi.db"))


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "null\n"])
def test_an_empty_file_says_nothing(tmp_path: Path, content: str) -> None:
    assert load(tmp_path, content) == Settings()


@pytest.mark.parametrize(
    "section", ["profile", "database", "connection", "secrets", "tokens", "logins", "http", "registration"]
)
def test_an_empty_section_says_nothing(tmp_path: Path, section: str) -> None:
    assert load(tmp_path, f"{section}:\n") == Settings()


def test_config_yml_is_read_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "registration: {open: false}")

    assert load_settings(environ={}) == Settings(registration=RegistrationSettings(open=False))


def test_mlapi_config_names_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "registration: {open: false}")
    other = written(tmp_path, "management: {local: false}", name="other.yml")

    assert load_settings(environ={"MLAPI_CONFIG": str(other)}) == Settings(management=ManagementSettings(local=False))


def test_a_path_that_is_given_goes_before_mlapi_config(tmp_path: Path) -> None:
    file = written(tmp_path, "management: {local: false}")

    assert load_settings(file, {"MLAPI_CONFIG": "/nowhere.yml"}).management.local is False


def test_an_empty_mlapi_config_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert load_settings(environ={"MLAPI_CONFIG": ""}) == Settings()


def test_every_key_can_be_set_in_the_file(tmp_path: Path) -> None:
    content = f"""
        profile: production
        database: {{url: "postgresql://db.example/mlapi"}}
        secrets: {{key: {KEY}, salt: "{SALT}", token_key: {TOKEN_KEY}, admin_token: {TOKEN}}}
        passwords: {{scheme: fernet, min_length: 15}}
        tokens: {{minutes: 5, issuer: users.example, audience: models.example}}
        logins: {{per_address: 3, per_name: 4, per_name_and_address: 5}}
        http: {{trusted_proxies: 10.0.0.0/8}}
        registration: {{open: false}}
        management: {{local: false}}
    """

    assert load(tmp_path, content) == Settings(
        profile="production",
        database=DatabaseSettings(url="postgresql://db.example/mlapi"),
        secrets=ALL_SECRETS,
        passwords=PasswordSettings(scheme="fernet", min_length=15),
        tokens=TokenSettings(minutes=5, issuer="users.example", audience="models.example"),
        logins=LoginSettings(per_address=3, per_name=4, per_name_and_address=5),
        http=HttpSettings(trusted_proxies=("10.0.0.0/8",)),
        registration=RegistrationSettings(open=False),
        management=ManagementSettings(local=False),
    )


def test_every_key_can_be_set_in_the_environment(tmp_path: Path) -> None:
    environ = {
        "MLAPI_PROFILE": "production",
        "MLAPI_DATABASE__URL": "postgresql://db.example/mlapi",
        "MLAPI_SECRETS__KEY": KEY,
        "MLAPI_SECRETS__SALT": SALT,
        "MLAPI_SECRETS__TOKEN_KEY": TOKEN_KEY,
        "MLAPI_SECRETS__ADMIN_TOKEN": TOKEN,
        "MLAPI_PASSWORDS__SCHEME": "fernet",
        "MLAPI_PASSWORDS__MIN_LENGTH": "15",
        "MLAPI_TOKENS__MINUTES": "5",
        "MLAPI_TOKENS__ISSUER": "users.example",
        "MLAPI_TOKENS__AUDIENCE": "models.example",
        "MLAPI_LOGINS__PER_ADDRESS": "3",
        "MLAPI_LOGINS__PER_NAME": "4",
        "MLAPI_LOGINS__PER_NAME_AND_ADDRESS": "5",
        "MLAPI_HTTP__TRUSTED_PROXIES": "10.0.0.0/8",
        "MLAPI_REGISTRATION__OPEN": "false",
        "MLAPI_MANAGEMENT__LOCAL": "false",
    }

    assert load(tmp_path, "", environ) == Settings(
        profile="production",
        database=DatabaseSettings(url="postgresql://db.example/mlapi"),
        secrets=ALL_SECRETS,
        passwords=PasswordSettings(scheme="fernet", min_length=15),
        tokens=TokenSettings(minutes=5, issuer="users.example", audience="models.example"),
        logins=LoginSettings(per_address=3, per_name=4, per_name_and_address=5),
        http=HttpSettings(trusted_proxies=("10.0.0.0/8",)),
        registration=RegistrationSettings(open=False),
        management=ManagementSettings(local=False),
    )


def test_a_connection_can_be_set_in_the_environment(tmp_path: Path) -> None:
    environ = {
        "MLAPI_CONNECTION__USERNAME": "mlapi",
        "MLAPI_CONNECTION__PASSWORD": "p@ss/word",
        "MLAPI_CONNECTION__HOST": "db.example",
        "MLAPI_CONNECTION__PORT": "5433",
        "MLAPI_CONNECTION__DATABASE": "users",
    }

    assert load(tmp_path, "", environ).connection == ConnectionSettings(
        username="mlapi", password="p@ss/word", host="db.example", port=5433, database="users"
    )


def test_the_blocks_of_the_origin_are_read_as_they_are(tmp_path: Path) -> None:
    content = f"""
secrets:
  key: {KEY}
  salt: {SALT}
connection:
  username: mlapi
  password: p@ss/word
  host: db.example
  port: 5433
  database: users
"""

    assert load(tmp_path, content) == Settings(
        secrets=SecretSettings(key=(KEY,), salt=(SALT,)),
        connection=ConnectionSettings(
            username="mlapi", password="p@ss/word", host="db.example", port=5433, database="users"
        ),
    )


def test_a_connection_is_local_and_on_the_usual_port_by_default(tmp_path: Path) -> None:
    settings = load(tmp_path, "connection: {username: mlapi, password: p, database: users}")

    assert settings.connection == ConnectionSettings(
        username="mlapi", password="p", host="localhost", port=5432, database="users"
    )


def test_the_environment_overrides_one_key_and_leaves_its_neighbours(tmp_path: Path) -> None:
    content = "passwords: {scheme: fernet, min_length: 9}"

    assert load(tmp_path, content, {"MLAPI_PASSWORDS__MIN_LENGTH": "15"}).passwords == PasswordSettings(
        scheme="fernet", min_length=15
    )


def test_the_environment_overrides_the_profile(tmp_path: Path) -> None:
    settings = load(tmp_path, "profile: development", {"MLAPI_PROFILE": "production"})

    assert settings.is_production


def test_an_empty_section_of_the_file_can_be_filled_by_the_environment(tmp_path: Path) -> None:
    content = "secrets:\n  # key and salt are in the environment\n"

    assert load(tmp_path, content, {"MLAPI_SECRETS__SALT": SALT}).secrets == SecretSettings(salt=(SALT,))


@pytest.mark.parametrize("value", ["false", "False", "0"])
def test_a_flag_in_the_environment_is_a_word_or_a_digit(tmp_path: Path, value: str) -> None:
    assert load(tmp_path, "", {"MLAPI_REGISTRATION__OPEN": value}).registration.open is False


def test_a_variable_may_be_written_in_lower_case(tmp_path: Path) -> None:
    assert load(tmp_path, "", {"MLAPI_secrets__salt": SALT}).secrets.salt == (SALT,)


@pytest.mark.parametrize(
    "value",
    [f"[{KEY}, {OLD_KEY}]", f"{KEY},{OLD_KEY}", f"'{KEY}, {OLD_KEY}'", f"{KEY} {OLD_KEY}"],
    ids=["list", "comma", "comma and space", "space"],
)
def test_the_file_may_hold_several_keys(tmp_path: Path, value: str) -> None:
    secrets = load(tmp_path, f"secrets:\n  key: {value}\n  token_key: {value}\n").secrets

    assert secrets == SecretSettings(key=(KEY, OLD_KEY), token_key=(KEY, OLD_KEY))


@pytest.mark.parametrize("separator", [",", " ", ", ", "\n"], ids=["comma", "space", "comma and space", "line"])
def test_the_environment_may_hold_several_keys(tmp_path: Path, separator: str) -> None:
    keys = f"{KEY}{separator}{OLD_KEY}"

    secrets = load(tmp_path, "", {"MLAPI_SECRETS__KEY": keys, "MLAPI_SECRETS__TOKEN_KEY": keys}).secrets

    assert secrets == SecretSettings(key=(KEY, OLD_KEY), token_key=(KEY, OLD_KEY))


def test_the_file_may_hold_several_salts(tmp_path: Path) -> None:
    content = f"secrets:\n  salt:\n  - '{SALT}'\n  - '{OLD_SALT}'\n"

    assert load(tmp_path, content).secrets == SecretSettings(salt=(SALT, OLD_SALT))


@pytest.mark.parametrize("salt", ["a b", "a,b", " a, b ", "a\nb"], ids=repr)
def test_a_salt_may_hold_what_stands_between_keys(tmp_path: Path, salt: str) -> None:
    in_file = load(tmp_path, f"secrets: {{salt: {json.dumps(salt)}}}")
    in_environment = load(tmp_path, "", {"MLAPI_SECRETS__SALT": salt})

    assert in_file.secrets == in_environment.secrets == SecretSettings(salt=(salt,))


def test_an_empty_salt_in_a_list_is_refused(tmp_path: Path) -> None:
    assert refusal_of(tmp_path, "secrets: {salt: [x, '']}") == "secrets.salt must not be empty"


@pytest.mark.parametrize("name", ["key", "salt", "token_key"])
def test_an_empty_secret_is_none(tmp_path: Path, name: str) -> None:
    in_file = load(tmp_path, f"secrets: {{{name}: ''}}")
    in_environment = load(tmp_path, "", {f"MLAPI_SECRETS__{name.upper()}": ""})

    assert in_file == in_environment == Settings()


@pytest.mark.parametrize(
    "value",
    ["[10.0.0.0/8, '::1']", "10.0.0.0/8,::1", "'10.0.0.0/8, ::1'", "10.0.0.0/8 ::1"],
    ids=["list", "comma", "comma and space", "space"],
)
def test_the_file_may_trust_several_proxies(tmp_path: Path, value: str) -> None:
    assert load(tmp_path, f"http:\n  trusted_proxies: {value}\n").http == HttpSettings(
        trusted_proxies=("10.0.0.0/8", "::1")
    )


@pytest.mark.parametrize("value", ["10.0.0.0/8,::1", "10.0.0.0/8 ::1"], ids=["comma", "space"])
def test_the_environment_may_trust_several_proxies(tmp_path: Path, value: str) -> None:
    assert load(tmp_path, "", {"MLAPI_HTTP__TRUSTED_PROXIES": value}).http == HttpSettings(
        trusted_proxies=("10.0.0.0/8", "::1")
    )


def test_an_empty_list_of_proxies_trusts_none(tmp_path: Path) -> None:
    assert load(tmp_path, "http: {trusted_proxies: []}", {"MLAPI_HTTP__TRUSTED_PROXIES": ""}) == Settings()


def test_trusted_proxies_are_networks() -> None:
    settings = HttpSettings(trusted_proxies=("192.0.2.7", "10.1.2.3/8", "2001:db8::1", "2001:db8::/32"))

    assert settings.trusted_networks == (
        ipaddress.IPv4Network("192.0.2.7/32"),
        ipaddress.IPv4Network("10.0.0.0/8"),
        ipaddress.IPv6Network("2001:db8::1/128"),
        ipaddress.IPv6Network("2001:db8::/32"),
    )


def test_a_value_can_be_read_from_a_file(tmp_path: Path) -> None:
    mounted = written(tmp_path, f"{SALT}\n", name="salt")

    assert load(tmp_path, "", {"MLAPI_SECRETS__SALT_FILE": str(mounted)}).secrets.salt == (SALT,)


def test_a_value_from_a_file_overrides_the_configuration(tmp_path: Path) -> None:
    mounted = written(tmp_path, SALT, name="salt")

    assert load(tmp_path, "secrets: {salt: other}", {"MLAPI_SECRETS__SALT_FILE": str(mounted)}).secrets.salt == (SALT,)


def test_a_variable_that_names_a_file_may_be_written_in_lower_case(tmp_path: Path) -> None:
    mounted = written(tmp_path, SALT, name="salt")

    assert load(tmp_path, "", {"MLAPI_secrets__salt_file": str(mounted)}).secrets.salt == (SALT,)


@pytest.mark.parametrize(
    "variable",
    [
        "MLAPI_SERVICE_HOST",
        "MLAPI_SERVICE_PORT",
        "MLAPI_SERVICE_PORT_HTTP",
        "MLAPI_PORT",
        "MLAPI_PORT_8001_TCP",
        "MLAPI_PORT_8001_TCP_ADDR",
    ],
)
def test_what_kubernetes_says_of_a_service_is_ignored_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, variable: str
) -> None:
    settings = load(tmp_path, "", {variable: "tcp://10.0.0.1:8001"})

    assert settings == Settings()
    assert caplog.messages == []


def test_a_variable_that_is_no_setting_is_named_in_the_log_without_its_value(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = load(tmp_path, "", {"MLAPI_SALT": CANARY})

    assert settings == Settings()
    assert caplog.record_tuples == [
        (
            "mlapi",
            logging.WARNING,
            "ignoring MLAPI_SALT: settings of mlapi are named MLAPI_SECTION__KEY",
        )
    ]


def test_other_peoples_variables_are_none_of_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = load(tmp_path, "", {"PATH": "/bin", "XMLAPI_SECRETS__SALT": "x", "DATABASE__URL": "x"})

    assert settings == Settings()
    assert caplog.messages == []


def test_the_environment_is_left_as_it_was(tmp_path: Path) -> None:
    environ = {"MLAPI_SECRETS__SALT": SALT, "MLAPI_SALT": "x"}
    load(tmp_path, "", environ)

    assert environ == {"MLAPI_SECRETS__SALT": SALT, "MLAPI_SALT": "x"}


# --- what is refused


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        ("profle: production", "profle is not a setting; did you mean profile?"),
        ("secrets: {keys: x}", "secrets.keys is not a setting; did you mean secrets.key?"),
        ("database: {uri: x}", "database.uri is not a setting; did you mean database.url?"),
        ("connection: {user: x}", "connection.user is not a setting; did you mean connection.username?"),
        ("passwords: {minlength: 8}", "passwords.minlength is not a setting; did you mean passwords.min_length?"),
        ("tokens: {minute: 5}", "tokens.minute is not a setting; did you mean tokens.minutes?"),
        ("logins: {per_names: 5}", "logins.per_names is not a setting; did you mean logins.per_name?"),
        ("http: {trusted_proxy: x}", "http.trusted_proxy is not a setting; did you mean http.trusted_proxies?"),
        (
            "registration: {open: true, opened: 1}",
            "registration.opened is not a setting; did you mean registration.open?",
        ),
        (
            "frobnicate: {key: x}",
            f"frobnicate is not a setting; {KNOWN}",
        ),
        (
            "1: x",
            f"a key in it is not a setting; {KNOWN}",
        ),
    ],
)
def test_an_unknown_key_of_the_file_is_refused_with_its_path(tmp_path: Path, content: str, refusal: str) -> None:
    assert refusal_of(tmp_path, content) == f"FOLDER/config.yml: {refusal}"


@pytest.mark.parametrize(
    ("variable", "refusal"),
    [
        ("MLAPI_SECRETS__KEYS", "secrets.keys is not a setting; did you mean secrets.key?"),
        ("MLAPI_SECRET__KEY", "secret is not a setting; did you mean secrets?"),
        ("MLAPI_DATABASE__URI", "database.uri is not a setting; did you mean database.url?"),
        (
            "MLAPI_FROBNICATE__X",
            f"frobnicate is not a setting; {KNOWN}",
        ),
        ("MLAPI_SECRETS__KEY__X", "secrets.key__x is not a setting; did you mean secrets.key?"),
    ],
)
def test_an_unknown_key_of_the_environment_is_refused_with_its_path(
    tmp_path: Path, variable: str, refusal: str
) -> None:
    assert refusal_of(tmp_path, "", {variable: "x"}) == f"{variable}: {refusal}"


@pytest.mark.parametrize(
    ("content", "path"),
    [
        pytest.param("profile: prod", "profile", id="profile that there is none of"),
        pytest.param("profile: [production]", "profile", id="list as profile"),
        pytest.param("profile: {name: production}", "profile", id="mapping as profile"),
        pytest.param("database: sqlite", "database", id="text as section"),
        pytest.param("database: {url: 5}", "database.url", id="number as URL"),
        pytest.param("connection: text", "connection", id="text as connection"),
        pytest.param("connection: {username: mlapi}", "connection", id="half a connection"),
        pytest.param(
            "connection: {username: a, password: p, database: d, port: x}", "connection.port", id="word as port"
        ),
        pytest.param("connection: {username: a, password: 5, database: d}", "connection.password", id="number"),
        pytest.param("secrets: [key]", "secrets", id="list as section"),
        pytest.param("secrets: key", "secrets", id="text as section of secrets"),
        pytest.param("secrets: 5", "secrets", id="number as section of secrets"),
        pytest.param("secrets: {key: 5}", "secrets.key", id="number as key"),
        pytest.param("secrets: {key: [5]}", "secrets.key[0]", id="number in a list of keys"),
        pytest.param("secrets: {token_key: 5}", "secrets.token_key", id="number as token key"),
        pytest.param("secrets: {salt: 5}", "secrets.salt", id="number as salt"),
        pytest.param("secrets: {salt: [5]}", "secrets.salt[0]", id="number in a list of salts"),
        pytest.param("secrets: {salt: 2026-03-01}", "secrets.salt", id="date as salt"),
        pytest.param("secrets: {admin_token: 5}", "secrets.admin_token", id="number as token"),
        pytest.param("passwords: {scheme: md5}", "passwords.scheme", id="scheme that there is none of"),
        pytest.param("passwords: {min_length: eight}", "passwords.min_length", id="word as length"),
        pytest.param("passwords: {min_length: 8.5}", "passwords.min_length", id="fraction as length"),
        pytest.param("passwords: {min_length: true}", "passwords.min_length", id="flag as length"),
        pytest.param("tokens: {minutes: hour}", "tokens.minutes", id="word as minutes"),
        pytest.param("tokens: {minutes: 0.5}", "tokens.minutes", id="fraction as minutes"),
        pytest.param("tokens: {issuer: 5}", "tokens.issuer", id="number as issuer"),
        pytest.param("tokens: {audience: [a, b]}", "tokens.audience", id="list as audience"),
        pytest.param("logins: {per_address: many}", "logins.per_address", id="word as number"),
        pytest.param("logins: {per_name: null}", "logins.per_name", id="nothing as number"),
        pytest.param("http: {trusted_proxies: 5}", "http.trusted_proxies", id="number as proxies"),
        pytest.param("http: {trusted_proxies: [5]}", "http.trusted_proxies[0]", id="number in a list of proxies"),
        pytest.param("http: text", "http", id="text as section of HTTP"),
        pytest.param("registration: {open: maybe}", "registration.open", id="word as flag"),
        pytest.param("management: {local: 5}", "management.local", id="number as flag"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_path(tmp_path: Path, content: str, path: str) -> None:
    refusal = refusal_of(tmp_path, content).removeprefix("FOLDER/config.yml: ")

    assert refusal.startswith((f"{path}: ", f"{path} must contain"))


@pytest.mark.parametrize(
    ("variable", "path"),
    [
        ("MLAPI_PROFILE", "profile"),
        ("MLAPI_PROFILE__X", "profile"),
        ("MLAPI_CONNECTION__PORT", "connection.port"),
        ("MLAPI_PASSWORDS__SCHEME", "passwords.scheme"),
        ("MLAPI_PASSWORDS__MIN_LENGTH", "passwords.min_length"),
        ("MLAPI_TOKENS__MINUTES", "tokens.minutes"),
        ("MLAPI_LOGINS__PER_ADDRESS", "logins.per_address"),
        ("MLAPI_LOGINS__PER_NAME", "logins.per_name"),
        ("MLAPI_LOGINS__PER_NAME_AND_ADDRESS", "logins.per_name_and_address"),
        ("MLAPI_REGISTRATION__OPEN", "registration.open"),
        ("MLAPI_MANAGEMENT__LOCAL", "management.local"),
    ],
)
def test_a_value_of_another_type_in_the_environment_is_refused_with_its_path(
    tmp_path: Path, variable: str, path: str
) -> None:
    place, separator, _reason = refusal_of(tmp_path, "", {variable: "nonsense"}).partition(": ")

    assert (place, separator) == (path, ": ")


def test_a_section_that_holds_text_cannot_be_filled_by_the_environment(tmp_path: Path) -> None:
    refusal = refusal_of(tmp_path, "secrets: text", {"MLAPI_SECRETS__SALT": SALT})

    assert refusal == f"FOLDER/config.yml: secrets {NO_LINES}"


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        pytest.param("profile: [", "is not valid YAML (line 1)", id="not YAML"),
        pytest.param("profile: development\n\tdatabase: x\n", "is not valid YAML (line 2)", id="tab"),
        pytest.param("profile: !!python/object:os.system x", "is not valid YAML (line 1)", id="Python object"),
        pytest.param("profile: \x00", "is not valid YAML", id="control character"),
        pytest.param(b"profile: \xff", "is not UTF-8", id="not UTF-8"),
        pytest.param("- profile", NO_LINES, id="list"),
        pytest.param("profile", NO_LINES, id="text"),
        pytest.param("5", NO_LINES, id="number"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: str | bytes, refusal: str) -> None:
    assert refusal_of(tmp_path, content) == f"FOLDER/config.yml {refusal}"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("secrets: {salt: 2026-99-01}", id="date that there is none of"),
        pytest.param(f"secrets: {{salt: {'1' * 5000}}}", id="integer of 5000 digits"),
        pytest.param("[" * 1000, id="deep nesting"),
    ],
)
def test_yaml_that_python_cannot_hold_is_refused(tmp_path: Path, content: str) -> None:
    assert refusal_of(tmp_path, content).startswith("FOLDER/config.yml is not valid YAML")


def test_a_missing_file_that_is_named_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yml"

    with pytest.raises(ConfigurationError) as refusal:
        load_settings(environ={"MLAPI_CONFIG": str(missing)})

    assert str(refusal.value) == f"{missing} cannot be read: No such file or directory"


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        load_settings(tmp_path, {})

    assert str(refusal.value) == f"{tmp_path} cannot be read: Is a directory"


def test_a_url_and_a_connection_are_one_too_many(tmp_path: Path) -> None:
    content = "database: {url: 'sqlite:///x.db'}\nconnection: {username: a, password: p, database: d}"

    assert refusal_of(tmp_path, content) == "database.url and connection are both set: remove one"


def test_a_variable_and_its_file_are_one_too_many(tmp_path: Path) -> None:
    mounted = written(tmp_path, SALT, name="salt")
    environ = {"MLAPI_SECRETS__SALT": SALT, "MLAPI_SECRETS__SALT_FILE": str(mounted)}

    assert refusal_of(tmp_path, "", environ) == (
        "MLAPI_SECRETS__SALT_FILE and MLAPI_SECRETS__SALT are both set: remove one"
    )


def test_a_mounted_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    refusal = refusal_of(tmp_path, "", {"MLAPI_SECRETS__SALT_FILE": f"{tmp_path}/missing"})

    assert refusal == "MLAPI_SECRETS__SALT_FILE: FOLDER/missing cannot be read: No such file or directory"


# --- keys, salt, admin token


@pytest.mark.parametrize(
    "key",
    [
        pytest.param("short", id="short"),
        pytest.param(base64.urlsafe_b64encode(b"x" * 31).decode(), id="31 bytes"),
        pytest.param(base64.urlsafe_b64encode(b"x" * 33).decode(), id="33 bytes"),
        pytest.param(KEY.removesuffix("="), id="without its padding"),
        pytest.param(f"{KEY}=", id="with too much padding"),
        pytest.param(base64.b64encode(b"\xfb\xef\xbe" * 10 + b"\xff\xff").decode(), id="of the other alphabet"),
        pytest.param(f"!{KEY}", id="with a character that base64 passes over"),
        pytest.param("0" * 64, id="in hex"),
        pytest.param("é" * 44, id="not ASCII"),
    ],
)
@pytest.mark.parametrize("name", ["key", "token_key"])
def test_what_is_no_fernet_key_is_refused_with_how_to_make_one(tmp_path: Path, name: str, key: str) -> None:
    refusal = refusal_of(tmp_path, f"secrets: {{{name}: ['{key}']}}")

    assert refusal.startswith(
        f"secrets.{name} is not a Fernet key, 32 bytes in URL-safe base64 (44 characters): make one with `python -c"
    )


def test_the_command_that_a_refusal_names_makes_a_good_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = refusal_of(tmp_path, "secrets: {key: short}").partition("python -c '")[2].removesuffix("'`")
    exec(command, {})
    made = capsys.readouterr().out.strip()

    assert load(tmp_path, f"secrets: {{key: {made}}}").secrets.key == (made,)


@pytest.mark.parametrize("name", ["key", "token_key"])
def test_a_bad_key_in_a_list_is_named_by_its_place(tmp_path: Path, name: str) -> None:
    refusal = refusal_of(tmp_path, f"secrets: {{{name}: [{KEY}, short]}}")

    assert refusal.startswith(f"secrets.{name} (number 2 of 2) is not a Fernet key")


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(PUBLISHED_KEY, id="of the specification"),
        pytest.param(base64.urlsafe_b64encode(bytes(32)).decode(), id="all zero"),
        pytest.param(base64.urlsafe_b64encode(b"x" * 32).decode(), id="one byte over and over"),
    ],
)
@pytest.mark.parametrize("profile", ["development", "production"])
@pytest.mark.parametrize("name", ["key", "token_key"])
def test_a_key_that_everybody_knows_is_refused(tmp_path: Path, name: str, profile: str, key: str) -> None:
    refusal = refusal_of(tmp_path, f"profile: {profile}\nsecrets: {{{name}: {key}}}")

    assert refusal.startswith(f"secrets.{name} is a published sample key: make one with `python -c")


@pytest.mark.parametrize("name", ["key", "token_key"])
def test_a_known_key_is_refused_among_the_old_ones_too(tmp_path: Path, name: str) -> None:
    refusal = refusal_of(tmp_path, f"secrets: {{{name}: [{KEY}, '{PUBLISHED_KEY}']}}")

    assert refusal.startswith(f"secrets.{name} (number 2 of 2) is a published sample key")


@pytest.mark.parametrize("token", ["s", "abc-._~+/09==", TOKEN])
def test_an_admin_token_is_what_a_bearer_header_can_carry(tmp_path: Path, token: str) -> None:
    assert load(tmp_path, f"secrets: {{admin_token: '{token}'}}").secrets.admin_token == token


@pytest.mark.parametrize("token", ["", "two words", "naïve", "=", "a=b", "semi;colon", "line\\n"])
def test_an_admin_token_that_no_bearer_header_can_carry_is_refused(tmp_path: Path, token: str) -> None:
    assert refusal_of(tmp_path, f'secrets: {{admin_token: "{token}"}}') == (
        "secrets.admin_token must consist of letters, digits and - . _ ~ + / (RFC 6750)"
    )


def test_a_salt_that_is_not_utf8_in_the_environment_is_refused(tmp_path: Path) -> None:
    undecodable = b"\xff".decode("utf-8", "surrogateescape")  # as os.environ has it

    assert refusal_of(tmp_path, "", {"MLAPI_SECRETS__SALT": undecodable}) == "MLAPI_SECRETS__SALT is not UTF-8"


# --- who may read the file


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("secrets: {salt: x}", id="secrets"),
        pytest.param("connection: {username: a, password: p, database: d}", id="connection"),
        pytest.param("database: {url: 'postgresql://a:p@db.example/d'}", id="URL with a password"),
    ],
)
def test_a_file_with_secrets_that_others_may_read_is_a_warning_in_development(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    file = written(tmp_path, content, mode=0o644)
    load_settings(file, {})

    assert caplog.record_tuples == [
        (
            "mlapi",
            logging.WARNING,
            f"{file} holds secrets, but other accounts can access it: run `chmod 600 {file}`",
        )
    ]


def test_a_file_with_secrets_that_others_may_read_is_refused_in_production(tmp_path: Path) -> None:
    file = written(tmp_path, "profile: production\nsecrets: {salt: x}", mode=0o644)

    with pytest.raises(ConfigurationError) as refusal:
        load_settings(file, {})

    assert str(refusal.value) == f"{file} holds secrets, but other accounts can access it: run `chmod 600 {file}`"


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        pytest.param("secrets: {salt: x}", 0o600, id="secrets for the owner"),
        pytest.param("secrets: {salt: x}", 0o640, id="secrets for the group"),
        pytest.param("database: {url: 'sqlite:///x.db'}", 0o644, id="no secrets"),
    ],
)
def test_a_file_that_the_right_people_may_read_is_no_matter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str, mode: int
) -> None:
    load_settings(written(tmp_path, f"profile: production\n{content}", mode=mode), {})

    assert caplog.messages == []


def test_secrets_in_the_environment_do_not_make_the_file_one_with_secrets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_settings(written(tmp_path, "profile: production", mode=0o644), {"MLAPI_SECRETS__SALT": SALT})

    assert caplog.messages == []


# --- what the profile needs


def test_what_is_missing_comes_from_the_secrets_file(tmp_path: Path) -> None:
    content = f"key: {KEY}\nsalt: '{SALT}'\ntoken_key: {TOKEN_KEY}\nadmin_token: {TOKEN}\n"
    file = written(tmp_path, content, name="secrets.yml")

    assert with_secrets(Settings(), file) == Settings(secrets=ALL_SECRETS)


def test_what_is_given_goes_before_the_secrets_file(tmp_path: Path) -> None:
    content = f"key: {OLD_KEY}\nsalt: other\ntoken_key: {OLD_KEY}\nadmin_token: other\n"
    file = written(tmp_path, content, name="secrets.yml")

    assert with_secrets(Settings(secrets=ALL_SECRETS), file) == Settings(secrets=ALL_SECRETS)


@pytest.mark.parametrize(
    ("given", "all_of_them"),
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
def test_one_secret_that_is_given_leaves_the_others_to_the_secrets_file(
    tmp_path: Path, given: SecretSettings, all_of_them: SecretSettings
) -> None:
    content = f"key: {KEY}\nsalt: '{SALT}'\ntoken_key: {TOKEN_KEY}\nadmin_token: {TOKEN}\n"
    file = written(tmp_path, content, name="secrets.yml")

    assert with_secrets(Settings(secrets=given), file) == Settings(secrets=all_of_them)


def test_development_needs_no_admin_token() -> None:
    settings = Settings(secrets=SecretSettings(key=(KEY,), salt=(SALT,)))

    assert with_secrets(settings, NOWHERE) == settings


def test_production_with_all_secrets_may_start() -> None:
    settings = Settings(profile="production", secrets=ALL_SECRETS)

    assert with_secrets(settings, NOWHERE) == settings


@pytest.mark.parametrize("profile", ["development", "production"])
def test_no_profile_needs_a_token_key(tmp_path: Path, profile: str) -> None:
    settings = attrs.evolve(load(tmp_path, f"profile: {profile}"), secrets=attrs.evolve(ALL_SECRETS, token_key=()))

    assert with_secrets(settings, NOWHERE) == settings


def test_the_old_keys_and_salts_of_the_secrets_file_are_read_too(tmp_path: Path) -> None:
    content = f"key:\n- {KEY}\n- {OLD_KEY}\nsalt:\n- '{SALT}'\n- {OLD_SALT}\ntoken_key:\n- {TOKEN_KEY}\n- {OLD_KEY}\n"
    file = written(tmp_path, content, name="secrets.yml")

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
def test_a_missing_secret_is_refused_with_every_place_for_it(tmp_path: Path, profile: str, name: str) -> None:
    values = {"key": KEY, "salt": SALT, "admin_token": TOKEN}
    environ = {f"MLAPI_SECRETS__{other.upper()}": value for other, value in values.items() if other != name}
    settings = load(tmp_path, f"profile: {profile}", environ)

    with pytest.raises(ConfigurationError) as refusal:
        with_secrets(settings, NOWHERE)

    assert str(refusal.value) == (
        f"secrets.{name} is missing: set it in config.yml, as MLAPI_SECRETS__{name.upper()}, in a file named by"
        f" MLAPI_SECRETS__{name.upper()}_FILE, or in /nowhere/secrets.yml"
    )


@pytest.mark.parametrize(
    "salts", [("salt",), ("SALT",), ("changeme",), ("password",), (SALT, "secret"), ("token", SALT)], ids=", ".join
)
def test_production_refuses_a_sample_salt(salts: tuple[str, ...]) -> None:
    settings = Settings(profile="production", secrets=attrs.evolve(ALL_SECRETS, salt=salts))

    with pytest.raises(ConfigurationError) as refusal:
        with_secrets(settings, NOWHERE)

    assert str(refusal.value) == "secrets.salt is a well-known sample: replace it with random characters"


def test_production_refuses_a_short_admin_token() -> None:
    settings = Settings(profile="production", secrets=attrs.evolve(ALL_SECRETS, admin_token="x" * 15))

    with pytest.raises(ConfigurationError) as refusal:
        with_secrets(settings, NOWHERE)

    assert str(refusal.value) == (
        "secrets.admin_token must have at least 16 characters in production: make one with"
        " `python -c 'import secrets; print(secrets.token_urlsafe())'`"
    )


def test_production_takes_an_admin_token_of_16_characters() -> None:
    settings = Settings(profile="production", secrets=attrs.evolve(ALL_SECRETS, admin_token="x" * 16))

    assert with_secrets(settings, NOWHERE) == settings


def test_production_refuses_to_let_short_passwords_in() -> None:
    settings = Settings(profile="production", secrets=ALL_SECRETS, passwords=PasswordSettings(min_length=7))

    with pytest.raises(ConfigurationError) as refusal:
        with_secrets(settings, NOWHERE)

    assert str(refusal.value) == "passwords.min_length must be at least 8 in production"


def test_production_takes_a_min_length_of_8() -> None:
    settings = Settings(profile="production", secrets=ALL_SECRETS, passwords=PasswordSettings(min_length=8))

    assert with_secrets(settings, NOWHERE) == settings


def test_development_takes_what_production_refuses() -> None:
    settings = Settings(
        secrets=SecretSettings(key=(KEY,), salt=("salt",), admin_token="short"),
        passwords=PasswordSettings(min_length=1),
    )

    assert with_secrets(settings, NOWHERE) == settings


@pytest.mark.parametrize("profile", ["development", "production"])
def test_a_secrets_file_that_others_may_read_is_refused(tmp_path: Path, profile: str) -> None:
    file = written(tmp_path, f"key: {KEY}\nsalt: {SALT}\n", name="secrets.yml", mode=0o644)

    with pytest.raises(ConfigurationError) as refusal:
        with_secrets(load(tmp_path, f"profile: {profile}"), file)

    assert str(refusal.value) == f"{file} holds secrets, but other accounts can access it: run `chmod 600 {file}`"


def test_an_unknown_key_of_the_secrets_file_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, f"keys: {KEY}\n", name="secrets.yml")

    with pytest.raises(ConfigurationError) as refusal:
        with_secrets(Settings(), file)

    assert str(refusal.value) == f"{file}: secrets.keys is not a setting; did you mean secrets.key?"


def test_a_bad_key_of_the_secrets_file_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, "key: short\n", name="secrets.yml")

    with pytest.raises(ConfigurationError) as refusal:
        with_secrets(Settings(), file)

    assert str(refusal.value).startswith(f"{file}: secrets.key is not a Fernet key")


def test_a_bad_token_key_of_the_secrets_file_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, f"key: {KEY}\nsalt: x\ntoken_key: [{TOKEN_KEY}, short]\n", name="secrets.yml")

    with pytest.raises(ConfigurationError) as refusal:
        with_secrets(Settings(), file)

    assert str(refusal.value).startswith(f"{file}: secrets.token_key (number 2 of 2) is not a Fernet key")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("connection: {username: a, password: p, database: d, port: 0}", "connection.port must be from 1 to 65535"),
        ("connection: {username: a, password: p, database: d, port: 65536}", "connection.port must be from 1 to 65535"),
        ("passwords: {min_length: 0}", "passwords.min_length must be from 1 to 1024"),
        ("passwords: {min_length: 1025}", "passwords.min_length must be from 1 to 1024"),
        ("audit: {days: -1}", "audit.days must be from 1 to 36500, or 0 to keep audit entries indefinitely"),
        ("audit: {days: 36501}", "audit.days must be from 1 to 36500, or 0 to keep audit entries indefinitely"),
        ("tokens: {minutes: 0}", "tokens.minutes must be from 1 to 1440"),
        ("tokens: {minutes: -1}", "tokens.minutes must be from 1 to 1440"),
        ("tokens: {minutes: 1441}", "tokens.minutes must be from 1 to 1440"),
        ("logins: {per_address: 0}", "logins.per_address must be 1 or more"),
        ("logins: {per_name: 0}", "logins.per_name must be 1 or more"),
        ("logins: {per_name_and_address: 0}", "logins.per_name_and_address must be 1 or more"),
        ("logins: {per_name_and_address: -1}", "logins.per_name_and_address must be 1 or more"),
    ],
)
def test_a_number_out_of_its_range_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    assert refusal_of(tmp_path, content) == reason


@pytest.mark.parametrize("minutes", [1, 1440])
def test_a_token_may_last_from_a_minute_to_a_day(tmp_path: Path, minutes: int) -> None:
    assert load(tmp_path, f"tokens: {{minutes: {minutes}}}").tokens == TokenSettings(minutes=minutes)


def test_one_attempt_a_minute_is_enough_for_a_log_in(tmp_path: Path) -> None:
    content = "logins: {per_address: 1, per_name: 1, per_name_and_address: 1}"

    assert load(tmp_path, content).logins == LoginSettings(per_address=1, per_name=1, per_name_and_address=1)


@pytest.mark.parametrize("value", ["", "x" * 201, "é", '"a\\nb"', '"a\\0"'])
@pytest.mark.parametrize("name", ["issuer", "audience"])
def test_a_token_without_plain_issuer_or_audience_is_refused(tmp_path: Path, name: str, value: str) -> None:
    content = f"tokens: {{{name}: {value or repr(value)}}}"

    assert refusal_of(tmp_path, content) == f"tokens.{name} must be 1 to 200 printable ASCII characters"


@pytest.mark.parametrize(
    "proxies",
    [
        pytest.param("proxy.example.com", id="name"),
        pytest.param("10.0.0.0/33", id="network of too many bits"),
        pytest.param("10.0.0.256", id="address that there is none of"),
        pytest.param("10.0.0.1:80", id="address with a port"),
        pytest.param("10.0.0.0/8;::1", id="another separator"),
        pytest.param("'*'", id="star"),
        pytest.param("['']", id="empty one in a list"),
        pytest.param("[10.0.0.0/8, '10.0.0.0/8, ::1']", id="two in one of a list"),
    ],
)
def test_proxies_that_are_no_addresses_are_refused(tmp_path: Path, proxies: str) -> None:
    assert refusal_of(tmp_path, f"http:\n  trusted_proxies: {proxies}") == (
        "http.trusted_proxies must be IP addresses or networks, for example 10.0.0.0/8"
    )


# --- no secret is shown


@pytest.mark.parametrize(
    ("content", "environ"),
    [
        pytest.param(f"secrets: {{key: {CANARY}}}", {}, id="key"),
        pytest.param(f"secrets: {{key: [{KEY}, {CANARY}]}}", {}, id="second key"),
        pytest.param("", {"MLAPI_SECRETS__KEY": CANARY}, id="key in the environment"),
        pytest.param(f"secrets: {{key: {{{CANARY}: {CANARY}}}}}", {}, id="mapping as key"),
        pytest.param(f"secrets: {{key: [[{CANARY}]]}}", {}, id="list in the list of keys"),
        pytest.param(f"secrets: {{token_key: {CANARY}}}", {}, id="token key"),
        pytest.param(f"secrets: {{token_key: [{KEY}, {CANARY}]}}", {}, id="second token key"),
        pytest.param("", {"MLAPI_SECRETS__TOKEN_KEY": f"{KEY},{CANARY}"}, id="token key in the environment"),
        pytest.param(f"secrets: {{salt: {{{CANARY}: {CANARY}}}}}", {}, id="mapping as salt"),
        pytest.param(f"secrets: {{salt: [[{CANARY}]]}}", {}, id="list in the list of salts"),
        pytest.param(f"secrets: {{salt: *{CANARY}}}", {}, id="salt that begins with a star"),
        pytest.param(f"secrets: {{salt: !{CANARY}}}", {}, id="salt that begins with an exclamation mark"),
        pytest.param(f"secrets: {{salt: &{CANARY}}}", {}, id="salt that begins with an ampersand"),
        pytest.param(f"secrets: {{salt: @{CANARY}}}", {}, id="salt that begins with an at sign"),
        pytest.param(f"secrets: {{salt: '{CANARY}}}", {}, id="salt with one quote"),
        pytest.param(f"secrets: {{admin_token: {CANARY} {CANARY}}}", {}, id="token with a space"),
        pytest.param("", {"MLAPI_SECRETS__ADMIN_TOKEN": f"{CANARY};"}, id="token in the environment"),
        pytest.param(f"secrets: {CANARY}", {}, id="text as secrets"),
        pytest.param(f"secrets: [{CANARY}]", {}, id="list as secrets"),
        pytest.param(f"secrets:\n  key:{CANARY}\n  salt:{CANARY}\n", {}, id="no space after the colons"),
        pytest.param(f"secrets: {{key:{CANARY}, salt: x}}", {}, id="no space after a colon in braces"),
        pytest.param(f"secrets:\n  key: {KEY}\n  salt:{CANARY}\n", {}, id="no space after one colon"),
        pytest.param(f"secrets: {{salt: {CANARY}, slat: {CANARY}}}", {}, id="unknown key"),
        pytest.param(CANARY, {}, id="text as configuration"),
        pytest.param(f"- {CANARY}", {}, id="list as configuration"),
        pytest.param(f"secrets: {CANARY}", {"MLAPI_SECRETS__SALT": CANARY}, id="section that cannot be filled"),
        pytest.param("", {"MLAPI_SECRETS__SLAT": CANARY}, id="unknown key in the environment"),
        pytest.param(f"database: postgresql://a:{CANARY}@db/d", {}, id="text as database"),
        pytest.param(f"database: {{url: [postgresql://a:{CANARY}@db/d]}}", {}, id="list as URL"),
        pytest.param(f"connection: postgresql://a:{CANARY}@db/d", {}, id="text as connection"),
        pytest.param(f"connection: {{username: a, password: {CANARY}}}", {}, id="half a connection"),
        pytest.param(f"connection: {{username: a, password: [{CANARY}], database: d}}", {}, id="list as password"),
        pytest.param(
            f"database: {{url: {CANARY}}}\nconnection: {{username: a, password: {CANARY}, database: d}}",
            {},
            id="URL and connection",
        ),
        pytest.param(f"profile: {CANARY}", {}, id="profile"),
        pytest.param(f"passwords: {{scheme: {CANARY}}}", {}, id="scheme"),
        pytest.param(f"passwords: {{min_length: {CANARY}}}", {}, id="length"),
        pytest.param(f"tokens: {{minutes: {CANARY}}}", {}, id="minutes"),
        pytest.param(f"logins: {{per_name: {CANARY}}}", {}, id="number of log-ins"),
        pytest.param(f"http: {{trusted_proxies: {CANARY}}}", {}, id="proxies"),
        pytest.param(f"registration: {{open: {CANARY}}}", {}, id="flag"),
    ],
)
def test_no_refusal_to_load_shows_a_value(tmp_path: Path, content: str, environ: dict[str, str]) -> None:
    assert CANARY not in refusal_of(tmp_path, content, environ)


@pytest.mark.parametrize("content", [CANARY.encode() + b"\xff", CANARY.encode()], ids=["not UTF-8", "no key"])
def test_no_refusal_shows_what_is_in_a_mounted_file(tmp_path: Path, content: bytes) -> None:
    mounted = written(tmp_path, content, name="key")

    assert CANARY not in refusal_of(tmp_path, "", {"MLAPI_SECRETS__KEY_FILE": str(mounted)})


def test_no_refusal_shows_a_value_that_is_set_twice(tmp_path: Path) -> None:
    mounted = written(tmp_path, CANARY, name="key")
    environ = {"MLAPI_SECRETS__KEY": CANARY, "MLAPI_SECRETS__KEY_FILE": str(mounted)}

    assert CANARY not in refusal_of(tmp_path, "", environ)


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
        pytest.param(f"salt: {CANARY}\n", 0o644, id="open to others"),
    ],
)
def test_no_refusal_shows_what_is_in_the_secrets_file(tmp_path: Path, content: str, mode: int) -> None:
    file = written(tmp_path, content, name="secrets.yml", mode=mode)

    with pytest.raises(ConfigurationError) as refusal:
        with_secrets(Settings(), file)

    assert CANARY not in str(refusal.value)


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
def test_no_refusal_of_production_shows_a_secret(settings: Settings) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        with_secrets(attrs.evolve(settings, profile="production"), NOWHERE)

    assert CANARY not in str(refusal.value)


def test_settings_show_no_secret() -> None:
    settings = Settings(
        database=DatabaseSettings(url=f"postgresql://a:{CANARY}@db.example/d"),
        connection=ConnectionSettings(username="mlapi", password=CANARY, database="users"),
        secrets=SecretSettings(key=(CANARY,), salt=(CANARY,), token_key=(CANARY,), admin_token=CANARY),
    )

    assert repr(settings) == (
        "Settings(profile='development', database=DatabaseSettings(),"
        " connection=ConnectionSettings(username='mlapi', host='localhost', port=5432, database='users'),"
        " secrets=SecretSettings(), passwords=PasswordSettings(scheme='argon2id', min_length=None),"
        " tokens=TokenSettings(minutes=60, issuer='mlapi', audience='mlapi'),"
        " logins=LoginSettings(per_address=200, per_name=200, per_name_and_address=20),"
        " http=HttpSettings(trusted_proxies=()),"
        " registration=RegistrationSettings(open=True), management=ManagementSettings(local=True),"
        " audit=AuditSettings(days=365), logging=LoggingSettings(format=None), metrics=MetricsSettings(open=False))"
    )


def test_settings_do_not_change() -> None:
    settings = Settings()

    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        settings.profile = "production"  # type: ignore[misc]  # to be refused

    assert settings == Settings()
