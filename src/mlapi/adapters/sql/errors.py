"""Describe database driver errors."""


def error_summary(error: BaseException | None) -> str:
    """Return an error's type and the first line of its message. Further lines may contain stored values."""
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"
