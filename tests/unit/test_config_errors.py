"""Invalid settings are rejected with messages that name the setting and never show its value."""

import base64
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlapi.config import (
    LoginSettings,
    TokenSettings,
    load_settings,
)
from mlapi.domain.errors import ConfigurationError
from mlapi.entrypoints.cli import main
from tests.sample_settings import (
    CANARY,
    KEY,
    PUBLISHED_KEY,
    SALT,
    TOKEN,
    load,
    load_error,
    write,
)

ALL_SECTIONS = (
    "the settings are profile, database, connection, secrets, passwords, tokens, logins, http, registration,"
    " registrations, management, mail, audit, usage, keys, account, logging, metrics, plans, default_plan"
)
NOT_A_MAPPING = "must contain `key: value` lines"


@pytest.mark.parametrize(
    ("content", "error"),
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
            f"frobnicate is not a setting; {ALL_SECTIONS}",
        ),
        (
            "1: x",
            f"a key in it is not a setting; {ALL_SECTIONS}",
        ),
    ],
)
def test_error_names_the_path_of_an_unknown_key_in_the_file(tmp_path: Path, content: str, error: str) -> None:
    assert load_error(tmp_path, content) == f"FOLDER/config.yml: {error}"


@pytest.mark.parametrize(
    ("variable", "error"),
    [
        ("MLAPI_SECRETS__KEYS", "secrets.keys is not a setting; did you mean MLAPI_SECRETS__KEY?"),
        ("MLAPI_SECRET__KEY", "secret is not a setting; did you mean MLAPI_SECRETS__KEY?"),
        ("MLAPI_DATABASE__URI", "database.uri is not a setting; did you mean MLAPI_DATABASE__URL?"),
        (
            "MLAPI_FROBNICATE__X",
            f"frobnicate is not a setting; {ALL_SECTIONS}",
        ),
        ("MLAPI_SECRETS__KEY__X", "secrets.key__x is not a setting; did you mean MLAPI_SECRETS__KEY?"),
    ],
)
def test_error_names_the_path_of_an_unknown_key_in_a_variable(tmp_path: Path, variable: str, error: str) -> None:
    assert load_error(tmp_path, "", {variable: "x"}) == f"{variable}: {error}"


@pytest.mark.parametrize(
    ("content", "path"),
    [
        pytest.param("profile: prod", "profile", id="unknown profile"),
        pytest.param("profile: [production]", "profile", id="list as profile"),
        pytest.param("profile: {name: production}", "profile", id="mapping as profile"),
        pytest.param("database: sqlite", "database", id="text as section"),
        pytest.param("database: {url: 5}", "database.url", id="number as URL"),
        pytest.param("connection: text", "connection", id="text as connection"),
        pytest.param("connection: {username: mlapi}", "connection.password", id="incomplete connection"),
        pytest.param(
            "connection: {username: a, password: p, database: d, port: x}", "connection.port", id="word as port"
        ),
        pytest.param(
            "connection: {username: a, password: 5, database: d}", "connection.password", id="number as password"
        ),
        pytest.param("secrets: [key]", "secrets", id="list as section"),
        pytest.param("secrets: key", "secrets", id="text as secrets section"),
        pytest.param("secrets: 5", "secrets", id="number as secrets section"),
        pytest.param("secrets: {key: 5}", "secrets.key", id="number as key"),
        pytest.param("secrets: {key: [5]}", "secrets.key (number 1)", id="number in a list of keys"),
        pytest.param("secrets: {token_key: 5}", "secrets.token_key", id="number as token key"),
        pytest.param("secrets: {salt: 5}", "secrets.salt", id="number as salt"),
        pytest.param("secrets: {salt: [5]}", "secrets.salt (number 1)", id="number in a list of salts"),
        pytest.param("secrets: {salt: 2026-03-01}", "secrets.salt", id="date as salt"),
        pytest.param("secrets: {admin_token: 5}", "secrets.admin_token", id="number as admin token"),
        pytest.param("passwords: {scheme: md5}", "passwords.scheme", id="unknown scheme"),
        pytest.param("passwords: {min_length: eight}", "passwords.min_length", id="word as length"),
        pytest.param("passwords: {min_length: 8.5}", "passwords.min_length", id="fraction as length"),
        pytest.param("passwords: {min_length: true}", "passwords.min_length", id="boolean as length"),
        pytest.param("tokens: {minutes: hour}", "tokens.minutes", id="word as minutes"),
        pytest.param("tokens: {minutes: 0.5}", "tokens.minutes", id="fraction as minutes"),
        pytest.param("tokens: {issuer: 5}", "tokens.issuer", id="number as issuer"),
        pytest.param("tokens: {audience: [a, b]}", "tokens.audience", id="list as audience"),
        pytest.param("logins: {per_address: many}", "logins.per_address", id="word as limit"),
        pytest.param("logins: {per_name: null}", "logins.per_name", id="null as limit"),
        pytest.param("http: {trusted_proxies: 5}", "http.trusted_proxies", id="number as proxies"),
        pytest.param(
            "http: {trusted_proxies: [5]}", "http.trusted_proxies (number 1)", id="number in a list of proxies"
        ),
        pytest.param("http: text", "http", id="text as http section"),
        pytest.param("registration: {open: maybe}", "registration.open", id="word as boolean"),
        pytest.param("management: {local: 5}", "management.local", id="number as boolean"),
    ],
)
def test_type_error_in_the_file_names_the_path_of_the_setting(tmp_path: Path, content: str, path: str) -> None:
    error = load_error(tmp_path, content).removeprefix("FOLDER/config.yml: ")

    assert error.startswith((f"{path} must ", f"{path} has no value: ", f"{path} is missing"))


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
        ("MLAPI_REGISTRATIONS__PER_ADDRESS", "registrations.per_address"),
        ("MLAPI_LOGINS__PER_NAME_AND_ADDRESS", "logins.per_name_and_address"),
        ("MLAPI_REGISTRATION__OPEN", "registration.open"),
        ("MLAPI_MANAGEMENT__LOCAL", "management.local"),
    ],
)
def test_type_error_in_a_variable_names_the_path_of_the_setting(tmp_path: Path, variable: str, path: str) -> None:
    assert load_error(tmp_path, "", {variable: "nonsense"}).startswith((f"{path} must ", f"{path}: "))


