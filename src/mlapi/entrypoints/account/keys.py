"""Users create and remove their own API keys."""

import hashlib
import hmac
from http import HTTPStatus

from starlette.responses import Response

from mlapi.domain.credentials import API_KEY_PREFIX, ApiKey, ApiKeyId
from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    ChangeRejectedError,
    InvalidFieldsError,
    TooManyApiKeysError,
)
from mlapi.domain.users import UserId
from mlapi.entrypoints.account.overview import overview_page
from mlapi.entrypoints.account.sessions import AccountSession, signed_in
from mlapi.entrypoints.pages import Notice, PageRequest, redirect, redirect_with_secret, render_page, take_secret
from mlapi.entrypoints.wire.errors import OwnApiKeysDisabledError

_MAX_NONCE_CHARS = 64


async def add_key(request: PageRequest) -> Response:
    """Add a key, and redirect to the page that shows it once."""
    if request.is_safe:
        return redirect(request)
    session, limit = signed_in(request), request.runtime.own_api_keys
    user = session.owner
    if not limit:
        raise OwnApiKeysDisabledError
    if user.state_at(request.users.now()) == "expired":
        return await _rejected(request, "cannot be added, because your access has expired")
    name = request.form.get("name", "")
    try:
        command, secret = request.users.prepare_api_key(
            user_id=user.id, name=name, expires_datetime=None, limit=limit, secret=_derive_secret(request, session)
        )
    except InvalidFieldsError as error:
        return await _rejected(request, error.errors[0].message)
    if not await _has_key(request, command.key):  # otherwise, this is the second click of a double click
        try:
            await request.runtime.executor.apply(command)
        except TooManyApiKeysError:
            return await _rejected(request, f"cannot be added: you have {limit} keys or more. Remove one first")
        except ChangeRejectedError:
            if not await _has_key(request, command.key):
                raise
    path = f"/keys/{command.key.id}"
    return redirect_with_secret(request, path, name=command.key.id, secret=secret)


async def show_key(request: PageRequest) -> Response:
    """Show a new key once, directly after it was added."""
    key = await _find_key(request)
    secret, cookies = take_secret(request, key.id)
    response = render_page(request, "key.html", key=key, secret=secret)
    for cookie in cookies:
        response.headers.append("Set-Cookie", cookie)
    return response


async def remove_key(request: PageRequest) -> Response:
    """Ask for confirmation on GET; remove the key on POST."""
    if request.is_safe:
        return render_page(request, "remove_own_key.html", key=await _find_key(request))
    key_id = ApiKeyId(request.http_request.path_params["key_id"])
    command = request.users.prepare_remove_api_key(key_id, owner=signed_in(request).owner.id)
    try:
        key = await request.runtime.executor.apply(command)
    except ApiKeyNotFoundError:
        return redirect(request, notice=Notice("This API key was removed already."))
    return redirect(request, notice=Notice(f"API key {key.name} was removed. This cannot be undone."))


async def _rejected(request: PageRequest, message: str) -> Response:
    return await overview_page(request, HTTPStatus.UNPROCESSABLE_ENTITY, errors={"name": message})


async def _list_keys(request: PageRequest, user_id: UserId) -> list[ApiKey]:
    runtime = request.runtime
    return await runtime.executor.read_own(user_id, runtime.users.list_api_keys, user_id)


async def _has_key(request: PageRequest, key: ApiKey) -> bool:
    keys = await _list_keys(request, key.user_id)
    return any((each.id, each.digest) == (key.id, key.digest) for each in keys)


async def _find_key(request: PageRequest) -> ApiKey:
    key_id = ApiKeyId(request.http_request.path_params["key_id"])
    for key in await _list_keys(request, signed_in(request).owner.id):
        if key.id == key_id:
            return key
    raise ApiKeyNotFoundError(key_id)


def _derive_secret(request: PageRequest, session: AccountSession) -> str:
    """Return the secret of the new key. The same form yields the same secret, so it adds only one key."""
    nonce = request.form.get("nonce", "")[:_MAX_NONCE_CHARS]
    text = f"{nonce}\0{request.form.get('name', '')}".encode()
    key_id, secret = (
        hmac.digest(session.form_key, purpose + text, hashlib.sha256).hex() for purpose in (b"id\0", b"secret\0")
    )
    return f"{API_KEY_PREFIX}{key_id[:16]}_{secret}"
