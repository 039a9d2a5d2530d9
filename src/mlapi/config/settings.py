"""The settings of the service, with one class for each section of ``config.yml``."""

import ipaddress
from pathlib import Path
from typing import Literal

import attrs

from mlapi.domain.addresses import UNIX_PEER, Network
from mlapi.domain.users import Pending

MIN_ADMIN_TOKEN_CHARS = 16
"""The minimum in production. 16 characters of random base64 contain 96 random bits."""
MIN_PASSWORD_CHARS = 8
"""The minimum in production (OWASP ASVS 5.0, 6.2.1). ASVS recommends 15: set ``passwords.min_length: 15``."""
CONTEXT_WORDS = frozenset(
    {"admin", "administrator", "api", "console", "guard", "key", "login", "manager", "mlapi", "model", "password"}
    | {"secret", "service", "token", "user", "username"}
)
"""Words related to this service. In production, a password must not consist only of these words, digits and symbols."""
MAX_TOKEN_MINUTES = 24 * 60
"""One day. Expiry is the only protection against an undetected stolen token."""
MAX_RETENTION_DAYS = 36_500
REGISTRATIONS_PER_ADDRESS = 60
"""The default limit per minute in production."""
MAX_ALLOWANCE = 10**12
MAX_OWN_API_KEYS = 10
"""The default of ``keys.per_user``."""
MAX_KEYS_PER_USER = 1000
MAX_TOKEN_NAME_CHARS = 200
"""The maximum length of ``tokens.issuer`` and ``tokens.audience``. Every token contains both."""


@attrs.frozen(kw_only=True)
class DatabaseSettings:
    url: str | None = attrs.field(default=None, repr=False)
    schema: str | None = None
    """The PostgreSQL schema that contains the tables. None means the first existing one on the ``search_path``."""


@attrs.frozen(kw_only=True)
class ConnectionSettings:
    """A PostgreSQL URL in parts, in the format of the legacy app's configuration."""

    username: str
    password: str = attrs.field(repr=False)
    host: str = "localhost"
    port: int = 5432
    database: str


@attrs.frozen(kw_only=True)
class SecretSettings:
    """The secrets. ``key``, ``salt`` and ``token_key`` are lists, newest first.

    The first value is used for new passwords and tokens. The others are still accepted for existing ones.
    """

    key: tuple[str, ...] = attrs.field(default=(), repr=False)
    salt: tuple[str, ...] = attrs.field(default=(), repr=False)
    token_key: tuple[str, ...] = attrs.field(default=(), repr=False)
    """In the same format as a Fernet key. If empty, token keys are derived from ``key``."""
    admin_token: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class PasswordSettings:
    scheme: Literal["argon2id", "fernet"] = "argon2id"
    min_length: int | None = None
    """In characters. None means 1 in development and `MIN_PASSWORD_CHARS` in production."""


@attrs.frozen(kw_only=True)
class TokenSettings:
    minutes: int = 60
    issuer: str = "mlapi"
    audience: str = "mlapi"
    accept_bare: bool | None = None
    """Whether requests may have a token in ``Authorization`` without the scheme ``Bearer``, as in the legacy app. None
    means True in development and False in production."""


@attrs.frozen(kw_only=True)
class LoginSettings:
    """The number of failed login attempts allowed per minute."""

    per_address: int = 200
    per_name: int = 200
    """From all addresses together, not counting addresses from which the user has logged in before."""
    per_name_and_address: int = 20


