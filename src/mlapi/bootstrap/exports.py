"""The names that `mlapi.bootstrap` imports on first use."""

from mlapi.adapters.sql.adoption import Adoption, Choice, Finding, Found
from mlapi.application.database_check import DatabaseCheck
from mlapi.application.login_throttle import AttemptLimits
from mlapi.bootstrap.backups import Backup, PreparedRestore, back_up, open_restore
from mlapi.bootstrap.guard import async_guard, open_guard
from mlapi.bootstrap.mail import MailCheck, check_mail, make_transport, send_test_mail, sending_mail
from mlapi.bootstrap.maintenance import (
    check_database,
    locate_data,
    open_adoption,
    open_secret_rotation,
    open_user_import,
    upgrade_database,
)
from mlapi.bootstrap.secrets import open_secrets
from mlapi.bootstrap.service import (
    Service,
    in_memory_access,
    in_memory_attempts,
    in_memory_managers,
    in_memory_sessions,
    in_memory_usage,
    open_service,
    open_users,
    retention,
)
from mlapi.bootstrap.storage_registry import register_storage
from mlapi.bootstrap.storages import open_database, open_storage

__all__ = [
    "Adoption",
    "AttemptLimits",
    "Backup",
    "Choice",
    "DatabaseCheck",
    "Finding",
    "Found",
    "MailCheck",
    "PreparedRestore",
    "Service",
    "async_guard",
    "back_up",
    "check_database",
    "check_mail",
    "in_memory_access",
    "in_memory_attempts",
    "in_memory_managers",
    "in_memory_sessions",
    "in_memory_usage",
    "locate_data",
    "make_transport",
    "open_adoption",
    "open_database",
    "open_guard",
    "open_restore",
    "open_secret_rotation",
    "open_secrets",
    "open_service",
    "open_storage",
    "open_user_import",
    "open_users",
    "register_storage",
    "retention",
    "send_test_mail",
    "sending_mail",
    "upgrade_database",
]
