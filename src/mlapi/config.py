"""Settings: ``config.yml``, and over it the environment. What is missing of the secrets, `completed` takes from a file.

``MLAPI_SECTION__KEY=value`` overrides ``section: {key: value}``; ``MLAPI_SECTION__KEY_FILE=path`` reads the value from
a file. Everything has a default. What is given wrongly is refused with its path and without its value.
"""

import base64
import binascii
import difflib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import msgspec

from mlapi.domain.errors import ConfigurationError
from mlapi.secret_files import (
    KEY_BYTES,
    is_open_to_others,
    open_to_others,
    read_secret,
    read_yaml,
    refuse_open_to_others,
)

ADMIN_TOKEN_MIN = 16
"""Characters of an admin token in production: 96 bits if it is random base64."""
PASSWORD_MIN = 8
"""Characters of a password in production: OWASP ASVS 5.0, 6.2.1, which recommends 15 (``passwords.min_length: 15``)."""

_PREFIX = "MLAPI_"
# What Kubernetes puts into the environment of every container beside a service that is called mlapi.
_KUBERNETES = re.compile(r"MLAPI_(SERVICE_(HOST|PORT.*)|PORT.*)")
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")  # RFC 6750, 2.1: what a bearer token may consist of
# Keys and salts that anybody can read: that of the Fernet specification's test vectors (and of half the tutorials).
_PUBLISHED_KEYS = frozenset({"cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="})
_PUBLISHED_WORDS = frozenset({"changeme", "change-me", "secret", "salt", "password", "admin", "token", "example"})

_logger = logging.getLogger("mlapi")


@attrs.frozen(kw_only=True)
class DatabaseSettings:
    url: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class ConnectionSettings:
    """A PostgreSQL server in parts, as the origin's configuration has it."""

    username: str
    password: str = attrs.field(repr=False)
    host: str = "localhost"
    port: int = 5432
    database: str


@attrs.frozen(kw_only=True)
class SecretSettings:
    """``key`` is a Fernet key or a list of them: the first writes, all read."""

    key: tuple[str, ...] = attrs.field(default=(), repr=False)
    salt: str = attrs.field(default="", repr=False)
    admin_token: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class PasswordSettings:
    scheme: Literal["argon2id", "fernet"] = "argon2id"
    min_length: int | None = None
    """Characters; None is 1 in development and `PASSWORD_MIN` in production."""


@attrs.frozen(kw_only=True)
class RegistrationSettings:
    open: bool = True


@attrs.frozen(kw_only=True)
class ManagementSettings:
    local: bool = True
    """In development without an admin token: whether programs on this machine may manage."""


@attrs.frozen(kw_only=True)
class Settings:
    profile: Literal["development", "production"] = "development"
    database: DatabaseSettings = DatabaseSettings()
    connection: ConnectionSettings | None = None
    secrets: SecretSettings = SecretSettings()
    passwords: PasswordSettings = PasswordSettings()
    registration: RegistrationSettings = RegistrationSettings()
    management: ManagementSettings = ManagementSettings()

    @property
    def is_production(self) -> bool:
        return self.profile == "production"


