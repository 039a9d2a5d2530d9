"""Settings: ``config.yml``, and over it the environment. What is missing of the secrets, `completed` takes from a file.

``MLAPI_SECTION__KEY=value`` overrides ``section: {key: value}``; ``MLAPI_SECTION__KEY_FILE=path`` reads the value from
a file. Everything has a default. What is given wrongly is refused with its path and without its value.
"""

import base64
import binascii
import difflib
import ipaddress
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import msgspec

from mlapi.domain.errors import ConfigurationError
from mlapi.domain.rules import PASSWORD_MAX_CHARS
from mlapi.secret_files import KEY_BYTES, open_to_others, read_value, read_yaml

ADMIN_TOKEN_MIN = 16
"""Characters of an admin token in production: 96 bits if it is random base64."""
PASSWORD_MIN = 8
"""Characters of a password in production: OWASP ASVS 5.0, 6.2.1, which recommends 15 (``passwords.min_length: 15``)."""
CONTEXT_WORDS = frozenset(
    {"admin", "administrator", "api", "console", "guard", "key", "login", "manager", "mlapi", "model", "password"}
    | {"secret", "service", "token", "user", "username"}
)
"""What names this service and its roles: no password in production is made of these, digits and signs alone."""
TOKEN_MINUTES_MAX = 24 * 60
"""A day. A token cannot be taken back from a thief who is not noticed; that it ends is what is left."""

AUDIT_DAYS_MAX = 36_500
"""A hundred years."""
TOKEN_NAME_MAX = 200
"""Characters of ``iss`` and ``aud``, which are in every token."""

_PREFIX = "MLAPI_"
# Settings that are a list, and may be written as one: with spaces or commas between them, where that can be told.
_LISTS = [
    ("secrets", "key", True),
    ("secrets", "token_key", True),
    ("secrets", "salt", False),
    ("http", "trusted_proxies", True),
]
_WORD = re.compile(r"[a-z_]{1,32}")
_SECRET_SECTIONS = frozenset({"secrets", "connection", "database"})
_CHOICES = {
    "profile": ("development", "production"),
    "passwords.scheme": ("argon2id", "fernet"),
    "logging.format": ("text", "json"),
}
# What Kubernetes puts into the environment of every container beside a service whose name begins with mlapi.
_KUBERNETES = re.compile(r"MLAPI_([A-Z0-9_]+_)?(SERVICE_(HOST|PORT)|PORT)(_.*)?")
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
    """Each of ``key``, ``salt`` and ``token_key`` is one or a list: the first is used, all are known."""

    key: tuple[str, ...] = attrs.field(default=(), repr=False)
    salt: tuple[str, ...] = attrs.field(default=(), repr=False)
    token_key: tuple[str, ...] = attrs.field(default=(), repr=False)
    """As a Fernet key is written. None given: they follow from ``key``."""
    admin_token: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class PasswordSettings:
    scheme: Literal["argon2id", "fernet"] = "argon2id"
    min_length: int | None = None
    """Characters; None is 1 in development and `PASSWORD_MIN` in production."""


@attrs.frozen(kw_only=True)
class TokenSettings:
    minutes: int = 60
    issuer: str = "mlapi"
    audience: str = "mlapi"


@attrs.frozen(kw_only=True)
class LoginSettings:
    """How many attempts are let through in a minute. Those that were right do not count."""

    per_address: int = 200
    per_name: int = 200
    """From all addresses together, but for those from which the name was logged in before."""
    per_name_and_address: int = 20


