"""Get the parts of a request that handlers need."""

from typing import TypeVar

from starlette.requests import Request

from mlapi.application.deadlines import PausedDeadline
from mlapi.application.usage_reports import find_last_seen, iterate_usage
from mlapi.application.users import Users
from mlapi.domain.credentials import looks_like_api_key
from mlapi.domain.usage import DayRange, UsageRepository
from mlapi.domain.users import User, UserId, utc_now
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http.middleware import MANAGER, RUNTIME
from mlapi.entrypoints.http.runtime import Runtime
from mlapi.entrypoints.wire import queries, reports, requests
from mlapi.entrypoints.wire.errors import (
    MAX_BODY_BYTES,
    ApiKeyNotAcceptedError,
    MissingCredentialError,
    TokenRequiredError,
)
from mlapi.entrypoints.wire.headers import get_bearer_credential, validate_content_headers
from mlapi.entrypoints.wire.responses import Response

T = TypeVar("T")


def get_runtime(request: Request) -> Runtime:
    runtime: Runtime = request.scope[RUNTIME]
    return runtime


def get_admin_policy(request: Request) -> AdminPolicy:
    admin_policy: AdminPolicy = request.scope["app"].state.admin_policy
    return admin_policy


def users_as_manager(request: Request) -> Users:
    """Return the users, with the manager who sent the request as the actor in the audit trail."""
    return get_runtime(request).as_actor(request.scope[MANAGER].actor)


def get_user_id(request: Request) -> UserId:
    return requests.parse_user_id(request.path_params["user_id"])


def get_credential(request: Request) -> str:
    return get_bearer_credential(request.scope["headers"], accept_bare=get_runtime(request).guard.accept_bare)


async def decode_body(request: Request, body_type: type[T]) -> T:
    validate_content_headers(request.scope["headers"])
    return requests.decode(await read_body(request), body_type)


async def read_body(request: Request, *, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    with PausedDeadline():
        return await requests.read_body(request.stream(), max_bytes=max_bytes)


async def find_user_with_token(request: Request) -> User:
    """Return the user that the token belongs to.

    API keys are rejected, because a key that leaks from a client must not be enough to take over the account.
    """
    try:
        credential = get_credential(request)
    except MissingCredentialError:
        raise TokenRequiredError from None
    if looks_like_api_key(credential):
        raise ApiKeyNotAcceptedError
    return await get_runtime(request).guard.identify(credential)


def parse_days(request: Request) -> DayRange:
    return queries.parse_user_usage_query(request.scope["query_string"], today=utc_now().date())


def read_usage(usage: UsageRepository, user_id: UserId, days: DayRange) -> Response:
    """Return the usage of a user. Encoding many rows takes some time, so call this in a thread."""
    return reports.user_usage(iterate_usage(usage, days, user_id), find_last_seen(usage, user_id))
