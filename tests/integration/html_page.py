"""Read HTML pages like a browser without JavaScript: their text, links and forms."""

from collections import Counter
from html.parser import HTMLParser
from urllib.parse import urljoin

import attrs
import httpx2

_VOID = frozenset({"meta", "link", "input", "br", "hr"})


@attrs.define
class Form:
    action: str
    method: str
    fields: dict[str, str] = attrs.field(factory=dict)
    buttons: list[str] = attrs.field(factory=list)


class Page(HTMLParser):
    """A parsed HTML page. Its links and forms use the client that loaded it."""

    def __init__(self, client: httpx2.Client, response: httpx2.Response) -> None:
        super().__init__()
        self.client = client
        self.response = response
        self.forms: list[Form] = []
        self.links: dict[str, str] = {}
        self.tags: list[tuple[str, dict[str, str]]] = []
        self._open: list[str] = []
        self._text: list[tuple[str, str]] = []
        self._form: Form | None = None
        self._outside: set[str] = set()  # the names of fields with a form attribute
        self._label_parts: list[str] | None = None
        self._href = ""
        self.feed(response.text)
        self.close()
        assert self._open == [], "an element is not closed"

    @property
    def text(self) -> str:
        """The visible text, with white space collapsed."""
        return " ".join("".join(text for tag, text in self._text if tag not in {"title", "style"}).split())

    @property
    def ids(self) -> Counter[str]:
        return Counter(attributes["id"] for _tag, attributes in self.tags if "id" in attributes)

    def find_all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def follow(self, link: str) -> "Page":
        return Page(self.client, self.client.get(urljoin(str(self.response.url), self.links[link])))

    def form(self, button: str) -> Form:
        """Return the only form that has a button with this text."""
        (form,) = [form for form in self.forms if button in form.buttons]
        return form

    def send(self, button: str, **fields: str) -> "Page":
        """Fill in a form and press its button, as if the page had been open for more than a second."""
        form = self.form(button)
        fields = {"shown_notice": "", **fields} if "shown_notice" in form.fields else fields
        assert fields.keys() <= form.fields.keys() | self._outside
        url, filled = urljoin(str(self.response.url), form.action), {**form.fields, **fields}
        if form.method == "get":
            return Page(self.client, self.client.get(url, params=filled))
        origin = f"{self.response.url.scheme}://{self.response.url.netloc.decode()}"
        return Page(self.client, self.client.post(url, data=filled, headers={"origin": origin}))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        assert len(attributes) == len(attrs), f"<{tag}> repeats an attribute"
        self.tags.append((tag, attributes))
        if tag not in _VOID:
            self._open.append(tag)
        if tag == "form":
            self._form = Form(attributes.get("action", ""), attributes["method"])
            self.forms.append(self._form)
        elif tag in {"a", "button"}:
            self._label_parts, self._href = [], attributes.get("href", "")
        elif tag == "input" and "form" in attributes:
            self._outside.add(attributes["name"])
        elif tag in {"input", "select", "textarea"} and self._form is not None:
            self._form.fields[attributes["name"]] = attributes.get("value", "")
        elif tag == "option" and "selected" in attributes and self._form is not None:
            self._form.fields[list(self._form.fields)[-1]] = attributes["value"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> does not match the open element"
        if self._label_parts is not None and tag in {"a", "button"}:
            name = " ".join("".join(self._label_parts).split())
            if tag == "a":
                self.links[name] = self._href
            elif self._form is not None:
                self._form.buttons.append(name)
            self._label_parts = None
        elif tag == "form":
            self._form = None

    def handle_data(self, data: str) -> None:
        self._text.append((self._open[-1] if self._open else "", data))
        if self._open[-1:] == ["textarea"] and self._form is not None:
            self._form.fields[list(self._form.fields)[-1]] += data.removeprefix("\n")
        if self._label_parts is not None:
            self._label_parts.append(data)
