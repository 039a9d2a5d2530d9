"""The contract of `UserRepository` for one-time links."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import attrs
import pytest

from mlapi import Command, User, UserId, UserNotFoundError, UserRepository
from mlapi.domain.commands import ChangePassword, EndTokens, Reencrypt, Remove, SetEnabled, UpdateUser
from mlapi.domain.errors import LinkNotAllowedError, LinkNotFoundError
from mlapi.domain.links import AddLink, Link, LinkId, LinkPurpose, RedeemLink, Redemption
from mlapi.domain.users import NO_PASSWORD, EncryptedPassword
from mlapi.testing.samples import ANOTHER, LATER, NOON, SECOND, UNKNOWN_IDS, apply_one, registered

NO_LINK = LinkId("f" * 16)
DAY = timedelta(days=1)
NEW_EMAIL = "new@example.com"


def new_link(user_id: UserId, number: int = 0, purpose: LinkPurpose = "password") -> AddLink:
    """Return a command that makes a link."""
    return AddLink(
        link_id=LinkId(f"{number:016x}"),
        user_id=user_id,
        purpose=purpose,
        digest=f"digest {number}",
        new_email=NEW_EMAIL if purpose == "change_email" else None,
        at=NOON,
        expires=NOON + DAY,
    )


def with_link(repository: UserRepository, user: User, number: int = 0, purpose: LinkPurpose = "password") -> Link:
    """Make a link for a user and return it."""
    link = apply_one(repository, new_link(user.id, number, purpose))
    assert isinstance(link, Link)
    return link


def redeeming(link: Link, password: EncryptedPassword | None = ANOTHER) -> RedeemLink:
    """Return a command that uses a link."""
    return RedeemLink(link_id=link.id, user_id=link.user_id, digest=link.digest, password=password, at=LATER)


class LinkContract:
    @pytest.mark.parametrize("purpose", ["password", "change_email"])
    def test_link_is_stored_completely(self, repository: UserRepository, purpose: LinkPurpose) -> None:
        ada = registered(repository, email="ådå@example.com")
        command = new_link(ada.id, purpose=purpose)

        link = apply_one(repository, command)

        assert link == command.apply_to(ada)
        assert isinstance(link, Link)
        assert (link.email, link.token_epoch, link.expires_datetime) == (ada.email, ada.token_epoch, NOON + DAY)
        assert repository.links.find(link.id) == link
        assert repository.get(ada.id) == ada

    @pytest.mark.parametrize("link_id", [NO_LINK, LinkId(""), LinkId("\0"), LinkId("é" * 300)])
    def test_unknown_link_is_not_found(self, repository: UserRepository, link_id: LinkId) -> None:
        ada = registered(repository)
        redeem = RedeemLink(link_id=link_id, user_id=ada.id, digest="digest 0", password=ANOTHER, at=NOON)

        assert repository.links.find(link_id) is None
        assert apply_one(repository, redeem) == LinkNotFoundError()

    @pytest.mark.parametrize("user_id", UNKNOWN_IDS)
    def test_unknown_user_has_no_links(self, repository: UserRepository, user_id: UserId) -> None:
        link = with_link(repository, registered(repository))

        assert apply_one(repository, new_link(user_id, 1)) == UserNotFoundError(user_id)
        assert apply_one(repository, attrs.evolve(redeeming(link), user_id=user_id)) == LinkNotFoundError()
        assert repository.links.find(LinkId(f"{1:016x}")) is None

    @pytest.mark.parametrize(
        ("fields", "purpose", "state"),
        [
            ({"enabled": False}, "password", "disabled"),
            ({"enabled": False, "pending": "approval"}, "password", "pending"),
            ({"enabled": False, "pending": "email"}, "change_email", "pending"),
            ({"enabled": False, "pending": "approval"}, "verify_email", "pending"),
            ({}, "verify_email", "active"),
        ],
    )
    def test_link_that_the_user_could_not_use_is_rejected(
        self, repository: UserRepository, fields: dict[str, Any], purpose: LinkPurpose, state: str
    ) -> None:
        ada = registered(repository, **fields)

        outcome = apply_one(repository, new_link(ada.id, purpose=purpose))

        assert outcome == LinkNotAllowedError(ada.id, state)
        assert repository.links.find(LinkId("0" * 16)) is None

    def test_invited_user_sets_a_password_once(self, repository: UserRepository) -> None:
        ada = registered(repository, password=NO_PASSWORD)
        first, second = redeeming(with_link(repository, ada)), redeeming(with_link(repository, ada, 1))

        redemption = apply_one(repository, first)

        changed = repository.get(ada.id)
        assert redemption == Redemption(new_link(ada.id).apply_to(ada), ada, changed)  # type: ignore[arg-type]  # a link
        assert changed == attrs.evolve(ada, password=ANOTHER, token_epoch=first.token_epoch, updated_datetime=first.at)
        assert [apply_one(repository, command) for command in (first, second)] == [LinkNotFoundError()] * 2
        assert [repository.links.find(command.link_id) for command in (first, second)] == [None, None]

    @pytest.mark.parametrize(
        ("pending", "remaining"), [("email", None), ("email_then_approval", "approval")], ids=["enabled", "approval"]
    )
    def test_verified_address_may_still_need_approval(
        self, repository: UserRepository, pending: str, remaining: str | None
    ) -> None:
        ada = registered(repository, enabled=False, pending=pending)
        redeem = redeeming(with_link(repository, ada, purpose="verify_email"), password=None)

        redemption = apply_one(repository, redeem)

        changed = repository.get(ada.id)
        assert isinstance(redemption, Redemption)
        assert redemption.after == changed
        assert (changed.enabled, changed.pending) == (remaining is None, remaining)
        assert (changed.token_epoch == redeem.token_epoch) == changed.enabled
        assert apply_one(repository, redeem) == LinkNotFoundError()

    def test_confirmed_address_replaces_the_old_one(self, repository: UserRepository) -> None:
        ada = registered(repository)
        with_link(repository, ada, 1)
        redeem = redeeming(with_link(repository, ada, purpose="change_email"), password=None)

        apply_one(repository, redeem)

        assert repository.get(ada.id) == attrs.evolve(ada, email=NEW_EMAIL, updated_datetime=LATER)
        assert repository.links.find(LinkId(f"{1:016x}")) is None

    def test_link_cannot_be_used_for_another_purpose(self, repository: UserRepository) -> None:
        ada = registered(repository)
        password, email = with_link(repository, ada), with_link(repository, ada, 1, "change_email")

        outcomes = repository.apply([redeeming(password, None), redeeming(email, ANOTHER)])

        assert outcomes == [LinkNotFoundError()] * 2
        assert repository.get(ada.id) == ada
        assert repository.links.find(password.id) == password

    def test_link_needs_its_own_user_and_digest(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")
        redeem = redeeming(with_link(repository, ada))

        outcomes = repository.apply([attrs.evolve(redeem, user_id=bob.id), attrs.evolve(redeem, digest="digest 1")])

        assert outcomes == [LinkNotFoundError()] * 2
        assert (repository.get(ada.id), repository.get(bob.id)) == (ada, bob)

    @pytest.mark.parametrize("late", [timedelta(0), DAY])
    def test_link_expires(self, repository: UserRepository, late: timedelta) -> None:
        ada = registered(repository)
        link = with_link(repository, ada)
        redeem = attrs.evolve(redeeming(link), at=link.expires_datetime + late)

        assert apply_one(repository, redeem) == LinkNotFoundError()
        assert isinstance(apply_one(repository, attrs.evolve(redeem, at=link.expires_datetime - SECOND)), Redemption)

    @pytest.mark.parametrize(
        "changes",
        [
            lambda user_id: [ChangePassword(user_id=user_id, password=ANOTHER, replacing=None, at=NOON)],
            lambda user_id: [EndTokens(user_id=user_id, at=NOON)],
            lambda user_id: [SetEnabled(user_id=user_id, enabled=False, at=NOON)],
            lambda user_id: [SetEnabled(user_id=user_id, enabled=each, at=NOON) for each in (False, True)],
            lambda user_id: [UpdateUser(user_id=user_id, email=NEW_EMAIL, at=NOON)],
            lambda user_id: [
                UpdateUser(user_id=user_id, email=each, at=NOON) for each in (NEW_EMAIL, "ada@example.com")
            ],
            lambda user_id: [Remove(user_id=user_id)],
        ],
        ids=["password", "end tokens", "disable", "disable and enable", "address", "address and back", "remove"],
    )
    @pytest.mark.parametrize("together", [True, False])
    def test_change_of_the_user_ends_the_link(
        self, repository: UserRepository, changes: Callable[[UserId], list[Command]], together: bool
    ) -> None:
        ada = registered(repository)
        redeem = redeeming(with_link(repository, ada))

        batches: Sequence[Sequence[Command]] = [[each] for each in (*changes(ada.id), redeem)]
        if together:
            batches = [[*changes(ada.id), redeem]]
        outcomes = [outcome for batch in batches for outcome in repository.apply(batch)]

        assert outcomes[-1] == LinkNotFoundError()

    def test_other_changes_keep_the_link(self, repository: UserRepository) -> None:
        ada, bob = registered(repository, "ada"), registered(repository, "bob")
        redeem = redeeming(with_link(repository, ada))

        *_, redemption = repository.apply(
            [
                SetEnabled(user_id=ada.id, enabled=True, at=NOON),
                UpdateUser(user_id=ada.id, username="Äda", email=ada.email, plan="pro", expires=NOON, at=NOON),
                Reencrypt(user_id=ada.id, password=EncryptedPassword("better"), replacing=ada.password),
                UpdateUser(user_id=bob.id, email=NEW_EMAIL, at=NOON),
                Remove(user_id=bob.id),
                redeem,
            ]
        )

        assert isinstance(redemption, Redemption)
        assert repository.get(ada.id).username == "Äda"

    def test_link_can_be_made_and_used_in_one_batch(self, repository: UserRepository) -> None:
        ada = registered(repository)
        command = new_link(ada.id)
        link = command.apply_to(ada)
        assert isinstance(link, Link)

        outcomes = repository.apply([command, redeeming(link), redeeming(link)])

        assert outcomes == [link, Redemption(link, ada, repository.get(ada.id)), LinkNotFoundError()]

    def test_one_of_concurrent_redemptions_succeeds(self, repository: UserRepository) -> None:
        for number in range(5):
            ada = registered(repository, f"ada{number}")
            links = [with_link(repository, ada, 10 * number + each) for each in range(2)]
            commands = [redeeming(link, EncryptedPassword(f"password {each}")) for each in range(3) for link in links]

            with ThreadPoolExecutor(len(commands)) as pool:
                outcomes = list(pool.map(lambda command: apply_one(repository, command), commands))

            (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Redemption)]
            assert outcomes.count(LinkNotFoundError()) == len(commands) - 1
            assert repository.get(ada.id) == winner.after

    def test_links_that_expired_are_purged(self, repository: UserRepository) -> None:
        ada = registered(repository)
        links = [with_link(repository, ada, number) for number in range(3)]
        late = apply_one(repository, attrs.evolve(new_link(ada.id, 4), expires=NOON + 2 * DAY))

        purged = [repository.links.purge(before=before, limit=2) for before in (NOON + DAY, *[NOON + DAY + SECOND] * 3)]

        assert purged == [0, 2, 1, 0]
        assert [repository.links.find(link.id) for link in links] == [None] * 3
        assert isinstance(late, Link)
        assert repository.links.find(late.id) == late
