"""The sessions of users who are signed in to their account."""

import hashlib
import hmac
from collections.abc import Sequence

import attrs

from mlapi.domain.actors import Actor
from mlapi.domain.sessions import Session
from mlapi.domain.users import User, UserId
from mlapi.entrypoints.http.browsers import describe_browser
from mlapi.entrypoints.http.runtime import Runtime
from mlapi.entrypoints.http.sessions import csrf_token, find_secrets
from mlapi.entrypoints.pages import PageRequest, PageSession

_NO_USER = UserId(0)


@attrs.frozen(kw_only=True)
class AccountSession(PageSession):
    """The session of a user. ``form_key`` is a secret of this session; new API keys depend on it."""

    form_key: bytes = attrs.field(repr=False)

    @property
    def owner(self) -> User:
        assert self.user is not None  # noqa: S101 - `_make_session` always sets it
        return self.user


async def open_session(request: PageRequest) -> AccountSession | None:
    """Return the session in the cookies of a request, or None if the user is not signed in."""
    secrets = request.session_cookies
    if not secrets:
        return None
    return await request.runtime.executor.read_own(_NO_USER, _find_session, request.runtime, secrets)


async def start_session(request: PageRequest, user: User) -> str:
    """Start a session for a user, and return its Set-Cookie header."""
    new = await request.runtime.executor.read_own(
        user.id,
        request.runtime.sessions.start,
        user_id=user.id,
        epoch=user.token_epoch,
        address=request.address,
        browser=describe_browser(request.client.headers),
    )
    return request.session_cookie(new.secret)


async def end_session(request: PageRequest) -> None:
    """End the session of a request. Every process rejects its cookie from now on."""
    session = signed_in(request)
    await request.runtime.executor.read_own(session.owner.id, request.runtime.sessions.end, session.id)


def _find_session(runtime: Runtime, secrets: Sequence[str]) -> AccountSession | None:
    for session_id, secret in find_secrets(secrets):
        session = runtime.sessions.find(session_id)
        if session is None or session.user_id is None:
            continue
        (user,) = runtime.users.repository.find_principals([session.user_id])
        if isinstance(user, User) and user.enabled and hmac.compare_digest(user.token_epoch, session.epoch):
            runtime.sessions.touch(session)
            return _make_session(session, secret, user)
    return None


def _make_session(session: Session, secret: str, user: User) -> AccountSession:
    return AccountSession(
        id=session.id,
        stored=session,
        csrf_token=csrf_token(secret),
        actor=Actor.from_user_id(user.id).name,
        user=user,
        form_key=hmac.digest(secret.encode("ascii"), b"mlapi account API key", hashlib.sha256),
    )


def signed_in(request: PageRequest) -> AccountSession:
    """Return the session of a page that is not public."""
    assert isinstance(request.session, AccountSession)  # noqa: S101 - the access rule ensures it
    return request.session
