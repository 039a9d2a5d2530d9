"""Notices: they say what an action has done, and offer to undo it. The page after the action shows them.

To tell people what an action did, pass a `Notice` to `mlapi.entrypoints.pages.redirect`:

    redirect(request, f"/users/{user.id}", notice=Notice(
        f"{user.username} is disabled.",
        about=f"/users/{user.id}",
        undo=Undo(f"/users/{user.id}/enabled", {"enabled": "1"}),
    ))

- Every notice names the user (or the manager, or the key) and states the result: "ada is disabled."
- ``about`` is the path of what has changed, relative to the site. It identifies the row of a list and the page itself.
- ``undo`` is a form with the opposite change. Its fields hold explicit values, so that sending it twice is harmless.
  Actions that cannot be undone have none; ask before those that destroy something.

``base.html`` shows the notice in a bar that always has the same height and position, so no notice moves or covers a
control. Pages therefore need only two things so that a double click acts once:

1. Each form that acts on something contains ``{{ csrf("/users/7") }}``, with the same path as ``about``; other forms
   contain ``{{ csrf() }}``. The forms about what has just changed then also contain the notice and the time, and the
   server ignores them for `SETTLE_SECONDS` after the page was rendered: it shows the same notice again.
2. In lists, the element around the forms of each row has ``{{ settling("/users/7") }}`` as an attribute. The mouse then
   does nothing there for the same time, also without JavaScript.

For forms that htmx sends, select the notice too: ``hx-select-oob="#status:innerHTML"``.
"""

import time
from collections.abc import Callable, Iterable
from typing import Annotated

import attrs
import msgspec

from mlapi.entrypoints.http.signatures import MAX_COOKIE_CHARS, SignedValue

NOTICE_SECONDS = 60
"""A notice expires after this time if no page has shown it."""
MAX_NOTICE_CHARS = 600
"""Longer notices are truncated, so that their cookies stay below `MAX_COOKIE_CHARS` in any script."""
SETTLE_SECONDS = 1.0
"""How long the controls of what has just changed ignore the second click of a double click."""
_MAX_SIGNED_CHARS = MAX_COOKIE_CHARS - 100  # the name of the cookie and a time may be added
_MAX_FIELD_CHARS = 2000

_Path = Annotated[str, msgspec.Meta(max_length=300, pattern="^(/[0-9A-Za-z._-]+)*$")]
_Fields = dict[Annotated[str, msgspec.Meta(max_length=32)], Annotated[str, msgspec.Meta(max_length=_MAX_FIELD_CHARS)]]


class Undo(msgspec.Struct, frozen=True, array_like=True):
    """A form with the opposite change.

    Attributes:
        path: where to send it, relative to the site.
        fields: the names and values of its fields. If they are too long for a cookie, there is no undo.
        label: the text of its button.
    """

    path: _Path
    fields: _Fields
    label: Annotated[str, msgspec.Meta(max_length=32)] = "Undo"


class Notice(msgspec.Struct, frozen=True, array_like=True):
    """What an action has done.

    Attributes:
        text: one or two sentences that name what has changed. Truncated after `MAX_NOTICE_CHARS`.
        about: the path of what has changed, relative to the site.
        undo: a form with the opposite change; None if there is none.
    """

    text: Annotated[str, msgspec.Meta(max_length=MAX_NOTICE_CHARS)]
    about: _Path = ""
    undo: Undo | None = None


_Rendered = tuple[Notice, Annotated[int, msgspec.Meta(ge=0, le=2**50)]]
"""A notice, and when a page with it was rendered, in milliseconds since 1970."""


class Notices:
    """Signs notices as cookies and form fields, and reads them back.

    Args:
        key: the signing key.
        clock: returns the current Unix timestamp.
    """

    def __init__(self, key: bytes, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self._cookies: SignedValue[Notice] = SignedValue(Notice, key, b"mlapi notice", clock)
        self._fields: SignedValue[_Rendered] = SignedValue(_Rendered, key, b"mlapi rendered notice", clock)

    def sign(self, notice: Notice) -> str:
        """Return a notice as a cookie value, which `find` reads."""
        text = notice.text[:MAX_NOTICE_CHARS]
        signed = self._cookies.dump(Notice(text, notice.about, notice.undo))
        return signed if len(signed) <= _MAX_SIGNED_CHARS else self._cookies.dump(Notice(text, notice.about))

    def find(self, cookies: Iterable[str]) -> Notice | None:
        """Return the notice in the first valid cookie, or None."""
        found = (self._cookies.load(cookie, NOTICE_SECONDS) for cookie in cookies)
        return next((signed[0] for signed in found if signed is not None), None)

    def sign_rendered(self, notice: Notice) -> str:
        """Return a form field for the page that shows a notice now."""
        return self._fields.dump((notice, int(self.clock() * 1000)))

    def find_repeated(self, field: str) -> Notice | None:
        """Return the notice in a form field, or None if its page was rendered more than `SETTLE_SECONDS` ago."""
        signed = self._fields.load(field, NOTICE_SECONDS)
        if signed is None:
            return None
        (notice, rendered_ms), _ = signed
        return notice if self.clock() - rendered_ms / 1000 < SETTLE_SECONDS else None


@attrs.frozen
class PageNotice:
    """What the templates of a page need to know about its notice: see the macros `csrf`, `settling` and `notice_bar`.

    Attributes:
        notice: the notice; None if there is none.
        field: the form field that lets the server ignore the second click of a double click.
        is_whole_page: whether the page was loaded, and not a part of it updated. The browser may then have scrolled, so
            that another row is under the pointer.
    """

    notice: Notice | None
    field: str = ""
    is_whole_page: bool = True

    @property
    def text(self) -> str:
        return "" if self.notice is None else self.notice.text

    @property
    def undo(self) -> Undo | None:
        return None if self.notice is None else self.notice.undo

    def is_about(self, path: str) -> bool:
        return self.notice is not None and path == self.notice.about != ""
