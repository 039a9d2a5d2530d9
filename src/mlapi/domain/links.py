"""One-time links: with one, a user sets a password or confirms an e-mail address without signing in.

A link contains the id of its row and a secret. Only the SHA-256 of both is stored. A link works once, until it expires,
and only while its user has the same token epoch and e-mail address. Changing the password or the address, disabling the
user and revoking their tokens therefore end every link, without an extra write.
"""

import hmac
from datetime import datetime, timedelta
from typing import Literal, NewType

import attrs

from mlapi.domain.actors import UNKNOWN_ACTOR, Actor
from mlapi.domain.errors import InvalidFieldsError, LinkNotAllowedError, LinkNotFoundError
from mlapi.domain.rules import find_email_error
from mlapi.domain.token_formats import TokenFormat
from mlapi.domain.users import EncryptedPassword, User, UserId, generate_token_epoch, to_utc

LinkId = NewType("LinkId", str)

LINK_PREFIX = "mlapi-link_"
"""The beginning of the token in every link. API keys and tokens never start this way."""
LINK_LIFETIME = timedelta(hours=24)

LinkPurpose = Literal["password", "verify_email", "change_email"]
"""What a link does: set a password, verify the address of a new user, or replace the address of a user."""

_TOKEN = TokenFormat(LINK_PREFIX)


@attrs.frozen
class PresentedLink:
    """The token of a link from a request, before it is checked. ``digest`` is the SHA-256 of the whole token."""

    id: LinkId
    digest: str = attrs.field(repr=False)


def generate_link_token() -> str:
    """Return a new token in the form that links contain: ``mlapi-link_<id>_<secret>``, with both parts in hex."""
    return _TOKEN.generate()


def parse_link_token(token: str) -> PresentedLink:
    """Return the id and the digest of the token of a link.

    Raises:
        LinkNotFoundError: if the text is not formatted like the token of a link.
    """
    found = _TOKEN.parse(token)
    if found is None:
        raise LinkNotFoundError
    link_id, digest = found
    return PresentedLink(LinkId(link_id), digest)


@attrs.frozen(kw_only=True)
class Link:
    """A stored link.

    ``token_epoch`` and ``email`` are those of the user when the link was made. ``new_email`` is the address that a link
    with the purpose "change_email" confirms.
    """

    id: LinkId
    user_id: UserId
    purpose: LinkPurpose
    digest: str = attrs.field(repr=False)
    token_epoch: str = attrs.field(repr=False)
    email: str = attrs.field(repr=False)
    new_email: str | None = attrs.field(default=None, repr=False)
    created_datetime: datetime = attrs.field(converter=to_utc)
    expires_datetime: datetime = attrs.field(converter=to_utc)

    def is_valid_for(self, user: User, at: datetime) -> bool:
        """Return whether the link can be used at this time, given the current state of its user."""
        return (
            self.user_id == user.id
            and at < self.expires_datetime
            and (self.token_epoch, self.email) == (user.token_epoch, user.email)
            and _allows(self.purpose, user)
        )


@attrs.frozen
class Redemption:
    """A link that was used, and its user before and after."""

    link: Link
    before: User
    after: User


@attrs.frozen(kw_only=True)
class AddLink:
    """Make a link for a user.

    Rejected with `LinkNotAllowedError` if the user could not use it: links verify the address only of users who are
    pending for that reason, and do everything else only for users who are enabled.

    Raises:
        InvalidFieldsError: if the new address violates a rule.
    """

    link_id: LinkId
    user_id: UserId
    purpose: LinkPurpose
    digest: str = attrs.field(repr=False)
    new_email: str | None = attrs.field(default=None, repr=False)
    at: datetime = attrs.field(converter=to_utc)
    expires: datetime = attrs.field(converter=to_utc)
    actor: Actor = UNKNOWN_ACTOR

    @new_email.validator
    def _validate_new_email(self, _attribute: object, new_email: str | None) -> None:
        if self.purpose == "change_email":
            InvalidFieldsError.raise_for([("email", find_email_error(new_email))])

    def apply_to(self, user: User) -> Link | LinkNotAllowedError:
        if not _allows(self.purpose, user):
            return LinkNotAllowedError(user.id, user.state_at(self.at))
        return Link(
            id=self.link_id,
            user_id=user.id,
            purpose=self.purpose,
            digest=self.digest,
            token_epoch=user.token_epoch,
            email=user.email,
            new_email=self.new_email,
            created_datetime=self.at,
            expires_datetime=self.expires,
        )


@attrs.frozen(kw_only=True)
class RedeemLink:
    """Use a link: set the new password, or confirm the e-mail address. Ends all links of the user.

    A new password revokes all tokens. A user whose address is verified is enabled, unless they also need the approval
    of a manager. Rejected with `LinkNotFoundError` if the link is unknown, belongs to another user, has been used, has
    expired or was ended, or if it has another purpose: a link for a password needs ``password``, others need None.
    """

    link_id: LinkId
    user_id: UserId
    digest: str = attrs.field(repr=False)
    password: EncryptedPassword | None = None
    at: datetime = attrs.field(converter=to_utc)
    token_epoch: str = attrs.field(factory=generate_token_epoch, repr=False)
    actor: Actor = UNKNOWN_ACTOR

    def apply_to(self, link: Link | None, user: User | None) -> Redemption | LinkNotFoundError:
        if (
            link is None
            or user is None
            or not hmac.compare_digest(self.digest, link.digest)
            or (self.password is not None) != (link.purpose == "password")
            or not link.is_valid_for(user, self.at)
        ):
            return LinkNotFoundError()
        return Redemption(link, user, self._change(link, user))

    def _change(self, link: Link, user: User) -> User:
        user = attrs.evolve(user, updated_datetime=self.at)
        if self.password is not None:
            return attrs.evolve(user, password=self.password, token_epoch=self.token_epoch)
        if link.new_email is not None:
            return attrs.evolve(user, email=link.new_email)
        if user.pending == "email_then_approval":
            return attrs.evolve(user, pending="approval")
        return attrs.evolve(user, enabled=True, pending=None, token_epoch=self.token_epoch)


def _allows(purpose: LinkPurpose, user: User) -> bool:
    """Return whether the user's state allows a link with this purpose."""
    if purpose == "verify_email":
        return user.pending in {"email", "email_then_approval"}
    return user.enabled
