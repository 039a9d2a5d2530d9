"""Settings are read from a file, environment variables and mounted files."""

import ipaddress
import json
import logging
import re
from pathlib import Path
from typing import Literal

import attrs
import pytest

from mlapi.config import (
    ConnectionSettings,
    DatabaseSettings,
    HttpSettings,
    LoginSettings,
    MailSettings,
    ManagementSettings,
    PasswordSettings,
    RegistrationLimitSettings,
    RegistrationSettings,
    SecretSettings,
    Settings,
    TokenSettings,
    load_settings,
)
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.users import Pending
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
    load_error,
    write,
)

ROOT = Path(__file__).parents[2]


def test_every_setting_has_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        registrations=RegistrationLimitSettings(per_address=None),
        management=ManagementSettings(local=True),
    )


def test_shipped_config_file_contains_the_defaults() -> None:
    settings = load_settings(ROOT / "config.yml", {})

    assert settings == Settings(database=DatabaseSettings(url=f"sqlite:///{ROOT}/mlapi.db"))


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "null\n"])
def test_empty_file_yields_the_defaults(tmp_path: Path, content: str) -> None:
    assert load(tmp_path, content) == Settings()


@pytest.mark.parametrize(
    "section", ["profile", "database", "connection", "secrets", "tokens", "logins", "http", "registration"]
)
def test_empty_section_yields_the_defaults(tmp_path: Path, section: str) -> None:
    assert load(tmp_path, f"{section}:\n") == Settings()


def test_config_yml_is_read_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "registration: {open: false}")

    assert load_settings(environ={}) == Settings(registration=RegistrationSettings(open=False))


def test_mlapi_config_variable_selects_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "registration: {open: false}")
    other = write(tmp_path, "management: {local: false}", name="other.yml")

    assert load_settings(environ={"MLAPI_CONFIG": str(other)}) == Settings(management=ManagementSettings(local=False))


def test_path_argument_overrides_the_mlapi_config_variable(tmp_path: Path) -> None:
    file = write(tmp_path, "management: {local: false}")

    assert load_settings(file, {"MLAPI_CONFIG": "/nowhere.yml"}).management.local is False


def test_empty_mlapi_config_variable_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert load_settings(environ={"MLAPI_CONFIG": ""}) == Settings()


def test_every_setting_can_be_set_in_the_file(tmp_path: Path) -> None:
    content = f"""
        profile: production
        database: {{url: "postgresql://db.example/mlapi", schema: model-users}}
        secrets: {{key: {KEY}, salt: "{SALT}", token_key: {TOKEN_KEY}, admin_token: {TOKEN}}}
        passwords: {{scheme: fernet, min_length: 15}}
        tokens: {{minutes: 5, issuer: users.example, audience: models.example}}
        logins: {{per_address: 3, per_name: 4, per_name_and_address: 5}}
        http: {{trusted_proxies: 10.0.0.0/8}}
        registration: {{open: false}}
        registrations: {{per_address: 6}}
        management: {{local: false}}
    """

    assert load(tmp_path, content) == Settings(
        profile="production",
        database=DatabaseSettings(url="postgresql://db.example/mlapi", schema="model-users"),
        secrets=ALL_SECRETS,
        passwords=PasswordSettings(scheme="fernet", min_length=15),
        tokens=TokenSettings(minutes=5, issuer="users.example", audience="models.example"),
        logins=LoginSettings(per_address=3, per_name=4, per_name_and_address=5),
        http=HttpSettings(trusted_proxies=("10.0.0.0/8",)),
        registration=RegistrationSettings(open=False),
        registrations=RegistrationLimitSettings(per_address=6),
        management=ManagementSettings(local=False),
    )


def test_every_setting_can_be_set_in_the_environment(tmp_path: Path) -> None:
    environ = {
        "MLAPI_PROFILE": "production",
        "MLAPI_DATABASE__URL": "postgresql://db.example/mlapi",
        "MLAPI_DATABASE__SCHEMA": "model-users",
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
        "MLAPI_REGISTRATIONS__PER_ADDRESS": "6",
        "MLAPI_MANAGEMENT__LOCAL": "false",
    }

    assert load(tmp_path, "", environ) == Settings(
        profile="production",
        database=DatabaseSettings(url="postgresql://db.example/mlapi", schema="model-users"),
        secrets=ALL_SECRETS,
        passwords=PasswordSettings(scheme="fernet", min_length=15),
        tokens=TokenSettings(minutes=5, issuer="users.example", audience="models.example"),
        logins=LoginSettings(per_address=3, per_name=4, per_name_and_address=5),
        http=HttpSettings(trusted_proxies=("10.0.0.0/8",)),
        registration=RegistrationSettings(open=False),
        registrations=RegistrationLimitSettings(per_address=6),
        management=ManagementSettings(local=False),
    )


