"""Errors are values: they compare by class and data."""

import copy
import pickle

import pytest

from mlapi import (
    AccessExpiredError,
    ApiKeyNotFoundError,
    ChangeRejectedError,
    ConfigurationError,
    InvalidCredentialsError,
    InvalidFieldsError,
    InvalidTokenError,
    MlapiError,
    PasswordChangedError,
    RepositoryUnavailableError,
    ServiceUnavailableError,
    TooManyAttemptsError,
    UserDisabledError,
    UserExistsError,
    UserNotFoundError,
    UserPendingError,
    UserReferencedError,
)
from mlapi.domain.errors import (
    FieldError,
    LinkNotAllowedError,
    LinkNotFoundError,
    ManagerExistsError,
    ManagerNotFoundError,
    TooManyApiKeysError,
    UserChangedError,
)

MESSAGES: list[tuple[MlapiError, str]] = [
    (UserExistsError(7), "user 7 already has this username"),
    (UserNotFoundError(7), "user 7 does not exist"),
    (PasswordChangedError(7), "the password of user 7 was changed concurrently"),
    (UserChangedError(7), "user 7 was changed concurrently"),
    (ApiKeyNotFoundError("0123456789abcdef"), "this API key does not exist"),
    (TooManyApiKeysError(7, 5), "user 7 already has 5 API keys, which is the maximum: remove one first"),
    (ManagerExistsError("alice"), "manager alice already exists: choose another name, or remove that manager first"),
    (ManagerNotFoundError("alice"), "manager alice does not exist: check the name in the list of managers"),
    (LinkNotFoundError(), "the link is unknown, was used or ended, or has expired: ask for a new one"),
    (LinkNotAllowedError(7, "pending"), "user 7 is pending: enable the user before you make a link"),
    (LinkNotAllowedError(7, "active"), "the e-mail address of user 7 needs no verification"),
    (
        ChangeRejectedError(None, "a constraint failed"),
        "the database rejects this change, check the constraints and triggers on its tables: a constraint failed",
    ),
    (UserReferencedError(7), "user 7 is referenced by other tables: remove those rows first"),
    (InvalidCredentialsError(), "unknown username or wrong password"),
    (InvalidTokenError(), "invalid, expired or revoked token or API key"),
    (UserDisabledError(7), "user 7 is disabled"),
    (UserPendingError(7), "user 7 has not been enabled yet"),
    (AccessExpiredError(7), "the access of user 7 has expired"),
    (TooManyAttemptsError(30), "too many attempts: retry in 30 seconds"),
    (ServiceUnavailableError("too many requests"), "the service is unavailable: too many requests"),
    (RepositoryUnavailableError("simulated outage"), "the database is unavailable: simulated outage"),
    (ConfigurationError("fix this"), "fix this"),
]


def test_errors_with_the_same_class_and_data_are_equal() -> None:
    assert UserExistsError(1) == UserExistsError(1)
    assert {UserExistsError(1), UserExistsError(1)} == {UserExistsError(1)}


def test_errors_with_different_class_or_data_are_not_equal() -> None:
    assert UserExistsError(1) not in (UserExistsError(2), UserNotFoundError(1), KeyError(1))
    assert InvalidTokenError() == InvalidTokenError()
    assert InvalidTokenError() not in (InvalidCredentialsError(), MlapiError())


@pytest.mark.parametrize(("error", "line"), MESSAGES, ids=[type(error).__name__ for error, _ in MESSAGES])
def test_error_message_is_one_line(error: MlapiError, line: str) -> None:
    assert str(error) == line


@pytest.mark.parametrize("error", [error for error, _ in MESSAGES], ids=[type(error).__name__ for error, _ in MESSAGES])
def test_errors_can_be_copied_and_pickled(error: MlapiError) -> None:
    assert copy.copy(error) == pickle.loads(pickle.dumps(error)) == error


def test_invalid_fields_message_names_every_field() -> None:
    error = InvalidFieldsError((FieldError("username", "is missing"), FieldError("email", "must be a string")))

    assert str(error) == "username is missing; email must be a string"
