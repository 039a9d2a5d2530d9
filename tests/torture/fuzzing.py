"""Generate hostile requests from a seed: valid mlapi requests with damaged parts."""

import json
import random
from collections.abc import Callable, Sequence
from urllib.parse import quote_from_bytes

import attrs

from tests.asgi import Request

CANARY = "c4n4ry"
"""Marks every secret in a request. It must not appear in any response or log line."""
PASSWORD = f"{CANARY} difference engine"

# Groups of characters that are known to cause problems.
ALPHABETS: Sequence[str] = (
    "abcXYZ019 .-_@",
    "\0\x01\x08\t\n\r\x1b\x7f\x80\x85\x9f",  # control characters
    "\u00a0\u1680\u2000\u2028\u2029\u202f\u205f\u3000\ufeff",  # white space and similar characters
    "\u200b\u200c\u200d\u2060\u2061\u180e\u034f\u115f\u3164\uffa0\u2800\u00ad",  # invisible
    "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u061c",  # text direction
    "\u0300\u0301\u0308\u0327\u0345\u0323\u20dd\u0e33\u3099\u309a\u1ab0",  # combining
    "\ufdfa\ufdfb\u3300\u33a5\ufb03\u00bd\u2121\u1f6e\u0344\u2474",  # longer when normalized
    "ßẞİıŉΐſKÅϒςΣµǰ\u1e9e\u0130\u1fb3\u03f4",  # change or expand when case-folded
    "가각\u1100\u1161\u11a8\u11c3\u3131",  # Hangul, composed and decomposed
    "ａＡ１＠．\uff00\uffe0",  # fullwidth
    "аеорсухАВЕ",  # Cyrillic letters that look like Latin ones
    "١٢٣۱۲०১๑𝟘𝟙²①",  # non-ASCII digits
    "\ue000\uf8ff\ufdd0\ufffe\uffff\U0001fffe\U0010ffff\U000f0000\U000e0001\U000e0100\ufe0f",  # private use, tags
    "😀👩\u200d👩\u200d👧🇱🇹\U0001f3fb",  # emoji sequences
    "𐐀𐐨𝕬𝖆𠀀𪛟\U00016e40\U0001e900",  # beyond the Basic Multilingual Plane
    "\"'\\/`<>&;%{}[]()$#!?*+=|~^",  # syntax of other languages
    "\ud800\udbff\udc00\udfff",  # lone surrogates
)
LENGTHS = (0, 1, 1, 1, 2, 3, 7, 20, 64, 65, 99, 100, 101, 253, 254, 255, 1_023, 1_024, 1_025, 5_000)
STRINGS: Sequence[str] = (
    "",
    " ",
    "null",
    "undefined",
    "NaN",
    "0",
    "-1",
    "' OR 1=1 --",
    "'; DROP TABLE users; --",
    "{{7*7}}",
    "${jndi:ldap://127.0.0.1/a}",
    "%s%n%x",
    "%00",
    "%",
    "_",
    "\\",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "ada\r\nSet-Cookie: a=b",
    "a" * 254,
    "ﷺ" * 14,
    "ﷺ" * 15,
    "ada",
    "ADA",
    "ａｄａ",
    "a\u0301" * 127,
    "\u0301" * 254,
    "ada@example.com",
    "a@b",
    "@",
    "a@b@c.d",
    "a" * 64 + "@" + "b" * 63 + ".cd",
    "admin",
    "http://[::1]:80",
)
NUMBERS = (
    "0",
    "-0",
    "1",
    "-1",
    "1e999",
    "-1E+999",
    "1e-999",
    "0.1",
    "9" * 4_000,
    "9" * 5_000,
    "1E400",
    "00",
    "0x1",
    "1.",
)
IDS = ("0", "00001", "-1", "+1", "1.0", "1e3", "0x1", " 1", "1 ", "1\0", "¹", "１", "١", "9" * 18, "9" * 19, "9" * 20)
SEGMENTS = (
    "..",
    ".",
    "",
    "%2e%2e",
    "%2f",
    "%2F..",
    "%00",
    "%",
    "%zz",
    "%ff%fe",
    "%C0%AE",
    "%ED%A0%80",
    ";a=b",
    "me",
    "%25",
)
PATHS = (
    "/register-user",
    "/toggle-user-permission/{id}/{flag}",
    "/remove-user/{id}",
    "/token",
    "/token_status",
    "/token_status/{credential}",
    "/users",
    "/users/me",
    "/users/{id}",
    "/users/me/password",
    "/users/me/tokens",
    "/users/me/keys",
    "/users/me/keys/{key}",
    "/users/{id}/password",
    "/users/{id}/tokens",
    "/users/{id}/keys",
    "/keys/{key}",
    "/audit",
    "/metrics",
    "/health/live",
    "/openapi.json",
    "/docs",
    "/docs/{text}",
    "/console",
    "/console/",
    "/console/log-in",
    "/console/log-out",
    "/console/activity",
    "/console/users/new",
    "/console/users/{id}",
    "/console/users/{id}/enabled",
    "/console/users/{id}/password",
    "/console/users/{id}/tokens",
    "/console/users/{id}/remove",
    "/console/users/{id}/keys",
    "/console/users/{id}/keys/{key}/remove",
    "/console/users/{id}/profile",
    "/console/users/{id}/metadata",
    "/console/users/{id}/expiry",
    "/console/users/{id}/link",
    "/console/static/{text}/{text}",
    "/{text}",
)
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE")
METHOD_BY_WORD = {
    "register": "POST",
    "toggle": "PUT",
    "remove": "DELETE",
    "token": "POST",
    "keys": "POST",
    "password": "PUT",
}
PARAMETERS = (
    "enabled",
    "q",
    "limit",
    "after",
    "newer_than",
    "action",
    "actor",
    "since",
    "until",
    "bulk_id",
    "user_id",
    "x",
    "",
    "__proto__",
)
INVALID_JSON = ("NaN", "Infinity", "-Infinity", "nul", "'a'", '"\\x41"', '"\\ud800"', '"\t"', "")
PUBLIC_FIELDS = ("username", "email", "name", "expires_at")
FIELDS = ("username", "password", "email", "current", "new", "name", "expires_at")
CONTENT_TYPES = (
    "application/json",
    "application/json",
    "application/json",
    "application/json; charset=utf-8",
    "application/json;charset=utf-16",
    "APPLICATION/JSON",
    "application/x-www-form-urlencoded",
    "text/plain",
    "multipart/form-data; boundary=x",
    "",
    "application/json,application/json",
)
TIMES = (
    "2030-01-31T12:00:00Z",
    "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59",
    "2030-13-01",
    "2030-01-31",
    "T",
    "",
)


