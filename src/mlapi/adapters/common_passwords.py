"""The passwords that everybody tries first, from the file beside this one, which names its source."""

from importlib.resources import files


def load_common_passwords() -> frozenset[str]:
    """Return some 10,000 passwords of 8 characters and more, case-folded."""
    text = files(__package__).joinpath("common_passwords.txt").read_text("utf-8")
    _licence, _, passwords = text.partition("\n\n")
    return frozenset(passwords.splitlines())
