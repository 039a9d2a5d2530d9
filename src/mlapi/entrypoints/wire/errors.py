"""Errors in requests that are found before a use case runs: unreadable bodies and missing admin access."""

import attrs

from mlapi.domain.errors import MlapiError

MAX_BODY_BYTES = 16 * 1024  # three fields of maximum length take less than half of it in UTF-8


class RequestError(MlapiError):
    """Base of the errors in this module. Never raised itself."""


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
    """The operation needs the admin token, and the request does not send it."""

    def __str__(self) -> str:
        return "This needs the admin token: send exactly one header Authorization: Bearer <admin token>"


@attrs.frozen
class AdminAccessDeniedError(RequestError):
    """No admin token is configured, and the client is not allowed to manage users without one.

    Attributes:
        reason: the cause, and the setting that grants access.
    """

    reason: str

    def __str__(self) -> str:
        return self.reason
