"""The access log: one line a request, for people and programs, on the logger `penstock.access`.

What always holds: a line tells who asked what of whom, how it ended and how long it took, and nothing of what was in
the message; ids may be personal, so they are left out as well.
"""

from __future__ import annotations

import json
import logging

from penstock.mesh.wire import Reply, Request

log = logging.getLogger("penstock.access")


class AccessLog:
    """Writes the lines of one process, which `place` names."""

    def __init__(self, place: str) -> None:
        self._place = place

    def note(self, request: Request, reply: Reply, seconds: float) -> None:
        """A request has its answer."""
        log.info(
            "%s",
            json.dumps(
                {
                    "at": self._place,
                    "source": request.caller.typename if request.caller is not None else "",
                    "identity": request.identity,
                    "behalf": request.behalf,
                    "destination": request.address.typename,
                    "kind": request.kind.value,
                    "attempt": request.attempt,
                    "status": reply.status,
                    "refused": reply.refused,
                    "ms": round(seconds * 1000, 3),
                    "trace": request.headers.get("traceparent", ""),
                }
            ),
        )