def test_connection_can_be_set_in_the_environment(tmp_path: Path) -> None:
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


def test_legacy_config_blocks_are_accepted(tmp_path: Path) -> None:
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


def test_connection_defaults_to_localhost_and_port_5432(tmp_path: Path) -> None:
    settings = load(tmp_path, "connection: {username: mlapi, password: p, database: users}")

    assert settings.connection == ConnectionSettings(
        username="mlapi", password="p", host="localhost", port=5432, database="users"
    )


def test_variable_overrides_only_one_key_of_a_section(tmp_path: Path) -> None:
    content = "passwords: {scheme: fernet, min_length: 9}"

    assert load(tmp_path, content, {"MLAPI_PASSWORDS__MIN_LENGTH": "15"}).passwords == PasswordSettings(
        scheme="fernet", min_length=15
    )


def test_variable_overrides_the_profile(tmp_path: Path) -> None:
    settings = load(tmp_path, "profile: development", {"MLAPI_PROFILE": "production"})

    assert settings.is_production


def test_variable_fills_an_empty_section_of_the_file(tmp_path: Path) -> None:
    content = "secrets:\n  # key and salt are in the environment\n"

    assert load(tmp_path, content, {"MLAPI_SECRETS__SALT": SALT}).secrets == SecretSettings(salt=(SALT,))


@pytest.mark.parametrize("value", ["false", "False", "0"])
def test_boolean_variable_accepts_a_word_or_a_digit(tmp_path: Path, value: str) -> None:
    assert load(tmp_path, "", {"MLAPI_REGISTRATION__OPEN": value}).registration.open is False


def test_variable_name_may_be_lowercase(tmp_path: Path) -> None:
    assert load(tmp_path, "", {"MLAPI_secrets__salt": SALT}).secrets.salt == (SALT,)


@pytest.mark.parametrize(
    "value",
    [f"[{KEY}, {OLD_KEY}]", f"{KEY},{OLD_KEY}", f"'{KEY}, {OLD_KEY}'", f"{KEY} {OLD_KEY}"],
    ids=["list", "comma", "comma and space", "space"],
)
def test_file_may_contain_several_keys(tmp_path: Path, value: str) -> None:
    secrets = load(tmp_path, f"secrets:\n  key: {value}\n  token_key: {value}\n").secrets

    assert secrets == SecretSettings(key=(KEY, OLD_KEY), token_key=(KEY, OLD_KEY))


@pytest.mark.parametrize("separator", [",", " ", ", ", "\n"], ids=["comma", "space", "comma and space", "line"])
def test_variable_may_contain_several_keys(tmp_path: Path, separator: str) -> None:
    keys = f"{KEY}{separator}{OLD_KEY}"

    secrets = load(tmp_path, "", {"MLAPI_SECRETS__KEY": keys, "MLAPI_SECRETS__TOKEN_KEY": keys}).secrets

    assert secrets == SecretSettings(key=(KEY, OLD_KEY), token_key=(KEY, OLD_KEY))


def test_file_may_contain_several_salts(tmp_path: Path) -> None:
    content = f"secrets:\n  salt:\n  - '{SALT}'\n  - '{OLD_SALT}'\n"

    assert load(tmp_path, content).secrets == SecretSettings(salt=(SALT, OLD_SALT))


@pytest.mark.parametrize("salt", ["a b", "a,b", " a, b ", "a\nb"], ids=repr)
def test_salt_may_contain_spaces_and_commas(tmp_path: Path, salt: str) -> None:
    in_file = load(tmp_path, f"secrets: {{salt: {json.dumps(salt)}}}")
    in_environment = load(tmp_path, "", {"MLAPI_SECRETS__SALT": salt})

    assert in_file.secrets == in_environment.secrets == SecretSettings(salt=(salt,))