def test_variable_cannot_turn_the_profile_into_a_section(tmp_path: Path) -> None:
    error = load_error(tmp_path, "profile: production", {"MLAPI_PROFILE__X": "1"})

    assert error == "profile must be development or production"


def test_variable_cannot_extend_a_section_that_is_text(tmp_path: Path) -> None:
    error = load_error(tmp_path, "secrets: text", {"MLAPI_SECRETS__SALT": SALT})

    assert error == f"FOLDER/config.yml: secrets {NOT_A_MAPPING}"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        pytest.param("profile: [", "is not valid YAML (line 1)", id="not YAML"),
        pytest.param(
            "profile: development\n\tdatabase: x\n",
            "is not valid YAML (line 2): indent with spaces instead of tabs",
            id="tab",
        ),
        pytest.param(
            "profile: !!python/object:os.system x",
            "is not valid YAML (line 1): put values that begin with ! in quotes",
            id="Python object",
        ),
        pytest.param("profile: \x00", "is not valid YAML", id="control character"),
        pytest.param(b"profile: \xff", "is not UTF-8", id="not UTF-8"),
        pytest.param("- profile", NOT_A_MAPPING, id="list"),
        pytest.param("profile", NOT_A_MAPPING, id="text"),
        pytest.param("5", NOT_A_MAPPING, id="number"),
    ],
)
def test_malformed_file_is_rejected(tmp_path: Path, content: str | bytes, error: str) -> None:
    assert load_error(tmp_path, content) == f"FOLDER/config.yml {error}"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("secrets: {salt: 2026-99-01}", id="impossible date"),
        pytest.param(f"secrets: {{salt: {'1' * 5000}}}", id="integer of 5000 digits"),
        pytest.param("[" * 1000, id="deep nesting"),
    ],
)
def test_yaml_that_python_cannot_represent_is_rejected(tmp_path: Path, content: str) -> None:
    assert load_error(tmp_path, content).startswith("FOLDER/config.yml is not valid YAML")


