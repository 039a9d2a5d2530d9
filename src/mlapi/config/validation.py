"""Validate the values of settings. Error messages name the setting and never show its value."""

import base64
import binascii
import re

import attrs

from mlapi.config.mail import validate_mail
from mlapi.config.plans import validate_default_plan
from mlapi.config.settings import (
    MAX_KEYS_PER_USER,
    MAX_RETENTION_DAYS,
    MAX_TOKEN_MINUTES,
    MAX_TOKEN_NAME_CHARS,
    MIN_ADMIN_TOKEN_CHARS,
    MIN_PASSWORD_CHARS,
    LoginSettings,
    PasswordSettings,
    SecretSettings,
    Settings,
    TokenSettings,
)
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.rules import MAX_PASSWORD_CHARS

KEY_BYTES = 32
"""A Fernet key has 16 bytes for signing and 16 for encryption (Fernet specification, "Key Format")."""
_MAX_SCHEMA_NAME_BYTES = 63
"""PostgreSQL truncates longer names (PostgreSQL 18, section 4.1.1)."""
_SCHEMA_NAME = re.compile(r"[^\W\d][\w-]*")
_BEARER_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")  # RFC 6750, 2.1
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?")
_PUBLIC_URL = re.compile(r"https?://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?(/[A-Za-z0-9._~-]+)*")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
# The key in the Fernet specification's test vectors, which tutorials copy.
_PUBLISHED_KEYS = frozenset({"cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="})
_SAMPLE_SALTS = frozenset({"changeme", "change-me", "secret", "salt", "password", "admin", "token", "example"})
_MAKE_A_KEY = "make one with `mlapi secrets new`"


def validate_values(settings: Settings, prefix: str = "") -> None:
    """Check the values of settings that were read from one source.

    Args:
        settings: the settings to check.
        prefix: prepended to error messages about secrets.

    Raises:
        ConfigurationError: for the first invalid value.
    """
    _validate_tokens(settings.tokens)
    _validate_logins(settings.logins)
    try:
        settings.http.trusted_networks  # noqa: B018 - parses them
    except ValueError:
        raise ConfigurationError(
            "http.trusted_proxies must be IP addresses or networks, for example 10.0.0.0/8, or unix for a Unix socket"
        ) from None
    _validate_cors_origins(settings.http.cors_origins)
    if settings.http.public_url is not None:
        _validate_public_url(settings.http.public_url)
    if settings.registrations_per_address < 0:
        raise ConfigurationError("registrations.per_address must be 1 or more, or 0 for no limit")
    _validate_retention(settings)
    if not 0 < settings.keys.per_user <= MAX_KEYS_PER_USER:
        raise ConfigurationError(f"keys.per_user must be from 1 to {MAX_KEYS_PER_USER}")
    if settings.connection is not None and settings.database.url is not None:
        raise ConfigurationError("database.url and connection are both set: remove one")
    if settings.connection is not None and not 0 < settings.connection.port < 2**16:
        raise ConfigurationError("connection.port must be from 1 to 65535")
    if settings.database.url is not None and settings.database.url != settings.database.url.strip():
        raise ConfigurationError("database.url starts or ends with white space: remove it")
    if settings.database.schema is not None:
        _validate_schema(settings.database.schema)
    if settings.passwords.min_length is not None and not 0 < settings.passwords.min_length <= MAX_PASSWORD_CHARS:
        raise ConfigurationError(f"passwords.min_length must be from 1 to {MAX_PASSWORD_CHARS}")
    validate_default_plan(settings)
    validate_mail(settings)
    _validate_secrets(settings.secrets, prefix)


def validate_for_production(secrets: SecretSettings, passwords: PasswordSettings) -> None:
    """Check the requirements of the production profile.

    Raises:
        ConfigurationError: if a secret is weak or short passwords are allowed.
    """
    if any(salt.casefold() in _SAMPLE_SALTS for salt in secrets.salt):
        raise ConfigurationError("secrets.salt is a well-known sample: replace it with random characters")
    if secrets.admin_token is not None and len(secrets.admin_token) < MIN_ADMIN_TOKEN_CHARS:
        raise ConfigurationError(
            f"secrets.admin_token must have at least {MIN_ADMIN_TOKEN_CHARS} characters in production: make one with"
            " `mlapi admin-token new`"
        )
    if passwords.min_length is not None and passwords.min_length < MIN_PASSWORD_CHARS:
        raise ConfigurationError(f"passwords.min_length must be at least {MIN_PASSWORD_CHARS} in production")