@attrs.frozen(kw_only=True)
class Knowledge:
    """Valid ids and credentials that an attacker may know and tamper with."""

    user_ids: Sequence[int]
    credentials: Sequence[str]
    """User tokens and API keys."""
    key_ids: Sequence[str]
    admin_token: str
    cookie: str
    csrf_token: str


class Fuzzer:
    """Generates random requests, always the same ones for the same seed."""

    def __init__(self, seed: str, knowledge: Knowledge) -> None:
        self._rng = random.Random(seed)
        self._knowledge = knowledge

    def make_request(self) -> Request:
        rng = self._rng
        template = rng.choice(PATHS)
        target = self._fill(template)
        if rng.random() < 0.1:
            target = self._damage_path(target)
        if rng.random() < 0.35 or template in {"/users", "/audit"}:
            target += "?" + self._query()
        is_console = template.startswith("/console")
        body, content_type = self._form() if is_console and rng.random() < 0.9 else self._json()
        return Request(self._method(template), target, self._headers(content_type, is_console=is_console), body)

    def make_text(self, longest: int = 5_000) -> str:
        rng = self._rng
        if rng.random() < 0.3:
            return rng.choice(STRINGS)[:longest]
        size = min(rng.choice(LENGTHS), longest)
        if size > 100 and rng.random() < 0.7:
            return (self.make_text(7) or "a") * size if rng.random() < 0.2 else rng.choice(rng.choice(ALPHABETS)) * size
        if rng.random() < 0.15:
            return "".join(chr(rng.randrange(0x110000)) for _ in range(min(size, 100)))
        alphabets = rng.choices(ALPHABETS, k=rng.choice([1, 1, 2, 4]))
        return "".join(rng.choice(rng.choice(alphabets)) for _ in range(size))

    def make_name(self) -> str:
        """Return a username without lone surrogates. Most results are valid."""
        rng = self._rng
        parts = [self.make_text(rng.choice([1, 2, 5, 20])) for _ in range(rng.choice([1, 2, 3]))]
        return "".join(character for character in "".join(parts) if not "\ud800" <= character <= "\udfff")

    # --- method and target

    def _method(self, template: str) -> str:
        if self._rng.random() < 0.15:
            return self._rng.choice(METHODS)
        if template.startswith("/console"):
            return self._rng.choice(["GET", "POST", "POST"])
        return next((method for word, method in METHOD_BY_WORD.items() if word in template), "GET")

    def _fill(self, template: str) -> str:
        rng = self._rng
        makers: dict[str, Callable[[], str]] = {
            "{id}": lambda: str(rng.choice(self._knowledge.user_ids)) if rng.random() < 0.5 else rng.choice(IDS),
            "{flag}": lambda: rng.choice(["0", "1", "0", "1", "2", "01", "true", "１", ""]),
            "{credential}": self._credential,
            "{key}": lambda: rng.choice(self._knowledge.key_ids) if rng.random() < 0.3 else self.make_text(300),
            "{text}": lambda: self.make_text(2_000),
        }
        for placeholder, make in makers.items():
            while placeholder in template:
                template = template.replace(placeholder, self._quote(make()), 1)
        return template

    def _quote(self, text: str) -> str:
        data = text.encode("utf-8", "surrogatepass")
        quoted = quote_from_bytes(data, safe="" if self._rng.random() < 0.9 else "/:@")
        return quoted if self._rng.random() < 0.97 else quoted + self._rng.choice(SEGMENTS)

    def _damage_path(self, path: str) -> str:
        rng = self._rng
        segments = path.split("/")
        for _ in range(rng.choice([1, 1, 3])):
            segments.insert(rng.randrange(1, len(segments) + 1), rng.choice(SEGMENTS))
        damaged = "/".join(segments)
        return rng.choice([damaged, damaged + "/", damaged.upper(), damaged.replace("/", "//"), damaged + "a" * 20_000])

    def _query(self) -> str:
        rng = self._rng
        pairs = []
        for _ in range(rng.choice([0, 1, 1, 2, 3, 30])):
            name = rng.choice(PARAMETERS)
            value = rng.choice([*IDS, "0", "1", "10", "500", "501"]) if rng.random() < 0.6 else self.make_text(300)
            pairs.append(name + rng.choice(["=", "=", "=", ""]) + self._quote(value))
        return rng.choice(["&", "&", "&", ";"]).join(pairs)

    # --- credentials and headers

    def _credential(self) -> str:
        rng, knowledge = self._rng, self._knowledge
        credential = rng.choice([*knowledge.credentials, knowledge.admin_token, CANARY])
        match rng.randrange(8):
            case 0 | 1 | 2:
                return credential
            case 3:
                index = rng.randrange(len(credential))
                return credential[:index] + rng.choice("aA0_-.=+/ \t") + credential[index + 1 :]
            case 4:
                return credential[: rng.randrange(len(credential))]
            case 5:
                return credential + rng.choice([".", "=", "A", " ", "\t", "a" * 5_000, credential])
            case 6:
                return ".".join(rng.sample(credential.split("."), k=credential.count(".") + 1))
            case _:
                return CANARY + self.make_text(200)

    def _headers(self, content_type: str | None, *, is_console: bool) -> list[tuple[bytes, bytes]]:
        rng, knowledge = self._rng, self._knowledge
        headers = [(b"host", b"127.0.0.1:8001")]
        if content_type is not None:
            headers.append((b"content-type", content_type.encode()))
        if rng.random() < 0.75:
            credential = knowledge.admin_token if rng.random() < 0.6 else self._credential()
            scheme = (
                "Bearer " if rng.random() < 0.9 else rng.choice(["bearer ", "Bearer", "Basic ", "Bearer  ", "", "\t"])
            )
            headers.append((b"authorization", (scheme + credential).encode("utf-8", "surrogatepass")))
        if is_console or rng.random() < 0.05:
            cookie = (
                knowledge.cookie if rng.random() < 0.8 else self._damage(knowledge.cookie.encode()).decode("latin-1")
            )
            headers.append((b"cookie", cookie.encode("latin-1")))
            headers.append((b"sec-fetch-site", rng.choice([b"same-origin"] * 5 + [b"cross-site", b"none", b"\xff"])))
        while rng.random() < 0.25:
            name = rng.choice(
                (
                    *(b"authorization", b"cookie", b"host", b"content-type", b"content-length", b"x-forwarded-for"),
                    *(b"forwarded", b"origin", b"hx-request", b"accept", b"if-none-match", b"x-request-id", b"range"),
                    *(b"sec-fetch-site", b"upgrade", b"accept-encoding", b"referer", b"x-http-method-override"),
                )
            )
            value = self.make_text(rng.choice([5, 50, 5_000])).encode("utf-8", "surrogatepass")
            headers.append((name, value.translate(None, b"\0\r\n").strip()))
        rng.shuffle(headers)
        return headers

    # --- bodies

    def _json(self) -> tuple[bytes, str | None]:
        rng = self._rng
        tree = {
            name: self._value(name)
            for name in rng.choice([FIELDS[:3], FIELDS[:2], FIELDS[3:5], FIELDS[1:2], FIELDS[5:]])
        }
        if rng.random() < 0.2:
            tree.pop(rng.choice(list(tree)))
        if rng.random() < 0.15:
            tree[self.make_text(20)] = self._any_value(3)
        text = self._write_json(tree if rng.random() < 0.93 else self._any_value(4))
        encoding = rng.choice(["utf-8"] * 20 + ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7", "latin-1"])
        try:
            body = text.encode(
                encoding, "surrogatepass" if encoding.startswith("utf-") and encoding != "utf-7" else "replace"
            )
        except UnicodeError:
            body = text.encode("utf-8", "replace")
        if rng.random() < 0.25:
            body = self._damage(
                body.replace(CANARY.encode(), b"secret")
            )  # damage may move the canary into the username
        content_type = rng.choice(CONTENT_TYPES) if rng.random() < 0.3 else CONTENT_TYPES[0]
        return body, None if rng.random() < 0.02 else content_type

    def _value(self, name: str) -> object:
        rng = self._rng
        if rng.random() < 0.2:
            return self._any_value(3, is_secret=name not in PUBLIC_FIELDS)
        if name in {"password", "current", "new"}:
            return rng.choice([PASSWORD, PASSWORD, CANARY + self.make_text(1_100)])
        if name == "email" and rng.random() < 0.7:
            return rng.choice(["ada@example.com", self.make_text(70) + "@example.com", "a@" + self.make_text(70)])
        if name == "expires_at" and rng.random() < 0.7:
            return rng.choice(TIMES)
        return self.make_text()

    def _any_value(self, depth: int, *, is_secret: bool = True) -> object:
        """Return a value of an unexpected type. ``is_secret`` is false for fields that responses may repeat."""
        rng = self._rng
        value: object
        match rng.randrange(9 if depth else 6):
            case 0 | 1:
                value = (CANARY if is_secret else "") + self.make_text(300)
            case 2:
                value = rng.choice([None, True, False])
            case 3:
                value = rng.choice([0, -1, 2**63, 2**64, 10**30, 1.5, -0.0])
            case 4:
                value = Literal(rng.choice(NUMBERS))
            case 5:
                value = Literal(rng.choice(INVALID_JSON))
            case 6:
                value = [self._any_value(depth - 1) for _ in range(rng.randrange(4))]
            case 7:
                value = {self.make_text(20): self._any_value(depth - 1) for _ in range(rng.randrange(4))}
            case _:
                opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
                levels = rng.choice([2, 50, 1_000, 3_000])
                value = Literal(opening * levels + "1" + closing * levels)
        return value

    def _write_json(self, value: object) -> str:
        rng = self._rng
        is_ascii = rng.random() < 0.4
        repeats_a_pair = rng.random() < 0.05

        def write(value: object) -> str:
            if isinstance(value, Literal):
                return value.text
            if isinstance(value, dict):
                items = list(value.items())
                if repeats_a_pair and items:
                    items.insert(rng.randrange(len(items) + 1), rng.choice(items))
                return "{" + ",".join(f"{write(name)}:{write(inner)}" for name, inner in items) + "}"
            if isinstance(value, list):
                return "[" + ", ".join(map(write, value)) + "]"
            if isinstance(value, str) and rng.random() < 0.05:
                return (
                    '"' + "".join(f"\\u{ord(character):04x}" for character in value if ord(character) < 0x10000) + '"'
                )
            return json.dumps(value, ensure_ascii=is_ascii)

        space = rng.choice(["", "", "", " ", "\n\t\r ", "\u00a0", "\0"])
        return space + write(value) + space

    def _form(self) -> tuple[bytes, str]:
        rng = self._rng
        pairs = [("csrf_token", self._knowledge.csrf_token if rng.random() < 0.85 else self.make_text(70))]
        for name in rng.sample((*FIELDS, "token", "enabled"), k=rng.randrange(6)):
            value = self._value(name)
            pairs.append((name, value if isinstance(value, str) else self.make_text(300)))
        if rng.random() < 0.05:
            pairs.append(rng.choice(pairs))
        body = "&".join(f"{name}={self._quote(value)}" for name, value in pairs).encode("ascii")
        if rng.random() < 0.15:
            body = self._damage(
                body.replace(CANARY.encode(), b"secret")
            )  # damage may move the canary into the username
        return body, "application/x-www-form-urlencoded" if rng.random() < 0.95 else rng.choice(CONTENT_TYPES)

    def _damage(self, data: bytes) -> bytes:
        rng, damaged = self._rng, bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            index = rng.randrange(len(damaged) + 1)
            match rng.randrange(5):
                case 0:
                    damaged[index : index + 1] = bytes([rng.randrange(256)])
                case 1:
                    del damaged[index : index + rng.randrange(1, 9)]
                case 2:
                    damaged[index:index] = rng.choice(
                        (b"\0", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5", b"\xef\xbb\xbf", b'"')
                    )
                case 3:
                    damaged[index:index] = damaged[index : index + rng.randrange(1, 40)]
                case _:
                    damaged = damaged[:index]
        return bytes(damaged)


@attrs.frozen
class Literal:
    """Text to insert into a JSON body unchanged, even if the result is not valid JSON."""

    text: str