def test_missing_explicit_file_is_rejected(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yml"

    with pytest.raises(ConfigurationError) as exc_info:
        load_settings(environ={"MLAPI_CONFIG": str(missing)})

    assert str(exc_info.value) == f"{missing} cannot be read: No such file or directory"


def test_folder_instead_of_a_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as exc_info:
        load_settings(tmp_path, {})

    assert str(exc_info.value) == f"{tmp_path} cannot be read: Is a directory"


def test_url_and_connection_cannot_both_be_set(tmp_path: Path) -> None:
    content = "database: {url: 'sqlite:///x.db'}\nconnection: {username: a, password: p, database: d}"

    assert load_error(tmp_path, content) == "database.url and connection are both set: remove one"


def test_variable_and_its_file_variable_cannot_both_be_set(tmp_path: Path) -> None:
    mounted = write(tmp_path, SALT, name="salt")
    environ = {"MLAPI_SECRETS__SALT": SALT, "MLAPI_SECRETS__SALT_FILE": str(mounted)}

    assert load_error(tmp_path, "", environ) == (
        "MLAPI_SECRETS__SALT_FILE and MLAPI_SECRETS__SALT are both set: remove one"
    )


@pytest.mark.parametrize("variable", ["MLAPI_secrets__salt", "MLAPI_SECRETS__salt_file"])
def test_variable_in_two_spellings_is_rejected(tmp_path: Path, variable: str) -> None:
    error = load_error(tmp_path, "", {"MLAPI_SECRETS__SALT": CANARY, variable: "x"})

    assert error == f"{variable} and MLAPI_SECRETS__SALT are both set: remove one"


@pytest.mark.parametrize("url", ["sqlite:///mlapi.db ", " sqlite:///mlapi.db"])
def test_white_space_around_the_url_is_rejected(tmp_path: Path, url: str) -> None:
    error = load_error(tmp_path, "", {"MLAPI_DATABASE__URL": url})

    assert error == "database.url starts or ends with white space: remove it"


def test_missing_mounted_file_is_rejected(tmp_path: Path) -> None:
    error = load_error(tmp_path, "", {"MLAPI_SECRETS__SALT_FILE": f"{tmp_path}/missing"})

    assert error == "MLAPI_SECRETS__SALT_FILE: FOLDER/missing cannot be read: No such file or directory"


@pytest.mark.parametrize(
    "key",
    [
        pytest.param("short", id="short"),
        pytest.param(base64.urlsafe_b64encode(b"x" * 31).decode(), id="31 bytes"),
        pytest.param(base64.urlsafe_b64encode(b"x" * 33).decode(), id="33 bytes"),
        pytest.param(KEY.removesuffix("="), id="missing padding"),
        pytest.param(f"{KEY}=", id="too much padding"),
        pytest.param(base64.b64encode(b"\xfb\xef\xbe" * 10 + b"\xff\xff").decode(), id="standard base64 alphabet"),
        pytest.param(f"!{KEY}", id="character that base64 decoding ignores"),
        pytest.param("0" * 64, id="hex"),
        pytest.param("é" * 44, id="not ASCII"),
    ],
)
@pytest.mark.parametrize("name", ["key", "token_key"])
def test_invalid_key_error_shows_how_to_generate_a_key(tmp_path: Path, name: str, key: str) -> None:
    error = load_error(tmp_path, f"secrets: {{{name}: ['{key}']}}")

    assert error.startswith(
        f"secrets.{name} is not a Fernet key, 32 bytes in URL-safe base64 (44 characters): make one with `mlapi"
    )


def test_command_in_the_error_message_generates_a_valid_key(tmp_path: Path) -> None:
    command = load_error(tmp_path, "secrets: {key: short}").partition("`mlapi ")[2].removesuffix("`")

    key = CliRunner().invoke(main, command).stdout.strip()

    assert load(tmp_path, f"secrets: {{key: {key}}}").secrets.key == (key,)


@pytest.mark.parametrize("name", ["key", "token_key"])
def test_invalid_key_in_a_list_is_identified_by_its_position(tmp_path: Path, name: str) -> None:
    error = load_error(tmp_path, f"secrets: {{{name}: [{KEY}, short]}}")

    assert error.startswith(f"secrets.{name} (number 2 of 2) is not a Fernet key")


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(PUBLISHED_KEY, id="Fernet specification"),
        pytest.param(base64.urlsafe_b64encode(bytes(32)).decode(), id="all zeros"),
        pytest.param(base64.urlsafe_b64encode(b"x" * 32).decode(), id="one repeated byte"),
    ],
)
@pytest.mark.parametrize("profile", ["development", "production"])
@pytest.mark.parametrize("name", ["key", "token_key"])
def test_published_key_is_rejected(tmp_path: Path, name: str, profile: str, key: str) -> None:
    error = load_error(tmp_path, f"profile: {profile}\nsecrets: {{{name}: {key}}}")

    assert error.startswith(f"secrets.{name} is a published sample key: make one with `mlapi secrets new`")


