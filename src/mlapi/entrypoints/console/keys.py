"""The forms about the API keys of a user."""

from datetime import UTC, date, datetime, time
from http import HTTPStatus

from starlette.responses import Response

from mlapi.domain.errors import ApiKeyNotFoundError, FieldError, InvalidFieldsError
from mlapi.entrypoints.console.pages import redirect, render_page
from mlapi.entrypoints.console.request import ConsoleRequest
from mlapi.entrypoints.console.users import problems_of, user_id_of, user_page


async def add_key(visit: ConsoleRequest) -> Response:
    """Make a key, and show it in this one answer: where a redirect leads to, it could be seen again."""
    user_id = user_id_of(visit)
    if visit.is_safe:
        return redirect(visit, f"/users/{user_id}")
    try:
        command, secret = visit.users.prepare_api_key(
            user_id=user_id, name=visit.form.get("name", ""), expires=_end_of_day(visit.form.get("expires_at", ""))
        )
    except InvalidFieldsError as error:
        return await user_page(visit, user_id, HTTPStatus.UNPROCESSABLE_ENTITY, problems=problems_of(error))
    await visit.serving.commands.apply(command)
    return await user_page(visit, user_id, HTTPStatus.CREATED, secret=secret)


async def remove_key(visit: ConsoleRequest) -> Response:
    """Ask first, then do it."""
    user_id, key_id = user_id_of(visit), visit.request.path_params["key_id"]
    user = await visit.serving.reading.run(visit.serving.users.get, user_id)
    keys = await visit.serving.reading.run(visit.serving.users.list_api_keys, user_id)
    key = next((key for key in keys if key.id == key_id), None)
    if key is None:
        raise ApiKeyNotFoundError(key_id)
    if visit.is_safe:
        return render_page(visit, "remove_key.html", user=user, key=key)
    await visit.serving.commands.apply(visit.users.prepare_remove_api_key(key.id))
    return redirect(visit, f"/users/{user_id}", said=f"The key {key.name} is removed.")


def _end_of_day(text: str) -> datetime | None:
    """Return the last second of a day in UTC, or None for no day.

    Raises:
        InvalidFieldsError: unless it is a date as browsers send one.
    """
    if not text:
        return None
    try:
        return datetime.combine(date.fromisoformat(text), time(23, 59, 59), UTC)
    except ValueError:
        raise InvalidFieldsError((FieldError("expires_at", "must be a date as in 2030-01-31"),)) from None
