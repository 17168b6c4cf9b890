"""What a handler awaits in the mesh: calls, steps, sleeps, promises and deadlines of one run, as tasks of the loop.

What always holds: everything begins when it is asked for; what is asked of others goes under a key that follows from
the key of the invocation, the address asked, what is asked, and how often that was before: a handler that is run again
asks under the same keys, and who knows them does nothing twice. What is asked of one address is asked in the order in
which the handler asked, each when the one before it has come to its end. Nothing is kept: a handler that is run again
begins at its beginning. When a run ends, what it still waits for is let go; calls under way are finished by whoever was
called.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Generator
from functools import partial
from hashlib import blake2b
from typing import Any, Final, Protocol

from penstock.errors import CallTimeout, FunctionError, InvalidInput
from penstock.functions.context import Context, Wished
from penstock.functions.durable import CALL, DEADLINE, PROMISE, SLEEP, STEP, Called, Durable, Stepped, Wish
from penstock.functions.steps import perform
from penstock.ids import Address
from penstock.mesh.store import Commit, Committed
from penstock.mesh.wire import TRACING, Kind, Reply, Request, error_in_handler

CANCEL_AGAIN_S: Final = 0.05
CANCEL_AGAIN_MAX_S: Final = 1.0
"""Doubled from the first to the longest: a cancellation may come before the call does, or to a host that is killed."""


class Neighbours(Protocol):
    """Whoever brings about what a handler waits for, and keeps what it must not forget."""

    async def commit(self, commit: Commit) -> Committed:
        """Make it durable. Raises VersionMismatch when another invocation was faster."""
        ...

    async def call(self, request: Request) -> Reply:
        """Carry a request to its address. Never raises for what becomes of it."""
        ...

    async def promised(self, address: Address, name: str, key: str) -> bytes:
        """The value of a promise, once it is kept. Raises VersionMismatch when the request under `key` was carried out
        elsewhere."""
        ...

    def outlive(self, task: asyncio.Task[None]) -> None:
        """Nobody waits for this call any more; let it come to its end."""
        ...


class Keys:
    """The idempotency keys of what one invocation asks for."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._asked: Counter[str] = Counter()

    def next(self, whom: str, what: bytes = b"") -> str:
        """For `what` is now asked of `whom`. A handler that does not ask for the same when it is run again is never
        answered what it did not ask."""
        asked = f"{whom}\0{blake2b(what, digest_size=16).hexdigest()}"
        self._asked[asked] += 1
        text = f"{self._root}\0{asked}\0{self._asked[asked]}"
        return blake2b(text.encode(), digest_size=16).hexdigest()


