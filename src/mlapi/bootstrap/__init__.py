"""Compose the service from settings. Only this package imports adapters.

Each name is imported on first use: a guard needs neither the password ciphers nor SQLAlchemy, and a server needs
neither backups nor the adoption of legacy databases.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlapi.adapters.sql.adoption import Adoption as Adoption
    from mlapi.adapters.sql.adoption import Choice as Choice
    from mlapi.adapters.sql.adoption import Finding as Finding
    from mlapi.adapters.sql.adoption import Found as Found
    from mlapi.application.database_check import DatabaseCheck as DatabaseCheck
    from mlapi.application.login_throttle import AttemptLimits as AttemptLimits
    from mlapi.bootstrap.backups import Backup as Backup
    from mlapi.bootstrap.backups import PreparedRestore as PreparedRestore
    from mlapi.bootstrap.backups import back_up as back_up
    from mlapi.bootstrap.backups import open_restore as open_restore
    from mlapi.bootstrap.guard import async_guard as async_guard
    from mlapi.bootstrap.guard import open_guard as open_guard
    from mlapi.bootstrap.mail import MailCheck as MailCheck
    from mlapi.bootstrap.mail import check_mail as check_mail
    from mlapi.bootstrap.mail import make_transport as make_transport
    from mlapi.bootstrap.mail import send_test_mail as send_test_mail
    from mlapi.bootstrap.mail import sending_mail as sending_mail
    from mlapi.bootstrap.maintenance import check_database as check_database
    from mlapi.bootstrap.maintenance import locate_data as locate_data
    from mlapi.bootstrap.maintenance import open_adoption as open_adoption
    from mlapi.bootstrap.maintenance import open_secret_rotation as open_secret_rotation
    from mlapi.bootstrap.maintenance import open_user_import as open_user_import
    from mlapi.bootstrap.maintenance import upgrade_database as upgrade_database
    from mlapi.bootstrap.secrets import open_secrets as open_secrets
    from mlapi.bootstrap.service import Service as Service
    from mlapi.bootstrap.service import in_memory_access as in_memory_access
    from mlapi.bootstrap.service import in_memory_attempts as in_memory_attempts
    from mlapi.bootstrap.service import in_memory_managers as in_memory_managers
    from mlapi.bootstrap.service import in_memory_sessions as in_memory_sessions
    from mlapi.bootstrap.service import in_memory_usage as in_memory_usage
    from mlapi.bootstrap.service import open_service as open_service
    from mlapi.bootstrap.service import open_users as open_users
    from mlapi.bootstrap.service import retention as retention
    from mlapi.bootstrap.storage_registry import register_storage as register_storage
    from mlapi.bootstrap.storages import open_database as open_database
    from mlapi.bootstrap.storages import open_storage as open_storage

_NAMES_BY_MODULE = {
    "mlapi.adapters.sql.adoption": "Adoption Choice Finding Found",
    "mlapi.application.database_check": "DatabaseCheck",
    "mlapi.application.login_throttle": "AttemptLimits",
    "mlapi.bootstrap.backups": "Backup PreparedRestore back_up open_restore",
    "mlapi.bootstrap.guard": "async_guard open_guard",
    "mlapi.bootstrap.mail": "MailCheck check_mail make_transport send_test_mail sending_mail",
    "mlapi.bootstrap.maintenance": (
        "check_database locate_data open_adoption open_secret_rotation open_user_import upgrade_database"
    ),
    "mlapi.bootstrap.secrets": "open_secrets",
    "mlapi.bootstrap.service": (
        "Service in_memory_access in_memory_attempts in_memory_managers in_memory_sessions in_memory_usage open_service"
        " open_users retention"
    ),
    "mlapi.bootstrap.storage_registry": "register_storage",
    "mlapi.bootstrap.storages": "open_database open_storage",
}
_MODULES = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
