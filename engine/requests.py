"""What is asked of a running application from outside: messages, calls that wait for an answer, operations of people.

    envelope -> partition `requests-<task>` of the log -> the task that owns the address;  reply -> whoever waits

What always holds: a request that was accepted is durable or unanswered, so a caller who got no answer may ask again; an
answer is told only once nothing can roll it back. Requests go the way of all messages, so they are ordered and exactly
once like those. Knows no transport: `http` does.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from penstock.engine.effects import bounded
from penstock.engine.feeds import request_envelope
from penstock.engine.operations import BuryRows, Operation, encode_operation
from penstock.errors import InvalidInput, Refused
from penstock.ids import Address, key_group
from penstock.records import EgressRow, Envelope, Reply
from penstock.router.requests import encode_request

BURIED_BYTES = 1 << 20
"""Of rows in one request: a record of a log has its bounds."""


class Requests:
    """See the module. `append` puts a record behind the requests of a task, and `flush` makes durable what it got;
    while `accepting` says no, all are refused. `prefix` begins the name of every request: where there are several
    workers, it leads the answer back here."""

    def __init__(
        self,
        application: str,
        tasks: int,
        append: Callable[[int, bytes], object],
        *,
        flush: Callable[[], Awaitable[None]],
        accepting: Callable[[], bool],
        wake: Callable[[], None],
        prefix: str = "",
    ) -> None:
        self._application = application
        self._tasks = tasks
        self._append_record = append
        self._prefix = prefix
        self._flush = flush
        self._accepting = accepting
        self._wake = wake
        self._waiting: dict[str, asyncio.Future[Reply]] = {}
        self._burials: set[asyncio.Future[None]] = set()
        self._closed = False

    @property
    def in_flight(self) -> int:
        """Callers who wait for an answer."""
        return len(self._waiting)

    @property
    def burying(self) -> bool:
        """Whether an egress waits for dead letters. They are asked for by requests, so turns must take those."""
        return bool(self._burials)

    async def send(
        self,
        address: Address,
        payload: bytes,
        *,
        idempotency_key: str = "",
        headers: dict[str, str] | None = None,
        origin: str = "",
    ) -> None:
        """Give a message to an address. It is durable when this returns. Raises Refused while the worker stops."""
        self._append(
            request_envelope(
                address,
                payload,
                request_id="",
                idempotency_key=idempotency_key,
                headers=headers,
                origin=origin,
            )
        )
        await self._flush()

    async def call(
        self,
        address: Address,
        payload: bytes,
        *,
        idempotency_key: str = "",
        headers: dict[str, str] | None = None,
        origin: str = "",
        operation: str = "",
    ) -> Reply:
        """The same, and wait for the answer, which can't be rolled back any more when this returns."""
        request_id = self._prefix + uuid.uuid4().hex
        return await self._ask(
            request_envelope(
                address,
                payload,
                request_id=request_id,
                idempotency_key=idempotency_key,
                headers=headers,
                origin=origin,
                operation=operation,
            ),
            request_id,
            self._append,
        )

    async def operate(self, address: Address, operation: Operation) -> Any:
        """Carry out an operation at the task that owns the address, and return its answer. Raises InvalidInput."""
        return await self._operate(address, operation, self._append)

    async def _operate(self, address: Address, operation: Operation, append: Callable[[Envelope], None]) -> Any:
        name, payload = encode_operation(operation)
        request_id = self._prefix + uuid.uuid4().hex
        envelope = request_envelope(address, payload, request_id=request_id, operation=name, origin="operator")
        reply = await self._ask(envelope, request_id, append)
        if reply.error:
            code, _, message = reply.error.partition(" ")
            raise InvalidInput(code, message)
        return msgspec.json.decode(reply.value)

    async def _ask(self, envelope: Envelope, request_id: str, append: Callable[[Envelope], None]) -> Reply:
        """Give a request to the log by `append`, and wait for its answer."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        try:
            append(envelope)
            return await future
        finally:
            del self._waiting[request_id]

    def bury(self, egress: str, rows: Sequence[tuple[EgressRow, str]]) -> asyncio.Future[None]:
        """Keep rows that a sink refuses as dead letters; done when a complete checkpoint holds them.

        This request is our own, so it is taken also while others are refused: the last commit depends on it.
        """
        parts = list(bounded(list(rows), BURIED_BYTES, lambda row: row[0].value))

        async def bury() -> None:
            for part in parts:
                await self._operate(Address("", f"egress/{egress}"), BuryRows(egress, part), self._append_anyway)

        burial = asyncio.ensure_future(bury())
        self._burials.add(burial)
        burial.add_done_callback(self._burials.discard)
        return burial

    def tell(self, reply: Reply) -> None:
        """Answer whoever waits. A caller from before a restart, or that went away, is not there any more."""
        future = self._waiting.get(reply.request_id)
        if future is not None and not future.done():
            future.set_result(reply)

    def close(self) -> None:
        """No answer will come any more: also who asks now would wait, and keep the process from ending."""
        self._closed = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Refused("PEN0603", f"{self._application} stopped before the answer was there."))

    def _append(self, envelope: Envelope) -> None:
        if self._closed or not self._accepting():
            raise Refused("PEN0603", f"{self._application} is stopping and takes no requests. Try again when it runs.")
        self._append_anyway(envelope)

    def _append_anyway(self, envelope: Envelope) -> None:
        owner = key_group(envelope.id) % self._tasks
        self._append_record(owner, encode_request(envelope))
        self._wake()
