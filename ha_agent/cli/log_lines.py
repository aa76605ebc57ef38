"""Log lines for a tired operator: time, level, a constant message, then its fields as ``name=value``."""

from __future__ import annotations

import logging
from typing import Final

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

_PLAIN: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class FieldsFormatter(logging.Formatter):
    """Appends what was given as ``extra``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """The line without a traceback."""
        extra = {name: value for name, value in record.__dict__.items() if name not in _PLAIN}
        fields = "".join(f" {name}={_one_line(value)}" for name, value in extra.items())
        return super().formatMessage(record) + fields


def log_to_stderr(level: str) -> None:
    """Sets up logging of the whole process."""
    handler = logging.StreamHandler()
    handler.setFormatter(FieldsFormatter())
    logging.basicConfig(level=LEVELS[level], handlers=[handler], force=True)


def _one_line(value: object) -> str:
    # A value may come from the peer or from a file's name: it must not be able to forge a second line.
    text = str(value)
    return text if text.isprintable() and " " not in text else ascii(text)
