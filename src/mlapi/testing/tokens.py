"""The contract suite for `TokenIssuer`, and functions that build JSON Web Tokens by hand.

A subclass provides the fixtures ``tokens`` and ``others``: two issuers with different keys. Their tokens expire after
an hour, measured by the fixture ``clock``.
"""

import base64
import hmac
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import attrs
import pytest

from mlapi import AccessExpiredError, InvalidTokenError, IssuedToken, TokenIssuer, User, UserId
from mlapi.domain.credentials import TokenClaims, authenticate, looks_like_api_key
from mlapi.domain.users import EncryptedPassword
from mlapi.testing.fakes import SettableClock

NOON = SettableClock().now
HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)
ADA = User(
    id=UserId(7),
    username="ada",
    password=EncryptedPassword("stored"),
    email="ada@example.com",
    enabled=True,
    created_datetime=NOON,
    updated_datetime=NOON,
    token_epoch="0123456789abcdef",
)
MALFORMED_TOKENS = [
    "",
    " ",
    ".",
    "..",
    "...",
    "a.b.c",
    "ada",
    "null",
    "{}",
    "Bearer",
    "é",
    "\0",
    "\ud800",
    "١.٢.٣",
    "mlapi_",
    "=" * 44,
]


def is_invalid(claims: TokenClaims, user: User, at: datetime) -> bool:
    """Return whether `authenticate` rejects the claims with `InvalidTokenError`."""
    try:
        authenticate(claims, user, at)
    except InvalidTokenError:
        return True
    return False


def is_rejected(tokens: TokenIssuer, token: str) -> bool:
    """Return whether the token raises `InvalidTokenError`. Other errors are bugs and are not caught."""
    try:
        tokens.verify(token)
    except InvalidTokenError as error:
        return error == InvalidTokenError()
    return False


