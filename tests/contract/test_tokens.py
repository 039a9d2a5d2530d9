"""Every token issuer passes the contract suite. Further tests cover JSON Web Tokens."""

import base64
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import mlapi.adapters.jwt
from mlapi import Clock, TokenIssuer, UserId
from mlapi.adapters.jwt import JwtTokenIssuer
from mlapi.adapters.memory import InMemoryTokens
from mlapi.application.secret_reload import Reloader, ReloadingTokens
from mlapi.domain.credentials import TokenClaims
from mlapi.testing import SettableClock, TokenIssuerContract
from mlapi.testing.tokens import ADA, HOUR, NOON, decode_part, encode_part, is_rejected, sign_parts
from tests.conftest import KEY, OLDER_KEY
from tests.secret_store import FakeSecrets

NEW, OLD = base64.urlsafe_b64decode(KEY), base64.urlsafe_b64decode(OLDER_KEY)
ISSUER, AUDIENCE = "https://ml.example.com", "models"
MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
NOON_SECONDS = int(NOON.timestamp())


def noon_clock(*, after: timedelta = timedelta(0)) -> SettableClock:
    clock = SettableClock()
    clock.now += after
    return clock


def make_issuer(
    keys: Sequence[bytes],
    clock: Clock | None = None,
    *,
    lifetime: timedelta = HOUR,
    issuer: str = ISSUER,
    audience: str = AUDIENCE,
) -> JwtTokenIssuer:
    return JwtTokenIssuer(keys, lifetime=lifetime, issuer=issuer, audience=audience, clock=clock or noon_clock())


def decode_token(token: str) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    header, payload, signature = token.split(".")
    return json.loads(decode_part(header)), json.loads(decode_part(payload)), decode_part(signature)


class TestInMemoryTokens(TokenIssuerContract):
    @pytest.fixture
    def tokens(self, clock: SettableClock) -> TokenIssuer:
        return InMemoryTokens(clock=clock)

    @pytest.fixture
    def others(self, clock: SettableClock) -> TokenIssuer:
        return InMemoryTokens(clock=clock)


class TestJwtTokenIssuer(TokenIssuerContract):
    @pytest.fixture
    def tokens(self, clock: SettableClock) -> TokenIssuer:
        return make_issuer([NEW], clock)

    @pytest.fixture
    def others(self, clock: SettableClock) -> TokenIssuer:
        return make_issuer([OLD], clock)


class TestJwtTokenIssuerWithSeveralKeys(TokenIssuerContract):
    @pytest.fixture
    def tokens(self, clock: SettableClock) -> TokenIssuer:
        return make_issuer([NEW, OLD], clock)

    @pytest.fixture
    def others(self, clock: SettableClock) -> TokenIssuer:
        return make_issuer([b"a third key, of thirty-two bytes."], clock)


class TestRotatingTokens(TokenIssuerContract):
    @pytest.fixture
    def tokens(self, clock: SettableClock) -> TokenIssuer:
        return ReloadingTokens(Reloader(lambda: FakeSecrets(tokens=make_issuer([NEW], clock)), lambda: "the same"))

    @pytest.fixture
    def others(self, clock: SettableClock) -> TokenIssuer:
        return ReloadingTokens(Reloader(lambda: FakeSecrets(tokens=make_issuer([OLD], clock)), lambda: "the same"))


# --- contents


def test_token_contains_exactly_the_documented_claims() -> None:
    tokens = make_issuer([NEW])

    header, payload, signature = decode_token(tokens.issue(ADA).token)

    assert header == {"alg": "HS256", "kid": header["kid"], "typ": "JWT"}
    assert payload == {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "7",
        "iat": NOON_SECONDS,
        "exp": NOON_SECONDS + 3600,
        "jti": payload["jti"],
        "epoch": ADA.token_epoch,
    }
    assert re.fullmatch("[0-9a-f]{16}", header["kid"])
    assert re.fullmatch("[0-9a-f]{32}", payload["jti"])
    assert len(signature) == 32


def test_verify_returns_the_claims_of_the_token() -> None:
    tokens = make_issuer([NEW])
    token = tokens.issue(ADA).token
    _, payload, _ = decode_token(token)

    claims = tokens.verify(token)

    assert claims == TokenClaims(
        user_id=UserId(7), token_epoch=ADA.token_epoch, expires_datetime=NOON + HOUR, token_id=payload["jti"]
    )


def test_times_are_rounded_down_to_seconds() -> None:
    tokens = make_issuer([NEW], noon_clock(after=timedelta(microseconds=999_999)), lifetime=24 * HOUR)

    issued = tokens.issue(ADA)

    _, payload, _ = decode_token(issued.token)
    assert (payload["iat"], payload["exp"], issued.expires_in) == (NOON_SECONDS, NOON_SECONDS + 86400, 86400)
    assert tokens.verify(issued.token).expires_datetime == NOON + 24 * HOUR


