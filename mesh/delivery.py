"""From a message that was kept to the request that delivers it, and from the reply to what becomes of the message."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import unquote

from penstock.ids import Address
from penstock.mesh.outbox import Deliver, Refusal
from penstock.mesh.store import Kept
from penstock.mesh.wire import FOR_OTHERS, KIND, PROMISE, Kind, Reply, Request, error_of

_FINAL: Final = frozenset({400, 403, 404, 413, 422})
"""Statuses that say something of the message, and would be the same tomorrow."""


def delivering(call: Callable[[Request], Awaitable[Reply]]) -> Deliver:
    """Deliver by `call`, which carries a request to its address."""

    async def deliver(kept: Kept) -> Refusal | None:
        request = request_of(kept)
        return refusal_of(await call(request), str(request.address))

    return deliver


def request_of(kept: Kept) -> Request:
    """The request that delivers a message."""
    outgoing = kept.outgoing
    headers = dict(outgoing.headers)
    kind = Kind(headers.pop(KIND, Kind.DELIVER.value))
    promise = unquote(headers.pop(PROMISE, ""))
    return Request(
        Address(outgoing.target, outgoing.id),
        outgoing.payload,
        kind,
        outgoing.key,
        attempt=kept.attempts + 1,
        caller=outgoing.caller if outgoing.outside else kept.sender,
        headers=headers,
        promise=promise,
        behalf=outgoing.identity,
    )


def refusal_of(reply: Reply, whom: str) -> Refusal | None:
    """Why a message was not taken; None when it was."""
    if reply.status == 200:
        return None
    error = error_of(reply, whom)
    # Who delivers may not speak for others there: that says nothing of the message, which waits until it is mended.
    return Refusal(str(error), final=reply.status in _FINAL and error.code != FOR_OTHERS)
