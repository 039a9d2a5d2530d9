"""The forms on the page of a user, which change the user."""

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

import attrs
from starlette.responses import Response

from mlapi.domain.commands import UNCHANGED, Unchanged
from mlapi.domain.errors import FieldError, InvalidFieldsError, UserChangedError, UserExistsError
from mlapi.domain.expiry import Extension, parse_extension
from mlapi.domain.metadata import NO_METADATA, Metadata
from mlapi.domain.users import User, UserId, utc_now
from mlapi.entrypoints.console.user_page import errors_by_field, redirect_to_secret, user_id_in_path, user_page
from mlapi.entrypoints.pages import Notice, PageRequest, Undo, redirect, render_page

_MAX_UNDO_CHARS = 1000
"""Longer values do not fit into the notice's cookie, so their change has no undo."""
_RESEND_PERIOD = timedelta(seconds=5)
"""The maximum time between the two submissions of a double click."""
_CANNOT_BE_UNDONE = "This cannot be undone."
_PROFILE = {"username": "the name", "email": "the email address"}

Page = Callable[[PageRequest], Awaitable[Response]]


def user_form(handle: Callable[[PageRequest, UserId], Awaitable[Response]]) -> Page:
    """Return the page that handles a form about a user.

    Show invalid fields next to their inputs. Reloading the page with the errors redirects to the page of the user.
    """

    async def page(request: PageRequest) -> Response:
        user_id = user_id_in_path(request)
        if request.is_safe:
            return redirect(request, f"/users/{user_id}")
        try:
            return await handle(request, user_id)
        except InvalidFieldsError as error:
            status, errors = HTTPStatus.UNPROCESSABLE_ENTITY, errors_by_field(error)
        except UserExistsError as error:
            status, errors = HTTPStatus.CONFLICT, {"username": f"is already taken by user {error.user_id}"}
        except UserChangedError:
            status, errors = HTTPStatus.CONFLICT, await _find_stale_fields(request, user_id)
            if errors.keys() & _PROFILE.keys():
                request = attrs.evolve(request, form={})  # show the current name and address
        return await user_page(request, user_id, status, errors=errors)

    return page


@user_form
async def set_profile(request: PageRequest, user_id: UserId) -> Response:
    """Change the name and the e-mail address. The id, API keys and tokens stay the same.

    ``shown_username`` and ``shown_email`` are the values that the page showed. Only fields with another value are
    changed, and only if the stored value is still the one that the page showed: another manager may have changed it.
    """
    form = request.form
    shown = {name: form.get(f"shown_{name}", UNCHANGED) for name in _PROFILE}
    values: dict[str, Any] = {name: form[name] for name in _PROFILE if name in form and form[name] != shown[name]}
    replacing: dict[str, Any] = {f"replacing_{name}": shown[name] for name in values}
    old: dict[str, Any] = {}
    try:
        if values:
            before, _ = await _update(request, user_id, **values, **replacing)
            old = {name: getattr(before, name) for name in values if getattr(before, name) != values[name]}
        user = await request.runtime.executor.read_page(request.runtime.users.get, user_id)
    except UserChangedError:
        user = await request.runtime.executor.read_page(request.runtime.users.get, user_id)
        if any(getattr(user, name) != value for name, value in values.items()):
            raise
        old = {name: shown[name] for name in values}  # the same form was sent before
    if not old:
        return _redirect(request, user, f"Nothing was changed: {user.username} has this name and email address.")
    changes = " and ".join(f"{_PROFILE[name]} {values[name]}" for name in old)
    undo = Undo("profile", {**old, **{f"shown_{name}": values[name] for name in old}})
    return _redirect(request, user, f"{old.get('username', user.username)} now has {changes}.", undo)


