"""What the contract suite sees is what the description says: status, headers and body of every answer."""

import json
import re
from typing import Any

import httpx2
from openapi_schema_validator import OAS31Validator

from mlapi import Users
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.wire.openapi import openapi
from mlapi.entrypoints.wire.operations import OPERATIONS
from mlapi.testing import HttpContract
from tests.contract.test_http import asgi_client

DOCUMENT: dict[str, Any] = json.loads(openapi())
PATHS = {
    path: re.compile(re.sub(r"{\w+}", "[^/]+", path)) for path in dict.fromkeys(one.openapi_path for one in OPERATIONS)
}


class TestDescribed(HttpContract):
    def client(self, users: Users, management: AdminPolicy) -> httpx2.Client:
        client = asgi_client(create_app(users, management))
        client.event_hooks = {"response": [assert_described]}
        return client


def assert_described(response: httpx2.Response) -> None:
    """Fail unless an operation of the path describes the answer; paths that nobody has need no description."""
    path = response.request.url.raw_path.decode().partition("?")[0]
    method = response.request.method.lower()
    for described in (DOCUMENT["paths"][known] for known, pattern in PATHS.items() if pattern.fullmatch(path)):
        # No operation is asked for by another method than those of the path: any of them tells of 405 and of callers.
        operation = described.get(method) or next(iter(described.values()))
        answer = operation["responses"][str(response.status_code)]
        response.read()
        for name in answer["headers"]:
            schema = DOCUMENT["components"]["headers"][name]["schema"]
            value = response.headers[name]
            OAS31Validator(schema).validate(int(value) if schema["type"] == "integer" else value)
        schema = {**answer["content"]["application/json"]["schema"], "components": DOCUMENT["components"]}
        OAS31Validator(schema, format_checker=OAS31Validator.FORMAT_CHECKER).validate(response.json())
