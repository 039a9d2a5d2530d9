"""The description of our HTTP: that it is OpenAPI, that it is whole, and that its examples are true."""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from mlapi import Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.entrypoints.admin import DOCS_PATH, METRICS_PATH, OPEN_PATHS, OPENAPI_PATH, REGISTRATION_PATH
from mlapi.entrypoints.console import CONSOLE_PATH
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.wire import requests, responses
from mlapi.entrypoints.wire.openapi import ANYBODY, ANYBODY_IF_OPEN, MANAGERS, OPERATIONS, Operation, openapi
from mlapi.entrypoints.wire.queries import AUDIT_PARAMETERS, USERS_PARAMETERS

DOCUMENT: dict[str, Any] = json.loads(openapi())
PAGES = (CONSOLE_PATH, DOCS_PATH, OPENAPI_PATH)
"""For people, or what describes the others: not described."""


def named(operation: Operation) -> str:
    return operation.name


def described(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][operation.path][operation.method.lower()]
    return found


def is_valid(value: object, schema: object) -> bool:
    whole = {"allOf": [schema], "components": DOCUMENT["components"]}  # where its references lead
    return bool(OAS31Validator(whole, format_checker=OAS31Validator.FORMAT_CHECKER).is_valid(value))


def contents(operation: Operation) -> Iterator[dict[str, Any]]:
    """Each body of an operation, asked or answered."""
    about = described(operation)
    for response in (*about["responses"].values(), about.get("requestBody", {})):
        yield from response.get("content", {}).values()


# --- it is OpenAPI


def test_it_is_openapi() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_nothing_is_described_that_nothing_refers_to() -> None:
    text = openapi().decode()

    unused = [
        f"{kind}/{name}"
        for kind in ("schemas", "headers")
        for name in DOCUMENT["components"][kind]
        if f'"#/components/{kind}/{name}"' not in text
    ]
    assert unused == []


def test_names_of_operations_are_unique() -> None:
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)


# --- it is whole


def test_every_route_is_described_and_nothing_else() -> None:
    routes = {
        (method, re.sub(r":\w+}", "}", route.path))
        for route in create_app().routes
        if isinstance(route, Route) and not f"{route.path}/".startswith(tuple(f"{page}/" for page in PAGES))
        for method in route.methods or ()
    }

    without_head = {(method, path) for method, path in routes if method != "HEAD"}  # which each GET brings
    assert without_head == {(operation.method, operation.path) for operation in OPERATIONS}


def test_who_may_call_is_who_management_lets_through() -> None:
    if_open = {operation.path for operation in OPERATIONS if operation.callers is ANYBODY_IF_OPEN}
    for_managers = {operation.path for operation in OPERATIONS if operation.callers is MANAGERS}
    others = {operation.path for operation in OPERATIONS} - if_open - for_managers

    assert if_open == {REGISTRATION_PATH, METRICS_PATH}
    assert others == {*OPEN_PATHS, requests.TOKEN_PATH_PREFIX + "{token}"}


def test_every_error_ends_some_operation() -> None:
    assert {error for operation in OPERATIONS for error in operation.all_refusals} == set(responses.STATUS_BY_ERROR)


@pytest.mark.parametrize("operation", OPERATIONS, ids=named)
def test_every_status_of_an_error_is_described(operation: Operation) -> None:
    statuses = {responses.STATUS_BY_ERROR[error].value for error in operation.all_refusals}

    expected = {*statuses, operation.done.status.value, 405, *([404] if operation.may_be_closed else [])}
    assert set(described(operation)["responses"]) == {str(status) for status in expected}


def test_every_parameter_of_a_query_is_described() -> None:
    queries = {operation.path: operation.query for operation in OPERATIONS if operation.query}

    assert queries == {"/users": tuple(USERS_PARAMETERS), "/audit": tuple(AUDIT_PARAMETERS)}


def test_the_headers_that_a_client_needs_are_described() -> None:
    responses = DOCUMENT["paths"]["/token"]["post"]["responses"]

    headers = {
        status: set(response["headers"]) - {"Cache-Control", "X-Request-Id"} for status, response in responses.items()
    }
    assert {status: names for status, names in headers.items() if names} == {
        "401": {"WWW-Authenticate"},
        "405": {"Allow"},
        "429": {"Retry-After"},
        "503": {"Retry-After"},
    }


def test_what_is_open_asks_for_no_credential() -> None:
    asked = [described(operation)["security"] for operation in OPERATIONS if operation.callers is ANYBODY]

    assert asked == [[]] * len(asked)


def test_a_new_user_leads_to_what_can_be_done_with_him() -> None:
    links = DOCUMENT["paths"]["/register-user"]["post"]["responses"]["201"]["links"]

    assert links["setPermission"] == {
        "operationId": "setPermission",
        "parameters": {"path.user_id": "$response.body#/user_id"},
    }


# --- its examples are true


@pytest.mark.parametrize("operation", OPERATIONS, ids=named)
def test_every_example_keeps_its_schema(operation: Operation) -> None:
    broken = [
        example
        for content in contents(operation)
        for example in content.get("examples", {}).values()
        if not is_valid(example["value"], content["schema"])
    ]

    assert broken == []


@pytest.mark.parametrize("operation", OPERATIONS, ids=named)
def test_every_example_of_a_parameter_keeps_its_schema(operation: Operation) -> None:
    examples = [
        (about["example"], about["schema"]) for about in described(operation)["parameters"] if "example" in about
    ]

    assert all(is_valid(example, schema) for example, schema in examples)


@pytest.mark.parametrize("shape", DOCUMENT["components"]["schemas"].values(), ids=DOCUMENT["components"]["schemas"])
def test_every_example_of_a_field_keeps_its_schema(shape: dict[str, Any]) -> None:
    broken = [
        (name, example)
        for name, field in shape["properties"].items()
        for example in field.get("examples", [])
        if not is_valid(example, field)
    ]

    assert broken == []


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.shape is not None], ids=named)
def test_what_is_described_is_what_is_encoded(operation: Operation) -> None:
    assert operation.shape is not None

    decoded = msgspec.json.decode(operation.done.body, type=operation.shape)
    assert msgspec.json.encode(decoded) == operation.done.body


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.body is not None], ids=named)
def test_a_body_of_examples_is_taken(operation: Operation) -> None:
    assert operation.body is not None
    fields = DOCUMENT["components"]["schemas"][operation.body.__name__]["properties"]

    body = {name: field["examples"][0] for name, field in fields.items()}
    assert isinstance(requests.decode(json.dumps(body).encode(), operation.body), operation.body)


def test_the_example_of_a_registration_is_registered() -> None:
    fields = DOCUMENT["components"]["schemas"]["RegisterRequest"]["properties"]
    users = Users(InMemoryUserRepository(), PlainCipher())

    user = users.register(**{name: field["examples"][0] for name, field in fields.items()})
    assert user.username == "ada"


# --- nothing of it is secret


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.shape is not None], ids=named)
def test_an_answer_shows_nothing_when_it_is_printed(operation: Operation) -> None:
    assert operation.shape is not None

    decoded = msgspec.json.decode(operation.done.body, type=operation.shape)
    assert repr(decoded) == f"{operation.shape.__name__}(...)"
    assert operation.done.body.decode() not in repr(operation.done)
