"""JSON response bodies, and a function for each successful response. For errors, see `error_responses`."""

from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

import attrs
import msgspec

from mlapi.application.admissions import Admission
from mlapi.domain.credentials import ApiKey, IssuedToken
from mlapi.domain.errors import FieldError
from mlapi.domain.links import Link
from mlapi.domain.users import User, UserState, utc_now
from mlapi.entrypoints.wire.rate_limits import rate_limit_headers

NO_STORE = (("Cache-Control", "no-store"),)  # for responses with credentials or personal data: RFC 6749, 5.1
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus, "Exposition formats", text-based format

# Constraints on response fields are only documentation: msgspec does not validate values when it encodes them.
_ID = msgspec.Meta(ge=1, description="Never reused.", examples=[1], extra_json_schema={"format": "int64"})
UserNumber = Annotated[int, _ID]
Time = Annotated[datetime, msgspec.Meta(tz=True)]
KeyNumber = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$", examples=["0123456789abcdef"])]
State = Annotated[
    UserState, msgspec.Meta(description="Whether the user has access. Disabled users are not shown as expired.")
]
Expiry = Annotated[
    Time | None, msgspec.Meta(description="When access expires, or has expired. Null if it never expires.")
]
PlanName = Annotated[str | None, msgspec.Meta(description="Null if the default plan applies.")]
Next = Annotated[
    int | None, msgspec.Meta(description="The value of `after` for the next page. Null if this is the last page.")
]
LastSeen = Annotated[
    Time | None,
    msgspec.Meta(description="The time of the latest request that was admitted, in UTC. Null if there was none."),
]
Count = Annotated[int, msgspec.Meta(ge=0, extra_json_schema={"format": "int64"})]


class ResponseBody(msgspec.Struct, frozen=True):
    """The JSON body of a response. Keys keep the order of the fields. The repr omits values, which may be tokens."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class Message(ResponseBody, frozen=True):
    """The result, or the error message."""

    message: str


class StartPage(Message, frozen=True, omit_defaults=True):
    """The paths of the service's pages. ``account`` is missing if it is turned off."""

    console: str
    docs: str
    openapi: str
    account: str | None = None


class UserMessage(Message, frozen=True):
    """The result or the error message, and the id of the user."""

    user_id: UserNumber


class Registered(UserMessage, frozen=True, omit_defaults=True):
    """The result, and the id of the new user. ``state`` is present only if the user is pending."""

    state: Annotated[
        Literal["pending"] | None,
        msgspec.Meta(description="Present if the user must first verify their address, or be approved by a manager."),
    ] = None


class PasswordLink(ResponseBody, frozen=True):
    """A one-time link that lets the user set a new password."""

    url: Annotated[
        str,
        msgspec.Meta(
            description="Shown only once. Anyone who has it can set the password.",
            examples=["https://api.example.com/links/mlapi-link_0123456789abcdef_..."],
        ),
    ]
    expires_at: Time


class LinkUsed(UserMessage, frozen=True):
    """The result, and the user whose password was set."""

    username: str


class InvalidInput(Message, frozen=True):
    """Every invalid field, with the rule that it violates. The values are not repeated."""

    errors: Sequence[FieldError]


class Token(ResponseBody, frozen=True):
    """A token. It is valid until it expires, it is revoked, or its user is disabled."""

    token: str
    token_type: Literal["bearer"]
    expires_in: Annotated[int, msgspec.Meta(ge=1, description="Lifetime in seconds.")]


class OAuthToken(ResponseBody, frozen=True):
    """A token, in the form that OAuth clients expect (RFC 6749, 5.1)."""

    access_token: str
    token_type: Literal["bearer"]
    expires_in: Annotated[int, msgspec.Meta(ge=1, description="Lifetime in seconds.")]


class OwnUserResponse(ResponseBody, frozen=True):
    """A user. Times are in UTC; the password is never returned."""

    user_id: UserNumber
    username: str
    email: str
    enabled: bool
    created_datetime: Time
    updated_datetime: Time
    state: State
    expires_at: Expiry
    plan: PlanName

    @classmethod
    def from_user(cls, user: User, at: datetime) -> Self:
        """Return the response about a user at this time."""
        return cls(**_user_fields(user, at))


class UserResponse(OwnUserResponse, frozen=True):
    """A user, with the fields that only admins see. Times are in UTC; the password is never returned."""

    metadata: Annotated[msgspec.Raw, msgspec.Meta(description="May be empty.", extra_json_schema={"type": "object"})]

    @classmethod
    def from_user(cls, user: User, at: datetime) -> Self:
        return cls(**_user_fields(user, at), metadata=msgspec.Raw((user.metadata.value or "{}").encode()))


def _user_fields(user: User, at: datetime) -> dict[str, Any]:
    return {
        "user_id": user.id,
        "username": user.username,
        "email": user.email,
        "enabled": user.enabled,
        "created_datetime": user.created_datetime,
        "updated_datetime": user.updated_datetime,
        "state": user.state_at(at),
        "expires_at": user.expires_datetime,
        "plan": user.plan,
    }


class ShownUserResponse(UserResponse, frozen=True):
    """A user, and when their latest request was. Times are in UTC; the password is never returned."""

    last_seen: LastSeen

    @classmethod
    def from_user_and_time(cls, user: User, at: datetime, last_seen: datetime | None) -> Self:
        return cls(**msgspec.structs.asdict(UserResponse.from_user(user, at)), last_seen=last_seen)


class ApiKeyResponse(ResponseBody, frozen=True):
    """An API key, without its secret. Times are in UTC."""

    key_id: KeyNumber
    name: str
    created_at: Time
    expires_at: Time | None
    last_used_at: Annotated[Time | None, msgspec.Meta(description="Updated at most once a minute.")]

    @classmethod
    def from_api_key(cls, key: ApiKey) -> Self:
        return cls(
            key_id=key.id,
            name=key.name,
            created_at=key.created_datetime,
            expires_at=key.expires_datetime,
            last_used_at=key.last_used_datetime,
        )