def test_empty_salt_in_a_list_is_rejected(tmp_path: Path) -> None:
    assert load_error(tmp_path, "secrets: {salt: [x, '']}") == "secrets.salt must not be empty"


@pytest.mark.parametrize("name", ["key", "salt", "token_key"])
def test_empty_secret_counts_as_missing(tmp_path: Path, name: str) -> None:
    in_file = load(tmp_path, f"secrets: {{{name}: ''}}")
    in_environment = load(tmp_path, "", {f"MLAPI_SECRETS__{name.upper()}": ""})

    assert in_file == in_environment == Settings()


@pytest.mark.parametrize(
    "value",
    ["[10.0.0.0/8, '::1']", "10.0.0.0/8,::1", "'10.0.0.0/8, ::1'", "10.0.0.0/8 ::1"],
    ids=["list", "comma", "comma and space", "space"],
)
def test_file_may_trust_several_proxies(tmp_path: Path, value: str) -> None:
    assert load(tmp_path, f"http:\n  trusted_proxies: {value}\n").http == HttpSettings(
        trusted_proxies=("10.0.0.0/8", "::1")
    )


@pytest.mark.parametrize("value", ["10.0.0.0/8,::1", "10.0.0.0/8 ::1"], ids=["comma", "space"])
def test_variable_may_trust_several_proxies(tmp_path: Path, value: str) -> None:
    assert load(tmp_path, "", {"MLAPI_HTTP__TRUSTED_PROXIES": value}).http == HttpSettings(
        trusted_proxies=("10.0.0.0/8", "::1")
    )


def test_empty_list_trusts_no_proxies(tmp_path: Path) -> None:
    assert load(tmp_path, "http: {trusted_proxies: []}", {"MLAPI_HTTP__TRUSTED_PROXIES": ""}) == Settings()


@pytest.mark.parametrize(
    "value",
    ["[https://app.example.com, 'http://[::1]:3000']", "https://app.example.com, http://[::1]:3000"],
    ids=["list", "comma"],
)
def test_pages_of_several_origins_may_be_allowed(tmp_path: Path, value: str) -> None:
    origins = ("https://app.example.com", "http://[::1]:3000")
    quoted = value if value.startswith("[") else f'"{value}"'

    assert load(tmp_path, f"http:\n  cors_origins: {quoted}\n").http == HttpSettings(cors_origins=origins)


@pytest.mark.parametrize(
    "origin",
    ["*", "http://localhost:8080", "https://xn--bcher-kva.example", "capacitor://localhost", "http://10.0.0.1"],
)
def test_variable_may_allow_an_origin(tmp_path: Path, origin: str) -> None:
    assert load(tmp_path, "", {"MLAPI_HTTP__CORS_ORIGINS": origin}).http == HttpSettings(cors_origins=(origin,))


def test_trusted_proxies_are_parsed_as_networks() -> None:
    settings = HttpSettings(trusted_proxies=("192.0.2.7", "10.1.2.3/8", "2001:db8::1", "2001:db8::/32"))

    assert settings.trusted_networks == (
        ipaddress.IPv4Network("192.0.2.7/32"),
        ipaddress.IPv4Network("10.0.0.0/8"),
        ipaddress.IPv6Network("2001:db8::1/128"),
        ipaddress.IPv6Network("2001:db8::/32"),
    )


def test_value_is_read_from_a_mounted_file(tmp_path: Path) -> None:
    mounted = write(tmp_path, f"{SALT}\n", name="salt")

    assert load(tmp_path, "", {"MLAPI_SECRETS__SALT_FILE": str(mounted)}).secrets.salt == (SALT,)


def test_mounted_file_overrides_the_config_file(tmp_path: Path) -> None:
    mounted = write(tmp_path, SALT, name="salt")

    assert load(tmp_path, "secrets: {salt: other}", {"MLAPI_SECRETS__SALT_FILE": str(mounted)}).secrets.salt == (SALT,)


def test_name_of_a_file_variable_may_be_lowercase(tmp_path: Path) -> None:
    mounted = write(tmp_path, SALT, name="salt")

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
def test_kubernetes_service_variables_are_ignored_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, variable: str
) -> None:
    settings = load(tmp_path, "", {variable: "tcp://10.0.0.1:8001"})

    assert settings == Settings()
    assert caplog.messages == []


