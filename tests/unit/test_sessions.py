"""Sessions: their secrets, when they end, and how their browsers are described."""

from datetime import timedelta

import attrs
import pytest

from mlapi.domain.rules import MAX_DESCRIPTION_CHARS
from mlapi.domain.sessions import (
    IDLE_SECONDS,
    LIFETIME_SECONDS,
    TOUCH_SECONDS,
    find_session_id,
    generate_session_secret,
)
from mlapi.entrypoints.http.browsers import describe_browser
from mlapi.entrypoints.http.sessions import csrf_token
from mlapi.testing.samples import NOON
from mlapi.testing.sessions import new_session


def test_every_session_has_its_own_secret() -> None:
    secrets = {generate_session_secret() for _ in range(100)}

    assert len({find_session_id(secret) for secret in secrets} | {csrf_token(secret) for secret in secrets}) == 200
    assert {len(secret) for secret in secrets} == {43}


@pytest.mark.parametrize("text", ["", "x", "é" * 43, "a" * 42, "a" * 44, f"{'a' * 42}.", f"{'a' * 42}\n", "\ud800"])
def test_malformed_session_secrets_are_rejected(text: str) -> None:
    assert find_session_id(text) is None


@pytest.mark.parametrize(
    ("seconds", "is_open"), [(-60, True), (0, True), (IDLE_SECONDS - 1, True), (IDLE_SECONDS, False)]
)
def test_session_is_open_until_it_is_unused_for_an_hour(seconds: int, is_open: bool) -> None:
    assert new_session(manager="alice").is_open(NOON + timedelta(seconds=seconds)) == is_open


@pytest.mark.parametrize(("seconds", "is_open"), [(LIFETIME_SECONDS - 1, True), (LIFETIME_SECONDS, False)])
def test_session_in_use_is_open_for_eight_hours(seconds: int, is_open: bool) -> None:
    at = NOON + timedelta(seconds=seconds)

    assert new_session(manager="alice", seen=at).is_open(at) == is_open


def test_session_needs_a_touch_after_a_minute() -> None:
    session = new_session(manager="alice")

    due = [session.needs_touch(NOON + timedelta(seconds=seconds)) for seconds in (0, TOUCH_SECONDS - 1, TOUCH_SECONDS)]

    assert due == [False, False, True]


def test_texts_that_a_database_cannot_store_are_dropped() -> None:
    session = attrs.evolve(new_session(manager="alice"), address="a\0b", browser="é", user_id=None)

    assert (session.address, session.browser) == ("", "")
    assert attrs.evolve(session, browser="x" * 999).browser == "x" * MAX_DESCRIPTION_CHARS


def test_repr_of_a_session_hides_its_secrets() -> None:
    session = new_session(manager="alice")

    assert session.id not in repr(session)
    assert session.epoch not in repr(session)


@pytest.mark.parametrize(
    ("user_agent", "description"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox on Linux"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/140.0 Safari/537.36 Edg/140.0", "Edge on Windows"),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) Version/18.0 Safari/605.1.15", "Safari on macOS"),
        ("Mozilla/5.0 (Linux; Android 15) AppleWebKit/537.36 Chrome/140.0 Mobile Safari/537.36", "Chrome on Android"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) CriOS/140.0 Safari/604.1", "Chrome on iPhone"),
        ("python-requests/2.34", "Unknown browser"),
        ("<script>alert(1)</script> Linux", "Unknown browser on Linux"),
        (None, "Unknown browser"),
        ("curl" + " Firefox/" * 1000, "Firefox"),
    ],
)
def test_browser_is_described_with_known_names(user_agent: str | None, description: str) -> None:
    headers = [] if user_agent is None else [(b"user-agent", user_agent.encode())]

    assert describe_browser(headers) == description
