"""Who requested a change."""

import attrs

from mlapi.domain.rules import is_visible_text
from mlapi.domain.users import UserId

MAX_ACTOR_CHARS = 200
ANYONE = "anyone"
"""The name of an actor without credentials: any client of a service with open registration."""


@attrs.frozen
class Actor:
    """The person or program that requested a change, and the id of the request.

    ``name`` is a role, an id or the name of a program. It is never a username or an e-mail address, because audit
    entries outlive their user.

    ``is_repeated`` is True for every change of a bulk request after the first one; see `repeated`.

    Raises:
        ValueError: if ``name`` or ``request_id`` is empty, longer than `MAX_ACTOR_CHARS`, or contains control or
            invisible characters.
    """

    name: str = attrs.field(default="library")
    request_id: str | None = None
    is_repeated: bool = False

    @name.validator
    def _check(self, _attribute: object, name: str) -> None:
        for text in (name,) if self.request_id is None else (name, self.request_id):
            if not is_visible_text(text, MAX_ACTOR_CHARS):
                raise ValueError(f"actor names and request ids must be 1 to {MAX_ACTOR_CHARS} visible characters")

    @classmethod
    def from_user_id(cls, user_id: UserId, request_id: str | None = None) -> "Actor":
        """Return the actor for changes that users make to their own account."""
        return cls(f"user {user_id}", request_id)

    def repeated(self) -> "Actor":
        """Return the actor for all changes of a bulk request after the first one, such as the later rows of an import.

        Lists of the audit trail can fold these changes into the first one. An actor without a request id is unchanged.
        """
        return self if self.request_id is None else Actor(self.name, self.request_id, is_repeated=True)

    @property
    def is_anonymous(self) -> bool:
        """True if the actor has no credentials. Rejected commands of such actors are not stored."""
        return self.name == ANYONE


UNKNOWN_ACTOR = Actor()