@user_form
async def set_expiry(request: PageRequest, user_id: UserId) -> Response:
    """Set, extend or remove the expiry of a user's access.

    ``shown_expires`` is the expiry that the page showed. If it is no longer the current one, nothing is changed: a form
    that is sent twice extends access once.
    """
    expires, shown = _parse_expiry(request.form.get("expires", "")), _shown_expiry(request.form)
    try:
        before, after = await _update(request, user_id, expires=expires, replacing_expires=shown)
        old = before.expires_datetime
    except UserChangedError:
        after = await request.runtime.executor.read_page(request.runtime.users.get, user_id)
        if isinstance(shown, Unchanged) or not _is_done(after.expires_datetime, expires, shown):
            raise
        old = shown  # the same form was sent before
    end = after.expires_datetime
    text = f"expires on {end.day} {end:%b %Y, %H:%M} UTC" if end else "no longer expires"
    undo = Undo("expiry", {"expires": _expiry_text(old) or "never", "shown_expires": _expiry_text(end)})
    return _redirect(request, after, f"Access of {after.username} {text}.", undo)


@user_form
async def set_plan(request: PageRequest, user_id: UserId) -> Response:
    plan = request.form.get("plan", "") or None
    shown = request.form["shown_plan"] or None if "shown_plan" in request.form else UNCHANGED
    try:
        before, after = await _update(request, user_id, plan=plan, replacing_plan=shown)
    except UserChangedError:
        before = after = await request.runtime.executor.read_page(request.runtime.users.get, user_id)
        if after.plan != plan:
            raise  # otherwise, the same form was sent before
    text = f"the plan {after.plan}" if after.plan else "the default plan"
    is_known = before.plan is None or before.plan in request.runtime.users.plans.by_name
    undo = Undo("plan", {"plan": before.plan or "", "shown_plan": after.plan or ""}) if is_known else None
    return _redirect(request, after, f"{after.username} has {text}.", undo)


@user_form
async def set_metadata(request: PageRequest, user_id: UserId) -> Response:
    """Replace the metadata, unless it has changed since the page was opened."""
    text = request.form.get("metadata", "").strip()
    metadata, shown = _parse_metadata(text), _parse_metadata(request.form.get("shown_metadata", ""))
    try:
        _, after = await _update(request, user_id, metadata=metadata.as_dict(), replacing_metadata=shown)
    except UserChangedError:
        after = await request.runtime.executor.read_page(request.runtime.users.get, user_id)
        if after.metadata != metadata:  # otherwise, the same form was sent before
            raise
    old, new = shown.value or "", metadata.value or ""
    undo = Undo("metadata", {"metadata": old, "shown_metadata": new}) if len(old + new) <= _MAX_UNDO_CHARS else None
    return _redirect(request, after, f"The metadata of {after.username} was changed.", undo)


@user_form
async def set_password(request: PageRequest, user_id: UserId) -> Response:
    """Set the password in the form, or generate one and show it once."""
    is_generated = "generate" in request.form
    password = derive_secret(request, "password") if is_generated else request.form.get("password", "")
    executor = request.runtime.executor.for_client(request.address)
    command = await executor.hash(request.users.prepare_password, user_id=user_id, password=password)
    user = await request.runtime.executor.apply(command)
    text = f"The password of {user.username} was set, and all their tokens were revoked. {_CANNOT_BE_UNDONE}"
    if is_generated:
        return redirect_to_secret(request, user, "password", password, text)
    return _redirect(request, user, text)


@user_form
async def add_link(request: PageRequest, user_id: UserId) -> Response:
    """Make a one-time link to set the password, and show it once."""
    command, token = request.users.prepare_link(user_id=user_id)
    url = request.runtime.link_url(token, request.client, request.http_request.scope)
    user = await request.runtime.executor.read_page(request.runtime.users.get, user_id)
    await request.runtime.executor.apply(command)
    text = f"A password link was made. {user.username} can use it once, within 24 hours."
    return redirect_to_secret(request, user, "link", url, text)


