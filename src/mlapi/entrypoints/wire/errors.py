"""Errors that are detected before the application logic runs: unreadable bodies and missing admin access."""

import attrs

from mlapi.domain.errors import MlapiError

MAX_BODY_BYTES = 16 * 1024  # three fields of maximum length need less than half of this in UTF-8


class RequestError(MlapiError):
    """The base class of the errors in this module."""


@attrs.frozen
class UnreadableBodyError(RequestError):
    reason: str

    def __str__(self) -> str:
        return f"The body is not valid JSON: {self.reason}"


class BodyTooLargeError(RequestError):
    def __str__(self) -> str:
        return f"The body is larger than {MAX_BODY_BYTES} bytes"


class UnsupportedMediaTypeError(RequestError):
    def __str__(self) -> str:
        return "The Content-Type must be application/json, in UTF-8"


class AdminTokenRequiredError(RequestError):
    """The operation needs the admin token, but the request does not contain it."""

    def __str__(self) -> str:
        return "This needs the admin token: send one Authorization header with Bearer <admin token>"


@attrs.frozen
class AdminAccessDeniedError(RequestError):
    """The request lacks admin access, for a reason other than a missing admin token.

    Attributes:
        reason: the reason, with the setting that grants access.
    """

    reason: str

    def __str__(self) -> str:
        return self.reason
