"""The rules for usernames, e-mail addresses and passwords, and how lists of users are filtered.

The rules apply to new values only, so that rows stored before a rule existed stay readable.
"""

import re
import unicodedata
from datetime import datetime

import attrs

from mlapi.domain.errors import InvalidFieldsError
from mlapi.domain.users import User, UsernameKey, UserState, to_utc, utc_now

MAX_USERNAME_CHARS = 254
"""Limits both the original and the canonical form. Long enough for e-mail addresses, which many use as usernames."""

MAX_EMAIL_CHARS = 254
"""RFC 5321, 4.5.3.1.3 allows a path of 256 octets, which includes two angle brackets."""

MAX_EMAIL_LOCAL_CHARS = 64
"""The part before the ``@``: RFC 5321, 4.5.3.1.1."""

MAX_PASSWORD_CHARS = 1024
"""Longer than any real password. Limits the time that one request spends on hashing."""

MAX_DESCRIPTION_CHARS = 100
"""Limits the stored address or browser of a client."""

# Default_Ignorable_Code_Point (Unicode 16.0, DerivedCoreProperties.txt) outside category Cf, and the empty braille
# cell. They are invisible, so usernames that differ only in them would look the same.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)

# These accept most usernames and addresses quickly; the others are checked in detail.
_PLAIN_USERNAME = re.compile(r"[!-~]{1,254}")
_PLAIN_EMAIL = re.compile(r"[!#-'*+./0-9=?A-Z^-~-]{1,64}@(?:[A-Za-z0-9]{1,63}\.){1,3}[A-Za-z]{2,63}")

_MAX_LABEL_CHARS = 63  # characters in one domain label: RFC 1035, 2.3.4


def canonical_username(username: str) -> UsernameKey:
    """Return a username in the form used for comparisons: NFKC, case-folded, NFKC again.

    Raises:
        InvalidFieldsError: if the username violates a rule.
    """
    InvalidFieldsError.raise_for([("username", find_username_error(username))])
    return UsernameKey(fold(username))


