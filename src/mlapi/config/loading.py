"""Load settings from ``config.yml`` and from environment variables, which override the file.

``MLAPI_SECTION__KEY=value`` overrides ``section: {key: value}``; ``MLAPI_SECTION__KEY_FILE=path`` reads the value from
a file instead.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlapi.config.files import read_mounted_value, read_yaml
from mlapi.config.parsing import parse_settings, validate_keys
from mlapi.config.settings import Settings
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.rules import has_lone_surrogate
from mlapi.file_access import find_secrets_error

_PREFIX = "MLAPI_"
_SECRET_SECTIONS = frozenset({"secrets", "connection", "database"})
# Kubernetes sets these variables in every container if a service is named mlapi or mlapi-*.
_KUBERNETES_VARIABLE = re.compile(r"MLAPI_([A-Z0-9_]+_)?(SERVICE_(HOST|PORT)|PORT)(_.*)?")

_logger = logging.getLogger("mlapi")


def load_settings(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Load the settings from a file and the environment. Every setting has a default.

    Args:
        path: the file. By default, the path in MLAPI_CONFIG, or ``config.yml`` if it exists.
        environ: the environment variables.

    Raises:
        ConfigurationError: for the first invalid setting. The message names the setting and never shows its value.
    """
    explicit_path = path or (Path(environ["MLAPI_CONFIG"]) if environ.get("MLAPI_CONFIG") else None)
    file = explicit_path or Path("config.yml")
    tree = validate_keys(read_yaml(file), str(file)) if explicit_path is not None or file.exists() else {}
    url = str(tree.get("database", {}).get("url"))
    has_secrets = "secrets" in tree or "connection" in tree or "@" in url or "password" in url
    for variable, section, key, value in _overrides(environ):
        validate_keys({key: value} if section is None else {section: {key: value}}, variable)
        target = tree if section is None else tree.setdefault(section, {})
        target[key] = value
    settings = parse_settings(tree)
    if has_secrets and (error := find_secrets_error(file)) is not None:
        if settings.is_production:
            raise ConfigurationError(error)
        _logger.warning("%s", error)
    return settings


def _overrides(environ: Mapping[str, str]) -> Iterator[tuple[str, str | None, str, str]]:
    """Yield (variable, section or None, key, value) for each variable that overrides a setting."""
    for variable in sorted(name for name in environ if name.startswith(_PREFIX) and name != "MLAPI_CONFIG"):
        section, separator, key = variable.removeprefix(_PREFIX).lower().partition("__")
        value = environ[variable]
        if has_lone_surrogate(value):
            raise ConfigurationError(f"{variable} is not UTF-8")
        if separator:
            if key.endswith("_file"):
                direct = variable[: -len("_file")]
                if direct in environ:
                    raise ConfigurationError(f"{variable} and {direct} are both set: remove one")
                key = key.removesuffix("_file")
                value = read_mounted_value(Path(value), variable, is_secret=section in _SECRET_SECTIONS)
            yield variable, section, key, value
        elif section == "profile":
            yield variable, None, section, value
        elif not _KUBERNETES_VARIABLE.fullmatch(variable):
            _logger.warning("ignoring %s: mlapi's settings are named MLAPI_SECTION__KEY", variable)