def test_unknown_variable_is_logged_without_its_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = load(tmp_path, "", {"MLAPI_SALT": CANARY})

    assert settings == Settings()
    assert caplog.record_tuples == [
        (
            "mlapi",
            logging.WARNING,
            "MLAPI_SALT is not a setting: did you mean MLAPI_SECRETS__SALT?",
        )
    ]


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("MLAPI_DATABASE_URL", "MLAPI_DATABASE_URL is not a setting: did you mean MLAPI_DATABASE__URL?"),
        ("MLAPI_CONNECTION_PORT", "MLAPI_CONNECTION_PORT is not a setting: did you mean MLAPI_CONNECTION__PORT?"),
        ("mlapi_database__url", "mlapi_database__url is not a setting: did you mean MLAPI_DATABASE__URL?"),
        ("MLAPI_DATABASE__URL ", "MLAPI_DATABASE__URL  is not a setting: did you mean MLAPI_DATABASE__URL?"),
        ("MLAPI_PROFIL", "MLAPI_PROFIL is not a setting: did you mean MLAPI_PROFILE?"),
        ("MLAPI_CONFIG_FILE", "MLAPI_CONFIG_FILE is not a setting: did you mean MLAPI_CONFIG?"),
        ("MLAPI_KEY_FILE", "MLAPI_KEY_FILE is not a setting: did you mean MLAPI_SECRETS__KEY_FILE?"),
        ("MLAPI_FROB", "MLAPI_FROB is not a setting: mlapi's settings are named MLAPI_SECTION__KEY"),
        ("MLAPI_\n", "'MLAPI_\\n' is not a setting: mlapi's settings are named MLAPI_SECTION__KEY"),
    ],
)
def test_misspelled_variable_is_an_error_only_in_production(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, variable: str, message: str
) -> None:
    load(tmp_path, "", {variable: CANARY})

    assert caplog.messages == [message]
    assert load_error(tmp_path, "profile: production", {variable: CANARY}) == message


def test_misspelled_production_profile_is_an_error(tmp_path: Path) -> None:
    error = load_error(tmp_path, "", {"MLAPI_PROFIL": "production"})

    assert error == "MLAPI_PROFIL is not a setting: did you mean MLAPI_PROFILE?"


def test_variables_without_our_prefix_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = load(tmp_path, "", {"PATH": "/bin", "XMLAPI_SECRETS__SALT": "x", "DATABASE__URL": "x"})

    assert settings == Settings()
    assert caplog.messages == []


def test_loading_does_not_change_the_environment(tmp_path: Path) -> None:
    environ = {"MLAPI_SECRETS__SALT": SALT, "MLAPI_SALT": "x"}
    load(tmp_path, "", environ)

    assert environ == {"MLAPI_SECRETS__SALT": SALT, "MLAPI_SALT": "x"}


def test_settings_repr_contains_no_secrets() -> None:
    settings = Settings(
        database=DatabaseSettings(url=f"postgresql://a:{CANARY}@db.example/d"),
        connection=ConnectionSettings(username="mlapi", password=CANARY, database="users"),
        secrets=SecretSettings(key=(CANARY,), salt=(CANARY,), token_key=(CANARY,), admin_token=CANARY),
        mail=MailSettings(url=f"smtp://a:{CANARY}@mail.example"),
    )

    assert repr(settings) == (
        "Settings(profile='development', database=DatabaseSettings(schema=None),"
        " connection=ConnectionSettings(username='mlapi', host='localhost', port=5432, database='users'),"
        " secrets=SecretSettings(), passwords=PasswordSettings(scheme='argon2id', min_length=None),"
        " tokens=TokenSettings(minutes=60, issuer='mlapi', audience='mlapi', accept_bare=None),"
        " logins=LoginSettings(per_address=200, per_name=200, per_name_and_address=20),"
        " http=HttpSettings(trusted_proxies=(), cors_origins=(), public_url=None),"
        " registration=RegistrationSettings(open=True, verify_email=False, approval=False),"
        " registrations=RegistrationLimitSettings(per_address=None), management=ManagementSettings(local=True),"
        " mail=MailSettings(from_=None, templates=None, per_recipient=10),"
        " audit=AuditSettings(days=365, names=True), usage=UsageSettings(days=400), keys=KeySettings(per_user=10),"
        " account=AccountSettings(enabled=True, keys=True, login_days=90), logging=LoggingSettings(format=None),"
        " metrics=MetricsSettings(open=False),"
        " plans={}, default_plan=None)"
    )


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("word", ["yes", "No", "on", "OFF", "true", "False", "1", "0"])
def test_flags_may_be_written_as_yes_or_on(tmp_path: Path, word: str, is_open: bool) -> None:
    expected = word.lower() in {"yes", "on", "true", "1"}
    defaults = f"registration: {{open: {is_open}}}"

    assert load(tmp_path, f"registration: {{open: {word}}}").registration.open is expected
    assert load(tmp_path, f"registration: {{open: '{word}'}}").registration.open is expected
    assert load(tmp_path, defaults, {"MLAPI_REGISTRATION__OPEN": word}).registration.open is expected


