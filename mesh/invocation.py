"""One run of a handler for one request: the state is opened, the handler runs, and all it did becomes one commit.

    Run(...) -> open() -> run() -> commit(), reply()

What always holds: nothing is written and nothing is sent before the handler has returned, but for what it awaited, and
what the keeper was asked to commit before (as sagas do: their record comes before their commands); a run that raises
leaves nothing else behind. Stores nothing itself, and decides nothing about trying again: the host does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from penstock.errors import FunctionError
from penstock.functions.answers import encode_answer
from penstock.functions.context import (
    Cancel,
    CancelCall,
    Delayed,
    Emitted,
    Output,
    Replied,
    Resolved,
    Wished,
    Withdrawn,
)
from penstock.functions.durable import Wish
from penstock.ids import Address, cause_of, output_cause
from penstock.mesh.awaits import Awaits, Keys, Neighbours
from penstock.mesh.store import Answer, Commit, Loaded, Outgoing, VersionMismatch
from penstock.mesh.store import Emitted as Row
from penstock.mesh.wire import KIND, NOTHING, PROMISE, Kind, Reply, Request
from penstock.records import Meta
from penstock.state.stateful import Opened, Stateful


class LoadedRows:
    """The rows of one address, as they were loaded, and what has been changed of them since."""

    def __init__(self, rows: Mapping[bytes, bytes]) -> None:
        self._rows: Mapping[bytes, bytes] = rows
        self.changed: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        return self._rows.get(key)

    def put(self, key: bytes, value: bytes | None) -> None:
        self.changed[key] = value

    def committed(self) -> None:
        """What has been changed is how they are."""
        rows = {**self._rows, **self.changed}
        self._rows = {key: value for key, value in rows.items() if value is not None}
        self.changed = {}

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        return iter(sorted((key, value) for key, value in self._rows.items() if start <= key < end))


class Run:
    """See the module. `root` is the key of the request, or what stands for it when it has none."""

    def __init__(
        self,
        function: Stateful,
        request: Request,
        loaded: Loaded,
        neighbours: Neighbours,
        *,
        session: int,
        root: str,
        attempt: int,
    ) -> None:
        self._function = function
        self._request = request
        self._loaded = loaded
        self._rows = LoadedRows(loaded.rows)
        self._keys = Keys(root)
        self._cause = cause_of(root)
        self._neighbours = neighbours
        self._session = session
        self._awaits: Awaits | None = None
        self._keeping = asyncio.Lock()
        """Tasks of a handler commit one after the other, each from the version that the one before has made."""
        context = self._context = function.new_context()
        context.id = request.address.id
        context._caller = request.caller
        context._meta = Meta(dict(request.headers), idempotency_key=request.key)
        context._cause = self._cause
        context._clock_ms = time.time_ns() // 1_000_000
        context._attempt = attempt
        self._message: Any
        self._opened: Opened
        self._reply: Reply
        self.outrun: VersionMismatch | None = None
        """What a commit of the running handler was refused with: another invocation has changed the address."""

    def open(self) -> None:
        """Read message and state. Raises InvalidInput for a message that is not of the declared type, FunctionError for
        such a state."""
        function, payload, value = self._function, self._request.payload, self._loaded.value
        address, clock_ms = self._request.address, self._context.now_ms
        try:
            self._message = function.decode(payload)
        except Exception as error:  # noqa: BLE001  # Codecs raise what is quickest.
            raise function.codec.explain(error, payload, place=f"Message for {address}") from None
        try:
            self._opened = function.open_state(self._context, clock_ms, value, self._rows)
        except Exception:
            found = function.explain_value(value, place=f"State of {address}")
            if found is None:
                raise
            raise FunctionError(found.code, found.message, address=str(address)) from None

    async def run(self) -> None:
        """Let the handler run. Raises what it raises, and InvalidInput for an answer that can't be written."""
        function, context = self._function.function, self._context
        if function.is_async:
            returned = await self._awaited(function.handler)
        else:
            returned = function.handler(context, self._message)
        if self._request.kind is Kind.CALL:
            replied = [output.value for output in context.outputs if type(output) is Replied]
            answer = replied[0] if replied else returned
            self._reply = Reply(200, encode_answer(context.address, answer))
        else:
            self._reply = Reply(200, NOTHING)

    def reply(self) -> Reply:
        return self._reply

    def commit(self, keep_answer_ms: int) -> Commit | None:
        """All that it has changed and asked for; None when that is nothing, so that running it again does no harm.
        Raises InvalidInput for a state that can't be written."""
        commit = self._commit_so_far()
        if commit is None:
            return None
        if not self._request.key:
            return replace(commit, promises=self._taken)
        return replace(
            commit,
            key=self._request.key,
            answer=Answer(self._reply.status, self._reply.body),
            answer_until_ms=self._context.now_ms + keep_answer_ms,
            promises=self._taken,
        )

    def waits(self) -> list[tuple[Wish, int]]:
        """What its handler waits for, and since when."""
        return [] if self._awaits is None else self._awaits.waits()

    async def settle(self, commit: Commit) -> None:
        """Wait for what the handler has called, where it sends something as well: that comes behind it."""
        if self._awaits is not None:
            at_once = {Address(each.target, each.id) for each in commit.outgoing if not each.due_ms}
            await self._awaits.settle(at_once)

    @property
    def _taken(self) -> list[str]:
        """The promises whose values the handler has had."""
        return [] if self._awaits is None else self._awaits.promises

    async def _keep(self) -> None:
        """Commit what the handler has done so far, and let it go on. A shadow leaves nothing behind."""
        async with self._keeping:
            commit = None if self._request.shadow else self._commit_so_far()
            if commit is None:
                return
            count = len(self._context.outputs)  # Other tasks may add to them meanwhile.
            await self.settle(commit)
            keeping = asyncio.create_task(self._carry_out(commit, count))
            try:
                await asyncio.shield(keeping)
            except asyncio.CancelledError:
                await asyncio.wait([keeping])  # What is being committed is known to be before the handler goes on.
                raise

    async def _carry_out(self, commit: Commit, outputs: int) -> None:
        try:
            committed = await self._neighbours.commit(commit)
        except VersionMismatch as mismatch:
            self.outrun = mismatch
            # No error that the handler could do something about: whatever it does now comes to nothing.
            raise asyncio.CancelledError from mismatch
        value = self._opened.raw if commit.value is None else commit.value
        self._opened = self._function.reopen(self._context, self._opened, value)
        self._loaded = self._loaded._replace(version=committed.version)
        self._rows.committed()
        del self._context.outputs[:outputs]

    def _commit_so_far(self) -> Commit | None:
        """What has been changed and asked for since the last commit, without an answer."""
        function, context = self._function, self._context
        value, _ = function.close(context, self._opened, context.now_ms)
        if self._opened.collections is not None:
            self._opened.collections.flush()
        asked = _Asked(context.address, self._cause, self._keys, context.now_ms)
        for output in context.outputs:
            asked.add(output)
        has_changed = value != self._opened.raw or self._rows.changed
        if not has_changed and not asked.anything:
            return None
        return Commit(
            self._session,
            *context.address,
            version=self._loaded.version if function.has_state else None,
            value=value if value != self._opened.raw else None,
            rows=self._rows.changed,
            outgoing=asked.outgoing,
            emitted=asked.emitted,
            cancelled=asked.cancelled,
        )

    async def _awaited(self, handler: Callable[..., Any]) -> Any:
        awaits = self._awaits = Awaits(self._context, self._request, self._keys, self._neighbours, self._keep)
        self._context._keeper = awaits
        try:
            return await handler(self._context, self._message)
        finally:
            awaits.close()


