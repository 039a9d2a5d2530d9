"""Sign a client in to the console without its login page."""

from datetime import datetime

import attrs
from starlette.applications import Starlette

from mlapi.domain.managers import ADMIN
from mlapi.domain.sessions import generate_session_secret
from mlapi.entrypoints.http.sessions import csrf_token


@attrs.frozen
class ConsoleSession:
    """The secret in the cookie of a stored session, and the token in its forms."""

    secret: str
    csrf_token: str

    @classmethod
    def from_secret(cls, secret: str) -> "ConsoleSession":
        return cls(secret, csrf_token(secret))

    @property
    def cookie(self) -> str:
        return f"mlapi_session={self.secret}"


def start_session(app: object, *, ends_by: datetime | None = None) -> ConsoleSession:
    """Start a session for the holder of the admin token. In local mode, it is not stored and only protects forms."""
    assert isinstance(app, Starlette)
    epoch = app.state.admin_policy.session_epoch
    if epoch is None:
        return ConsoleSession.from_secret(generate_session_secret())
    new = app.state.runtime.sessions.start(
        manager=ADMIN.name, epoch=epoch, address="192.0.2.1", browser="Firefox on Linux", ends_by=ends_by
    )
    return ConsoleSession.from_secret(new.secret)
