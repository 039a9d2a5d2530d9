"""Errors are values: equal when they say the same."""

import copy
import pickle

import pytest

from mlapi import (
    ApiKeyNotFoundError,
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
)
from mlapi.domain.errors import FieldError

LINES: list[tuple[MlapiError, str]] = [
    (UserExistsError(7), "user 7 already has this username"),
    (UserNotFoundError(7), "there is no user 7"),
    (PasswordChangedError(7), "the password of user 7 was changed concurrently"),
    (ApiKeyNotFoundError("0123456789abcdef"), "there is no such API key"),
    (InvalidCredentialsError(), "unknown username or wrong password"),
    (InvalidTokenError(), "invalid, expired or revoked token or API key"),
    (UserDisabledError(7), "user 7 is disabled"),
    (TooManyAttemptsError(30), "too many log-in attempts: retry in 30 seconds"),
    (ServiceUnavailableError("too many requests"), "the service is unavailable: too many requests"),
    (RepositoryUnavailableError("simulated outage"), "the database is unavailable: simulated outage"),
    (ConfigurationError("mend this"), "mend this"),
]


def test_errors_of_one_class_with_the_same_data_are_equal() -> None:
    assert UserExistsError(1) == UserExistsError(1)
    assert {UserExistsError(1), UserExistsError(1)} == {UserExistsError(1)}


def test_errors_of_another_class_or_with_other_data_are_not() -> None:
    assert UserExistsError(1) not in (UserExistsError(2), UserNotFoundError(1), KeyError(1))
    assert InvalidTokenError() == InvalidTokenError()
    assert InvalidTokenError() not in (InvalidCredentialsError(), MlapiError())


@pytest.mark.parametrize(("error", "line"), LINES, ids=[type(error).__name__ for error, _ in LINES])
def test_an_error_says_itself_in_one_line(error: MlapiError, line: str) -> None:
    assert str(error) == line


@pytest.mark.parametrize("error", [error for error, _ in LINES], ids=[type(error).__name__ for error, _ in LINES])
def test_an_error_may_be_copied_and_sent_to_another_process(error: MlapiError) -> None:
    assert copy.copy(error) == pickle.loads(pickle.dumps(error)) == error


def test_an_error_says_all_that_is_wrong_in_one_line() -> None:
    error = InvalidFieldsError((FieldError("username", "is missing"), FieldError("email", "must be a string")))

    assert str(error) == "username is missing; email must be a string"
