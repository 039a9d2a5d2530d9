"""Find programs that tests run and pip cannot install: proxies and connection poolers."""

import os
import shutil

import pytest

_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"  # not on the path of most users, but Debian installs servers there


def find_program(name: str) -> str | None:
    """Return the path of an installed program, or None."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_FOLDERS}")


def require_program(name: str) -> str:
    """Return the path of an installed program. Skip the test if it is missing, and say how to install it."""
    path = find_program(name)
    if path is None:
        pytest.skip(f"{name} is not installed, so this behavior was not tested: apt-get install {name}")
    return path
