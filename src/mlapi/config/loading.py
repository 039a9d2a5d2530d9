"""Load settings from ``config.yml`` and from environment variables, which override the file."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from mlapi.config.database_paths import find_moved_error, resolve_database_url
from mlapi.config.environment import (
    CONFIG_VARIABLE,
    find_similar_variable,
    find_unknown_variables,
    read_overrides,
)
from mlapi.config.files import read_yaml
from mlapi.config.parsing import parse_settings, validate_keys
from mlapi.config.platforms import require_unix
from mlapi.config.settings import Settings
from mlapi.domain.errors import ConfigurationError
from mlapi.file_access import find_secrets_error

_logger = logging.getLogger("mlapi")


def load_settings(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Load the settings from a file and the environment. Every setting has a default.

    Relative paths in the file are relative to its folder. The default database is in that folder, too. Relative paths
    in environment variables are relative to the current folder.

    Args:
        path: the file. By default, the path in MLAPI_CONFIG, or ``config.yml`` if it exists.
        environ: the environment variables.

    Raises:
        ConfigurationError: for the first invalid setting. The message names the setting and never shows its value.
            Always raised on Windows, where mlapi does not run.
    """
    require_unix()
    explicit_path = path or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    file = explicit_path or Path("config.yml")
    if explicit_path is None and not file.exists():
        return _validate(parse_settings(_apply_overrides({}, environ)), environ)
    tree = validate_keys(read_yaml(file), str(file))
    url = tree.get("database", {}).get("url")
    has_secrets = "secrets" in tree or "connection" in tree or "@" in str(url) or "password" in str(url)
    # Do not resolve symbolic links: Kubernetes mounts a file as a link into a folder that it replaces.
    folder = file.absolute().parent
    resolved = resolve_database_url(url, folder) if url is None or isinstance(url, str) else url
    if isinstance(url, str):
        tree["database"]["url"] = resolved
    settings = parse_settings(_apply_overrides(tree, environ))
    settings = _validate(attrs.evolve(settings, folder=folder), environ)
    is_from_file = settings.connection is None and settings.database.url in {None, resolved}
    if is_from_file and (error := find_moved_error(url, folder, file)) is not None:
        raise ConfigurationError(error)
    if has_secrets and (error := find_secrets_error(file)) is not None:
        if settings.is_production:
            raise ConfigurationError(error)
        _logger.warning("%s", error)
    return settings


def _apply_overrides(tree: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Add the settings in environment variables to a tree of settings, and return it."""
    for override in read_overrides(environ):
        section, key = override.section, override.key
        try:
            validate_keys(
                {key: override.value} if section is None else {section: {key: override.value}}, override.variable
            )
        except ConfigurationError as error:
            similar = find_similar_variable(override.variable)
            problem, separator, _ = str(error).partition("; did you mean ")
            raise ConfigurationError(f"{problem}{separator}{similar}?") if separator and similar else error from None
        target = tree if section is None else tree.setdefault(section, {})
        target[key] = override.value
    return tree


def _validate(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """Check the database URL for surrounding white space, and the environment for misspelled variables.

    Raises:
        ConfigurationError: if there is any. In development, a misspelled variable only causes a warning.
    """
    url = settings.database.url
    if url is not None and url != url.strip():
        raise ConfigurationError("database.url starts or ends with white space: remove it")
    for variable, similar in find_unknown_variables(environ):
        hint = f"did you mean {similar}?" if similar else "mlapi's settings are named MLAPI_SECTION__KEY"
        message = f"{variable} is not a setting: {hint}"
        # Otherwise, a misspelled MLAPI_PROFILE=production would start an open service, and only log a warning.
        is_production = similar == "MLAPI_PROFILE" and environ.get(variable, "").strip() == "production"
        if settings.is_production or is_production:
            raise ConfigurationError(message)
        _logger.warning("%s", message)
    return settings