class ApiKeys(ResponseBody, frozen=True):
    """The API keys of a user, oldest first."""

    keys: list[ApiKeyResponse]


class NewApiKeyResponse(ResponseBody, frozen=True):
    """A new API key. `key` is the secret that clients send. Only this response contains it."""

    message: str
    key: Annotated[str, msgspec.Meta(pattern="^mlapi_[0-9a-f]{16}_[0-9a-f]{64}$")]
    key_id: KeyNumber
    name: str
    created_at: Time
    expires_at: Time | None
    last_used_at: Time | None


@attrs.frozen
class Response:
    """A response. If its body is empty, it has no Content-Type."""

    status: HTTPStatus
    body: bytes = attrs.field(repr=False)
    headers: tuple[tuple[str, str], ...] = ()
    media_type: str = "application/json"


_encode = msgspec.json.Encoder().encode


def json_response(status: HTTPStatus, body: ResponseBody, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """Return a JSON response with this body."""
    return Response(status, _encode(body), headers)


# --- successes


def user_registered(user: User) -> Response:
    state: Literal["pending"] | None = None if user.pending is None else "pending"
    return json_response(HTTPStatus.CREATED, Registered("User created successfully", user.id, state))


def user_invited(user: User, now: datetime) -> Response:
    return json_response(HTTPStatus.CREATED, UserResponse.from_user(user, now), NO_STORE)


def password_link(link: Link, url: str) -> Response:
    return json_response(HTTPStatus.CREATED, PasswordLink(url, link.expires_datetime), NO_STORE)


def link_used(user: User) -> Response:
    return json_response(HTTPStatus.OK, LinkUsed("Password updated successfully", user.id, user.username), NO_STORE)


def reset_requested() -> Response:
    """Return the same response whether the user exists or not."""
    message = "If this user exists, they get a mail with a link"
    return json_response(HTTPStatus.ACCEPTED, Message(message), NO_STORE)


def permission_updated(user: User) -> Response:
    return json_response(HTTPStatus.OK, UserMessage("User permission updated successfully", user.id))


def user_removed(_user: User) -> Response:
    return json_response(HTTPStatus.OK, Message("User deleted successfully"))


def token_issued(issued: IssuedToken) -> Response:
    return json_response(HTTPStatus.OK, Token(issued.token, "bearer", issued.expires_in), NO_STORE)


def oauth_token_issued(issued: IssuedToken) -> Response:
    body = OAuthToken(issued.token, "bearer", issued.expires_in)
    return json_response(HTTPStatus.OK, body, (*NO_STORE, ("Pragma", "no-cache")))


def token_valid(_user: User) -> Response:
    return json_response(HTTPStatus.OK, Message("Token is valid"))


def admitted(admission: Admission) -> Response:
    """Return the response of ``/verify``. Values are percent-encoded UTF-8, because headers are ASCII.

    The body is empty: proxies ignore it, and Caddy would close the connection instead of reading it.
    """
    user = admission.user
    headers = (
        *NO_STORE,
        ("X-Auth-Request-User-Id", str(user.id)),
        ("X-Auth-Request-User", quote(user.username, safe="")),
        *([] if user.plan is None else [("X-Auth-Request-Plan", quote(user.plan, safe=""))]),
        *rate_limit_headers(admission.limits),
    )
    return Response(HTTPStatus.OK, b"", headers)


def password_changed(_user: User) -> Response:
    return Response(HTTPStatus.NO_CONTENT, b"")


def tokens_ended(user: User) -> Response:
    return json_response(HTTPStatus.OK, UserMessage("Tokens ended successfully", user.id))


def api_key_added(key: ApiKey, secret: str) -> Response:
    """Return the response for a new API key. No other response contains the secret."""
    fields = msgspec.structs.asdict(ApiKeyResponse.from_api_key(key))
    return json_response(HTTPStatus.CREATED, NewApiKeyResponse("Key created successfully", secret, **fields), NO_STORE)


def api_keys(keys: Sequence[ApiKey]) -> Response:
    return json_response(HTTPStatus.OK, ApiKeys([ApiKeyResponse.from_api_key(key) for key in keys]), NO_STORE)


def api_key_removed(_key: ApiKey) -> Response:
    return json_response(HTTPStatus.OK, Message("Key deleted successfully"))


def user(found: User, at: datetime | None = None) -> Response:
    """Return a user, with their state at this time (by default, now)."""
    return json_response(HTTPStatus.OK, UserResponse.from_user(found, at or utc_now()), NO_STORE)


def shown_user(found: User, at: datetime, last_seen: datetime | None) -> Response:
    return json_response(HTTPStatus.OK, ShownUserResponse.from_user_and_time(found, at, last_seen), NO_STORE)


def own_user(found: User, at: datetime) -> Response:
    return json_response(HTTPStatus.OK, OwnUserResponse.from_user(found, at), NO_STORE)


def metrics(exposition: bytes) -> Response:
    return Response(HTTPStatus.OK, exposition, media_type=PROMETHEUS_TEXT)


def alive() -> Response:
    return json_response(HTTPStatus.OK, Message("Alive"))


def start_page(*, console: str, docs: str, openapi: str, account: str | None) -> Response:
    message = "mlapi keeps the users of a machine-learning API"
    return json_response(
        HTTPStatus.OK, StartPage(message, console=console, docs=docs, openapi=openapi, account=account)
    )


def ready() -> Response:
    return json_response(HTTPStatus.OK, Message("Ready"))