def fold(text: str) -> str:
    """Return a text in canonical form. Unlike `canonical_username`, accept any text, such as part of a username."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


@attrs.frozen(kw_only=True)
class UserFilter:
    """Selects users. Each field that is set excludes the users that do not match it.

    Args:
        enabled: whether the user is enabled.
        containing: a text in the canonical username or e-mail address. Converted to canonical form.
        state: the user's state at ``at``.
        expires_before: matches users whose access expires before this time, or has already expired.
        metadata: a key and the text of its value; see `Metadata.has`.
        plans: the names of plans. None among them matches users without a plan of their own.
        email: the whole e-mail address. Ignores the case of at least ASCII letters.
        at: the time for ``state``, and in the month that is shown; None for the current time.
    """

    enabled: bool | None = None
    containing: str = attrs.field(default="", repr=False, converter=fold)
    state: UserState | None = None
    expires_before: datetime | None = attrs.field(default=None, converter=attrs.converters.optional(to_utc))
    metadata: tuple[str, str] | None = attrs.field(default=None, repr=False)
    plans: frozenset[str | None] | None = None
    email: str | None = attrs.field(default=None, repr=False)
    at: datetime | None = attrs.field(default=None, converter=attrs.converters.optional(to_utc))

    @property
    def state_time(self) -> datetime:
        """The time for ``state``, and in the month that is shown."""
        return self.at or utc_now()

    def matches(self, user: User) -> bool:
        """Return whether a user matches every field."""
        expiry, limit = user.expires_datetime, self.expires_before
        return (
            self.enabled in {None, user.enabled}
            and self.state in {None, user.state_at(self.state_time)}
            and (limit is None or (expiry is not None and expiry < limit))
            and (self.metadata is None or user.metadata.has(*self.metadata))
            and (self.plans is None or user.plan in self.plans)
            and (self.email is None or self.email.lower() == user.email.lower())
            and (self.containing in fold(user.username) or self.containing in user.email.lower())
        )


EVERY_USER = UserFilter()


def find_username_error(username: object) -> str | None:
    """Return the rule that a username violates, or None."""
    if isinstance(username, str) and _PLAIN_USERNAME.fullmatch(username):
        return None
    error = find_text_error(username, MAX_USERNAME_CHARS)
    if error is not None or not isinstance(username, str):
        return error
    if has_invisible(username):
        return "must not contain control, invisible or unassigned characters"
    key = fold(username)
    # Normalization turns some characters into a space and a mark, so check both forms.
    if username != username.strip() or key != key.strip():
        return "must not begin or end with white space"
    if len(key) > MAX_USERNAME_CHARS:
        return f"must be at most {MAX_USERNAME_CHARS} characters when normalized"
    return None


def find_email_error(email: object) -> str | None:
    """Return the rule that an e-mail address violates, or None. Checks only its form, not whether it exists."""
    if isinstance(email, str) and len(email) <= MAX_EMAIL_CHARS and _PLAIN_EMAIL.fullmatch(email):
        return None
    error = find_text_error(email, MAX_EMAIL_CHARS)
    if error is not None or not isinstance(email, str):
        return error
    if has_invisible(email) or any(character.isspace() for character in email):
        return "must not contain white space, control or invisible characters"
    local, at, domain = email.rpartition("@")
    labels = domain.split(".")
    if not at or not local or "@" in local or not all(_is_domain_label(label) for label in labels):
        return "must look like name@example.com"
    if len(local) > MAX_EMAIL_LOCAL_CHARS:
        return f"must have at most {MAX_EMAIL_LOCAL_CHARS} characters before the @"
    return None


def shorten_description(text: str) -> str:
    """Return the description of a client, such as its address, in a form that every database can store.

    It is empty if the text is not printable ASCII.
    """
    return text[:MAX_DESCRIPTION_CHARS] if text.isascii() and text.isprintable() else ""


@attrs.frozen(kw_only=True)
class PasswordPolicy:
    """The rules for new passwords. By default, only the empty password is rejected.

    There are no composition rules, as NIST SP 800-63B-4, 3.1.1.2 recommends.

    Args:
        common: common passwords, case-folded. They are rejected in upper, lower and mixed case.
        words: names of the service and its roles, case-folded. A password is rejected if its letters spell only these
            words (OWASP ASVS 5.0, 6.2.11).
    """

    min_chars: int = 1
    common: frozenset[str] = attrs.field(default=frozenset(), repr=False)
    words: frozenset[str] = attrs.field(default=frozenset(), repr=False)

    def describe(self) -> list[str]:
        """Return the rules as sentences, for the people who choose a password."""
        rules = [f"At least {self.min_chars} characters."] if self.min_chars > 1 else []
        if self.common:
            rules.append("Not a common password, such as one from a list of leaked passwords.")
        if self.words:
            rules.append("Not only words such as password, user or admin.")
        return [*rules, "Any characters, including spaces. Long passwords are safer than complicated ones."]

    def find_error(self, password: object) -> str | None:
        """Return the rule that a password violates, or None."""
        error = find_text_error(password, MAX_PASSWORD_CHARS)
        if error is not None or not isinstance(password, str):
            return error
        if len(password) < self.min_chars:
            return f"must be at least {self.min_chars} characters"
        if password.casefold() in self.common:
            return "must not be a common password"
        if self.words and self._spells_only_words(password):
            return "must not consist only of names of this service"
        return None

    def _spells_only_words(self, password: str) -> bool:
        letters = "".join(filter(str.isalpha, password.casefold()))
        rest = letters
        for word in sorted(self.words, key=len, reverse=True):
            rest = rest.replace(word, "")
        return bool(letters) and not rest


def _is_domain_label(label: str) -> bool:
    """Return whether a label consists of letters, digits and inner hyphens (RFC 1035, 2.3.1).

    Letters and combining marks of any script are allowed (RFC 5890, 2.3.2.1).
    """
    kinds = [unicodedata.category(character) for character in label]
    return (
        0 < len(label) <= _MAX_LABEL_CHARS
        and not label.startswith("-")
        and not label.endswith("-")
        and not kinds[0].startswith("M")
        and all(
            kind[0] in "LM" or kind == "Nd" or character == "-" for kind, character in zip(kinds, label, strict=True)
        )
    )


def find_time_error(time: object) -> str | None:
    """Return the rule that a time violates, or None."""
    if not isinstance(time, datetime):
        return "must be a time"
    try:
        to_utc(time)
    except ValueError:
        return "must have a time zone, as in 2030-01-31T12:00:00Z"
    except OverflowError:
        return "must be between the years 1 and 9999 in UTC"
    return None


def find_text_error(value: object, max_chars: int) -> str | None:
    """Return the rule that a text violates, or None. These rules apply to every text field."""
    if not isinstance(value, str):
        return "must be a string"
    if not value:
        return "must not be empty"
    if len(value) > max_chars:
        return f"must be at most {max_chars} characters"
    if has_lone_surrogate(value):
        return "must be valid Unicode, without lone surrogates"
    return None


def is_visible_text(text: object, max_chars: int) -> bool:
    """Return whether this is a text of visible characters and spaces. Nearly all such texts are ASCII."""
    if type(text) is str and text.isascii():
        return 0 < len(text) <= max_chars and text.isprintable()
    return find_text_error(text, max_chars) is None and not has_invisible(str(text))


def has_lone_surrogate(text: str) -> bool:
    """Return whether a text cannot be encoded in UTF-8."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def has_invisible(text: str) -> bool:
    """Return whether a text contains an invisible, control, format, private-use or unassigned character."""
    if text.isascii():
        return not text.isprintable()
    return _INVISIBLE.search(text) is not None or any(
        unicodedata.category(character)[0] == "C" or unicodedata.category(character) in {"Zl", "Zp"}
        for character in text
    )