def test_section_merges_a_mapping_and_overrides_parts_of_it(tmp_path: Path) -> None:
    content = """
x-strict: &strict {per_name: 5, per_address: 7}
x-stricter: &stricter {<<: *strict, per_address: 3}
logins: {<<: *stricter, per_name: 6}
"""

    assert load(tmp_path, content).logins == LoginSettings(per_name=6, per_address=3)


def test_variable_changes_only_one_of_two_equal_sections(tmp_path: Path) -> None:
    content = "registration: &flag {open: false}\nmetrics: *flag\n"

    settings = load(tmp_path, content, {"MLAPI_REGISTRATION__OPEN": "true"})

    assert (settings.registration.open, settings.metrics.open) == (True, False)


def test_variable_overrides_a_value_of_the_wrong_type(tmp_path: Path) -> None:
    settings = load(tmp_path, "database: {url: [x]}", {"MLAPI_DATABASE__URL": "sqlite:///own.db"})

    assert settings.database.url == "sqlite:///own.db"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("profile: test", "profile must be development or production"),
        ("logging: {format: xml}", "logging.format must be text or json"),
        ("registration: {open: maybe}", "registration.open must be true or false"),
        ("tokens: {accept_bare: maybe}", "tokens.accept_bare must be true or false"),
        ("tokens: {minutes: soon}", "tokens.minutes must be a whole number"),
        ("tokens: {minutes: }", "tokens.minutes has no value: write one, or remove the line"),
        ("tokens: {issuer: 1}", "tokens.issuer must be text: put it in quotes"),
        ("secrets: {salt: 12345}", "secrets.salt must be text, or a list of text: put each value in quotes"),
        ("secrets: {salt: [a, 12345]}", "secrets.salt (number 2) must be text: put it in quotes"),
        ("connection: {username: a, password: 12345678}", "connection.password must be text: put it in quotes"),
        ("connection: {username: a, password: b}", "connection.database is missing"),
        (
            "http: {trusted_proxies: 5}",
            "http.trusted_proxies must be text, or a list of text: put each value in quotes",
        ),
    ],
)
def test_value_of_the_wrong_type_is_explained(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yml").write_text(text)

    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        load_settings(tmp_path / "config.yml", environ={})


@pytest.mark.parametrize(
    ("profile", "per_address", "expected"),
    [("development", None, 0), ("production", None, 60), ("development", 5, 5), ("production", 0, 0)],
)
def test_registrations_are_limited_by_default_only_in_production(
    profile: Literal["development", "production"], per_address: int | None, expected: int
) -> None:
    limits = RegistrationLimitSettings(per_address=per_address)

    assert Settings(profile=profile, registrations=limits).registrations_per_address == expected


@pytest.mark.parametrize(
    ("verify_email", "approval", "pending"),
    [
        (False, False, None),
        (True, False, "email"),
        (False, True, "approval"),
        (True, True, "email_then_approval"),
    ],
)
def test_new_users_wait_for_what_the_settings_ask(verify_email: bool, approval: bool, pending: Pending | None) -> None:
    assert RegistrationSettings(verify_email=verify_email, approval=approval).pending == pending


def test_settings_are_immutable() -> None:
    settings = Settings()

    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        settings.profile = "production"  # type: ignore[misc]  # must raise

    assert settings == Settings()