@user_form
async def revoke_tokens(request: PageRequest, user_id: UserId) -> Response:
    user = await request.runtime.executor.apply(request.users.prepare_end_tokens(user_id=user_id))
    return _redirect(request, user, f"All tokens of {user.username} were revoked. {_CANNOT_BE_UNDONE}")


async def remove_user(request: PageRequest) -> Response:
    """Ask for confirmation on GET; remove the user on POST."""
    user_id = user_id_in_path(request)
    if request.is_safe:
        user = await request.runtime.executor.read_page(request.runtime.users.get, user_id)
        return render_page(request, "remove_user.html", user=user)
    user = await request.runtime.executor.apply(request.users.prepare_remove(user_id=user_id))
    return redirect(request, notice=Notice(f"{user.username} was removed. {_CANNOT_BE_UNDONE}"))


def derive_secret(request: PageRequest, purpose: str) -> str:
    """Return 256 bits in hex for a new secret. Sending the same form again yields the same bits."""
    assert request.session is not None  # noqa: S101 - every page of the console has a session
    text = "\0".join([purpose, request.form.get("nonce") or secrets.token_hex(), request.path])
    return hmac.digest(request.session.form_key, text.encode("utf-8"), hashlib.sha256).hex()


async def _update(request: PageRequest, user_id: UserId, **changes: Any) -> tuple[User, User]:  # noqa: ANN401 - see `Users.prepare_update`
    """Change a user, and return the user before and after."""
    change = await request.runtime.executor.apply(request.users.prepare_update(user_id=user_id, **changes))
    return change.before, change.after


def _redirect(request: PageRequest, user: User, text: str, undo: Undo | None = None) -> Response:
    """Redirect to the page of a user. The path of ``undo`` is relative to that page."""
    path = f"/users/{user.id}"
    absolute = None if undo is None else Undo(f"{path}/{undo.path}", undo.fields)
    return redirect(request, path, notice=Notice(text, about=path, undo=absolute))


async def _find_stale_fields(request: PageRequest, user_id: UserId) -> dict[str, str]:
    """Return the errors for the fields of a form that are based on an old value."""
    user = await request.runtime.executor.read_page(request.runtime.users.get, user_id)
    fields = [name for name in _PROFILE if request.form.get(f"shown_{name}", "") not in {"", getattr(user, name)}]
    fields = fields or [next((name for name in ("metadata", "plan", "username") if name in request.form), "expires")]
    error = "was changed by another request after you opened this page: check the current value and try again"
    return dict.fromkeys(fields, error)


def _shown_expiry(form: Mapping[str, str]) -> datetime | Unchanged | None:
    """Return the expiry that the page of a form showed."""
    if "shown_expires" not in form:
        return UNCHANGED
    shown = _parse_expiry(form["shown_expires"] or "never")
    return UNCHANGED if isinstance(shown, Extension) else shown


def _is_done(current: datetime | None, expires: datetime | Extension | None, shown: datetime | None) -> bool:
    """Return whether the same form has already set the current expiry."""
    if not isinstance(expires, Extension):
        return current == expires
    return current is not None and abs(expires.extend(shown, utc_now()) - current) < _RESEND_PERIOD


def _expiry_text(expires: datetime | None) -> str:
    return "" if expires is None else expires.isoformat()


def _parse_metadata(text: str) -> Metadata:
    return Metadata.from_json(text) if text else NO_METADATA


def _parse_expiry(text: str) -> datetime | Extension | None:
    """Parse an expiry: a date (its start) or a time, in UTC unless it has a time zone; an extension; or ``never``.

    Raises:
        InvalidFieldsError: if the text is invalid.
    """
    if text == "never":
        return None
    try:
        if text.startswith("+"):
            return parse_extension(text)
        time = datetime.fromisoformat(text.strip())
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError, InvalidFieldsError):
        message = "must be a date and time such as 2030-01-31 12:00"
        raise InvalidFieldsError((FieldError("expires", message),)) from None