def load_settings(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings from a file (by default `MLAPI_CONFIG`, or ``config.yml`` if there is one) and the environment.

    Raises:
        ConfigurationError: for the first thing that is wrong, with its path.
    """
    named = path or (Path(environ["MLAPI_CONFIG"]) if environ.get("MLAPI_CONFIG") else None)
    file = named or Path("config.yml")
    tree = read_yaml(file) if named is not None or file.exists() else {}
    _refuse_unknown(tree, str(file))
    holds_secrets = "secrets" in tree or "connection" in tree or "@" in str(tree.get("database"))
    for variable, section, key, value in _overrides(environ):
        branch = {key: value} if section is None else {section: {key: value}}
        _refuse_unknown(branch, variable)
        target = tree if section is None else tree.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigurationError(f"{file}: {section} must hold `key: value` lines")
        target[key] = value
    settings = _settings(tree)
    if holds_secrets and is_open_to_others(file):
        if settings.is_production:
            raise ConfigurationError(open_to_others(file))
        _logger.warning("%s", open_to_others(file))
    return settings


def completed(settings: Settings, file: Path) -> Settings:
    """Fill what is missing of the secrets from a secrets file, if there is one, and check that nothing is missing then.

    Raises:
        ConfigurationError: if the file is at fault, or a secret is missing that the profile needs.
    """
    given = settings.secrets
    if file.exists():
        refuse_open_to_others(file)
        tree = {"secrets": read_yaml(file)}
        _refuse_unknown(tree, str(file))
        stored = _settings(tree).secrets
        given = SecretSettings(
            key=given.key or stored.key,
            salt=given.salt or stored.salt,
            admin_token=stored.admin_token if given.admin_token is None else given.admin_token,
        )
    needed: dict[str, object] = {"key": given.key, "salt": given.salt}
    if settings.is_production:
        needed["admin_token"] = given.admin_token
    for name, value in needed.items():
        if not value:
            raise ConfigurationError(
                f"secrets.{name} is missing: set it in config.yml, as MLAPI_SECRETS__{name.upper()}, in a file named by"
                f" MLAPI_SECRETS__{name.upper()}_FILE, or in {file}"
            )
    if settings.is_production:
        _refuse_weak(given)
        if settings.passwords.min_length is not None and settings.passwords.min_length < PASSWORD_MIN:
            raise ConfigurationError(f"passwords.min_length must be at least {PASSWORD_MIN} in production")
    return attrs.evolve(settings, secrets=given)


def _overrides(environ: Mapping[str, str]) -> Iterator[tuple[str, str | None, str, str]]:
    """Yield (variable, section or None, key, value) for each variable that is a setting."""
    for variable in sorted(name for name in environ if name.startswith(_PREFIX) and name != "MLAPI_CONFIG"):
        section, separator, key = variable.removeprefix(_PREFIX).lower().partition("__")
        if separator:
            value = environ[variable]
            if key.endswith("_file"):
                key = key.removesuffix("_file")
                if variable.removesuffix("_FILE") in environ:
                    raise ConfigurationError(f"{variable} and {variable.removesuffix('_FILE')} are both set: keep one")
                value = read_secret(Path(value), variable)
            yield variable, section, key, value
        elif section == "profile":
            yield variable, None, section, environ[variable]
        elif not _KUBERNETES.fullmatch(variable):
            _logger.warning("%s is set and is no setting of mlapi; those are named MLAPI_SECTION__KEY", variable)


def _settings(tree: dict[str, Any]) -> Settings:
    tree = {name: value for name, value in tree.items() if value is not None}
    key = tree.get("secrets", {}).get("key")
    if isinstance(key, str):
        tree["secrets"] = {**tree["secrets"], "key": key.replace(",", " ").split()}
    try:
        settings = msgspec.convert(tree, Settings, strict=False)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at ")
        where = place.strip("`").removeprefix("$.") or "the configuration"
        raise ConfigurationError(f"{where}: {problem[:1].lower()}{problem[1:]}") from None
    _check_values(settings)
    return settings


def _check_values(settings: Settings) -> None:
    if settings.connection is not None and settings.database.url is not None:
        raise ConfigurationError("database.url and connection are both set: keep one")
    given = settings.secrets
    for place, key in enumerate(given.key, start=1):
        name = "secrets.key" if len(given.key) == 1 else f"secrets.key, number {place} of {len(given.key)},"
        if not _is_key(key):
            raise ConfigurationError(
                f"{name} is not a Fernet key, {KEY_BYTES} bytes in URL-safe base64 (44 characters): {_MAKE_A_KEY}"
            )
        if key in _PUBLISHED_KEYS or len(set(base64.urlsafe_b64decode(key))) == 1:
            raise ConfigurationError(f"{name} is a published sample that everybody knows: {_MAKE_A_KEY}")
    if given.admin_token is not None and not _TOKEN.fullmatch(given.admin_token):
        raise ConfigurationError("secrets.admin_token must consist of letters, digits and - . _ ~ + / (RFC 6750)")


_MAKE_A_KEY = "make one with `python -c 'import base64, os; print(base64.urlsafe_b64encode(os.urandom(32)).decode())'`"


def _refuse_weak(given: SecretSettings) -> None:
    if given.salt.casefold() in _PUBLISHED_WORDS:
        raise ConfigurationError("secrets.salt is a sample that everybody knows: give it random characters")
    if given.admin_token is not None and len(given.admin_token) < ADMIN_TOKEN_MIN:
        raise ConfigurationError(
            f"secrets.admin_token must be at least {ADMIN_TOKEN_MIN} characters in production: make one with"
            " `python -c 'import secrets; print(secrets.token_urlsafe())'`"
        )


def _is_key(key: str) -> bool:
    try:
        decoded = base64.urlsafe_b64decode(key)
    except (binascii.Error, ValueError):
        return False
    return len(decoded) == KEY_BYTES and base64.urlsafe_b64encode(decoded).decode("ascii") == key


def _refuse_unknown(tree: dict[str, Any], source: str) -> None:
    for path in _unknown(tree, Settings, ""):
        known = difflib.get_close_matches(path, _known(Settings, ""), n=1)
        hint = f"; did you mean {known[0]}?" if known else ""
        raise ConfigurationError(f"{source}: {path} is not a setting{hint}")


def _unknown(tree: dict[Any, Any], shape: type[Any], prefix: str) -> Iterator[str]:
    for name, value in tree.items():
        inner = _sections(shape).get(name, ...)
        if inner is ...:
            yield f"{prefix}{name}"
        elif inner is not None and isinstance(value, dict):
            yield from _unknown(value, inner, f"{prefix}{name}.")


def _known(shape: type[Any], prefix: str) -> list[str]:
    names = []
    for name, inner in _sections(shape).items():
        names += [f"{prefix}{name}"] if inner is None else _known(inner, f"{prefix}{name}.")
    return names


def _sections(shape: type[Any]) -> dict[str, Any]:
    """Each field of a settings class, and the settings class it holds, or None."""
    found = {}
    for field in attrs.fields(shape):
        inner = ConnectionSettings if field.name == "connection" else field.type
        found[field.name] = inner if attrs.has(inner) else None
    return found