def encode_part(part: str | bytes) -> str:
    """Encode a part of a token as base64url without padding."""
    raw = part.encode() if isinstance(part, str) else part
    return base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def decode_part(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def sign_parts(header: str, payload: str, key: bytes, digest: str = "sha256") -> str:
    """Join encoded parts into a compact token (RFC 7515) with a valid HMAC."""
    signing_input = f"{header}.{payload}"
    return f"{signing_input}.{encode_part(hmac.digest(key, signing_input.encode(), digest))}"


class TokenIssuerContract:
    @pytest.fixture
    def clock(self) -> SettableClock:
        return SettableClock()

    @pytest.mark.parametrize("user_id", [1, 7, 2**53 + 1, 2**63 - 1])
    def test_token_contains_user_id_and_expiration(self, tokens: TokenIssuer, user_id: int) -> None:
        user = attrs.evolve(ADA, id=UserId(user_id))

        issued = tokens.issue(user)

        claims = tokens.verify(issued.token)
        assert issued == IssuedToken(issued.token, 3600)
        assert claims == TokenClaims(
            user_id=user.id, token_epoch=ADA.token_epoch, expires_datetime=NOON + HOUR, token_id=claims.token_id
        )
        assert claims.expires_datetime.utcoffset() == timedelta(0)

    def test_token_contains_its_epoch(self, tokens: TokenIssuer) -> None:
        epochs = ["0123456789abcdef", "fedcba9876543210"]

        issued = [tokens.issue(attrs.evolve(ADA, token_epoch=epoch)) for epoch in epochs]

        assert [tokens.verify(one.token).token_epoch for one in issued] == epochs

    def test_token_fits_in_an_http_header(self, tokens: TokenIssuer) -> None:
        token = tokens.issue(ADA).token

        assert re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", token)  # b64token: RFC 6750, 2.1
        assert len(token) < 4096

    def test_verifying_twice_yields_equal_claims(self, tokens: TokenIssuer) -> None:
        token = tokens.issue(ADA).token

        first, second = tokens.verify(token), tokens.verify(token)

        assert first == second

    def test_token_is_valid_until_it_expires(self, tokens: TokenIssuer, clock: SettableClock) -> None:
        token = tokens.issue(ADA).token

        clock.now = NOON + HOUR - MICROSECOND
        claims = tokens.verify(token)

        assert authenticate(claims, ADA, clock.now) == ADA
        assert is_invalid(claims, ADA, NOON + HOUR)
        assert is_invalid(claims, ADA, NOON + 2 * HOUR)

    def test_claims_of_an_expired_token_are_returned(self, tokens: TokenIssuer, clock: SettableClock) -> None:
        token = tokens.issue(ADA).token

        clock.now = NOON + 2 * HOUR
        first, second = tokens.verify(token), tokens.verify(token)

        assert first == second
        assert is_invalid(first, ADA, clock.now)

    @pytest.mark.parametrize("lifetime", [SECOND, MINUTE, MINUTE + MICROSECOND, HOUR - MICROSECOND, HOUR, 2 * HOUR])
    def test_token_expires_with_the_access_of_its_user(self, tokens: TokenIssuer, lifetime: timedelta) -> None:
        end = NOON + lifetime
        user = attrs.evolve(ADA, expires_datetime=end)

        issued = tokens.issue(user)
        claims = tokens.verify(issued.token)

        assert min(end, NOON + HOUR) - SECOND < claims.expires_datetime <= min(end, NOON + HOUR)
        assert issued.expires_in <= lifetime.total_seconds()
        if lifetime < HOUR:
            assert authenticate(claims, user, end - MICROSECOND) == user
            with pytest.raises(AccessExpiredError):
                authenticate(claims, user, end)

    def test_extended_access_does_not_extend_tokens(self, tokens: TokenIssuer) -> None:
        user = attrs.evolve(ADA, expires_datetime=NOON + MINUTE)
        claims = tokens.verify(tokens.issue(user).token)
        extended = attrs.evolve(ADA, expires_datetime=NOON + 2 * HOUR)

        assert authenticate(claims, extended, NOON + MINUTE - SECOND) == extended
        assert is_invalid(claims, extended, NOON + MINUTE)

    def test_token_of_an_expired_user_expires_immediately(self, tokens: TokenIssuer) -> None:
        user = attrs.evolve(ADA, expires_datetime=NOON - HOUR)

        issued = tokens.issue(user)

        assert issued.expires_in == 0
        with pytest.raises(AccessExpiredError):
            authenticate(tokens.verify(issued.token), user, NOON)

    def test_tokens_of_one_user_are_unique(self, tokens: TokenIssuer) -> None:
        issued = [tokens.issue(ADA).token for _ in range(100)]

        claims = [tokens.verify(token) for token in issued]

        assert len(set(issued)) == len({one.token_id for one in claims}) == 100
        assert {(one.user_id, one.token_epoch) for one in claims} == {(ADA.id, ADA.token_epoch)}

    def test_token_of_another_issuer_is_rejected(self, tokens: TokenIssuer, others: TokenIssuer) -> None:
        token = tokens.issue(ADA).token
        tokens.verify(token)

        assert is_rejected(others, token)
        assert is_rejected(tokens, others.issue(ADA).token)

    @pytest.mark.parametrize("malformed", MALFORMED_TOKENS)
    def test_malformed_token_is_rejected(self, tokens: TokenIssuer, malformed: str) -> None:
        assert is_rejected(tokens, malformed)
        assert is_rejected(tokens, malformed)

    def test_altered_token_is_rejected(self, tokens: TokenIssuer) -> None:
        token = tokens.issue(ADA).token
        tokens.verify(token)
        near = [
            f" {token}",
            f"{token} ",
            f"{token}\n",
            f"{token}\0",
            f"{token}=",
            f"Bearer {token}",
            token[1:],
            token[:-1],
            token + token[-1],
            token.swapcase(),
        ]

        accepted = [shown for shown in near if not is_rejected(tokens, shown)]

        assert accepted == []

    def test_repr_hides_the_token(self, tokens: TokenIssuer) -> None:
        issued = tokens.issue(ADA)
        claims = tokens.verify(issued.token)

        shown = f"{issued!r} {issued} {claims!r} {claims} {tokens!r}"

        assert issued.token not in shown
        assert ADA.token_epoch not in shown

    def test_token_does_not_look_like_an_api_key(self, tokens: TokenIssuer) -> None:
        assert not looks_like_api_key(tokens.issue(ADA).token)

    def test_threads_get_the_claims_of_their_own_user(self, tokens: TokenIssuer) -> None:
        people = [attrs.evolve(ADA, id=UserId(number)) for number in range(1, 9)]

        def ids_of(user: User) -> set[UserId]:
            mine = [tokens.issue(user).token for _ in range(20)]
            return {tokens.verify(token).user_id for token in mine * 3}

        with ThreadPoolExecutor(len(people)) as pool:
            found = list(pool.map(ids_of, people))

        assert found == [{user.id} for user in people]