@pytest.mark.parametrize("name", ["key", "token_key"])
def test_published_key_in_a_list_is_rejected(tmp_path: Path, name: str) -> None:
    error = load_error(tmp_path, f"secrets: {{{name}: [{KEY}, '{PUBLISHED_KEY}']}}")

    assert error.startswith(f"secrets.{name} (number 2 of 2) is a published sample key")


@pytest.mark.parametrize("token", ["s", "abc-._~+/09==", TOKEN])
def test_admin_token_may_contain_all_bearer_token_characters(tmp_path: Path, token: str) -> None:
    assert load(tmp_path, f"secrets: {{admin_token: '{token}'}}").secrets.admin_token == token


@pytest.mark.parametrize("token", ["", "two words", "naïve", "=", "a=b", "semi;colon", "line\\n"])
def test_admin_token_with_invalid_characters_is_rejected(tmp_path: Path, token: str) -> None:
    assert load_error(tmp_path, f'secrets: {{admin_token: "{token}"}}') == (
        "secrets.admin_token must consist of letters, digits and - . _ ~ + / (RFC 6750)"
    )


def test_salt_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    undecodable = b"\xff".decode("utf-8", "surrogateescape")  # how os.environ represents undecodable bytes

    assert load_error(tmp_path, "", {"MLAPI_SECRETS__SALT": undecodable}) == "MLAPI_SECRETS__SALT is not UTF-8"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("secrets: {salt: x}", id="secrets"),
        pytest.param("connection: {username: a, password: p, database: d}", id="connection"),
        pytest.param("database: {url: 'postgresql://a:p@db.example/d'}", id="URL with a password"),
    ],
)
def test_world_readable_secrets_cause_a_warning_in_development(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    file = write(tmp_path, content, mode=0o644)
    load_settings(file, {})

    assert caplog.record_tuples == [
        (
            "mlapi",
            logging.WARNING,
            (
                f"{file} holds secrets, but other accounts can access it: run `chmod 600 {file}`"
                "; if that has no effect, move it to a file system that supports permissions"
            ),
        )
    ]


def test_world_readable_secrets_cause_an_error_in_production(tmp_path: Path) -> None:
    file = write(tmp_path, "profile: production\nsecrets: {salt: x}", mode=0o644)

    with pytest.raises(ConfigurationError) as exc_info:
        load_settings(file, {})

    assert str(exc_info.value).startswith(f"{file} holds secrets, but other accounts can access it: run `chmod 600")
    "; if that has no effect, move it to a file system that supports permissions"


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        pytest.param("secrets: {salt: x}", 0o600, id="secrets, owner only"),
        pytest.param("secrets: {salt: x}", 0o640, id="secrets, owner and group"),
        pytest.param("database: {url: 'sqlite:///x.db'}", 0o644, id="no secrets"),
    ],
)
def test_private_config_file_or_one_without_secrets_is_accepted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str, mode: int
) -> None:
    load_settings(write(tmp_path, f"profile: production\n{content}", mode=mode), {})

    assert caplog.messages == []


def test_secrets_in_variables_allow_a_world_readable_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_settings(write(tmp_path, "profile: production", mode=0o644), {"MLAPI_SECRETS__SALT": SALT})

    assert caplog.messages == []


