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
    locate_config_file,
    read_overrides,
)
from mlapi.config.files import read_yaml
from mlapi.config.parsing import parse_settings, validate_keys
from mlapi.config.plans import make_plans
from mlapi.config.settings import Settings
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.plans import Plans
from mlapi.file_access import find_secrets_error
from mlapi.platforms import require_unix

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
    file = path or locate_config_file(environ)
    has_file = path is not None or bool(environ.get(CONFIG_VARIABLE)) or file.exists()
    tree = validate_keys(read_yaml(file), str(file)) if has_file else {}
    # Do not resolve symbolic links: Kubernetes mounts a file as a link into a folder that it replaces.
    folder = file.absolute().parent if has_file else Path()
    url = tree.get("database", {}).get("url")
    if isinstance(url, str):
        tree = _merge(tree, {"database": {"url": resolve_database_url(url, folder)}})
    if isinstance(templates := tree.get("mail", {}).get("templates"), str):
        tree = _merge(tree, {"mail": {"templates": str(folder / templates)}})
    overrides = _load_overrides(environ)
    settings = attrs.evolve(
        parse_settings(_merge(tree, overrides)), folder=folder, file=file.absolute() if has_file else None
    )
    _validate_variables(settings, environ)
    is_overridden = settings.connection is not None or "url" in overrides.get("database", {})
    if not is_overridden and (error := find_moved_error(url, folder, file)) is not None:
        raise ConfigurationError(error)
    has_secrets = "secrets" in tree or "connection" in tree or "@" in str(url) or "password" in str(url)
    has_secrets = has_secrets or "@" in str(tree.get("mail", {}).get("url"))
    if has_secrets and (error := find_secrets_error(file)) is not None:
        if settings.is_production:
            raise ConfigurationError(error)
        _logger.warning("%s", error)
    return settings


def load_plans(file: Path, environ: Mapping[str, str] = os.environ) -> Plans:
    """Load only the plans, from a file and the environment. Log no warnings.

    Raises:
        ConfigurationError: if the file is invalid or empty, for example while an editor writes it.
    """
    tree = validate_keys(read_yaml(file), str(file))
    if not tree:
        raise ConfigurationError(f"{file} is empty")
    return make_plans(parse_settings(_merge(tree, _load_overrides(environ))))


def _load_overrides(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings in environment variables as a tree, like that in a file."""
    tree: dict[str, Any] = {}
    for variable, override in read_overrides(environ):
        tree = _merge(tree, validate_keys(override, variable, find_similar=find_similar_variable))
    return tree


def _merge(tree: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a tree with other settings, which override those in the tree.

    Copy sections and plans too: because YAML has aliases, several names may refer to the same object.
    """
    merged = dict(tree)
    for name, value in overrides.items():
        former = tree.get(name)
        merged[name] = _merge(former, value) if isinstance(former, dict) and isinstance(value, dict) else value
    return merged


def _validate_variables(settings: Settings, environ: Mapping[str, str]) -> None:
    """Check the environment for misspelled variables.

    Raises:
        ConfigurationError: if there is any. In development, it only causes a warning.
    """
    for variable, similar in find_unknown_variables(environ):
        hint = f"did you mean {similar}?" if similar else "mlapi's settings are named MLAPI_SECTION__KEY"
        message = f"{variable} is not a setting: {hint}"
        # Otherwise, a misspelled MLAPI_PROFILE=production would start an open service, and only log a warning.
        is_production = similar == "MLAPI_PROFILE" and environ.get(variable, "").strip() == "production"
        if settings.is_production or is_production:
            raise ConfigurationError(message)
        _logger.warning("%s", message)
