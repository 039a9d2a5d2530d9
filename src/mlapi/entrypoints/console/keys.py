"""The forms that add and remove a user's API keys."""

from datetime import UTC, date, datetime, time

from starlette.responses import Response

from mlapi.domain.credentials import API_KEY_PREFIX, ApiKey
from mlapi.domain.errors import ApiKeyNotFoundError, ChangeRejectedError, FieldError, InvalidFieldsError
from mlapi.domain.users import UserId
from mlapi.entrypoints.console.user_forms import derive_secret, user_form
from mlapi.entrypoints.console.user_page import redirect_to_secret, user_id_in_path
from mlapi.entrypoints.pages import Notice, PageRequest, redirect, render_page


@user_form
async def add_key(request: PageRequest, user_id: UserId) -> Response:
    """Add a key, and show it once on the page of the user. Sending the same form twice adds one key."""
    command, secret = request.users.prepare_api_key(
        user_id=user_id,
        name=request.form.get("name", ""),
        expires_datetime=end_of_day(request.form.get("expires_at", "")),
        secret=f"{API_KEY_PREFIX}{derive_secret(request, 'id')[:16]}_{derive_secret(request, 'API key')}",
    )
    user = await request.runtime.executor.read_page(request.runtime.users.get, user_id)
    if not await _has_key(request, command.key):
        try:
            await request.runtime.executor.apply(command)
        except ChangeRejectedError:  # the same form was sent at the same time
            if not await _has_key(request, command.key):
                raise
    text = f"API key {command.key.name} of {user.username} was added."
    return redirect_to_secret(request, user, "API key", secret, text)


async def _has_key(request: PageRequest, key: ApiKey) -> bool:
    keys = await request.runtime.executor.read_page(request.runtime.users.list_api_keys, key.user_id)
    return any((each.id, each.digest) == (key.id, key.digest) for each in keys)


async def remove_key(request: PageRequest) -> Response:
    """Ask for confirmation on GET; remove the key on POST."""
    user_id, key_id = user_id_in_path(request), request.http_request.path_params["key_id"]
    user = await request.runtime.executor.read_page(request.runtime.users.get, user_id)
    keys = await request.runtime.executor.read_page(request.runtime.users.list_api_keys, user_id)
    key = next((key for key in keys if key.id == key_id), None)
    if key is None:
        raise ApiKeyNotFoundError(key_id)
    if request.is_safe:
        return render_page(request, "remove_key.html", user=user, key=key)
    await request.runtime.executor.apply(request.users.prepare_remove_api_key(key.id))
    return redirect(
        request,
        f"/users/{user_id}",
        notice=Notice(
            f"API key {key.name} of {user.username} was removed. This cannot be undone.", about=f"/users/{user_id}"
        ),
    )


def end_of_day(text: str) -> datetime | None:
    """Return the last second of a day in UTC, or None if the field is empty.

    Raises:
        InvalidFieldsError: if the text is not an ISO 8601 date, the format that browsers send.
    """
    if not text:
        return None
    try:
        return datetime.combine(date.fromisoformat(text), time(23, 59, 59), UTC)
    except ValueError:
        raise InvalidFieldsError((FieldError("expires_at", "must be a date such as 2030-01-31"),)) from None
