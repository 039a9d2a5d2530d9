"""Regular expressions for the OpenAPI description. The domain validates values; a test compares the two.

They exclude control, format, private-use and other invisible characters. Unlike the domain, they allow most unassigned
characters: which ones are unassigned depends on the version of Unicode. Escapes like these work in ECMAScript, Python
and Rust. Characters above U+FFFF have no escape that works in all of them.
"""

_INVISIBLE = (
    r"\u0000-\u001f\u007f-\u009f\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5"
    r"\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ue000-\uf8ff\ufdd0-\ufdef\ufe00-\ufe0f\ufeff"
    r"\uffa0\ufff9-\ufffb\ufffe\uffff"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U0001fffe\U0001ffff"
    "\U0002fffe\U0002ffff\U0003fffe\U0003ffff\U000e0000-\U000e0fff\U000f0000-\U0010ffff"
)
_SPACES = r"\u0020\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
# NFKC replaces each of these with a space and a mark, so a username must not begin with one.
_SPACES_WITH_MARKS = (
    r"\u00a8\u00af\u00b4\u00b8\u02d8-\u02dd\u037a\u0384\u0385\u1fbd\u1fbf-\u1fc1\u1fcd-\u1fcf\u1fdd-\u1fdf\u1fed\u1fee"
    r"\u1ffd\u1ffe\u2017\u203e\u309b\u309c\ufc5e-\ufc63\ufe49-\ufe4c\ufe70\ufe72\ufe74\ufe76\ufe78\ufe7a\ufe7c\ufe7e"
    r"\uffe3"
)

USERNAME = f"^(?![{_SPACES}{_SPACES_WITH_MARKS}])[^{_INVISIBLE}]+(?<![{_SPACES}])$"
PLAN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
API_KEY_NAME = f"^(?![{_SPACES}]+$)[^{_INVISIBLE}]+$"
SEARCH = f"^(?:[0-9]|[^{_INVISIBLE}]{{2,}})?$"
VISIBLE = f"^[^{_INVISIBLE}]+$"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_MONTH_AND_DAY = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DAY = f"(?!0000)(?:[0-9]{{4}}-{_MONTH_AND_DAY}|{_LEAP_YEAR}-02-29)"
USAGE_POSITION = rf"^{_DAY}\.[0-9]{{1,19}}(?:\.[0-9a-f]{{16}})?$"