@attrs.frozen(kw_only=True)
class HttpSettings:
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks of proxies whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are believed."""

    @property
    def trusted_networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        return tuple(ipaddress.ip_network(proxy, strict=False) for proxy in self.trusted_proxies)


@attrs.frozen(kw_only=True)
class RegistrationSettings:
    open: bool = True


@attrs.frozen(kw_only=True)
class ManagementSettings:
    local: bool = True
    """In development without an admin token: whether programs on this machine may manage."""


@attrs.frozen(kw_only=True)
class AuditSettings:
    days: int = 365
    """For how long entries are kept; 0 is for ever."""


@attrs.frozen(kw_only=True)
class LoggingSettings:
    format: Literal["text", "json"] | None = None
    """None is text in development and JSON in production."""


@attrs.frozen(kw_only=True)
class MetricsSettings:
    open: bool = False
    """Whether ``/metrics`` is for everybody, and not for managers alone."""


@attrs.frozen(kw_only=True)
class Settings:
    profile: Literal["development", "production"] = "development"
    database: DatabaseSettings = DatabaseSettings()
    connection: ConnectionSettings | None = None
    secrets: SecretSettings = SecretSettings()
    passwords: PasswordSettings = PasswordSettings()
    tokens: TokenSettings = TokenSettings()
    logins: LoginSettings = LoginSettings()
    http: HttpSettings = HttpSettings()
    registration: RegistrationSettings = RegistrationSettings()
    management: ManagementSettings = ManagementSettings()
    audit: AuditSettings = AuditSettings()
    logging: LoggingSettings = LoggingSettings()
    metrics: MetricsSettings = MetricsSettings()

    @property
    def is_production(self) -> bool:
        return self.profile == "production"

    @property
    def log_format(self) -> Literal["text", "json"]:
        return self.logging.format or ("json" if self.is_production else "text")


def load_settings(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings from a file (by default `MLAPI_CONFIG`, or ``config.yml`` if there is one) and the environment.

    Raises:
        ConfigurationError: for the first thing that is wrong, with its path.
    """
    named = path or (Path(environ["MLAPI_CONFIG"]) if environ.get("MLAPI_CONFIG") else None)
    file = named or Path("config.yml")
    tree = _checked(read_yaml(file), str(file)) if named is not None or file.exists() else {}
    url = str(tree.get("database", {}).get("url"))
    holds_secrets = "secrets" in tree or "connection" in tree or "@" in url or "password" in url
    for variable, section, key, value in _overrides(environ):
        _checked({key: value} if section is None else {section: {key: value}}, variable)
        target = tree if section is None else tree.setdefault(section, {})
        target[key] = value
    settings = _settings(tree)
    if holds_secrets and (problem := open_to_others(file)) is not None:
        if settings.is_production:
            raise ConfigurationError(problem)
        _logger.warning("%s", problem)
    return settings


def completed(settings: Settings, file: Path) -> Settings:
    """Fill what is missing of the secrets from a secrets file, if there is one, and check that nothing is missing then.

    Raises:
        ConfigurationError: if the file is at fault, or a secret is missing that the profile needs.
    """
    given = settings.secrets
    if file.exists():
        if (problem := open_to_others(file)) is not None:
            raise ConfigurationError(problem)
        tree = _checked({"secrets": read_yaml(file)}, str(file))
        stored = _settings(tree, f"{file}: ").secrets
        given = SecretSettings(
            key=given.key or stored.key,
            salt=given.salt or stored.salt,
            token_key=given.token_key or stored.token_key,
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
        value = environ[variable]
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise ConfigurationError(f"{variable} is not UTF-8")
        if separator:
            if key.endswith("_file"):
                direct = variable[: -len("_file")]
                if direct in environ:
                    raise ConfigurationError(f"{variable} and {direct} are both set: keep one")
                key = key.removesuffix("_file")
                value = read_value(Path(value), variable, is_secret=section in _SECRET_SECTIONS)
            yield variable, section, key, value
        elif section == "profile":
            yield variable, None, section, value
        elif not _KUBERNETES.fullmatch(variable):
            _logger.warning("%s is set and is no setting of mlapi; those are named MLAPI_SECTION__KEY", variable)


def _checked(tree: dict[Any, Any], source: str) -> dict[Any, Any]:
    """Return a tree of sections in which every key is a setting. A section without keys may be left empty.

    Raises:
        ConfigurationError: for the first that is not.
    """
    for name, value in tree.items():
        section = _sections().get(name)
        if name not in _sections():
            raise _unknown(source, "", name, list(_sections()))
        if section is None:
            continue
        if value is not None and not isinstance(value, dict):
            raise ConfigurationError(f"{source}: {name} must hold `key: value` lines")
        for key in value or {}:
            if key not in attrs.fields_dict(section):
                raise _unknown(source, f"{name}.", key, list(attrs.fields_dict(section)))
    return {name: value for name, value in tree.items() if value not in (None, {})}  # an empty one says nothing


def _unknown(source: str, prefix: str, name: object, known: list[str]) -> ConfigurationError:
    # A key that is no plain word is not repeated: of `key:abc`, with its space forgotten, half is a secret.
    shown = name if isinstance(name, str) and _WORD.fullmatch(name) else None
    near = difflib.get_close_matches(shown or "", known, n=1)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known)}"
    where = f"{prefix}{shown}" if shown else f"a key in {prefix.rstrip('.') or 'it'}"
    return ConfigurationError(f"{source}: {where} is not a setting; {hint}")


