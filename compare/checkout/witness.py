"""Notes when handlers begin and end, each time they do: also when they are run again, which nothing else tells.

Lines are appended whole, so all processes of a run share one file. Times are those of the clock that never jumps.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from penstock import Context


class Witness:
    """Writes into the file at `path`; nowhere if that is empty."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644) if path else None

    @contextmanager
    def sees(self, ctx: Context[Any], order: str) -> Iterator[None]:
        """One run of a handler. One that is given up, because its process stops or its journal is enough, has no
        end."""
        self._note("start", ctx, order, "")
        try:
            yield
        except Exception as error:
            self._note("end", ctx, order, f"raised {type(error).__name__}")
            raise
        else:
            self._note("end", ctx, order, "")

    def _note(self, kind: str, ctx: Context[Any], order: str, outcome: str) -> None:
        if self._file is None:
            return
        line = {"t": time.monotonic(), "kind": kind, "node": str(os.getpid()), "order": order, "outcome": outcome}
        line |= {"fn": ctx.address.typename, "id": ctx.id, "attempt": ctx.message.attempt}
        os.write(self._file, json.dumps(line).encode() + b"\n")
