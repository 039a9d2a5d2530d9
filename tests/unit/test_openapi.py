"""The operation table and the OpenAPI description are complete, match the routes and have valid examples."""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Match, Route

from mlapi import Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.domain.errors import ManagerExistsError, ManagerNotFoundError, UserChangedError
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.http.handlers import HANDLERS
from mlapi.entrypoints.http.middleware import Endpoint
from mlapi.entrypoints.wire import requests
from mlapi.entrypoints.wire.callers import ANYONE
from mlapi.entrypoints.wire.error_responses import ERRORS
from mlapi.entrypoints.wire.openapi import DescribedAccess, openapi
from mlapi.entrypoints.wire.operation import Operation
from mlapi.entrypoints.wire.operations import OPERATIONS
from mlapi.entrypoints.wire.paths import ACCOUNT_PATH, CONSOLE_PATH, DOCS_PATH, LINKS_PATH, OPENAPI_PATH, START_PATH
from mlapi.entrypoints.wire.queries import (
    AUDIT_PARAMETERS,
    DAYS_PARAMETERS,
    USAGE_PARAMETERS,
    USERS_PARAMETERS,
    VERIFY_PARAMETERS,
)

DOCUMENT: dict[str, Any] = json.loads(openapi())
PAGES = (CONSOLE_PATH, ACCOUNT_PATH, LINKS_PATH, DOCS_PATH, OPENAPI_PATH)
"""Routes without an operation: web pages and the description itself."""
ANY_METHOD = ("GET",)
"""The method in the description of operations that accept every method."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def operation_id(operation: Operation) -> str:
    return operation.operation_id


def description_of(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][operation.openapi_path][operation.method.lower()]
    return found


def is_valid(value: object, schema: object) -> bool:
    schema_with_references = {"allOf": [schema], "components": DOCUMENT["components"]}
    validator = OAS31Validator(schema_with_references, format_checker=OAS31Validator.FORMAT_CHECKER)
    return bool(validator.is_valid(value))


def contents(operation: Operation) -> Iterator[dict[str, Any]]:
    """Yield the descriptions of an operation's request and response bodies."""
    description = description_of(operation)
    for response in (*description["responses"].values(), description.get("requestBody", {})):
        yield from response.get("content", {}).values()


def operation_routes() -> list[Route]:
    return [
        route
        for route in create_app().routes
        if isinstance(route, Route)
        and route.path != START_PATH
        and not f"{route.path}/".startswith(tuple(f"{page}/" for page in PAGES))
    ]


ERRORS_OF_PAGES = {ManagerExistsError, ManagerNotFoundError, UserChangedError}
"""The errors that only the console and the command line raise."""

# --- the document is valid


def test_document_is_valid_openapi() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_every_component_is_referenced() -> None:
    text = openapi().decode()

    unused = [
        f"{kind}/{name}"
        for kind in ("schemas", "headers")
        for name in DOCUMENT["components"][kind]
        if f'"#/components/{kind}/{name}"' not in text
    ]
    assert unused == []


def test_operation_names_are_unique() -> None:
    assert len({operation.operation_id for operation in OPERATIONS}) == len(OPERATIONS)
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)


# --- the table is complete


def test_every_operation_has_a_handler_and_vice_versa() -> None:
    assert set(HANDLERS) == {operation.name for operation in OPERATIONS}


def test_every_route_has_an_operation_and_vice_versa() -> None:
    routes = {(method, route.path) for route in operation_routes() for method in route.methods or ANY_METHOD}

    without_head = {(method, path) for method, path in routes if method != "HEAD"}  # Starlette adds HEAD to GET
    assert without_head == {(operation.method, operation.path) for operation in OPERATIONS}
    described = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert described == {(operation.method, operation.openapi_path) for operation in OPERATIONS}


def test_only_the_listed_operations_are_open_to_non_admins() -> None:
    open_if = {operation.path: operation.callers.open_if for operation in OPERATIONS if operation.callers.open_if}
    open_paths = {operation.path for operation in OPERATIONS if not operation.callers.needs_admin}

    assert open_if == {"/register-user": "registration_open", "/metrics": "metrics_open"}
    assert open_paths == {
        "/health/live",
        "/health/ready",
        "/password-link",
        "/password-reset",
        "/token",
        "/token_status",
        "/token_status/{token:path}",
        "/verify",
        "/users/me",
        "/users/me/keys",
        "/users/me/keys/{key_id}",
        "/users/me/password",
        "/users/me/tokens",
        "/users/me/usage",
    }


