"""The ``mlapi`` program, also available as ``python -m mlapi``."""

import sys

from mlapi.domain.errors import ConfigurationError
from mlapi.platforms import require_unix


def main() -> None:
    """Run the command line. On Windows, and if Ctrl-C is pressed while it is loading, print one line instead."""
    try:
        require_unix()
        from mlapi.entrypoints.cli import main as run  # noqa: PLC0415 - Ctrl-C may be pressed while it loads
    except ModuleNotFoundError as error:  # only a guard was installed: docs/guard.md
        sys.stderr.write(f"mlapi: the command line needs the package {error.name}: pip install mlapi-users\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("mlapi: interrupted\n")
        sys.exit(130)  # the exit code that shells use for SIGINT
    except ConfigurationError as error:
        sys.stderr.write(f"mlapi: {error}\n")
        sys.exit(1)
    run(prog_name="mlapi")


if __name__ == "__main__":
    main()
