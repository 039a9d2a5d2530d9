"""The settings of the service: one class for each section of ``config.yml``."""

import ipaddress
from typing import Literal

import attrs

MIN_ADMIN_TOKEN_CHARS = 16
"""Characters in production: 96 bits if the token is random base64."""
MIN_PASSWORD_CHARS = 8
"""Characters in production: OWASP ASVS 5.0, 6.2.1, which recommends 15 (``passwords.min_length: 15``)."""
CONTEXT_WORDS = frozenset(
    {"admin", "administrator", "api", "console", "guard", "key", "login", "manager", "mlapi", "model", "password"}
    | {"secret", "service", "token", "user", "username"}
)
"""Names of this service and its roles. In production, a password needs more than these words, digits and symbols."""
MAX_TOKEN_MINUTES = 24 * 60
"""One day. Expiry is the only protection against a stolen token that goes unnoticed."""
MAX_AUDIT_DAYS = 36_500
MAX_TOKEN_NAME_CHARS = 200
"""Characters of ``iss`` and ``aud``, which every token contains."""


@attrs.frozen(kw_only=True)
class DatabaseSettings:
    url: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class ConnectionSettings:
    """The parts of a PostgreSQL URL, as the legacy app's configuration has them."""

    username: str
    password: str = attrs.field(repr=False)
    host: str = "localhost"
    port: int = 5432
    database: str


@attrs.frozen(kw_only=True)
class SecretSettings:
    """The secrets. ``key``, ``salt`` and ``token_key`` are lists: the first value is used, the others are accepted."""

    key: tuple[str, ...] = attrs.field(default=(), repr=False)
    salt: tuple[str, ...] = attrs.field(default=(), repr=False)
    token_key: tuple[str, ...] = attrs.field(default=(), repr=False)
    """In the format of a Fernet key. If empty, token keys are derived from ``key``."""
    admin_token: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class PasswordSettings:
    scheme: Literal["argon2id", "fernet"] = "argon2id"
    min_length: int | None = None
    """Characters. None means 1 in development and `MIN_PASSWORD_CHARS` in production."""


@attrs.frozen(kw_only=True)
class TokenSettings:
    minutes: int = 60
    issuer: str = "mlapi"
    audience: str = "mlapi"


@attrs.frozen(kw_only=True)
class LoginSettings:
    """Failed log-in attempts allowed per minute."""

    per_address: int = 200
    per_name: int = 200
    """From all addresses together. Addresses where the user has logged in before do not count."""
    per_name_and_address: int = 20


@attrs.frozen(kw_only=True)
class HttpSettings:
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks of proxies. Their ``X-Forwarded-For`` and ``X-Forwarded-Proto`` headers are trusted."""

    @property
    def trusted_networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        return tuple(ipaddress.ip_network(proxy, strict=False) for proxy in self.trusted_proxies)


@attrs.frozen(kw_only=True)
class RegistrationSettings:
    open: bool = True


@attrs.frozen(kw_only=True)
class ManagementSettings:
    local: bool = True
    """In development without an admin token, True allows programs on this machine to manage users."""


@attrs.frozen(kw_only=True)
class AuditSettings:
    days: int = 365
    """Days after which audit entries are deleted; 0 keeps them indefinitely."""


@attrs.frozen(kw_only=True)
class LoggingSettings:
    format: Literal["text", "json"] | None = None
    """None means text in development and JSON in production."""


@attrs.frozen(kw_only=True)
class MetricsSettings:
    open: bool = False
    """True makes ``/metrics`` public; otherwise, only managers can read it."""


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