@pytest.mark.parametrize("operation", OPERATIONS, ids=operation_id)
def test_operations_on_a_path_have_the_same_access_rule(operation: Operation) -> None:
    """`AdminPolicy` decides by path: an open operation must not give access to other methods of its path."""
    same_path = [other for other in OPERATIONS if other.path == operation.path]

    assert {(other.callers.needs_admin, other.callers.open_if) for other in same_path} == {
        (operation.callers.needs_admin, operation.callers.open_if)
    }


@pytest.mark.parametrize(
    "operation", [operation for operation in OPERATIONS if not operation.callers.needs_admin], ids=operation_id
)
@pytest.mark.parametrize("method", METHODS)
def test_open_path_is_never_routed_to_an_admin_operation(operation: Operation, method: str) -> None:
    """``/users/me`` is open, but also matches ``/users/{user_id}``, which needs admin access."""
    scope = {"type": "http", "method": method, "path": re.sub(r"{\w+(:path)?}", "1", operation.path), "headers": []}

    matching = [route for route in operation_routes() if route.matches(scope)[0] is Match.FULL]
    admin_paths = {other.path for other in OPERATIONS if other.callers.needs_admin}
    assert not matching or matching[0].path not in admin_paths


def test_path_patterns_match_the_paths_of_their_operation() -> None:
    patterns = {operation.operation_id: operation.path_pattern for operation in OPERATIONS}

    assert re.fullmatch(patterns["showUser"], "/users/1")
    assert not re.fullmatch(patterns["showUser"], "/users/1/keys")
    assert not re.fullmatch(patterns["showUser"], "/users/")
    assert re.fullmatch(patterns["checkTokenInPath"], "/token_status/a/b")
    assert not re.fullmatch(patterns["checkTokenInPath"], "/token_status")


def test_endpoints_are_named_after_their_handlers() -> None:
    """Endpoint names are metric labels, and users' dashboards refer to them."""
    names = {(route.path, route.endpoint.name) for route in operation_routes() if isinstance(route.endpoint, Endpoint)}

    assert names >= {
        ("/toggle-user-permission/{user_id}/{permission}", "toggle_user_permission"),
        ("/register-user", "register_user"),
        ("/remove-user/{user_id}", "remove_user"),
        ("/token", "token"),
        ("/token_status", "token_status"),
        ("/token_status/{token:path}", "token_status_of_path"),
        ("/password-link", "use_password_link"),
        ("/verify", "verify"),
        ("/users/me", "show_own_user"),
        ("/users/me/password", "change_password"),
        ("/users/me/tokens", "end_own_tokens"),
        ("/users/me/keys/{key_id}", "remove_own_api_key"),
        ("/users/{user_id}/password", "set_password"),
        ("/users/{user_id}/tokens", "end_tokens"),
        ("/keys/{key_id}", "remove_api_key"),
        ("/audit", "audit"),
        ("/metrics", "show_metrics"),
        ("/health/live", "live"),
        ("/health/ready", "ready"),
    }


def test_every_error_belongs_to_an_operation_and_has_an_example() -> None:
    errors = {error for operation in OPERATIONS for error in operation.all_errors}

    assert errors == set(ERRORS) - ERRORS_OF_PAGES


@pytest.mark.parametrize("operation", OPERATIONS, ids=operation_id)
def test_description_lists_the_status_of_every_error(operation: Operation) -> None:
    statuses = {ERRORS[error].status.value for error in operation.all_errors}

    statuses |= {operation.success.status.value}
    statuses |= {404} if operation.may_be_disabled else set()
    expected = statuses if operation.any_method else {*statuses, 405}
    assert set(description_of(operation)["responses"]) == {str(status) for status in expected}


def test_description_lists_every_query_parameter() -> None:
    queries = {operation.path: operation.query for operation in OPERATIONS if operation.query}

    assert queries == {
        "/users": tuple(USERS_PARAMETERS),
        "/audit": tuple(AUDIT_PARAMETERS),
        "/verify": tuple(VERIFY_PARAMETERS),
        "/usage": tuple(USAGE_PARAMETERS),
        "/users/{user_id}/usage": tuple(DAYS_PARAMETERS),
        "/users/me/usage": tuple(DAYS_PARAMETERS),
    }


def test_description_lists_the_headers_that_clients_need() -> None:
    responses = DOCUMENT["paths"]["/token"]["post"]["responses"]

    headers = {
        status: set(response["headers"]) - {"Cache-Control", "X-Request-Id"} for status, response in responses.items()
    }
    assert {status: names for status, names in headers.items() if names} == {
        "200": {"Pragma"},
        "401": {"WWW-Authenticate"},
        "405": {"Allow"},
        "415": {"Accept-Encoding"},
        "429": {"Retry-After"},
        "503": {"Retry-After"},
    }


