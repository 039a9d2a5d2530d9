"""What the console is built of: sessions, who may see a page, and the heights of bars."""

from datetime import UTC, date, datetime, timedelta, timezone

import attrs
import pytest

from mlapi.domain.audit import DailyCount
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.console.chart import DAYS, HEIGHT, Day, chart, first_moment
from mlapi.entrypoints.console.sessions import IDLE, LIFETIME, Session, Sessions
from mlapi.entrypoints.wire.client import Client
from mlapi.entrypoints.wire.errors import AdminAccessDeniedError
from tests.unit.test_admin import BY_MACHINE, BY_TOKEN, LOCAL, LOCKED, STRANGER, TOKEN, with_headers

NOW = 1_800_000_000
KEY = BY_TOKEN.session_key


def sessions(*, key: bytes = KEY, now: float = NOW) -> Sessions:
    return Sessions(key, lambda: now)


# --- sessions


def test_a_session_is_known_again_by_every_process_with_the_key() -> None:
    session, cookie = sessions().begin()

    assert sessions(now=NOW + 60).find(cookie) == session


def test_no_two_sessions_are_the_same() -> None:
    assert sessions().begin() != sessions().begin()


def used_until(end: int) -> str:
    """The cookie of a session that has been used every half hour until then."""
    session, cookie = sessions().begin()
    for now in range(NOW, NOW + end + 1, 1800):
        cookie = sessions(now=now).prolonged(session) or cookie
        found = sessions(now=now).find(cookie)
        assert found is not None
        session = found
    return cookie


@pytest.mark.parametrize(
    ("passed", "is_known"), [(-61, False), (-60, True), (0, True), (IDLE - 1, True), (IDLE, False)]
)
def test_a_session_that_is_not_used_ends_by_the_clock(passed: int, is_known: bool) -> None:
    _session, cookie = sessions().begin()

    assert (sessions(now=NOW + passed).find(cookie) is not None) == is_known


@pytest.mark.parametrize(("passed", "is_known"), [(LIFETIME - 1, True), (LIFETIME, False)])
def test_a_session_ends_by_the_clock_however_much_it_is_used(passed: int, is_known: bool) -> None:
    cookie = used_until(LIFETIME - 1800)

    assert (sessions(now=NOW + passed).find(cookie) is not None) == is_known


def test_a_session_is_prolonged_once_a_minute_and_stays_the_same() -> None:
    session, _cookie = sessions().begin()

    prolonged = sessions(now=NOW + 60).prolonged(session)

    assert sessions(now=NOW + 59).prolonged(session) is None
    assert prolonged is not None
    assert sessions(now=NOW + 60).find(prolonged) == attrs.evolve(session, used=NOW + 60)


def test_a_session_says_what_its_cookie_says() -> None:
    session, _cookie = sessions().begin()

    assert session == Session(session.id, session.csrf_token, NOW, NOW)


def test_another_admin_token_ends_every_session() -> None:
    _session, cookie = sessions().begin()

    assert sessions(key=AdminPolicy(admin_token="another").session_key).find(cookie) is None
    assert sessions(key=BY_MACHINE.session_key).find(cookie) is None


def test_a_session_that_was_changed_is_none() -> None:
    _session, cookie = sessions().begin()
    issued, used, session_id, signature = cookie.split(".")
    changed = [
        "",
        "x",
        f"{int(issued) + 1}.{used}.{session_id}.{signature}",
        f"{issued}.{int(used) + 1}.{session_id}.{signature}",
        f"0{issued}.{used}.{session_id}.{signature}",
        f"{issued}.0{used}.{session_id}.{signature}",
        f"{issued}.{used}.{'0' * 32}.{signature}",
        f"{issued}.{used}.{session_id}.{'0' * 64}",
        f"{issued}.{used}.{session_id}.{signature[:-1]}",
        f"{issued}.{session_id}.{signature}",
        f"{cookie}.",
        f"{cookie}\n",
        f"{'9' * 13}.{used}.{session_id}.{signature}",
        f"٣.{used}.{session_id}.{signature}",
    ]

    assert [sessions().find(value) for value in changed] == [None] * len(changed)


def test_a_signature_of_one_kind_is_none_of_another() -> None:
    session, cookie = sessions().begin()

    assert session.csrf_token not in {cookie, cookie.rpartition(".")[2]}
    assert sessions().opened(cookie) == ""
    assert sessions().find(sessions().sealed(cookie)) is None


@pytest.mark.parametrize("text", ["", "ada is enabled.", "<b>Ада</b>; Path=/\r\n"])
def test_a_sealed_text_is_opened_again_and_fits_into_a_cookie(text: str) -> None:
    sealed = sessions().sealed(text)

    assert sessions().opened(sealed) == text
    assert sealed.isascii()
    assert set(sealed).isdisjoint(' ",;\\\r\n')


@pytest.mark.parametrize("sealed", ["", "x", "eA==.0", "é.é", f"eA==.{'0' * 64}"])
def test_a_text_that_somebody_else_has_sealed_says_nothing(sealed: str) -> None:
    assert sessions().opened(sealed) == ""


def test_nothing_shows_what_a_session_is_made_of() -> None:
    session, _cookie = sessions().begin()

    assert repr(session) == "Session()"
    assert "key" not in repr(sessions())


# --- who may see a page of ours


@pytest.mark.parametrize("caller", [LOCAL, STRANGER])
def test_in_token_mode_the_page_decides_by_its_sessions(caller: Client) -> None:
    BY_TOKEN.check_page(caller)


@pytest.mark.parametrize("caller", [LOCAL, STRANGER])
def test_a_locked_page_names_the_setting(caller: Client) -> None:
    with pytest.raises(AdminAccessDeniedError, match=r"set secrets\.admin_token"):
        LOCKED.check_page(caller)


