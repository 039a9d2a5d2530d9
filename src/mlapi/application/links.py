"""Use one-time links. The cheapest checks come first, so that invalid links cost little."""

import hmac
from typing import final

import attrs

from mlapi.application.address_limits import AddressLimiter
from mlapi.application.executors import Executor
from mlapi.application.users import Users
from mlapi.domain.actors import Actor
from mlapi.domain.errors import LinkNotFoundError, UserNotFoundError
from mlapi.domain.links import Link, RedeemLink, Redemption, parse_link_token
from mlapi.domain.users import User

MAX_REDEMPTIONS_PER_ADDRESS = 60
"""Attempts per minute, valid or not. The limit bounds the load; tokens cannot be guessed anyway."""


@attrs.frozen
class ValidLink:
    """A link that can be used now, and its user."""

    link: Link
    user: User


@final
class AsyncLinks:
    """Looks up and uses one-time links without blocking the event loop.

    Args:
        users: the users that the links belong to.
        limiter: limits how many links each address may use. None for no limit.
        executor: reads the links, hashes passwords and applies the commands.
    """

    def __init__(self, users: Users, limiter: AddressLimiter | None, executor: Executor) -> None:
        self._users = users
        self._limiter = limiter
        self._executor = executor

    async def find(self, token: str, address: str) -> ValidLink:
        """Return the link with this token. Changes nothing.

        Raises:
            LinkNotFoundError: if the link cannot be used now.
            RepositoryUnavailableError: if the database is unavailable.
        """
        return await self._executor.for_client(address).query(self._find, token)

    async def set_password(self, token: str, password: str, address: str, request_id: str | None) -> Redemption:
        """Set the password of the link's user. The password is checked and hashed only if the link is valid.

        Args:
            token: the token in the link.
            password: the new password, as typed.
            address: the client's address. Clients at different addresses take turns.
            request_id: recorded in the audit trail.

        Raises:
            LinkNotFoundError: if the link cannot be used now, or is not for a password.
            InvalidFieldsError: if the password violates the policy. The link stays valid.
            TooManyAttemptsError: if the address has used too many links.
            RepositoryUnavailableError: if the database is unavailable.
        """
        found = await self._start(token, address)
        if found.link.purpose != "password":
            raise LinkNotFoundError
        self._users.validate_password(password)
        executor = self._executor.for_client(address)
        command = await executor.hash(self._prepare, found, request_id, password)
        return await self._executor.apply(command)

    async def confirm(self, token: str, address: str, request_id: str | None) -> Redemption:
        """Confirm the e-mail address that the link was sent to. The arguments and errors are as in `set_password`."""
        found = await self._start(token, address)
        return await self._executor.apply(self._prepare(found, request_id))

    async def _start(self, token: str, address: str) -> ValidLink:
        parse_link_token(token)
        executor = self._executor.for_client(address)
        if self._limiter is not None:
            self._limiter.check(address)
            await executor.query(self._limiter.count, address)
        return await executor.query(self._find, token)

    def _find(self, token: str) -> ValidLink:
        presented = parse_link_token(token)
        repository = self._users.repository
        link = repository.links.find(presented.id)
        if link is None or not hmac.compare_digest(presented.digest, link.digest):
            raise LinkNotFoundError
        try:
            user = repository.get(link.user_id)
        except UserNotFoundError:
            raise LinkNotFoundError from None
        if not link.is_valid_for(user, self._users.now()):
            raise LinkNotFoundError
        return ValidLink(link, user)

    def _prepare(self, found: ValidLink, request_id: str | None, password: str | None = None) -> RedeemLink:
        return RedeemLink(
            link_id=found.link.id,
            user_id=found.user.id,
            digest=found.link.digest,
            password=None if password is None else self._users.cipher.encrypt(password),
            at=self._users.now(),
            actor=Actor.from_user_id(found.user.id, request_id),
        )
