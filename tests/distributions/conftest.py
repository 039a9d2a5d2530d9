"""Tests of the built wheel and source distribution. Only `make dist` runs them: each one is installed from PyPI."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if config.getoption("--distributions") else True
