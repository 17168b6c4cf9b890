"""How the runtime speaks to people: one logger, lines of text or JSON."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

logger = logging.getLogger("penstock")

SAY_AGAIN_S: Final = 10.0


class JsonFormatter(logging.Formatter):
    """One JSON object a line. `process` says which of several it comes from."""

    def __init__(self, process: str = "") -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._process:
            fields["process"] = self._process
        address = getattr(record, "address", None)
        if address is not None:
            fields["address"] = address
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class _StandardErrorHandler(logging.StreamHandler[TextIO]):
    """Writes to what is standard error at the moment: while progress is drawn, that keeps lines apart from the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure_logging(*, as_json: bool, level: str, stream: TextIO | None = None, process: str = "") -> None:
    """Send the lines of Penstock, and of handlers' `ctx.log`, to `stream` (standard error). Called by the CLI alone.

    `process` names this one, where several write to the same place.
    """
    handler = logging.StreamHandler(stream) if stream is not None else _StandardErrorHandler()
    text = f"%(asctime)s %(levelname)-7s {f'{process:<9} ' if process else ''}%(message)s"
    handler.setFormatter(JsonFormatter(process) if as_json else logging.Formatter(text, "%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


class Repeated:
    """Says what happens again and again once in `SAY_AGAIN_S`, and how often it has happened meanwhile. For a bounded
    number of things: none is forgotten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}
        """When it was said, and how often it has happened since."""

    def warn(self, about: str, line: str) -> None:
        """Something has happened; `about` says what it is the same as."""
        now_s = self._clock()
        said_s, unsaid = self._said.get(about, (-math.inf, 0))
        if now_s - said_s < SAY_AGAIN_S:
            self._said[about] = said_s, unsaid + 1
            return
        self._said[about] = now_s, 0
        logger.warning("%s%s", line, f" ({counted(unsaid, 'time')} more before this.)" if unsaid else "")


def counted(number: int, noun: str) -> str:
    """So many of something, as one says it."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