class _Waited(Durable[Any]):
    """One that is still there when the wait for it was ended, as by `ctx.timeout`, and can be awaited again."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, Any]:
        if not self._done:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def wake(_: Any) -> None:
                if not waiter.done():
                    waiter.set_result(None)

            self.add_done_callback(wake)
            try:
                yield from waiter
            finally:
                self.remove_done_callback(wake)
        return self.result()

    __iter__ = __await__


class Awaits:
    """The `Keeper` of one run. `close` it when the handler has returned or raised. `commit` is told that the handler
    wants to be sure of what it has done so far."""

    is_journaled = False
    replaying = False

    def __init__(
        self,
        context: Context[Any],
        request: Request,
        keys: Keys,
        neighbours: Neighbours,
        commit: Callable[[], Awaitable[None]],
    ) -> None:
        self._context = context
        self._request = request
        self._keys = keys
        self._neighbours = neighbours
        self._commit = commit
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._calls: dict[int, Request] = {}
        self._last: dict[Address, asyncio.Task[None]] = {}
        """The last call of each address."""
        self._cancelled: set[int] = set()
        self._wished: dict[int, tuple[Wish, int]] = {}
        """Everything, and since when."""
        self.promises: list[str] = []
        """Names of those whose values were taken."""
        self._issued = 0

    # As the context asks it: a `Keeper`.

    def wish(self, wish: Wish) -> Durable[Any]:
        durable = _Waited(self, self._issued)
        self._issued += 1
        self._context.outputs.append(Wished(durable.index, wish))
        if wish.kind == CALL:
            request = self._calls[durable.index] = self._calling(wish)
            work = partial(self._call, request, self._last.get(request.address))
            self._last[request.address] = self._begin(durable, wish, work)
        else:
            self._begin(durable, wish, partial(self._waiting, wish))
        return durable

    async def commit(self) -> None:
        await self._commit()

    def withdraw(self, durable: Durable[Any]) -> None:
        self._end(durable)

    def cancel_call(self, durable: Durable[Any]) -> None:
        index = durable.index
        if index in self._tasks and index not in self._cancelled:
            self._cancelled.add(index)
            self._neighbours.outlive(asyncio.create_task(self._cancel(self._calls[index], self._tasks[index])))

    def cancelled(self, durable: Durable[Any]) -> BaseException | None:
        return None  # What was asked for goes on; nobody waits for it.

    def task(self) -> Any:
        return asyncio.current_task()

    def waits(self) -> list[tuple[Wish, int]]:
        """What has not come yet, and since when it is waited for. A limit of time is nothing that anybody waits for."""
        return [self._wished[index] for index in self._tasks if self._wished[index][0].kind != DEADLINE]

    async def settle(self, addresses: Collection[Address]) -> None:
        """Wait for the calls of these addresses, so that what is sent there comes behind them."""
        calls = [self._last[address] for address in addresses if address in self._last]
        if calls:
            await asyncio.wait(calls)

    def close(self) -> None:
        """Let go what the handler did not wait for."""
        for index, task in self._tasks.items():
            if index in self._calls:
                self._neighbours.outlive(task)
            else:
                task.cancel()

    # Inside.

    def _begin(self, durable: Durable[Any], wish: Wish, work: Callable[[], Awaitable[bytes]]) -> asyncio.Task[None]:
        self._wished[durable.index] = (wish, self._context.now_ms)
        task = self._tasks[durable.index] = asyncio.create_task(self._fulfil(durable, wish, work))
        return task

    def _end(self, durable: Durable[Any]) -> None:
        task = self._tasks.pop(durable.index, None)
        if task is not None:
            task.cancel()

    async def _fulfil(self, durable: Durable[Any], wish: Wish, work: Callable[[], Awaitable[bytes]]) -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            data = await work()
            value = None if wish.kind in (SLEEP, DEADLINE) else wish.read(data)
        except Exception as failed:  # noqa: BLE001  # Whatever it is, it is the handler's to see.
            error = failed
        self._tasks.pop(durable.index, None)
        context = self._context
        context._clock_ms = max(context._clock_ms, time.time_ns() // 1_000_000)
        if not durable.done():
            durable.finish(value, error)

    def _calling(self, wish: Wish) -> Request:
        """Everything that depends on the order in which calls are made is settled before anything is awaited."""
        called: Called = wish.wants
        to = Address(called.target.typename, called.id)
        deadline_s = None if called.detached else self._request.deadline_s
        if called.timeout_ms is not None:
            own_s = time.monotonic() + called.timeout_ms / 1000
            deadline_s = own_s if deadline_s is None else min(own_s, deadline_s)
        own = self._context.address
        return Request(
            to,
            called.payload,
            key=self._keys.next(str(to), called.payload),
            deadline_s=deadline_s,
            caller=own,
            chain=(*self._request.chain, own),
            headers={name: text for name, text in self._request.headers.items() if name in TRACING},
            shadow=self._request.shadow,
        )

    async def _call(self, request: Request, before: asyncio.Task[None] | None) -> bytes:
        whom = str(request.address)
        if request.address in request.chain:
            raise _cycle(request)
        try:
            async with asyncio.timeout(_left_s(request)):
                if before is not None:
                    await asyncio.wait([before])
                reply = await self._neighbours.call(request)
        except TimeoutError:
            raise CallTimeout("PEN0260", f"{whom} did not answer in time.", address=whom) from None
        if reply.status == 504:
            raise CallTimeout("PEN0260", f"{whom} did not answer in time.", address=whom)
        if reply.status != 200:
            raise error_in_handler(reply, whom)
        return reply.body

    async def _cancel(self, request: Request, call: asyncio.Task[None]) -> None:
        """Tell whoever was called, until the call has ended. What comes of it is the answer of the call."""
        cancel = request._replace(kind=Kind.CANCEL, payload=b"", deadline_s=None)
        again_s = CANCEL_AGAIN_S
        while not call.done():
            await self._neighbours.call(cancel)
            await asyncio.wait([call], timeout=again_s)
            again_s = min(2 * again_s, CANCEL_AGAIN_MAX_S)

    async def _waiting(self, wish: Wish) -> bytes:
        address = self._context.address
        if wish.kind == STEP:
            return await self._step(wish)
        if wish.kind == PROMISE:
            value = await self._neighbours.promised(address, wish.name, self._request.key)
            self.promises.append(wish.name)
            return value
        await asyncio.sleep(wish.wants / 1000)
        return b""

    async def _step(self, wish: Wish) -> bytes:
        step: Stepped = wish.wants
        address = self._context.address
        if self._request.shadow:
            raise InvalidInput(
                "PEN0803",
                f"{address} runs as a shadow, and step {wish.name!r} has an effect on the outside, which is left out.",
            )
        value, error = await perform(step, key=self._keys.next(f"step {wish.name}"), address=address)
        if error is not None:
            raise FunctionError(*error, address=str(address))
        return value


def _left_s(request: Request) -> float | None:
    return None if request.deadline_s is None else max(0.0, request.deadline_s - time.monotonic())


def _cycle(request: Request) -> FunctionError:
    chain, to = request.chain, request.address
    cycle = " -> ".join(map(str, (*chain[chain.index(to) :], to)))
    return FunctionError(
        "PEN0273",
        f"{chain[-1]} calls {to}, which waits for this very call: {cycle}. None of them could ever go on. Send a "
        "message instead of calling, or call the other way round.",
        address=str(to),
    )