SCHEMA_RULE = (
    "database.schema must consist of letters, digits, _ and -, begin with a letter or _, and have at most 63 bytes"
)
RESERVED_SCHEMA = "database.schema: PostgreSQL reserves information_schema and names that begin with pg_"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("connection: {username: a, password: p, database: d, port: 0}", "connection.port must be from 1 to 65535"),
        ("connection: {username: a, password: p, database: d, port: 65536}", "connection.port must be from 1 to 65535"),
        ("passwords: {min_length: 0}", "passwords.min_length must be from 1 to 1024"),
        *((f"database: {{schema: '{name}'}}", SCHEMA_RULE) for name in ("", "1a", "$user", "a.b", "a b", "é" * 32)),
        ("database: {schema: pg_users}", RESERVED_SCHEMA),
        ("database: {schema: information_schema}", RESERVED_SCHEMA),
        ("passwords: {min_length: 1025}", "passwords.min_length must be from 1 to 1024"),
        ("audit: {days: -1}", "audit.days must be from 1 to 36500, or 0 to keep audit entries indefinitely"),
        ("audit: {days: 36501}", "audit.days must be from 1 to 36500, or 0 to keep audit entries indefinitely"),
        ("keys: {per_user: 0}", "keys.per_user must be from 1 to 1000"),
        ("keys: {per_user: 1001}", "keys.per_user must be from 1 to 1000"),
        ("account: {login_days: -1}", "account.login_days must be from 1 to 36500, or 0 to keep logins indefinitely"),
        ("usage: {days: -1}", "usage.days must be from 1 to 36500, or 0 to keep usage indefinitely"),
        ("usage: {days: 36501}", "usage.days must be from 1 to 36500, or 0 to keep usage indefinitely"),
        ("tokens: {minutes: 0}", "tokens.minutes must be from 1 to 1440"),
        ("tokens: {minutes: -1}", "tokens.minutes must be from 1 to 1440"),
        ("tokens: {minutes: 1441}", "tokens.minutes must be from 1 to 1440"),
        ("logins: {per_address: 0}", "logins.per_address must be 1 or more"),
        ("logins: {per_name: 0}", "logins.per_name must be 1 or more"),
        ("logins: {per_name_and_address: 0}", "logins.per_name_and_address must be 1 or more"),
        ("logins: {per_name_and_address: -1}", "logins.per_name_and_address must be 1 or more"),
        ("registrations: {per_address: -1}", "registrations.per_address must be 1 or more, or 0 for no limit"),
    ],
)
def test_number_out_of_range_is_rejected(tmp_path: Path, content: str, error: str) -> None:
    assert load_error(tmp_path, content) == error


@pytest.mark.parametrize("minutes", [1, 1440])
def test_token_lifetime_ranges_from_a_minute_to_a_day(tmp_path: Path, minutes: int) -> None:
    assert load(tmp_path, f"tokens: {{minutes: {minutes}}}").tokens == TokenSettings(minutes=minutes)


def test_login_limit_may_be_one_attempt_per_minute(tmp_path: Path) -> None:
    content = "logins: {per_address: 1, per_name: 1, per_name_and_address: 1}"

    assert load(tmp_path, content).logins == LoginSettings(per_address=1, per_name=1, per_name_and_address=1)


@pytest.mark.parametrize("value", ["", "x" * 201, "é", '"a\\nb"', '"a\\0"'])
@pytest.mark.parametrize("name", ["issuer", "audience"])
def test_invalid_issuer_or_audience_is_rejected(tmp_path: Path, name: str, value: str) -> None:
    content = f"tokens: {{{name}: {value or repr(value)}}}"

    assert load_error(tmp_path, content) == f"tokens.{name} must be 1 to 200 printable ASCII characters"


@pytest.mark.parametrize(
    "proxies",
    [
        pytest.param("proxy.example.com", id="name"),
        pytest.param("10.0.0.0/33", id="network with a prefix longer than 32 bits"),
        pytest.param("10.0.0.256", id="impossible address"),
        pytest.param("10.0.0.1:80", id="address with a port"),
        pytest.param("10.0.0.0/8;::1", id="wrong separator"),
        pytest.param("'*'", id="asterisk"),
        pytest.param("['']", id="empty item in a list"),
        pytest.param("[10.0.0.0/8, '10.0.0.0/8, ::1']", id="two addresses in one item"),
    ],
)
def test_proxy_that_is_not_an_address_is_rejected(tmp_path: Path, proxies: str) -> None:
    assert load_error(tmp_path, f"http:\n  trusted_proxies: {proxies}") == (
        "http.trusted_proxies must be IP addresses or networks, for example 10.0.0.0/8, or unix for a Unix socket"
    )


@pytest.mark.parametrize(
    ("origin", "advice"),
    [
        ("app.example.com", "begin each with its scheme, http:// or https://"),
        ("https:app.example.com", "begin each with its scheme, http:// or https://"),
        ("https://app.example.com/", "remove the slash at the end"),
        ("https://app.example.com/login", "remove everything but scheme, host and port"),
        ("https://app.example.com?x", "remove everything but scheme, host and port"),
        ("https://ada@app.example.com", "remove everything but scheme, host and port"),
        ("https://App.example.com", "use lower case, and xn-- names for international hosts"),
        ("https://bücher.example", "use lower case, and xn-- names for international hosts"),
        ("https://app.example.com:443", "remove :443, because browsers omit the default port"),
        ("http://app.example.com:80", "remove :80, because browsers omit the default port"),
        ("'https://app.example.com:'", "one of them is not scheme://host or scheme://host:port"),
        ("https://app.example.com:port", "one of them is not scheme://host or scheme://host:port"),
        ("'https://:1'", "one of them is not scheme://host or scheme://host:port"),
        ("https://*.example.com", "list every origin, because wildcards in host names are not supported"),
        ("'null'", "remove null, which is the origin of every local file and sandboxed page"),
        ("['']", "begin each with its scheme, http:// or https://"),
    ],
)
def test_text_that_is_not_an_origin_is_rejected(tmp_path: Path, origin: str, advice: str) -> None:
    assert load_error(tmp_path, f"http:\n  cors_origins: {origin}") == (
        f"http.cors_origins must be origins such as https://app.example.com, or *: {advice}"
    )


