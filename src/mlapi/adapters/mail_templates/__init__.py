"""Write mail with Jinja templates: the default ones in this folder, or those of the operator.

The first line of a text template is the subject: ``Subject: Set a new password``.
"""

import re
from pathlib import Path

import attrs
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, TemplateError

from mlapi.domain.errors import ConfigurationError
from mlapi.domain.mail import MAIL_KINDS, Mail, MailContent, MailDelayedError, MailKind

_DEFAULT_FOLDER = Path(__file__).parent
_SUBJECT = "Subject:"
_MAX_SUBJECT_CHARS = 200
_LINK = "https://users.example/links/sample"
_SAMPLE = MailContent(link=_LINK, username="ada", service="https://users.example", hours=24)
_SAFE_USERNAME = re.compile(r"[\w.@+-]{1,64}")
_HIDDEN_USERNAME = "your account"
_TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@attrs.frozen
class _Templates:
    text: Template
    html: Template | None


class TemplateComposer:
    """A `MailComposer` that renders templates. In HTML, it escapes all values.

    Args:
        folder: a folder with templates that replace the default ones, such as ``password_reset.txt`` and
            ``password_reset.html``. A kind with only a text template is sent without an HTML part.

    Raises:
        ConfigurationError: if a template is invalid, has no subject or does not contain the link.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is not None and not folder.is_dir():
            raise ConfigurationError(f"mail.templates: there is no folder {folder}")
        self._templates = {kind: _load(kind, folder) for kind in MAIL_KINDS}
        for kind in MAIL_KINDS:
            self._check(kind, folder)

    def compose(self, kind: MailKind, content: MailContent, *, recipient: str) -> Mail:
        """Return the message of a kind.

        A name that looks like an advertisement or a link is left out: an attacker may have registered with it to make
        this service send spam.

        Raises:
            MailDelayedError: if a template fails for these values.
        """
        try:
            return self._render(kind, content, recipient)
        except _TEMPLATE_ERRORS as error:
            # Other errors may quote the values, which are for the user only.
            reason = _describe(error) if isinstance(error, TemplateError) else type(error).__name__
            raise MailDelayedError(f"mail.templates: {kind} cannot be rendered: {reason}") from None

    def _render(self, kind: MailKind, content: MailContent, recipient: str) -> Mail:
        values = attrs.asdict(content)
        if not _SAFE_USERNAME.fullmatch(content.username):
            values["username"] = _HIDDEN_USERNAME
        templates = self._templates[kind]
        subject, _, text = templates.text.render(values).lstrip().partition("\n")
        return Mail(
            recipient=recipient,
            subject=" ".join(subject.removeprefix(_SUBJECT).split()),
            text=text.strip() + "\n",
            html=None if templates.html is None else templates.html.render(values),
        )

    def _check(self, kind: MailKind, folder: Path | None) -> None:
        templates = self._templates[kind]
        name = f"mail.templates: {templates.text.filename}"
        try:
            begins_with_subject = templates.text.render(attrs.asdict(_SAMPLE)).lstrip().startswith(_SUBJECT)
            mail = self._render(kind, _SAMPLE, "ada@users.example")
        except _TEMPLATE_ERRORS as error:
            raise ConfigurationError(f"mail.templates: {kind} in {folder}: {_describe(error)}") from None
        if not begins_with_subject or not 0 < len(mail.subject) <= _MAX_SUBJECT_CHARS:
            raise ConfigurationError(f"{name}: begin the first line with `{_SUBJECT} ` and a text")
        for part, template in ((mail.text, templates.text), (mail.html, templates.html)):
            if part is not None and template is not None and _LINK not in part:
                raise ConfigurationError(f"mail.templates: {template.filename} does not contain {{{{ link }}}}: add it")


def _load(kind: MailKind, folder: Path | None) -> _Templates:
    names = f"{kind}.txt", f"{kind}.html"
    found = [] if folder is None else [name for name in names if (folder / name).exists()]
    if folder is None or not found:
        return _Templates(*(_parse(_DEFAULT_FOLDER, name) for name in names))
    if names[0] not in found:
        raise ConfigurationError(f"mail.templates: {folder / names[1]} has no text: add {names[0]}")
    return _Templates(_parse(folder, names[0]), _parse(folder, names[1]) if names[1] in found else None)


def _parse(folder: Path, name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=name.endswith(".html"), undefined=StrictUndefined, auto_reload=False
    )
    try:
        return environment.get_template(name)
    except (TemplateError, OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"mail.templates: {folder / name}: {_describe(error)}") from None


def _describe(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    return f"{error}{f' (line {line})' if line else ''}"
