"""What every `TokenIssuer` must do, and hand-made JSON Web Signatures to try it with.

A subclass gives the fixtures ``tokens`` and ``others``: two issuers that know nothing of each other, whose tokens are
valid for an hour by ``clock``.
"""

import base64
import hmac
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import attrs
import pytest

from mlapi import InvalidTokenError, IssuedToken, TokenIssuer, User, UserId
from mlapi.domain.credentials import TokenClaims, looks_like_api_key
from mlapi.domain.users import EncryptedPassword
from mlapi.testing.fakes import SettableClock

NOON = SettableClock().now
HOUR = timedelta(hours=1)
MOMENT = timedelta(microseconds=1)
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
JUNK = [
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


def is_refused(tokens: TokenIssuer, token: str) -> bool:
    """Whether it is refused as an invalid token. Whatever else is raised is a fault of ours, and passes through."""
    try:
        tokens.verify(token)
    except InvalidTokenError as refusal:
        return refusal == InvalidTokenError()
    return False


def encoded(part: str | bytes) -> str:
    """Return a part of a token: base64url without padding."""
    raw = part.encode() if isinstance(part, str) else part
    return base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def signed(header: str, payload: str, key: bytes, digest: str = "sha256") -> str:
    """Return a token with a right HMAC (RFC 7515, compact) of parts that are encoded already."""
    signing_input = f"{header}.{payload}"
    return f"{signing_input}.{encoded(hmac.digest(key, signing_input.encode(), digest))}"


class TokenIssuerContract:
    @pytest.fixture
    def clock(self) -> SettableClock:
        return SettableClock()

    @pytest.mark.parametrize("user_id", [1, 7, 2**53 + 1, 2**63 - 1])
    def test_a_token_says_whose_it_is_and_when_it_ends(self, tokens: TokenIssuer, user_id: int) -> None:
        user = attrs.evolve(ADA, id=UserId(user_id))

        issued = tokens.issue(user)

        claims = tokens.verify(issued.token)
        assert issued == IssuedToken(issued.token, 3600)
        assert claims == TokenClaims(
            user_id=user.id, token_epoch=ADA.token_epoch, expires_at=NOON + HOUR, token_id=claims.token_id
        )
        assert claims.expires_at.utcoffset() == timedelta(0)

    def test_a_token_says_the_epoch_in_which_it_was_made(self, tokens: TokenIssuer) -> None:
        epochs = ["0123456789abcdef", "fedcba9876543210"]

        issued = [tokens.issue(attrs.evolve(ADA, token_epoch=epoch)) for epoch in epochs]

        assert [tokens.verify(shown.token).token_epoch for shown in issued] == epochs

    def test_a_token_fits_into_a_header(self, tokens: TokenIssuer) -> None:
        token = tokens.issue(ADA).token

        assert re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", token)  # b64token: RFC 6750, 2.1
        assert len(token) < 4096

    def test_it_says_the_same_each_time(self, tokens: TokenIssuer) -> None:
        token = tokens.issue(ADA).token

        first, second = tokens.verify(token), tokens.verify(token)

        assert first == second

    def test_a_token_is_good_to_the_last_moment_and_not_at_its_end(
        self, tokens: TokenIssuer, clock: SettableClock
    ) -> None:
        token = tokens.issue(ADA).token

        clock.now = NOON + HOUR - MOMENT
        claims = tokens.verify(token)
        clock.now = NOON + HOUR

        assert claims.expires_at == clock.now
        assert is_refused(tokens, token)
        assert is_refused(tokens, token)

    def test_a_token_that_is_over_is_refused_at_first_sight(self, tokens: TokenIssuer, clock: SettableClock) -> None:
        token = tokens.issue(ADA).token

        clock.now = NOON + HOUR

        assert is_refused(tokens, token)

    def test_two_tokens_of_one_user_differ(self, tokens: TokenIssuer) -> None:
        issued = [tokens.issue(ADA).token for _ in range(100)]

        claims = [tokens.verify(token) for token in issued]

        assert len(set(issued)) == len({claim.token_id for claim in claims}) == 100
        assert {(claim.user_id, claim.token_epoch) for claim in claims} == {(ADA.id, ADA.token_epoch)}

    def test_another_issuer_refuses_it(self, tokens: TokenIssuer, others: TokenIssuer) -> None:
        token = tokens.issue(ADA).token
        tokens.verify(token)

        assert is_refused(others, token)
        assert is_refused(tokens, others.issue(ADA).token)

    @pytest.mark.parametrize("junk", JUNK)
    def test_what_it_has_not_made_is_refused(self, tokens: TokenIssuer, junk: str) -> None:
        assert is_refused(tokens, junk)
        assert is_refused(tokens, junk)

    def test_a_token_is_to_be_shown_to_the_letter(self, tokens: TokenIssuer) -> None:
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

        accepted = [shown for shown in near if not is_refused(tokens, shown)]

        assert accepted == []

    def test_no_repr_shows_a_token(self, tokens: TokenIssuer) -> None:
        issued = tokens.issue(ADA)
        claims = tokens.verify(issued.token)

        shown = f"{issued!r} {issued} {claims!r} {claims} {tokens!r}"

        assert issued.token not in shown
        assert ADA.token_epoch not in shown

    def test_a_token_is_never_taken_for_an_api_key(self, tokens: TokenIssuer) -> None:
        assert not looks_like_api_key(tokens.issue(ADA).token)

    def test_threads_are_each_told_about_their_own_user(self, tokens: TokenIssuer) -> None:
        people = [attrs.evolve(ADA, id=UserId(number)) for number in range(1, 9)]

        def ids_of(user: User) -> set[UserId]:
            mine = [tokens.issue(user).token for _ in range(20)]
            return {tokens.verify(token).user_id for token in mine * 3}

        with ThreadPoolExecutor(len(people)) as pool:
            found = list(pool.map(ids_of, people))

        assert found == [{user.id} for user in people]
