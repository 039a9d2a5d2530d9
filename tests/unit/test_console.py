"""Parts of the console: sessions, access to pages, and the chart."""

from datetime import UTC, date, datetime, timedelta
from urllib.parse import quote, quote_plus, unquote_to_bytes

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlapi.application.user_reports import DAYS, ChangesPerDay
from mlapi.entrypoints.http.signatures import MAX_COOKIE_CHARS
from mlapi.entrypoints.pages import Notice, Undo
from mlapi.entrypoints.pages.chart import HEIGHT, Bar, Day, make_bar_chart, make_chart
from mlapi.entrypoints.pages.notices import MAX_NOTICE_CHARS, NOTICE_SECONDS, SETTLE_SECONDS, Notices
from mlapi.entrypoints.wire.client import Client
from mlapi.entrypoints.wire.errors import AdminAccessDeniedError
from mlapi.entrypoints.wire.forms import unquote_form
from tests.unit.test_admin import LOCAL, LOCAL_MODE, LOCKED, REMOTE, TOKEN, TOKEN_MODE, with_headers

NOW = 1_800_000_000
KEY = TOKEN_MODE.session_key


# --- notices


def notices(*, key: bytes = KEY, now: float = NOW) -> Notices:
    return Notices(key, lambda: now)


UNDO = Undo("/users/7/enabled", {"enabled": "1", "list": "q=%D0%90"})


@pytest.mark.parametrize("text", ["", "ada is enabled.", "<b>Ада</b>; Path=/\r\n", "x" * MAX_NOTICE_CHARS])
@pytest.mark.parametrize("undo", [UNDO, None])
def test_signed_notice_fits_in_a_cookie(text: str, undo: Undo | None) -> None:
    signed = notices().sign(Notice(text, "/users/7", undo))

    assert notices().find([signed]) == Notice(text, "/users/7", undo)
    assert signed.isascii()
    assert set(signed).isdisjoint(' ",;\\\r\n')


@given(st.text(max_size=1000), st.text(max_size=2000))
def test_notice_is_shortened_until_it_fits(text: str, field: str) -> None:
    signed = notices().sign(Notice(text, "/users/7", Undo("/users/7/enabled", {"list": field})))

    found = notices().find([signed])
    assert len(signed) < MAX_COOKIE_CHARS
    assert found is not None
    assert (found.text, found.about) == (text[:MAX_NOTICE_CHARS], "/users/7")


@pytest.mark.parametrize("signed", ["", "x", "eA==.0", "é.é", f"eA==.{'0' * 64}", f"IngI.aw1FMw.{'0' * 43}"])
def test_notice_with_a_wrong_signature_is_ignored(signed: str) -> None:
    assert notices().find([signed]) is None
    assert notices().find_repeated(signed) is None


@pytest.mark.parametrize("seconds", [-61, -60, NOTICE_SECONDS - 1, NOTICE_SECONDS])
def test_notice_expires_after_a_minute(seconds: int) -> None:
    signed = notices().sign(Notice("hello"))

    assert (notices(now=NOW + seconds).find([signed]) is not None) == (-60 <= seconds < NOTICE_SECONDS)


@pytest.mark.parametrize(
    ("seconds", "is_repeated"), [(0, True), (SETTLE_SECONDS - 0.01, True), (SETTLE_SECONDS, False), (600, False)]
)
def test_form_is_ignored_for_a_second_after_rendering(seconds: float, is_repeated: bool) -> None:
    notice = Notice("ada is disabled.", "/users/7", UNDO)

    field = notices().sign_rendered(notice)

    assert notices(now=NOW + seconds).find_repeated(field) == (notice if is_repeated else None)


# --- access to pages


@pytest.mark.parametrize("caller", [LOCAL, REMOTE])
def test_any_client_may_open_pages_in_token_mode(caller: Client) -> None:
    TOKEN_MODE.check_page(caller)


@pytest.mark.parametrize("caller", [LOCAL, REMOTE])
def test_rejection_in_locked_mode_names_the_setting(caller: Client) -> None:
    with pytest.raises(AdminAccessDeniedError, match=r"set secrets\.admin_token"):
        LOCKED.check_page(caller)


def test_local_mode_accepts_a_browser_on_this_machine() -> None:
    LOCAL_MODE.check_page(LOCAL)
    LOCAL_MODE.check_page(with_headers(LOCAL, ("origin", "http://localhost:8001"), ("sec-fetch-site", "same-origin")))
    LOCAL_MODE.check_page(with_headers(LOCAL, ("sec-fetch-site", "none")))


