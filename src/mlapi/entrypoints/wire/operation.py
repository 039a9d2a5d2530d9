"""An operation of the API, as data."""

import re

import attrs
import msgspec

from mlapi.domain.errors import (
    ConfigurationError,
    InvalidFieldsError,
    MlapiError,
    RepositoryUnavailableError,
    ServiceUnavailableError,
)
from mlapi.entrypoints.wire.callers import Callers
from mlapi.entrypoints.wire.errors import (
    BodyTooLargeError,
    HeadersTooLargeError,
    UnreadableBodyError,
    UnsupportedContentEncodingError,
    UnsupportedMediaTypeError,
    UriTooLongError,
)
from mlapi.entrypoints.wire.requests import RequestBody
from mlapi.entrypoints.wire.responses import Response, ResponseBody

_HEAD_ERRORS = (UriTooLongError, HeadersTooLargeError)
_BODY_ERRORS = (
    UnreadableBodyError,
    BodyTooLargeError,
    UnsupportedMediaTypeError,
    UnsupportedContentEncodingError,
    InvalidFieldsError,
)
_DATABASE_ERRORS = (ServiceUnavailableError, RepositoryUnavailableError, ConfigurationError)


@attrs.frozen
class Form:
    """The types of a form and of the response to it, and an example of the response."""

    request: type[RequestBody]
    success: Response
    response: type[ResponseBody]


@attrs.frozen(kw_only=True)
class Operation:
    """One method of one path.

    Attributes:
        method: the HTTP method.
        path: the path, with parameters as ``{name}``, or ``{name:path}`` if they may contain slashes.
        name: the name of the handler, and of the endpoint in the metrics.
        operation_id: the name of the operation in the OpenAPI description.
        summary: an imperative sentence for API users.
        tag: the group of the operation in the OpenAPI description.
        callers: the clients that may call it.
        request: the type of the JSON body of the request, or None if there is no body.
        form: the type of a form that the operation accepts as well as JSON, with an example of the response.
        query: the names of the query parameters.
        success: an example of the response.
        response: the type of the JSON body, or None if the body is empty or not JSON.
        errors: the errors that are specific to the operation. `all_errors` adds the errors for access, the body,
            parameters and the database.
        may_be_disabled: whether a setting can disable the operation. Its path then responds with 404.
        needs_database: whether the operation fails if the database is unavailable.
        deprecated: whether clients should use another operation instead.
        any_method: whether it accepts every method. The OpenAPI description lists only ``method``.
        cross_origin: whether browsers may call it from pages in ``http.cors_origins``. Never true for management.
    """

    method: str
    path: str
    name: str
    operation_id: str
    summary: str
    tag: str
    callers: Callers
    request: type[RequestBody] | None = None
    form: Form | None = None
    query: tuple[str, ...] = ()
    success: Response
    response: type[ResponseBody] | None = None
    errors: tuple[type[MlapiError], ...] = ()
    may_be_disabled: bool = False
    needs_database: bool = True
    deprecated: bool = False
    any_method: bool = False
    cross_origin: bool = False

    @property
    def openapi_path(self) -> str:
        return re.sub(r":\w+}", "}", self.path)

    @property
    def body_types(self) -> list[type[msgspec.Struct]]:
        """The types of its request and response bodies."""
        forms = () if self.form is None else (self.form.request, self.form.response)
        return [body_type for body_type in (self.response, self.request, *forms) if body_type is not None]

    @property
    def path_parameters(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.openapi_path)

    @property
    def path_pattern(self) -> str:
        """A regular expression that matches the paths of this operation."""
        parts = re.split(r"({\w+(?::path)?})", self.path)
        return "".join(
            (".*" if part.endswith(":path}") else "[^/]+") if part.startswith("{") else re.escape(part)
            for part in parts
        )

    @property
    def all_errors(self) -> list[type[MlapiError]]:
        """Every error that the operation can return, without duplicates."""
        has_validated_text = bool(self.query) or not {"user_id", "permission"}.isdisjoint(self.path_parameters)
        errors = (
            *self.callers.errors,
            *(_BODY_ERRORS if self.request else ()),
            *((InvalidFieldsError,) if has_validated_text else ()),
            *self.errors,
            *(_DATABASE_ERRORS if self.needs_database else ()),
            *_HEAD_ERRORS,
        )
        return list(dict.fromkeys(errors))
