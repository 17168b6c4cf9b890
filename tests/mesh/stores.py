"""What the tests of the stores have in common."""

from __future__ import annotations

import asyncio
import functools
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path

from penstock.ids import Address
from penstock.mesh.store import Answer, Commit, Emitted, Outgoing, Store
from penstock.mesh.stores import open_store
from penstock.records import EgressRow

CART = "shop/cart"
ALICE = Address(CART, "alice")


class Opened:
    """A store and a session of it."""

    def __init__(self, store: Store, session: int) -> None:
        self.store = store
        self.session = session

    def commit_of(
        self,
        id: str = "alice",
        version: int | None = 0,
        value: bytes | None = None,
        *,
        typename: str = CART,
        answered: tuple[str, bytes] | None = None,
        until_ms: int = 0,
        outgoing: tuple[Outgoing, ...] = (),
        emitted: tuple[Emitted, ...] = (),
        cancelled: tuple[str, ...] = (),
    ) -> Commit:
        """A commit of this session."""
        key, body = answered or ("", b"")
        return Commit(
            self.session,
            typename,
            id,
            version,
            value,
            key=key,
            answer=None if answered is None else Answer(200, body),
            answer_until_ms=until_ms,
            outgoing=outgoing,
            emitted=emitted,
            cancelled=cancelled,
        )

    async def put(self, id: str, value: bytes, *, typename: str = CART) -> int:
        """Whatever it was; the new version."""
        return (await self.store.commit(self.commit_of(id, None, value, typename=typename))).version

    async def send(self, *outgoing: Outgoing, sender: Address = ALICE) -> None:
        await self.store.commit(self.commit_of(sender.id, None, typename=sender.typename, outgoing=outgoing))

    async def emit(self, *numbers: int, sender: Address = ALICE, egress: str = "shop/log") -> None:
        rows = tuple(Emitted(egress, EgressRow(b"%d" % number, number)) for number in numbers)
        await self.store.commit(self.commit_of(sender.id, None, typename=sender.typename, emitted=rows))

    async def waiting(self, now_ms: int = 0, limit: int = 1_000) -> list[bytes]:
        """The payloads of what is due."""
        return [kept.outgoing.payload for kept in await self.store.due(self.session, now_ms, limit)]


def message(
    payload: bytes, *, to: str = "bob", target: str = CART, due_ms: int = 0, token: str = "", key: str = ""
) -> Outgoing:
    return Outgoing(target, to, payload, key or payload.decode(), due_ms, token)


class Stores:
    """Opens one store for a test, each time as another process would, and closes it with the test."""

    def __init__(self, where: str, stack: AsyncExitStack) -> None:
        self.where = where
        self._stack = stack

    async def open(self, holder: str = "one") -> Opened:
        store = await open_store(self.where)
        self._stack.push_async_callback(store.close)
        return Opened(store, await store.begin_session(holder))


def with_stores(test: Callable[[Stores], Awaitable[None]]) -> Callable[[str], None]:
    """Run a test in an event loop of its own, for the store that the fixture `where` names."""

    @functools.wraps(test)
    def run(where: str) -> None:
        async def call() -> None:
            async with AsyncExitStack() as stack:
                await test(Stores(where, stack))

        asyncio.run(call())

    del run.__wrapped__  # pytest would look for a fixture `stores`.
    return run


def open_below(directory: Path) -> list[str]:
    """The files below `directory` that this process has open, once for each descriptor."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # That of the listing itself.
            found.append(descriptor.readlink())
    return sorted(str(path) for path in found if path.is_relative_to(directory))


@contextmanager
def quick_directory() -> Iterator[Path]:
    """In memory where there is such a place: the tests look at what is written, not at what a disk makes of it."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as directory:
        yield Path(directory)
