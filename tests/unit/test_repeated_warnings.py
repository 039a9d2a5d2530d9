"""Warnings that clients can cause are logged once per interval, with the number of omitted lines."""

import time

import pytest

from mlapi.application import repeated_warnings
from mlapi.application.repeated_warnings import RepeatedWarnings


def test_same_warning_is_logged_once_per_interval(caplog: pytest.LogCaptureFixture) -> None:
    warnings = RepeatedWarnings(interval_seconds=60)

    for _ in range(1_000):
        warnings.log("too many from 192.0.2.1")
        warnings.log("too many from 192.0.2.2")

    assert caplog.messages == ["too many from 192.0.2.1", "too many from 192.0.2.2"]


def test_next_warning_says_how_many_were_omitted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("mlapi.application.repeated_warnings.time.monotonic", lambda: now)
    warnings = RepeatedWarnings(interval_seconds=60)
    for _ in range(3):
        warnings.log("too many")

    now += 61
    warnings.log("too many")

    assert caplog.messages == ["too many", "too many (2 more since the last line)"]


def test_number_of_remembered_texts_is_limited(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeated_warnings, "_MAX_TEXTS", 2)
    warnings = RepeatedWarnings(interval_seconds=60)

    for text in ("a", "b", "c", "c", "a"):
        warnings.log(text)

    assert caplog.messages == ["a", "b", "c", "a"]
