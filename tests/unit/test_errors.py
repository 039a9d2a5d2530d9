"""Errors are values: equal when they say the same."""

from mlapi import FieldProblem, InvalidFieldsError, UserExistsError, UserNotFoundError


def test_errors_of_one_class_with_the_same_data_are_equal() -> None:
    assert UserExistsError(1) == UserExistsError(1)
    assert {UserExistsError(1), UserExistsError(1)} == {UserExistsError(1)}


def test_errors_of_another_class_or_with_other_data_are_not() -> None:
    assert UserExistsError(1) not in (UserExistsError(2), UserNotFoundError(1), KeyError(1))


def test_an_error_says_all_that_is_wrong_in_one_line() -> None:
    error = InvalidFieldsError((FieldProblem("username", "is missing"), FieldProblem("email", "must be a string")))

    assert str(error) == "username is missing; email must be a string"
