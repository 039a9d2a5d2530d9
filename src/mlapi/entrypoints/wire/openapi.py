"""The OpenAPI 3.1 description of the service, generated from the table of operations.

Examples, statuses and headers come from the functions that create the responses, so they always match the service.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from http import HTTPStatus
from typing import Any

import attrs
import msgspec

from mlapi import __version__
from mlapi.domain.actors import MAX_ACTOR_CHARS
from mlapi.domain.errors import InvalidFieldsError, MlapiError, UserExistsError
from mlapi.domain.rules import MAX_EMAIL_CHARS, MAX_USERNAME_CHARS
from mlapi.entrypoints.wire import examples, patterns
from mlapi.entrypoints.wire.error_responses import ERRORS, error_response, http_error_response
from mlapi.entrypoints.wire.fields import describe_expiry
from mlapi.entrypoints.wire.headers import FORM
from mlapi.entrypoints.wire.operation import Operation
from mlapi.entrypoints.wire.operations import OPERATIONS
from mlapi.entrypoints.wire.queries import (
    ACTIONS,
    DEFAULT_PAGE_SIZE,
    DEFAULT_USAGE_DAYS,
    LIST_ORDERS,
    MAX_PAGE_SIZE,
    STATES,
)
from mlapi.entrypoints.wire.requests import UpdateUserRequest
from mlapi.entrypoints.wire.responses import InvalidInput, Message, Response, ResponseBody, UserMessage

Schema = dict[str, Any]
"""JSON Schema 2020-12, or another part of an OpenAPI document."""

_ID: Schema = {"type": "integer", "minimum": 0}
_DAY: Schema = {"type": "string", "format": "date"}
_TIME: Schema = {"type": "string", "format": "date-time"}
_PATH_PARAMETERS: Mapping[str, Schema] = {
    "user_id": {"description": "Id of the user.", "schema": _ID, "example": 1},
    "permission": {
        "description": "1 enables the user, 0 disables them.",
        "schema": {"type": "integer", "enum": [0, 1]},
    },
    "key_id": {
        "description": "Id of the API key: the part of the key between `mlapi_` and the next `_`.",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
        "example": examples.API_KEY.id,
    },
    "token": {"description": "A token or an API key.", "schema": {"type": "string", "minLength": 1}},
}
_QUERY_PARAMETERS: Mapping[str, Schema] = {
    "enabled": {
        "description": "Only list enabled (1) or disabled (0) users.",
        "schema": {"type": "integer", "enum": [0, 1]},
    },
    "state": {
        "description": "Only list users in this state. A disabled user is `disabled` even if their access has expired.",
        "schema": {"type": "string", "enum": STATES},
    },
    "expires_before": {
        "description": "Only list users whose access expires before this time, or has already expired.",
        "schema": {"type": "string", "format": "date-time"},
    },
    "metadata": {
        "description": "`metadata.customer=cus_123` only lists users whose metadata has this value for the key"
        " `customer`. Numbers, true and false are compared by their JSON text. Only one key is allowed.",
        "style": "form",
        "explode": True,
        "schema": {
            "type": "object",
            "maxProperties": 1,
            "patternProperties": {r"^metadata\.[^\u0000]": {"type": "string", "pattern": r"^[^\u0000]*$"}},
            "additionalProperties": False,
        },
    },
    "q": {
        "description": "Only list users with this text in their username or e-mail address, ignoring case: at least two"
        " characters, or empty for all users.",
        "schema": {
            "type": "string",
            "pattern": patterns.SEARCH,
            "maxLength": MAX_USERNAME_CHARS,
        },
    },
    "plan": {
        "description": "Only list users with this plan; `none` for users without a plan of their own.",
        "schema": {"type": "string", "pattern": patterns.PLAN_NAME},
    },
    "email": {
        "description": "Only list users with this e-mail address, ignoring case.",
        "schema": {"type": "string", "pattern": patterns.VISIBLE, "maxLength": MAX_EMAIL_CHARS},
    },
    "order": {
        "description": "The order of the list. A leading `-` reverses it. By default, the list is sorted by id.",
        "schema": {"type": "string", "enum": [sign + order for order in LIST_ORDERS for sign in ("", "-")]},
    },
    "before": {
        "description": "`previous` of the next page. Only in lists with an `order`, and without `after`.",
        "schema": {"type": "string"},
    },
    "cost": {
        "description": "0 checks without counting the request.",
        "schema": {"type": "integer", "enum": [0, 1], "default": 1},
    },
    "user_id": {"description": "Only list changes to this user, even if they have since been removed.", "schema": _ID},
    "action": {"description": "Only list this action.", "schema": {"type": "string", "enum": list(ACTIONS)}},
    "actor": {
        "description": "Only list changes by this actor.",
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_ACTOR_CHARS},
        "example": "manager alice",
    },
    "since": {"description": "Only list changes at this time or later.", "schema": _TIME},
    "until": {"description": "Only list changes before this time.", "schema": _TIME},
    "limit": {
        "description": "Maximum number of items on the page.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE, "default": DEFAULT_PAGE_SIZE},
    },
    "after": {"description": "`next` of the previous page. Omit it for the first page.", "schema": _ID},
    "from": {
        "description": f"The first day, in UTC. By default, the range has {DEFAULT_USAGE_DAYS} days.",
        "schema": _DAY,
        "example": examples.USAGE.day.isoformat(),
    },
    "to": {
        "description": "The last day of the range, in UTC. By default, today. It must not be before `from`.",
        "schema": _DAY,
        "example": examples.USAGE.day.isoformat(),
    },
}
_QUERY_PARAMETERS_OF_OPERATIONS: Mapping[tuple[str, str], Schema] = {
    ("list_users", "after"): {
        "description": "`next` of the previous page: a number, or with an `order` a text. Omit it for the first page.",
        "schema": {"type": "string"},
    },
    ("usage", "after"): {
        **_QUERY_PARAMETERS["after"],
        "schema": {"type": "string", "pattern": patterns.USAGE_POSITION},
        "example": str(examples.USAGE.position),
    },
}
"""The parameters that differ from others of the same name, by the name of the operation."""
_HEADERS: Mapping[str, Schema] = {
    "Accept-Encoding": {
        "description": "Present if the body is compressed.",
        "schema": {"type": "string", "const": "identity"},
    },
    "Allow": {"description": "Methods that this path supports.", "schema": {"type": "string"}},
    "Cache-Control": {"description": "Not cacheable.", "schema": {"type": "string", "const": "no-store"}},
    "Pragma": {
        "description": "Present if the request is a form (RFC 6749, 5.1).",
        "schema": {"type": "string", "const": "no-cache"},
    },
    "RateLimit": {
        "description": "For each limit of the user's plan, the number of requests or units that remain (`r`), and the"
        " number of seconds until the window ends (`t`). Present if the plan has limits.",
        "schema": {"type": "string"},
        "example": '"requests per minute";r=59;t=34',
    },
    "RateLimit-Policy": {
        "description": "The limits of the user's plan: the number of requests or units (`q`) in each window of `w`"
        " seconds. Present if the plan has limits.",
        "schema": {"type": "string"},
        "example": '"requests per minute";q=60;w=60',
    },
    "Retry-After": {"description": "Seconds to wait before retrying.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {
        "description": "Authentication scheme. `error` is present if the request contains a credential.",
        "schema": {"type": "string", "enum": ["Bearer", 'Bearer error="invalid_token"']},
    },
    "X-Auth-Request-Plan": {
        "description": "The plan whose limits apply to the user, percent-encoded in UTF-8. Present if there is one.",
        "schema": {"type": "string"},
        "example": "free",
    },
    "X-Auth-Request-User": {
        "description": "Username, percent-encoded in UTF-8.",
        "schema": {"type": "string"},
        "example": "ada",
    },
    "X-Auth-Request-User-Id": {"description": "Id of the user.", "schema": {"type": "integer", "minimum": 1}},
    "X-Request-Id": {
        "description": "Id of the request in the log and in the audit trail.",
        "schema": {"type": "string"},
    },
}
_HEADERS_OF_ALL_RESPONSES = {"Cache-Control", "X-Request-Id"}
_OPTIONAL_HEADERS = {"Accept-Encoding", "Pragma", "RateLimit", "RateLimit-Policy", "X-Auth-Request-Plan"}
_SECURITY_SCHEMES: Mapping[str, Schema] = {
    "adminToken": {
        "type": "http",
        "scheme": "bearer",
        "description": "The value of the setting `secrets.admin_token`, or the token of a manager from `mlapi managers"
        " add`. A manager with the role `viewer` may only read. If the setting is empty in the development profile,"
        " programs on the same machine need no token, and neither does the documentation page at `/docs`. Managers who"
        " are signed in to the console need none on that page either.",
    },
    "userToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The `token` from `POST /token`. It is valid until it expires, it is revoked, or its user is"
        " disabled.",
    },
    "userLogin": {
        "type": "oauth2",
        "flows": {"password": {"tokenUrl": "token", "scopes": {}}},
        "description": "Log in with a username and password. Leave the client id and the client secret empty.",
    },
    "apiKeyHeader": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same as `apiKey`."},
    "apiKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "The `key` from `POST /users/{user_id}/keys`. It is valid until it expires, is removed, or its"
        " user is disabled.",
    },
}
_DESCRIPTION = (
    "Manages the users of a machine-learning API: registers, authenticates, enables and disables them. "
    "When a user is disabled, their next request is rejected, even if they have a valid token.\n\n"
    "Request and response bodies are JSON in UTF-8. Request bodies are limited to 16 KiB. Invalid input changes"
    " nothing, and the response lists the errors."
)
_RESPONSE_TYPES: Mapping[type[MlapiError], type[ResponseBody]] = {
    InvalidFieldsError: InvalidInput,
    UserExistsError: UserMessage,
}


@attrs.frozen
class DescribedAccess:
    """The parts of the configuration that change the description.

    Attributes:
        local: whether programs on this machine may manage users without the admin token.
        open_if: the flags of `AdminPolicy` that are true.
    """

    local: bool = False
    open_if: frozenset[str] = frozenset({"registration_open"})

    def is_optional(self, operation: Operation) -> bool:
        """Return whether the admin token is optional."""
        return operation.callers.needs_admin and (self.local or operation.callers.open_if in self.open_if)


@cache
def openapi(access: DescribedAccess = DescribedAccess()) -> bytes:
    """Return the OpenAPI document as JSON. Its server URL is relative to the URL that serves it."""
    body_types = [body_type for operation in OPERATIONS for body_type in operation.body_types]
    (*_, schemas) = msgspec.json.schema_components(
        [*dict.fromkeys(body_types), InvalidInput],
        ref_template="#/components/schemas/{name}",
        schema_hook=describe_expiry,
    )
    schemas[UpdateUserRequest.__name__]["minProperties"] = 1  # see `UpdateUserRequest.get_changes`
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.openapi_path, {})[operation.method.lower()] = _describe(operation, access)
    document = {
        "openapi": "3.1.1",
        "info": {
            "title": "mlapi",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": ".", "description": "The server that provides this description."}],
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in OPERATIONS)],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": _SECURITY_SCHEMES,
            "headers": {
                name: {**header, "required": name not in _OPTIONAL_HEADERS} for name, header in _HEADERS.items()
            },
        },
    }
    return msgspec.json.encode(document)


def _describe(operation: Operation, access: DescribedAccess) -> Schema:
    description: Schema = {
        "operationId": operation.operation_id,
        "summary": operation.summary,
        "tags": [operation.tag],
        "security": [*([{}] if access.is_optional(operation) else []), *operation.callers.security],
        "parameters": [
            *(_describe_parameter("path", name, _PATH_PARAMETERS[name]) for name in operation.path_parameters),
            *(_describe_parameter("query", name, _query_parameter(operation, name)) for name in operation.query),
        ],
        "responses": dict(sorted(_describe_responses(operation))),
    }
    if operation.request is not None:
        content = _json_content(operation.request)
        if operation.form is not None:
            content[FORM.decode("ascii")] = _json_content(operation.form.request)["application/json"]
        description["requestBody"] = {"required": True, "content": content}
    if operation.deprecated:
        description["deprecated"] = True
    return description


def _query_parameter(operation: Operation, name: str) -> Schema:
    return _QUERY_PARAMETERS_OF_OPERATIONS.get((operation.name, name)) or _QUERY_PARAMETERS[name]


def _describe_parameter(location: str, name: str, schema: Schema) -> Schema:
    return {"name": name, "in": location, "required": location == "path", **schema}


def _describe_responses(operation: Operation) -> Iterator[tuple[str, Schema]]:
    yield _describe_success(operation)
    by_status: dict[HTTPStatus, list[type[MlapiError]]] = {}
    for error in operation.all_errors:
        by_status.setdefault(ERRORS[error].status, []).append(error)
    for status, errors in by_status.items():
        error_responses = {
            error.__name__.removesuffix("Error"): error_response(ERRORS[error].example) for error in errors
        }
        response_types = dict.fromkeys(_RESPONSE_TYPES.get(error, Message) for error in errors)
        yield (
            str(status.value),
            {
                "description": " ".join(ERRORS[error].description for error in errors),
                "headers": _header_references(error_responses.values()),
                "content": _json_content(*response_types, responses=error_responses),
            },
        )
    if not operation.any_method:
        method_not_allowed = http_error_response(HTTPStatus.METHOD_NOT_ALLOWED, [("Allow", operation.method)])
        yield _describe_http_error(method_not_allowed, "This path does not support the method.")
    if operation.may_be_disabled:
        yield _describe_http_error(http_error_response(HTTPStatus.NOT_FOUND), "This operation is disabled.")


def _describe_success(operation: Operation) -> tuple[str, Schema]:
    success = operation.success
    examples = {"Success": success}
    form_responses = []
    if operation.form is not None:
        examples["SuccessOfForm"] = operation.form.success
        form_responses.append(operation.form.response)
    description: Schema = {"description": "Success.", "headers": _header_references(examples.values())}
    if operation.response is not None:
        description["content"] = _json_content(operation.response, *form_responses, responses=examples)
        if success.status == HTTPStatus.CREATED:
            description["links"] = _links(operation.response)
    elif success.body:
        media_type = success.media_type.partition(";")[0]
        description["content"] = {media_type: {"schema": {"type": "string"}}}
    return str(success.status.value), description


def _describe_http_error(response: Response, description: str) -> tuple[str, Schema]:
    """Describe an error response from the framework."""
    name = response.status.phrase.title().replace(" ", "")
    content = _json_content(Message, responses={name: response})
    return (
        str(response.status.value),
        {"description": description, "headers": _header_references([response]), "content": content},
    )


def _links(response_type: type[ResponseBody]) -> Schema:
    """Return links to the operations that accept an id from this response."""
    field_names = {field.name for field in msgspec.structs.fields(response_type)}
    return {
        operation.operation_id: {
            "operationId": operation.operation_id,
            "parameters": {
                f"path.{name}": f"$response.body#/{name}" for name in operation.path_parameters if name in field_names
            },
        }
        for operation in OPERATIONS
        if not field_names.isdisjoint(operation.path_parameters)
    }


def _header_references(responses: Iterable[Response]) -> Schema:
    names = _HEADERS_OF_ALL_RESPONSES.union(name for response in responses for name, _ in response.headers)
    return {name: {"$ref": f"#/components/headers/{name}"} for name in sorted(names)}


def _reference(body_type: type[msgspec.Struct]) -> Schema:
    return {"$ref": f"#/components/schemas/{body_type.__name__}"}


def _json_content(*body_types: type[msgspec.Struct], responses: Mapping[str, Response] | None = None) -> Schema:
    references = [_reference(body_type) for body_type in body_types]
    content: Schema = {"schema": references[0] if len(references) == 1 else {"anyOf": references}}
    if responses:
        content["examples"] = {name: {"value": json.loads(response.body)} for name, response in responses.items()}
    return {"application/json": content}