def _sections() -> dict[str, type[Any] | None]:
    """Each field of the settings, and the settings class it holds, or None."""
    found: dict[str, type[Any] | None] = {}
    for field in attrs.fields(Settings):
        inner: Any = ConnectionSettings if field.name == "connection" else field.type
        found[field.name] = inner if attrs.has(inner) else None
    return found


def _settings(tree: dict[str, Any], source: str = "") -> Settings:
    tree = {name: dict(section) if isinstance(section, dict) else section for name, section in tree.items()}
    for section, key, separated in _LISTS:
        one = tree.get(section, {}).get(key)
        if isinstance(one, str):
            tree[section][key] = one.replace(",", " ").split() if separated else [one] * bool(one)
    try:
        settings = msgspec.convert(tree, Settings, strict=False)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at ")
        where = place.strip("`").removeprefix("$.") or "the configuration"
        if problem.startswith("Invalid enum value"):  # it would show the value, and not what may be
            problem = f"must be {' or '.join(_CHOICES[where])}"
        raise ConfigurationError(f"{source}{where}: {problem[:1].lower()}{problem[1:]}") from None
    _check_values(settings, source)
    return settings


def _check_values(settings: Settings, source: str) -> None:
    _check_access(settings)
    if not 0 <= settings.audit.days <= AUDIT_DAYS_MAX:
        raise ConfigurationError(f"audit.days must be from 1 to {AUDIT_DAYS_MAX}, or 0 for ever")
    if settings.connection is not None and settings.database.url is not None:
        raise ConfigurationError("database.url and connection are both set: keep one")
    if settings.connection is not None and not 0 < settings.connection.port < 2**16:
        raise ConfigurationError("connection.port must be from 1 to 65535")
    if settings.passwords.min_length is not None and not 0 < settings.passwords.min_length <= PASSWORD_MAX_CHARS:
        raise ConfigurationError(f"passwords.min_length must be from 1 to {PASSWORD_MAX_CHARS}")
    given = settings.secrets
    if "" in given.salt:
        raise ConfigurationError(f"{source}secrets.salt must not be empty")
    _check_keys(f"{source}secrets.key", given.key)
    _check_keys(f"{source}secrets.token_key", given.token_key)
    if given.admin_token is not None and not _TOKEN.fullmatch(given.admin_token):
        raise ConfigurationError(
            f"{source}secrets.admin_token must consist of letters, digits and - . _ ~ + / (RFC 6750)"
        )


def _check_access(settings: Settings) -> None:
    if not 0 < settings.tokens.minutes <= TOKEN_MINUTES_MAX:
        raise ConfigurationError(f"tokens.minutes must be from 1 to {TOKEN_MINUTES_MAX}")
    for name in ("issuer", "audience"):
        value = getattr(settings.tokens, name)
        if not 0 < len(value) <= TOKEN_NAME_MAX or not (value.isascii() and value.isprintable()):
            raise ConfigurationError(f"tokens.{name} must be 1 to {TOKEN_NAME_MAX} printable ASCII characters")
    for field in attrs.fields(LoginSettings):
        if getattr(settings.logins, field.name) < 1:
            raise ConfigurationError(f"logins.{field.name} must be 1 or more")
    try:
        settings.http.trusted_networks  # noqa: B018 - parses them
    except ValueError:
        raise ConfigurationError("http.trusted_proxies must be IP addresses or networks, as 10.0.0.0/8") from None


def _check_keys(name: str, keys: tuple[str, ...]) -> None:
    for place, key in enumerate(keys, start=1):
        which = name if len(keys) == 1 else f"{name}, number {place} of {len(keys)},"
        if not _is_key(key):
            raise ConfigurationError(
                f"{which} is not a Fernet key, {KEY_BYTES} bytes in URL-safe base64 (44 characters): {_MAKE_A_KEY}"
            )
        if key in _PUBLISHED_KEYS or len(set(base64.urlsafe_b64decode(key))) == 1:
            raise ConfigurationError(f"{which} is a published sample that everybody knows: {_MAKE_A_KEY}")


_MAKE_A_KEY = "make one with `python -c 'import base64, os; print(base64.urlsafe_b64encode(os.urandom(32)).decode())'`"


def _refuse_weak(given: SecretSettings) -> None:
    if any(salt.casefold() in _PUBLISHED_WORDS for salt in given.salt):
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
