"""Structured logs: one JSON object a line, on the standard error."""

from __future__ import annotations

import datetime
import json
import logging
import sys
import uuid
from typing import Any

__all__ = ["log_as_json", "logger", "request_id"]

logger = logging.getLogger("rdsr.service")
_LONGEST_ID = 64


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {"time": moment.isoformat(timespec="milliseconds"), "level": record.levelname.lower()}
        line |= {"message": record.getMessage(), **getattr(record, "facts", {})}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def log_as_json(level: int = logging.INFO) -> None:
    """Make the process's loggers write JSON lines. Each request is one line; libraries' warnings come in the same form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logger.setLevel(level)


def request_id(given: str | None) -> str:
    """The client's id of a request, if it is a short word; otherwise a new one."""
    if given and len(given) <= _LONGEST_ID and given.isascii() and all(c.isalnum() or c in "._-" for c in given):
        return given
    return uuid.uuid4().hex