@attrs.frozen(kw_only=True)
class HttpSettings:
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` headers are trusted.

    ``unix`` stands for the programs that connect through a Unix socket.
    """
    cors_origins: tuple[str, ...] = ()
    """The origins of the pages from which browsers may register users, log in and manage their own account.

    ``*`` allows every origin.
    """
    public_url: str | None = None
    """The address under which users reach the service, such as ``https://api.example.com``.

    One-time links begin with it. None means the address of the request that makes the link.
    """

    @property
    def trusted_networks(self) -> tuple[Network, ...]:
        return tuple(
            UNIX_PEER if proxy == UNIX_PEER else ipaddress.ip_network(proxy, strict=False)
            for proxy in self.trusted_proxies
        )


@attrs.frozen(kw_only=True)
class RegistrationSettings:
    open: bool = True
    verify_email: bool = False
    """True keeps new users pending until they open a link in a mail. Needs ``mail.url``."""
    approval: bool = False
    """True keeps new users pending until a manager enables them."""

    @property
    def pending(self) -> Pending | None:
        """What users who register themselves wait for; None if they are enabled at once."""
        if self.verify_email:
            return "email_then_approval" if self.approval else "email"
        return "approval" if self.approval else None


@attrs.frozen(kw_only=True)
class MailSettings:
    url: str | None = attrs.field(default=None, repr=False)
    """The mail server. None means that no mail is sent."""
    from_: str | None = None
    """The address that sends the mail. The key in the file is ``from``."""
    templates: str | None = None
    """A folder with templates that replace the default ones. Relative to the folder of the configuration file."""
    per_recipient: int = 10
    """Maximum number of mails per hour to one mailbox that clients can cause. 0 means no limit."""


@attrs.frozen(kw_only=True)
class RegistrationLimitSettings:
    """The limit of registrations per minute. Registrations by admins do not count."""

    per_address: int | None = None
    """None means `REGISTRATIONS_PER_ADDRESS` in production and no limit in development. 0 means no limit."""


@attrs.frozen(kw_only=True)
class ManagementSettings:
    local: bool = True
    """True allows programs on this machine to manage users in development if no admin token is set."""


@attrs.frozen(kw_only=True)
class AuditSettings:
    days: int = 365
    """Audit entries are deleted after this many days; 0 keeps them indefinitely."""

    names: bool = True
    """Whether the audit trail keeps the names of removed users."""


@attrs.frozen(kw_only=True)
class UsageSettings:
    days: int = 400
    """Usage is deleted after this many days; 0 keeps it indefinitely."""


@attrs.frozen(kw_only=True)
class KeySettings:
    per_user: int = MAX_OWN_API_KEYS
    """The maximum number of API keys that users can create for themselves. Managers can create more."""


@attrs.frozen(kw_only=True)
class AccountSettings:
    enabled: bool = True
    """Whether users can sign in to ``/account``."""
    keys: bool = True
    """Whether users can add API keys, in ``/account`` and with ``POST /users/me/keys``."""
    login_days: int = 90
    """Logins are deleted after this many days; 0 keeps them indefinitely."""


@attrs.frozen(kw_only=True)
class LoggingSettings:
    format: Literal["text", "json"] | None = None
    """None means text in development and JSON in production."""


@attrs.frozen(kw_only=True)
class MetricsSettings:
    open: bool = False
    """True makes ``/metrics`` public. Otherwise, only admins can read it."""


@attrs.frozen(kw_only=True)
class PlanSettings:
    """The allowances of a plan. None means no limit."""

    per_minute: int | None = None
    per_hour: int | None = None
    per_day: int | None = None
    per_month: int | None = None
    units_per_day: int | None = None
    units_per_month: int | None = None


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
    registrations: RegistrationLimitSettings = RegistrationLimitSettings()
    management: ManagementSettings = ManagementSettings()
    mail: MailSettings = MailSettings()
    audit: AuditSettings = AuditSettings()
    usage: UsageSettings = UsageSettings()
    keys: KeySettings = KeySettings()
    account: AccountSettings = AccountSettings()
    logging: LoggingSettings = LoggingSettings()
    metrics: MetricsSettings = MetricsSettings()
    plans: dict[str, PlanSettings] = attrs.field(factory=dict, hash=False)
    default_plan: str | None = None
    """The plan of users without one. None means that these users have no limits."""
    file: Path | None = attrs.field(default=None, eq=False, repr=False)
    """The configuration file, from which changed plans are read again. None if there is none. It is not a setting."""
    folder: Path = attrs.field(default=Path(), eq=False, repr=False)
    """The folder of the configuration file, for the default database and the secrets file. The default is the current
    folder. It is not a setting."""

    @property
    def is_production(self) -> bool:
        return self.profile == "production"

    @property
    def registrations_per_address(self) -> int:
        """The maximum number of registrations per minute from one address. 0 means no limit."""
        if self.registrations.per_address is None:
            return REGISTRATIONS_PER_ADDRESS if self.is_production else 0
        return self.registrations.per_address

    @property
    def accepts_bare_credentials(self) -> bool:
        return not self.is_production if self.tokens.accept_bare is None else self.tokens.accept_bare

    @property
    def own_api_keys(self) -> int:
        """The maximum number of API keys that users can create for themselves; 0 if they cannot."""
        return self.keys.per_user if self.account.keys else 0

    @property
    def log_format(self) -> Literal["text", "json"]:
        return self.logging.format or ("json" if self.is_production else "text")
