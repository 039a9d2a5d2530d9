"""Read settings from environment variables, and detect misspelled ones.

``MLAPI_SECTION__KEY=value`` overrides ``section: {key: value}``; ``MLAPI_SECTION__KEY_FILE=path`` reads the value from
a file instead. ``MLAPI_PLANS__NAME__KEY`` overrides a value in a plan.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlapi.config.files import read_mounted_value
from mlapi.config.parsing import section_fields, section_types
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.rules import has_lone_surrogate

CONFIG_VARIABLE = "MLAPI_CONFIG"
_PREFIX = "MLAPI_"
_SECRET_SECTIONS = frozenset({"secrets", "connection", "database", "mail"})
# Kubernetes sets these variables in every container if a service is named mlapi or mlapi-*.
# Among them, MLAPI_PORT is a URL. If it has another value, the user probably means a setting.
_KUBERNETES_VARIABLE = re.compile(r"MLAPI_([A-Z0-9_]+_)?(SERVICE_(HOST|PORT(_.+)?)|PORT_\d+_(TCP|UDP|SCTP)(_.+)?)")
_KUBERNETES_URL = re.compile(r"(tcp|udp|sctp)://.*")
_TOP_LEVEL_VARIABLES = frozenset({f"{_PREFIX}PROFILE", f"{_PREFIX}DEFAULT_PLAN"})
_PRINTABLE = re.compile(r"[\w .-]{1,100}", re.ASCII)


def locate_config_file(environ: Mapping[str, str]) -> Path:
    """Return the path of the configuration file, which does not have to exist unless MLAPI_CONFIG names it."""
    return Path(environ.get(CONFIG_VARIABLE) or "config.yml")


def read_overrides(environ: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each variable that is a setting, and a tree of settings that contains only this one.

    The section and the key may be unknown.

    Raises:
        ConfigurationError: if a value is not UTF-8, a file cannot be read, or a setting is set twice.
    """
    variables: dict[tuple[str, str], str] = {}
    for variable in sorted(filter(_is_setting, environ)):
        section, separator, key = variable.removeprefix(_PREFIX).lower().partition("__")
        value = environ[variable]
        if has_lone_surrogate(value):
            raise ConfigurationError(f"{variable} is not UTF-8")
        is_file = key.endswith("_file")
        key = key.removesuffix("_file")
        if (section, key) in variables:
            raise ConfigurationError(f"{variable} and {variables[section, key]} are both set: remove one")
        variables[section, key] = variable
        if is_file:
            value = read_mounted_value(Path(value), variable, is_secret=section in _SECRET_SECTIONS)
        yield variable, {section: _nest(section, key, value)} if separator else {section: value}


def _nest(section: str, key: str, value: str) -> dict[str, Any]:
    plan, separator, limit = key.rpartition("__")
    return {plan: {limit: value}} if section == "plans" and separator else {key: value}


def find_unknown_variables(environ: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """Yield each variable that looks like a setting but is not, and the variable that it probably means, or None.

    Variables such as MLAPI_SECTION__KEY, with an unknown section or key, are not included: see `read_overrides`.
    """
    for name in sorted(environ):
        if not name.strip().upper().startswith(_PREFIX) or name == CONFIG_VARIABLE:
            continue
        if not _is_setting(name) and not _is_from_kubernetes(name, environ[name]):
            yield name if _PRINTABLE.fullmatch(name) else repr(name), find_similar_variable(name)


def find_similar_variable(name: str) -> str | None:
    """Return the variable that a misspelled name probably means, or None."""
    wanted = _simplify(name)
    known = {_simplify(variable): variable for variable in _known_variables()}
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.7)
    endings = [simple for simple in known if simple.endswith(f"_{wanted}")]  # MLAPI_SALT instead of MLAPI_SECRETS__SALT
    found = close or endings
    return known[found[0]] if found else None


def _is_setting(name: str) -> bool:
    is_ours = name.startswith(_PREFIX) and name == name.strip() and name != CONFIG_VARIABLE
    return is_ours and ("__" in name or name.upper() in _TOP_LEVEL_VARIABLES)


def _is_from_kubernetes(name: str, value: str) -> bool:
    has_url = name.endswith("_PORT") and _KUBERNETES_URL.fullmatch(value) is not None
    return has_url or _KUBERNETES_VARIABLE.fullmatch(name) is not None


def _simplify(name: str) -> str:
    return re.sub("_+", "_", name.strip().upper().removeprefix(_PREFIX)).strip("_")


def _known_variables() -> Iterator[str]:
    yield CONFIG_VARIABLE
    yield from _TOP_LEVEL_VARIABLES
    for section, kind in section_types().items():
        for key in () if kind is None else section_fields(kind):
            yield f"{_PREFIX}{section}__{key}".upper()
            yield f"{_PREFIX}{section}__{key}_file".upper()
