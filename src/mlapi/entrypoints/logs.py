"""Format log lines as plain text or JSON, with the id of the request."""

import json
import logging
import random
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

REQUEST_ID: ContextVar[str | None] = ContextVar("REQUEST_ID", default=None)
"""The id of the current request, or None outside a request."""

Format = Literal["text", "json"]

_ACCESS_LOG_FIELDS = ("client", "method", "path", "version", "status")
_UVICORN_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access")

_logger = logging.getLogger("mlapi")


def generate_request_id() -> str:
    """Return 64 random bits in hex, to find the log lines and audit entries of one request."""
    return f"{random.getrandbits(64):016x}"


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time (RFC 3339, UTC), level, logger, message, request id and exception.

    Lines in uvicorn's access log also contain the fields client, method, path and status.
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
            line |= dict(zip(_ACCESS_LOG_FIELDS, record.args, strict=False))
            line.pop("version", None)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in line.items() if value is not None})


class TextFormatter(logging.Formatter):
    """Formats lines like uvicorn, followed by the request id."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s:     %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - overrides logging.Formatter
        request_id = REQUEST_ID.get()
        return super().formatMessage(record) + (f" [{request_id}]" if request_id else "")


def log_config(log_format: Format) -> dict[str, Any]:
    """Return a configuration for `logging.config.dictConfig` that formats log lines from mlapi and uvicorn."""
    formatter = {"json": JsonFormatter, "text": TextFormatter}[log_format]
    logger = {"handlers": ["stderr"], "level": "INFO", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"mlapi": {"()": formatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "mlapi"}},
        "loggers": {"uvicorn": logger, "uvicorn.access": logger, "mlapi": logger},
    }


def log_to_stderr(log_format: Format) -> None:
    """Log to stderr, unless the host application has already configured mlapi's logger.

    uvicorn configures only its own loggers. If the format is JSON, their lines become JSON too.
    """
    logging.getLogger("uvicorn.asgi").setLevel(
        logging.DEBUG
    )  # at the TRACE level, it would log paths that contain credentials
    formatter = JsonFormatter() if log_format == "json" else TextFormatter()
    if not _logger.hasHandlers():
        _logger.addHandler(logging.StreamHandler())
        _logger.setLevel(logging.INFO)
    handlers = list(_logger.handlers)
    if log_format == "json":
        handlers += [handler for name in _UVICORN_LOGGERS for handler in logging.getLogger(name).handlers]
    for handler in handlers:
        handler.setFormatter(formatter)
