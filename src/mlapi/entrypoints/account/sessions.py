"""The sessions of users who are signed in to their account."""

import hashlib
import hmac
from collections.abc import Sequence

import attrs

from mlapi.domain.actors import Actor
from mlapi.domain.sessions import (
    LIFETIME,
    TOUCH_INTERVAL,
    Session,
    SessionId,
    find_session_id,
    generate_session_secret,
)
from mlapi.domain.users import User, UserId
from mlapi.entrypoints.http.runtime import Runtime
from mlapi.entrypoints.pages import PageRequest, PageSession

_NO_USER = UserId(0)


@attrs.frozen(kw_only=True)
class AccountSession(PageSession):
    """The session of a user. ``form_key`` is a secret of this session, from which forms derive values."""

    id: SessionId = attrs.field(repr=False)
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
    secret, now = generate_session_secret(), request.users.now()
    session_id = find_session_id(secret)
    assert session_id is not None  # noqa: S101 - it was just generated
    session = Session(
        id=session_id,
        user_id=user.id,
        epoch=user.token_epoch,
        created_datetime=now,
        seen_datetime=now,
        expires_datetime=now + LIFETIME,
        address=request.address,
        browser=request.http_request.headers.get("user-agent", ""),
    )
    await request.runtime.executor.read_own(user.id, request.runtime.sessions.add, session)
    return request.session_cookie(secret)


async def end_session(request: PageRequest) -> None:
    """End the session of a request. Every process rejects its cookie from now on."""
    session = signed_in(request)
    await request.runtime.executor.read_own(session.owner.id, request.runtime.sessions.remove, session.id)


def _find_session(runtime: Runtime, secrets: Sequence[str]) -> AccountSession | None:
    for secret in secrets:
        session_id = find_session_id(secret)
        session = None if session_id is None else runtime.sessions.find(session_id)
        if session is None or session.user_id is None or not session.is_open(now := runtime.users.now()):
            continue
        (user,) = runtime.users.repository.find_principals([session.user_id])
        if isinstance(user, User) and user.enabled and hmac.compare_digest(user.token_epoch, session.epoch):
            if now - session.seen_datetime >= TOUCH_INTERVAL:
                runtime.sessions.touch(session.id, now)
            return _make_session(session.id, secret.encode("ascii"), user)
    return None


def _make_session(session_id: SessionId, secret: bytes, user: User) -> AccountSession:
    return AccountSession(
        id=session_id,
        csrf_token=hmac.digest(secret, b"mlapi account form", hashlib.sha256).hex(),
        actor=Actor.from_user_id(user.id).name,
        user=user,
        form_key=hmac.digest(secret, b"mlapi account API key", hashlib.sha256),
    )


def signed_in(request: PageRequest) -> AccountSession:
    """Return the session of a page that is not public."""
    assert isinstance(request.session, AccountSession)  # noqa: S101 - the access rule ensures it
    return request.session
