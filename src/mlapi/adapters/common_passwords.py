"""Load the most common passwords from ``common_passwords.txt``. The file names its source."""

from importlib.resources import files


def load_common_passwords() -> frozenset[str]:
    """Return about 10,000 case-folded passwords of at least 8 characters."""
    text = files(__package__).joinpath("common_passwords.txt").read_text("utf-8")
    _license, _, passwords = text.partition("\n\n")
    return frozenset(passwords.splitlines())