def test_asterisk_with_other_origins_is_rejected(tmp_path: Path) -> None:
    assert load_error(tmp_path, "http: {cors_origins: ['*', 'https://app.example.com']}") == (
        "http.cors_origins contains * and other origins: remove either"
    )


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
        pytest.param(f"secrets: {{salt: *{CANARY}}}", {}, id="salt that begins with an asterisk"),
        pytest.param(f"secrets: {{salt: !{CANARY}}}", {}, id="salt that begins with an exclamation mark"),
        pytest.param(f"secrets: {{salt: &{CANARY}}}", {}, id="salt that begins with an ampersand"),
        pytest.param(f"secrets: {{salt: @{CANARY}}}", {}, id="salt that begins with an at sign"),
        pytest.param(f"secrets: {{salt: '{CANARY}}}", {}, id="salt with an unclosed quote"),
        pytest.param(f"secrets: {{admin_token: {CANARY} {CANARY}}}", {}, id="token with a space"),
        pytest.param("", {"MLAPI_SECRETS__ADMIN_TOKEN": f"{CANARY};"}, id="token in the environment"),
        pytest.param(f"secrets: {CANARY}", {}, id="text as secrets"),
        pytest.param(f"secrets: [{CANARY}]", {}, id="list as secrets"),
        pytest.param(f"secrets:\n  key:{CANARY}\n  salt:{CANARY}\n", {}, id="no space after either colon"),
        pytest.param(f"secrets: {{key:{CANARY}, salt: x}}", {}, id="no space after a colon in braces"),
        pytest.param(f"secrets:\n  key: {KEY}\n  salt:{CANARY}\n", {}, id="no space after one colon"),
        pytest.param(f"secrets: {{salt: {CANARY}, slat: {CANARY}}}", {}, id="unknown key"),
        pytest.param(CANARY, {}, id="text as configuration"),
        pytest.param(f"- {CANARY}", {}, id="list as configuration"),
        pytest.param(
            f"secrets: {CANARY}",
            {"MLAPI_SECRETS__SALT": CANARY},
            id="text as secrets, and a variable",
        ),
        pytest.param("", {"MLAPI_SECRETS__SLAT": CANARY}, id="unknown key in the environment"),
        pytest.param(f"database: postgresql://a:{CANARY}@db/d", {}, id="text as database"),
        pytest.param(f"database: {{url: [postgresql://a:{CANARY}@db/d]}}", {}, id="list as URL"),
        pytest.param(f"connection: postgresql://a:{CANARY}@db/d", {}, id="text as connection"),
        pytest.param(f"connection: {{username: a, password: {CANARY}}}", {}, id="incomplete connection"),
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
        pytest.param(f"logins: {{per_name: {CANARY}}}", {}, id="login limit"),
        pytest.param(f"http: {{trusted_proxies: {CANARY}}}", {}, id="proxies"),
        pytest.param(f"registration: {{open: {CANARY}}}", {}, id="flag"),
    ],
)
def test_load_errors_never_contain_the_value(tmp_path: Path, content: str, environ: dict[str, str]) -> None:
    assert CANARY not in load_error(tmp_path, content, environ)


@pytest.mark.parametrize("content", [CANARY.encode() + b"\xff", CANARY.encode()], ids=["not UTF-8", "no key"])
def test_errors_never_contain_the_content_of_a_mounted_file(tmp_path: Path, content: bytes) -> None:
    mounted = write(tmp_path, content, name="key")

    assert CANARY not in load_error(tmp_path, "", {"MLAPI_SECRETS__KEY_FILE": str(mounted)})


def test_errors_never_contain_a_value_that_is_set_twice(tmp_path: Path) -> None:
    mounted = write(tmp_path, CANARY, name="key")
    environ = {"MLAPI_SECRETS__KEY": CANARY, "MLAPI_SECRETS__KEY_FILE": str(mounted)}

    assert CANARY not in load_error(tmp_path, "", environ)
