"""The rules for the fields of a new user.

They apply to new values only, so a row that is older than a rule stays readable.
"""

import re
import unicodedata

import attrs

from mlapi.domain.errors import InvalidFieldsError
from mlapi.domain.users import UsernameKey

USERNAME_MAX_CHARS = 254
"""Characters, as typed and in canonical form. As long as an e-mail address, which many use for a name."""

EMAIL_MAX_CHARS = 254
"""Characters. RFC 5321, 4.5.3.1.3 allows a path of 256 octets, two of which are its angle brackets."""

EMAIL_LOCAL_MAX_CHARS = 64
"""Characters before the ``@``. RFC 5321, 4.5.3.1.1."""

PASSWORD_MAX_CHARS = 1024
"""Characters. Far beyond any real one, and bounds what one request can make us hash."""

# Default_Ignorable_Code_Point (Unicode 16.0, DerivedCoreProperties.txt) outside category Cf, and the empty braille
# cell: they draw nothing, so two names that differ only in them look the same.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)

# What most addresses look like, so that most need no closer look.
_PLAIN_EMAIL = re.compile(r"[!#-'*+./0-9=?A-Z^-~-]{1,64}@(?:[A-Za-z0-9]{1,63}\.){1,3}[A-Za-z]{2,63}")

_LABEL_MAX = 63  # characters of one label of a domain: RFC 1035, 2.3.4


def canonical_username(username: str) -> UsernameKey:
    """The form in which usernames are compared: NFKC, case-folded, NFKC again.

    Raises:
        InvalidFieldsError: if no user can have this name.
    """
    InvalidFieldsError.raise_for([("username", find_username_error(username))])
    return UsernameKey(fold(username))


def fold(text: str) -> str:
    """Return a text in canonical form, whether it could be a username or not: a part of one, say."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def find_username_error(username: object) -> str | None:
    """What is wrong with a username, or None."""
    problem = find_text_error(username, USERNAME_MAX_CHARS)
    if problem is not None or not isinstance(username, str):
        return problem
    if has_invisible(username):
        return "must hold no control, invisible or unassigned characters"
    key = fold(username)
    # Some characters become a space and a mark when normalised, so both forms are looked at.
    if username != username.strip() or key != key.strip():
        return "must not begin or end with white space"
    if len(key) > USERNAME_MAX_CHARS:
        return f"must be at most {USERNAME_MAX_CHARS} characters when normalised"
    return None


def find_email_error(email: object) -> str | None:
    """What is wrong with an e-mail address, or None. Form only: whether it exists is for a message to find out."""
    if isinstance(email, str) and len(email) <= EMAIL_MAX_CHARS and _PLAIN_EMAIL.fullmatch(email):
        return None
    problem = find_text_error(email, EMAIL_MAX_CHARS)
    if problem is not None or not isinstance(email, str):
        return problem
    if has_invisible(email) or any(character.isspace() for character in email):
        return "must hold no white space, control or invisible characters"
    local, at, domain = email.rpartition("@")
    labels = domain.split(".")
    if not at or not local or "@" in local or not all(_is_domain_label(label) for label in labels):
        return "must look like name@example.com"
    if len(local) > EMAIL_LOCAL_MAX_CHARS:
        return f"must have at most {EMAIL_LOCAL_MAX_CHARS} characters before the @"
    return None


@attrs.frozen(kw_only=True)
class PasswordPolicy:
    """Which passwords may be set. The default takes any that is not empty.

    Length and a list of common ones, with no rules on composition: NIST SP 800-63B-4, 3.1.1.2.
    """

    min_length: int = 1
    common: frozenset[str] = attrs.field(default=frozenset(), repr=False)
    """Refused whatever their case; held case-folded."""
    words: frozenset[str] = attrs.field(default=frozenset(), repr=False)
    """Names of the service and its roles, case-folded: a password of their letters alone is refused, whatever stands
    between and around them (OWASP ASVS 5.0, 6.2.11)."""

    def find_error(self, password: object) -> str | None:
        """What is wrong with a password, or None."""
        problem = find_text_error(password, PASSWORD_MAX_CHARS)
        if problem is not None or not isinstance(password, str):
            return problem
        if len(password) < self.min_length:
            return f"must be at least {self.min_length} characters"
        if password.casefold() in self.common:
            return "must not be one of the most common passwords"
        if self._is_made_of_words(password):
            return "must not be made of names of this service alone"
        return None

    def _is_made_of_words(self, password: str) -> bool:
        letters = "".join(filter(str.isalpha, password.casefold()))
        rest = letters
        for word in sorted(self.words, key=len, reverse=True):
            rest = rest.replace(word, "")
        return bool(letters) and not rest


def _is_domain_label(label: str) -> bool:
    """Letters, digits and inner hyphens (RFC 1035, 2.3.1), of any script with its marks (RFC 5890, 2.3.2.1)."""
    kinds = [unicodedata.category(character) for character in label]
    return (
        0 < len(label) <= _LABEL_MAX
        and not label.startswith("-")
        and not label.endswith("-")
        and not kinds[0].startswith("M")
        and all(
            kind[0] in "LM" or kind == "Nd" or character == "-" for kind, character in zip(kinds, label, strict=True)
        )
    )


def find_text_error(value: object, longest: int) -> str | None:
    """What is wrong with any text of ours, or None; ``longest`` is in characters."""
    if not isinstance(value, str):
        return "must be a string"
    if not value:
        return "must not be empty"
    if len(value) > longest:
        return f"must be at most {longest} characters"
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        return "must be valid Unicode, without lone surrogates"
    return None


def has_invisible(text: str) -> bool:
    """Whether a character of it is a control, format, private or unassigned one, a line separator, or draws nothing."""
    if text.isascii():
        return not text.isprintable()
    return _INVISIBLE.search(text) is not None or any(
        unicodedata.category(character)[0] == "C" or unicodedata.category(character) in {"Zl", "Zp"}
        for character in text
    )
