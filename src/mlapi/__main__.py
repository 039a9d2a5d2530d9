"""The program ``mlapi``, which is ``python -m mlapi`` too."""

import sys


def main() -> None:
    """Run the command line. To load it takes a third of a second, in which Ctrl-C is one line as well."""
    try:
        from mlapi.entrypoints.cli import main as run  # noqa: PLC0415 - see above
    except KeyboardInterrupt:
        sys.stderr.write("mlapi: interrupted\n")
        sys.exit(130)  # as shells tell of SIGINT
    run(prog_name="mlapi")


if __name__ == "__main__":
    main()
