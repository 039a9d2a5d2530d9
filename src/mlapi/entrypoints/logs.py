"""Log lines: plain ones for people, JSON for machines, each with the id of the request that it belongs to."""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

REQUEST_ID: ContextVar[str | None] = ContextVar("REQUEST_ID", default=None)
"""Of the request that is being answered; None outside of one."""

Format = Literal["text", "json"]

_ACCESS = ("client", "method", "path", "version", "status")
_UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access")

_logger = logging.getLogger("mlapi")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and what else there is to say.

    Of uvicorn's access log the parts are told apart: client, method, path, status.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": REQUEST_ID.get(),
        }
        if record.name == "uvicorn.access" and isinstance(record.args, tuple):
            line |= dict(zip(_ACCESS, record.args, strict=False))
            line.pop("version", None)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in line.items() if value is not None})


class TextFormatter(logging.Formatter):
    """As uvicorn writes its lines, with the request's id at the end."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s:     %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - its base's
        request_id = REQUEST_ID.get()
        return super().formatMessage(record) + (f" [{request_id}]" if request_id else "")


def log_config(form: Format) -> dict[str, Any]:
    """Return a configuration of `logging` for a server whose every line is ours, from the first on."""
    formatter = {"json": JsonFormatter, "text": TextFormatter}[form]
    one = {"handlers": ["stderr"], "level": "INFO", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"ours": {"()": formatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "ours"}},
        "loggers": {"uvicorn": one, "uvicorn.access": one, "mlapi": one},
    }


def log_to_stderr(form: Format) -> None:
    """Show our lines beside uvicorn's, which sets up no logger but its own; unless the host shows them already.

    JSON is for uvicorn's lines too, from here on.
    """
    logging.getLogger("uvicorn.asgi").setLevel(logging.DEBUG)  # at its level TRACE it shows every path as it came
    formatter = JsonFormatter() if form == "json" else TextFormatter()
    if not _logger.hasHandlers():
        _logger.addHandler(logging.StreamHandler())
        _logger.setLevel(logging.INFO)
    handlers = list(_logger.handlers)
    if form == "json":
        handlers += [handler for name in _UVICORN for handler in logging.getLogger(name).handlers]
    for handler in handlers:
        handler.setFormatter(formatter)
