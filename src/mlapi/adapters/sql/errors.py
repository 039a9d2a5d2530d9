"""Describe the errors of database drivers."""


def error_summary(error: BaseException | None) -> str:
    """Return the type of an error and the first line of its message: further lines may show stored values."""
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"