class _Asked:
    """What the outputs of a handler mean to a store."""

    def __init__(self, address: Address, cause: int, keys: Keys, now_ms: int) -> None:
        self.outgoing: list[Outgoing] = []
        self.emitted: list[Row] = []
        self.cancelled: list[str] = []
        self.anything = False
        self._address = address
        self._cause = cause
        self._keys = keys
        self._now_ms = now_ms
        self._count = 0

    def add(self, output: Output) -> None:
        self._count += 1
        self.anything = self.anything or not isinstance(output, Replied)
        match output:
            case Delayed(delay_ms, target, id, payload, token):
                if token:
                    self._forget(token)
                self._send(target.typename, id, payload, due_ms=self._now_ms + delay_ms, token=token)
            case Cancel(token):
                self._forget(token)
                self.cancelled.append(token)
            case Emitted(name):
                self.emitted.append(Row(name, output.row(output_cause(self._cause, self._count))))
            case Resolved(target, id, name, value):
                headers = {KIND: Kind.RESOLVE.value, PROMISE: quote(name, safe="")}
                self._send(target.typename, id, value, headers=headers)
            case Replied() | Wished() | Withdrawn() | CancelCall():
                pass  # The answer is made elsewhere; what was awaited has come, or nobody waits for it.
            case (target, id, payload):
                self._send(target.typename, id, payload)

    def _forget(self, token: str) -> None:
        """A message of the same run that is called back, or moved."""
        self.outgoing = [each for each in self.outgoing if each.token != token]

    def _send(
        self,
        typename: str,
        id: str,
        payload: bytes,
        *,
        due_ms: int = 0,
        token: str = "",
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        key = self._keys.next(f"{typename}/{id}", payload)
        self.outgoing.append(Outgoing(typename, id, payload, key, due_ms, token, dict(headers)))
