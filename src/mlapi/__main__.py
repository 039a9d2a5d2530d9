"""The program ``mlapi``, also available as ``python -m mlapi``."""

import sys


def main() -> None:
    """Run the command line. Ctrl-C prints one line, even while the program is still loading."""
    try:
        from mlapi.entrypoints.cli import main as run  # noqa: PLC0415 - loading takes a third of a second
    except KeyboardInterrupt:
        sys.stderr.write("mlapi: interrupted\n")
        sys.exit(130)  # the exit code of shells for SIGINT
    run(prog_name="mlapi")


if __name__ == "__main__":
    main()