def test_a_page_may_be_used_on_this_machine_also_by_a_browser() -> None:
    BY_MACHINE.check_page(LOCAL)
    BY_MACHINE.check_page(with_headers(LOCAL, ("origin", "http://localhost:8001"), ("sec-fetch-site", "same-origin")))
    BY_MACHINE.check_page(with_headers(LOCAL, ("sec-fetch-site", "none")))


@pytest.mark.parametrize(
    "caller",
    [
        STRANGER,
        with_headers(LOCAL, ("origin", "http://localhost:3000")),
        with_headers(LOCAL, ("origin", "http://127.0.0.1:8001")),
        with_headers(LOCAL, ("origin", "https://localhost:8001")),
        with_headers(LOCAL, ("origin", "null")),
        with_headers(LOCAL, ("origin", "")),
        with_headers(LOCAL, ("origin", "http://localhost:8001"), ("origin", "http://localhost:3000")),
        with_headers(LOCAL, ("origin", "http://localhost:8001"), ("sec-fetch-site", "same-site")),
        with_headers(LOCAL, ("sec-fetch-site", "cross-site")),
        with_headers(LOCAL, ("x-forwarded-for", "203.0.113.9"), ("origin", "http://localhost:8001")),
        with_headers(attrs.evolve(LOCAL, headers=[]), ("host", "evil.example"), ("origin", "http://evil.example")),
        with_headers(attrs.evolve(LOCAL, headers=[]), ("origin", "")),
    ],
)
def test_a_page_is_closed_to_what_may_come_from_elsewhere(caller: Client) -> None:
    with pytest.raises(AdminAccessDeniedError):
        BY_MACHINE.check_page(caller)


@pytest.mark.parametrize(
    "headers",
    [
        [("origin", "http://localhost:8001")],
        [("sec-fetch-site", "same-origin")],
        [("sec-fetch-site", "same-origin"), ("origin", "https://localhost")],
    ],
)
def test_what_a_browser_says_of_our_page_is_believed(headers: list[tuple[str, str]]) -> None:
    assert with_headers(LOCAL, *headers).is_same_origin


@pytest.mark.parametrize(
    "caller",
    [
        LOCAL,
        with_headers(LOCAL, ("origin", "http://localhost")),
        with_headers(LOCAL, ("origin", "null")),
        with_headers(LOCAL, ("origin", "http://localhost:8001"), ("origin", "http://localhost:8001")),
        with_headers(LOCAL, ("origin", "http://localhost:8001"), ("sec-fetch-site", "same-site")),
        with_headers(LOCAL, ("sec-fetch-site", "none")),
        with_headers(LOCAL, ("sec-fetch-site", "same-origin"), ("sec-fetch-site", "same-origin")),
        with_headers(LOCAL, ("host", "localhost:8001"), ("origin", "http://localhost:8001")),
        with_headers(attrs.evolve(LOCAL, headers=[]), ("origin", "")),
        attrs.evolve(with_headers(LOCAL, ("origin", "http://localhost:8001")), scheme="https"),
    ],
)
def test_what_no_browser_says_of_our_page_is_not(caller: Client) -> None:
    assert not caller.is_same_origin


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_scheme_is_that_of_the_connection(scheme: str) -> None:
    asgi = Client.from_asgi({"path": "/", "http_version": "1.1", "headers": [], "scheme": scheme})
    wsgi = Client.from_wsgi({"SERVER_PROTOCOL": "HTTP/1.1", "wsgi.url_scheme": scheme})

    assert (asgi.scheme, wsgi.scheme) == (scheme, scheme)


def test_the_admin_token_is_admitted_and_nothing_else() -> None:
    assert BY_TOKEN.is_admin_token(TOKEN)
    assert not any(
        BY_TOKEN.is_admin_token(other) for other in ["", TOKEN[:-1], f"{TOKEN} ", TOKEN.upper(), "é", "\ud800"]
    )
    assert not any(closed.is_admin_token(token) for closed in [BY_MACHINE, LOCKED] for token in ["", TOKEN])


# --- the chart

TODAY = date(2026, 11, 24)
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def test_a_chart_begins_with_the_first_moment_of_its_first_day_in_utc() -> None:
    just_after = datetime(2026, 11, 25, 0, 30, tzinfo=timezone(timedelta(hours=1)))

    assert first_moment(NOON) == first_moment(just_after) == datetime(2026, 10, 26, tzinfo=UTC)


def test_registrations_stand_on_the_line_and_removals_hang_from_it() -> None:
    counts = [
        DailyCount(TODAY, "register", 6),
        DailyCount(TODAY, "remove", 2),
        DailyCount(TODAY, "disable", 50),
        DailyCount(TODAY - timedelta(days=1), "register", 3),
    ]

    drawn = chart(counts, NOON)

    assert (len(drawn.days), drawn.registered, drawn.removed, drawn.baseline) == (DAYS, 9, 2, 72)
    assert drawn.days[-3:] == [
        Day(day=TODAY - timedelta(days=2), registered=0, removed=0, x=543, up=0, down=0),
        Day(day=TODAY - timedelta(days=1), registered=3, removed=0, x=563, up=36, down=0),
        Day(day=TODAY, registered=6, removed=2, x=583, up=72, down=24),
    ]


def test_one_of_thousands_is_seen() -> None:
    counts = [DailyCount(TODAY, "register", 100_000), DailyCount(TODAY - timedelta(days=1), "register", 1)]

    assert [day.up for day in chart(counts, NOON).days[-2:]] == [2, HEIGHT]


def test_a_chart_of_nothing_is_a_line_at_the_bottom() -> None:
    drawn = chart([], NOON)

    assert (drawn.registered, drawn.removed, drawn.baseline) == (0, 0, HEIGHT)
