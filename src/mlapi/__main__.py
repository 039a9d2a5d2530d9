"""The ``mlapi`` program, also available as ``python -m mlapi``."""

import sys


def main() -> None:
    """Run the command line. If Ctrl-C is pressed while it is loading, print one line instead of a traceback."""
    try:
        from mlapi.entrypoints.cli import main as run  # noqa: PLC0415 - loading takes a third of a second
    except KeyboardInterrupt:
        sys.stderr.write("mlapi: interrupted\n")
        sys.exit(130)  # the exit code that shells use for SIGINT
    run(prog_name="mlapi")


if __name__ == "__main__":
    main()
