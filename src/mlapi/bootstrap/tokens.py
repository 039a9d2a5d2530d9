"""Create the token issuer that the settings select."""

from collections.abc import Sequence
from datetime import timedelta

from mlapi.config import TokenSettings
from mlapi.domain.ports import TokenIssuer


def make_tokens(settings: TokenSettings, keys: Sequence[bytes]) -> TokenIssuer:
    """Return an issuer that signs with the first key and accepts tokens signed with any of them."""
    from mlapi.adapters.jwt import JwtTokenIssuer  # noqa: PLC0415 - a guard without token keys saves 10 MB of memory

    return JwtTokenIssuer(
        keys,
        lifetime=timedelta(minutes=settings.minutes),
        issuer=settings.issuer,
        audience=settings.audience,
    )
