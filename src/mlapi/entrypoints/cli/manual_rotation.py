"""The steps that rotate a secret where mlapi cannot: in a variable, a mounted file or a configuration file."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import attrs

from mlapi.application.secret_rotation import PendingSecret
from mlapi.config import locate_config_file

_NAMES = {"key": "key", "token_key": "token key", "salt": "salt"}


@attrs.frozen
class SecretSource:
    """The place where a secret is set.

    Attributes:
        name: the variable, or the file.
        file: the file that contains the list; None for an environment variable.
        is_plain: whether the file contains only the secret, instead of YAML.
        is_reloaded: whether running processes notice a change.
    """

    name: str
    file: Path | None
    is_plain: bool = False
    is_reloaded: bool = False

    @classmethod
    def find(cls, pending: PendingSecret, environ: Mapping[str, str]) -> Self:
        if pending.file is not None:
            return cls(str(pending.file), pending.file, is_reloaded=True)
        variable = f"MLAPI_SECRETS__{pending.kind.upper()}"
        for name in sorted(environ):
            if name.upper() == variable:
                return cls(name, None)
            if name.upper() == f"{variable}_FILE":
                return cls(f"{name} ({environ[name]})", Path(environ[name]), is_plain=True)
        file = locate_config_file(environ)
        return cls(str(file), file)

    @property
    def end(self) -> str:
        """Where to add another secret."""
        if self.file is None:
            return f"after a comma at the end of {self.name}"
        return (
            f"on a line of its own at the end of {self.file}"
            if self.is_plain
            else f"at the end of the list in {self.file}"
        )


def describe_steps(pending: PendingSecret, source: SecretSource) -> Iterator[str]:
    """Yield the lines that tell the operator what to do. They do not contain the secret."""
    name, setting = _NAMES[pending.kind], f"secrets.{pending.kind}"
    restart = (
        f"wait until every machine has the new {source.file} (in Kubernetes, two minutes)"
        if source.is_reloaded
        else "restart every process"
    )
    yield f"mlapi cannot change {source.name}, so rotate {setting} there. The new {name} is on standard output."
    if len(pending.values) > 1:
        yield f"  1. Set {setting} to all lines on standard output, in this order, and {restart}."
        yield f"  2. Move the last one to the front, and {restart}."
    elif pending.kind == "salt" and (source.file is None or source.is_plain):
        yield (
            f"  1. A variable or its file holds one salt only: remove it, list the current salt and then the new one as"
            f" {setting} in the configuration file, and {restart}."
        )
        yield f"  2. Move the new salt to the front of the list, and {restart}."
    else:
        yield f"  1. Add the new {name} {source.end}, and {restart}."
        yield f"  2. Move it to the front, and {restart}."
    if pending.kind == "key":
        yield "  3. Run `mlapi secrets rotate` again. It re-encrypts every password with the new key."
        yield f"  4. Remove the former key, and {restart}."
    elif pending.kind == "salt":
        yield "  3. Keep the former salt until `mlapi secrets prune` tells you that no password needs it."
    else:
        yield f"  3. Once the tokens signed with the former key have expired, remove it, and {restart}."