def _validate_retention(settings: Settings) -> None:
    for name, days, what in (
        ("audit.days", settings.audit.days, "audit entries"),
        ("usage.days", settings.usage.days, "usage"),
        ("account.login_days", settings.account.login_days, "logins"),
    ):
        if not 0 <= days <= MAX_RETENTION_DAYS:
            raise ConfigurationError(f"{name} must be from 1 to {MAX_RETENTION_DAYS}, or 0 to keep {what} indefinitely")


def _validate_schema(name: str) -> None:
    if not _SCHEMA_NAME.fullmatch(name) or len(name.encode()) > _MAX_SCHEMA_NAME_BYTES:
        raise ConfigurationError(
            f"database.schema must consist of letters, digits, _ and -, begin with a letter or _, and have at most"
            f" {_MAX_SCHEMA_NAME_BYTES} bytes"
        )
    if name.startswith("pg_") or name == "information_schema":
        raise ConfigurationError(
            "database.schema: PostgreSQL reserves information_schema and names that begin with pg_"
        )


def _validate_tokens(tokens: TokenSettings) -> None:
    if not 0 < tokens.minutes <= MAX_TOKEN_MINUTES:
        raise ConfigurationError(f"tokens.minutes must be from 1 to {MAX_TOKEN_MINUTES}")
    for name in ("issuer", "audience"):
        value = getattr(tokens, name)
        if not 0 < len(value) <= MAX_TOKEN_NAME_CHARS or not (value.isascii() and value.isprintable()):
            raise ConfigurationError(f"tokens.{name} must be 1 to {MAX_TOKEN_NAME_CHARS} printable ASCII characters")


def _validate_public_url(url: str) -> None:
    if not _PUBLIC_URL.fullmatch(url):
        raise ConfigurationError(
            "http.public_url must be an address such as https://api.example.com: lower case, and no slash at the end"
        )


def _validate_cors_origins(origins: tuple[str, ...]) -> None:
    if "*" in origins and len(origins) > 1:
        raise ConfigurationError("http.cors_origins contains * and other origins: remove either")
    for origin in origins:
        if origin != "*" and (advice := _find_origin_error(origin)):
            raise ConfigurationError(
                f"http.cors_origins must be origins such as https://app.example.com, or *: {advice}"
            )


def _find_origin_error(origin: str) -> str | None:
    """Return how to correct an origin, or None. Browsers send origins in exactly one form (RFC 6454, 6.2)."""
    scheme, separator, authority = origin.partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    rules = (
        (origin == "null", "remove null, which is the origin of every local file and sandboxed page"),
        ("*" in origin, "list every origin, because wildcards in host names are not supported"),
        (not separator, "begin each with its scheme, http:// or https://"),
        (origin.endswith("/"), "remove the slash at the end"),
        (not {"/", "?", "#", "@"}.isdisjoint(authority), "remove everything but scheme, host and port"),
        (origin != origin.lower() or not origin.isascii(), "use lower case, and xn-- names for international hosts"),
        (not _ORIGIN.fullmatch(origin), "one of them is not scheme://host or scheme://host:port"),
        (authority.endswith(f":{port}"), f"remove :{port}, because browsers omit the default port"),
    )
    return next((advice for is_broken, advice in rules if is_broken), None)


def _validate_logins(logins: LoginSettings) -> None:
    for field in attrs.fields(LoginSettings):
        if getattr(logins, field.name) < 1:
            raise ConfigurationError(f"logins.{field.name} must be 1 or more")


def _validate_secrets(secrets: SecretSettings, prefix: str) -> None:
    if "" in secrets.salt:
        raise ConfigurationError(f"{prefix}secrets.salt must not be empty")
    _validate_keys(f"{prefix}secrets.key", secrets.key)
    _validate_keys(f"{prefix}secrets.token_key", secrets.token_key)
    if secrets.admin_token is not None and not _BEARER_TOKEN.fullmatch(secrets.admin_token):
        raise ConfigurationError(
            f"{prefix}secrets.admin_token must consist of letters, digits and - . _ ~ + / (RFC 6750)"
        )


def _validate_keys(name: str, keys: tuple[str, ...]) -> None:
    for number, key in enumerate(keys, start=1):
        label = name if len(keys) == 1 else f"{name} (number {number} of {len(keys)})"
        if not _is_key(key):
            raise ConfigurationError(
                f"{label} is not a Fernet key, {KEY_BYTES} bytes in URL-safe base64 (44 characters): {_MAKE_A_KEY}"
            )
        if key in _PUBLISHED_KEYS or len(set(base64.urlsafe_b64decode(key))) == 1:
            raise ConfigurationError(f"{label} is a published sample key: {_MAKE_A_KEY}")


def _is_key(key: str) -> bool:
    try:
        decoded = base64.urlsafe_b64decode(key)
    except (binascii.Error, ValueError):
        return False
    return len(decoded) == KEY_BYTES and base64.urlsafe_b64encode(decoded).decode("ascii") == key