def test_key_id_is_unique_and_does_not_reveal_the_key() -> None:
    ids = [decode_token(make_issuer([key]).issue(ADA).token)[0]["kid"] for key in (NEW, OLD, NEW)]

    assert ids[0] == ids[2] != ids[1]
    assert ids[0] not in {NEW.hex(), NEW[:8].hex(), KEY[:16]}


@pytest.fixture
def set_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return a function that sets the time zone of this process."""

    def set_one(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield set_one
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(("zone", "offset"), [("UTC0", 0), ("EAST-14", -14), ("WEST12", 12)])
def test_lifetime_does_not_depend_on_the_time_zone(zone: str, offset: int, set_zone: Callable[[str], None]) -> None:
    set_zone(zone)
    tokens = JwtTokenIssuer([NEW], lifetime=timedelta(hours=1), issuer="i", audience="a")
    before = int(time.time())

    token = tokens.issue(ADA).token

    _, payload, _ = decode_token(token)
    left = tokens.verify(token).expires_datetime - datetime.now(UTC)
    assert time.timezone == offset * 3600
    assert payload["exp"] - payload["iat"] == 3600
    assert before <= payload["iat"] <= time.time()
    assert timedelta(minutes=59) < left <= timedelta(hours=1)


# --- keys


def test_first_key_signs_and_all_keys_verify() -> None:
    old, both, new = make_issuer([OLD]), make_issuer([NEW, OLD]), make_issuer([NEW])
    older, newer = old.issue(ADA).token, both.issue(ADA).token

    rejected = [[is_rejected(tokens, token) for token in (older, newer)] for tokens in (old, both, new)]

    assert rejected == [[False, True], [False, False], [True, False]]


def test_removed_key_invalidates_its_tokens() -> None:
    token = make_issuer([OLD]).issue(ADA).token

    assert not is_rejected(make_issuer([NEW, OLD]), token)
    assert is_rejected(make_issuer([NEW]), token)


def test_signature_must_match_the_key_id() -> None:
    tokens = make_issuer([NEW, OLD])
    header, payload, _ = tokens.issue(ADA).token.split(".")
    other_header = make_issuer([OLD]).issue(ADA).token.split(".")[0]

    mismatched = [sign_parts(header, payload, OLD), sign_parts(other_header, payload, NEW)]

    assert [is_rejected(tokens, token) for token in mismatched] == [True, True]
    assert not is_rejected(tokens, sign_parts(header, payload, NEW))


# --- claims signed with the right key


TOKENS = make_issuer([NEW])
HEADER = TOKENS.issue(ADA).token.split(".")[0]
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": "7",
    "iat": NOON_SECONDS,
    "exp": NOON_SECONDS + 3600,
    "jti": "0" * 32,
    "epoch": ADA.token_epoch,
}
INVALID_NUMBERS: list[object] = [
    float(NOON_SECONDS + 60),
    NOON_SECONDS + 0.5,
    float("nan"),
    float("inf"),
    float("-inf"),
    True,
    False,
    str(NOON_SECONDS + 60),
    "2026-11-24T13:00:00Z",
    "",
    [NOON_SECONDS + 60],
    {"seconds": NOON_SECONDS + 60},
    10**11 * 9,  # beyond the year 9999
    2**63,
    10**30,
    -(10**30),
    -(2**63),
]
INVALID_CLAIMS: dict[str, list[object]] = {
    "iss": [
        "",
        "ml",
        f"{ISSUER}/",
        ISSUER[:-1],
        ISSUER.upper(),
        f" {ISSUER}",
        AUDIENCE,
        [ISSUER],
        {ISSUER: 1},
        1,
        True,
    ],
    "aud": [
        "",
        "model",
        "models2",
        "Models",
        f"{AUDIENCE} ",
        ISSUER,
        [AUDIENCE],
        [AUDIENCE, "b"],
        [],
        {AUDIENCE: 1},
        1,
    ],
    "sub": [
        *(7, 7.0, True, ["7"], {"id": "7"}, "", "0", "07", "007", "-7", "+7", " 7", "7 ", "7\n", "7\0", "7.0", "7e0"),
        *("0x7", "1_0", "١", "７", "²", "seven", "null", "9" * 20, "1" * 500),
    ],
    "iat": [*INVALID_NUMBERS, NOON_SECONDS + 61],
    "exp": INVALID_NUMBERS,
    "jti": [7, 7.5, True, ["0" * 32], {}],
    "epoch": [0, 0.5, True, [ADA.token_epoch], {ADA.token_epoch: 1}],
}


def with_claims(claims: object) -> str:
    return sign_parts(HEADER, encode_part(json.dumps(claims)), NEW)


def test_documented_claims_are_accepted() -> None:
    assert TOKENS.verify(with_claims(CLAIMS)) == TokenClaims(
        user_id=UserId(7), token_epoch=ADA.token_epoch, expires_datetime=NOON + HOUR, token_id="0" * 32
    )


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_is_required(name: str) -> None:
    without = {other: value for other, value in CLAIMS.items() if other != name}

    assert is_rejected(TOKENS, with_claims(without))
    assert is_rejected(TOKENS, with_claims({**CLAIMS, name: None}))
    assert is_rejected(TOKENS, with_claims({**without, name.upper(): CLAIMS[name]}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name} {value!r:.30}")
        for name, values in INVALID_CLAIMS.items()
        for value in values
    ],
)
def test_invalid_claims_are_rejected(name: str, value: object) -> None:
    assert is_rejected(TOKENS, with_claims({**CLAIMS, name: value}))


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "", "2026-11-24", [1], {"a": 1}, 10**12, 10**30], ids=repr
)
def test_invalid_start_times_are_rejected(value: object) -> None:
    assert is_rejected(TOKENS, with_claims({**CLAIMS, "nbf": value}))


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b" ", b"\0", b"null", b"true", b"7", b'"7"', b"[]", b"{}", b"not JSON", b"{", b'{"iss": }', b"\xff\xfe"),
        *(b"[" * 700, b'{"a":' * 140, json.dumps([CLAIMS]).encode(), json.dumps(json.dumps(CLAIMS)).encode()),
        json.dumps(CLAIMS).encode() + b"{}",
        json.dumps(CLAIMS).encode()[:-1],
        b'{"iat":' + b"9" * 700 + b"}",
    ],
    ids=lambda payload: repr(payload[:20]),
)
def test_payload_that_is_not_an_object_is_rejected(payload: bytes) -> None:
    assert is_rejected(TOKENS, sign_parts(HEADER, encode_part(payload), NEW))


def test_clock_skew_of_one_minute_is_accepted() -> None:
    tokens = make_issuer([NEW])

    rejected = [
        is_rejected(tokens, make_issuer([NEW], noon_clock(after=ahead)).issue(ADA).token)
        for ahead in (-MINUTE, SECOND, MINUTE, MINUTE + SECOND, HOUR)
    ]

    assert rejected == [False, False, False, True, True]


def test_early_token_becomes_valid_at_its_start_time() -> None:
    clock = noon_clock()
    tokens = make_issuer([NEW], clock)
    token = make_issuer([NEW], noon_clock(after=10 * MINUTE)).issue(ADA).token
    assert is_rejected(tokens, token)

    clock.now += 10 * MINUTE

    assert not is_rejected(tokens, token)


@pytest.mark.parametrize(
    "other",
    [make_issuer([NEW], issuer="https://ml.example.org"), make_issuer([NEW], audience="datasets")],
    ids=["issuer", "audience"],
)
def test_other_issuer_or_audience_is_rejected(other: JwtTokenIssuer) -> None:
    assert is_rejected(TOKENS, other.issue(ADA).token)
    assert is_rejected(other, TOKENS.issue(ADA).token)


# --- the cache of verified tokens


def test_token_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlapi.adapters.jwt, "_MAX_CACHED_TOKENS", 10)
    tokens = make_issuer([NEW])
    issued = [tokens.issue(ADA).token for _ in range(50)]

    twice = [[tokens.verify(token).token_id for token in issued] for _ in range(2)]

    assert len(tokens._verified) == 10
    assert twice == [[decode_token(token)[1]["jti"] for token in issued]] * 2


def test_token_cache_holds_ten_thousand_tokens() -> None:
    assert mlapi.adapters.jwt._MAX_CACHED_TOKENS == 10_000


def test_rejected_tokens_are_not_cached() -> None:
    tokens = make_issuer([NEW])
    token = tokens.issue(ADA).token

    rejected = [is_rejected(tokens, f"{token[:-5]}{number:05}") for number in range(100)]

    assert rejected == [True] * 100
    assert tokens._verified == {}


def test_longest_issuer_and_audience_are_accepted() -> None:
    tokens = make_issuer([NEW], issuer='"' * 200, audience="\\" * 200)

    assert tokens.verify(tokens.issue(ADA).token).user_id == ADA.id


def test_threads_can_verify_more_tokens_than_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlapi.adapters.jwt._MAX_CACHED_TOKENS", 2)
    tokens = make_issuer([NEW])
    issued = [tokens.issue(ADA).token for _ in range(16)]

    with ThreadPoolExecutor(8) as pool:
        verified = list(pool.map(lambda number: tokens.verify(issued[number % 16]).user_id, range(2000)))

    assert set(verified) == {ADA.id}
