"""Tests of the wheel and the source distribution. Only `make dist` runs them: they install packages from PyPI."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if config.getoption("--distributions") else True