def test_open_operations_need_no_credential() -> None:
    security = [description_of(operation)["security"] for operation in OPERATIONS if operation.callers is ANYONE]

    assert security == [[]] * len(security)


@pytest.mark.parametrize(
    ("access", "required"),
    [
        (DescribedAccess(), {"listUsers", "showMetrics"}),
        (DescribedAccess(open_if=frozenset()), {"listUsers", "showMetrics", "registerUser"}),
        (DescribedAccess(open_if=frozenset({"metrics_open"})), {"listUsers", "registerUser"}),
        (DescribedAccess(local=True, open_if=frozenset()), set()),
    ],
)
def test_admin_token_is_required_where_the_server_needs_it(access: DescribedAccess, required: set[str]) -> None:
    document = json.loads(openapi(access))
    operations = [operation for path in document["paths"].values() for operation in path.values()]

    found = {
        operation["operationId"]
        for operation in operations
        if {"adminToken": []} in operation["security"] and {} not in operation["security"]
    }
    assert found & {"listUsers", "showMetrics", "registerUser"} == required


def test_registration_links_to_operations_on_the_new_user() -> None:
    links = DOCUMENT["paths"]["/register-user"]["post"]["responses"]["201"]["links"]

    assert links["setPermission"] == {
        "operationId": "setPermission",
        "parameters": {"path.user_id": "$response.body#/user_id"},
    }


# --- the examples are valid


@pytest.mark.parametrize("operation", OPERATIONS, ids=operation_id)
def test_body_examples_match_their_schema(operation: Operation) -> None:
    invalid = [
        example
        for content in contents(operation)
        for example in content.get("examples", {}).values()
        if not is_valid(example["value"], content["schema"])
    ]

    assert invalid == []


@pytest.mark.parametrize("operation", OPERATIONS, ids=operation_id)
def test_parameter_examples_match_their_schema(operation: Operation) -> None:
    parameters = [
        (parameter["example"], parameter["schema"])
        for parameter in description_of(operation)["parameters"]
        if "example" in parameter
    ]

    assert all(is_valid(example, schema) for example, schema in parameters)


@pytest.mark.parametrize("schema", DOCUMENT["components"]["schemas"].values(), ids=DOCUMENT["components"]["schemas"])
def test_field_examples_match_their_schema(schema: dict[str, Any]) -> None:
    invalid = [
        (name, example)
        for name, field in schema["properties"].items()
        for example in field.get("examples", [])
        if not is_valid(example, field)
    ]

    assert invalid == []


@pytest.mark.parametrize(
    "operation", [operation for operation in OPERATIONS if operation.response is not None], ids=operation_id
)
def test_declared_response_type_matches_the_response(operation: Operation) -> None:
    assert operation.response is not None

    decoded = msgspec.json.decode(operation.success.body, type=operation.response)
    assert msgspec.json.encode(decoded) == operation.success.body


@pytest.mark.parametrize(
    "operation", [operation for operation in OPERATIONS if operation.request is not None], ids=operation_id
)
def test_request_built_from_the_examples_is_accepted(operation: Operation) -> None:
    assert operation.request is not None
    fields = DOCUMENT["components"]["schemas"][operation.request.__name__]["properties"]

    body = {name: field["examples"][0] for name, field in fields.items()}
    assert isinstance(requests.decode(json.dumps(body).encode(), operation.request), operation.request)


def test_registration_example_can_be_registered() -> None:
    fields = DOCUMENT["components"]["schemas"]["ManagedRegisterRequest"]["properties"]
    users = Users(InMemoryUserRepository(), PlainCipher())
    example = json.dumps({name: field["examples"][0] for name, field in fields.items()}).encode()

    body = requests.decode(example, requests.ManagedRegisterRequest)
    user = users.register(username=body.username, password=body.password, email=body.email, **body.details)
    assert (user.username, user.state_at(user.created_datetime)) == ("ada", "active")


# --- no secrets in logs and tracebacks


@pytest.mark.parametrize(
    "operation", [operation for operation in OPERATIONS if operation.response is not None], ids=operation_id
)
def test_repr_of_responses_omits_their_content(operation: Operation) -> None:
    assert operation.response is not None

    decoded = msgspec.json.decode(operation.success.body, type=operation.response)
    assert repr(decoded) == f"{operation.response.__name__}(...)"
    assert operation.success.body.decode() not in repr(operation.success)