@pytest.mark.parametrize(
    "caller",
    [
        REMOTE,
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
def test_local_mode_rejects_requests_from_elsewhere(caller: Client) -> None:
    with pytest.raises(AdminAccessDeniedError):
        LOCAL_MODE.check_page(caller)


@pytest.mark.parametrize(
    "headers",
    [
        [("origin", "http://localhost:8001")],
        [("sec-fetch-site", "same-origin")],
        [("sec-fetch-site", "same-origin"), ("origin", "https://localhost")],
    ],
)
def test_request_from_a_console_page_is_same_origin(headers: list[tuple[str, str]]) -> None:
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
def test_requests_from_elsewhere_are_not_same_origin(caller: Client) -> None:
    assert not caller.is_same_origin


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_client_has_the_scheme_of_its_connection(scheme: str) -> None:
    asgi = Client.from_asgi({"path": "/", "http_version": "1.1", "headers": [], "scheme": scheme})
    wsgi = Client.from_wsgi({"SERVER_PROTOCOL": "HTTP/1.1", "wsgi.url_scheme": scheme})

    assert (asgi.scheme, wsgi.scheme) == (scheme, scheme)


def test_only_the_admin_token_is_accepted() -> None:
    assert TOKEN_MODE.is_admin_token(TOKEN)
    assert not any(
        TOKEN_MODE.is_admin_token(other) for other in ["", TOKEN[:-1], f"{TOKEN} ", TOKEN.upper(), "é", "\ud800"]
    )
    assert not any(closed.is_admin_token(token) for closed in [LOCAL_MODE, LOCKED] for token in ["", TOKEN])


# --- the chart

TODAY = date(2026, 11, 24)
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def test_chart_shows_registrations_above_removals() -> None:
    changes = ChangesPerDay({TODAY: 6, TODAY - timedelta(days=1): 3}, {TODAY: 2})

    chart = make_chart(changes, TODAY)

    assert (len(chart.days), chart.registered, chart.removed, chart.baseline) == (DAYS, 9, 2, 72)
    assert chart.days[-3:] == [
        Day(day=TODAY - timedelta(days=2), registered=0, removed=0, x=543, up=0, down=0),
        Day(day=TODAY - timedelta(days=1), registered=3, removed=0, x=563, up=36, down=0),
        Day(day=TODAY, registered=6, removed=2, x=583, up=72, down=24),
    ]


def test_smallest_bar_stays_visible() -> None:
    changes = ChangesPerDay({TODAY: 100_000, TODAY - timedelta(days=1): 1}, {})

    assert [day.up for day in make_chart(changes, TODAY).days[-2:]] == [2, HEIGHT]


def test_empty_chart_has_its_baseline_at_the_bottom() -> None:
    chart = make_chart(ChangesPerDay({}, {}), TODAY)

    assert (chart.registered, chart.removed, chart.baseline) == (0, 0, HEIGHT)


def test_bars_fill_the_width_of_any_range() -> None:
    counts = {TODAY: 6, TODAY - timedelta(days=1): 3}

    chart, two_days = (make_bar_chart(counts, TODAY - timedelta(days=days), TODAY) for days in (29, 1))

    assert (chart.total, chart.peak.day, len(chart.bars), chart.bar_width) == (9, TODAY, 30, 14)
    assert chart.bars[-2:] == [
        Bar(day=TODAY - timedelta(days=1), count=3, x=563, height=48),
        Bar(day=TODAY, count=6, x=583, height=96),
    ]
    assert (two_days.bar_width, [bar.x for bar in two_days.bars]) == (210, [45, 345])


def test_bar_chart_without_counts_has_no_bars() -> None:
    chart = make_bar_chart({}, TODAY, TODAY)

    assert (chart.total, chart.peak) == (0, Bar(day=TODAY, count=0, x=90, height=0))


# --- forms


@given(st.text(max_size=30) | st.text("%+=&_.\x00\t é\x7f0aF", max_size=30))
def test_form_value_is_decoded_as_it_was_encoded(text: str) -> None:
    assert unquote_form(quote_plus(text).encode()) == text
    assert unquote_form(quote(text, safe="").encode()) == text


@given(st.binary(max_size=12) | st.text("%+=09aFg _.\x00\t", max_size=12).map(str.encode))
def test_any_form_value_is_decoded_like_urllib_or_rejected(value: bytes) -> None:
    try:
        decoded = unquote_form(value)
    except ValueError:
        return

    assert decoded.encode() == unquote_to_bytes(value.replace(b"+", b" "))


@pytest.mark.parametrize("value", [b"%", b"%4", b"a%zz", b"%%41", b"a\nb", b"=\r\n", b"%FF", b"%ED%A0%80", b"\xff"])
def test_malformed_form_value_is_rejected(value: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - a UnicodeDecodeError, or an error without a message
        unquote_form(value)
