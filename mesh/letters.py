"""Dead letters of the mesh as people see them, in the shape that `penstock dead` knows.

What always holds: letters that are sent again belong to a session of their own, which is ended at once, so that the
hosts adopt them: whoever asks for it need be no host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any, Final

from penstock.durations import timestamp
from penstock.errors import InvalidInput
from penstock.mesh.store import DeadLetter, Emitted, RejectedRecord, Store
from penstock.state.showing import builtins_of
from penstock.state.stateful import Stateful

_PAGE: Final = 1_000


class Letters:
    """Of one store. `functions` are those of the application, for showing messages as their fields."""

    def __init__(self, store: Store, functions: Mapping[str, Stateful]) -> None:
        self._store = store
        self._functions = functions

    async def choose(self, *, typename: str | None, code: str | None, limit: int) -> list[dict[str, Any]]:
        """The oldest `limit`, of one function or egress and of one error code if these are given."""
        found: list[dict[str, Any]] = []
        async for letter in self._all():
            row = _summary(letter)
            if typename in (None, row["function"]) and code in (None, row["code"]):
                found.append(row)
                if len(found) == limit:
                    break
        return found

    async def counts(self) -> list[dict[str, Any]]:
        """How many there are of each function and error code, most first."""
        counted: Counter[tuple[str, str]] = Counter()
        async for letter in self._all():
            row = _summary(letter)
            counted[row["function"], row["code"]] += 1
        rows = sorted(counted.items(), key=lambda row: (-row[1], row[0]))
        return [{"function": typename, "code": code, "letters": count} for (typename, code), count in rows]

    async def show(self, number: int) -> dict[str, Any]:
        """Everything known of one. Raises InvalidInput when there is none of that number."""
        for letter in await self._store.dead_letters(after=number - 1, limit=1):
            if letter.number == number:
                return _summary(letter) | self._details(letter)
        raise InvalidInput(
            "PEN0308",
            f"There is no dead letter {number}: it was redriven or dropped, or never existed. List them: "
            "penstock dead list.",
        )

    async def redrive(self, numbers: Collection[int]) -> int:
        """Send them again; returns how many there were."""
        return await self._as_session(lambda session: self._store.redrive(session, numbers))

    async def drop(self, numbers: Collection[int]) -> int:
        """Forget them; returns how many there were."""
        return await self._as_session(lambda session: self._store.discard(session, numbers))

    async def _as_session(self, work: Callable[[int], Awaitable[int]]) -> int:
        session = await self._store.begin_session("penstock dead")
        try:
            return await work(session)
        finally:
            await self._store.fence(session)

    async def _all(self) -> AsyncIterator[DeadLetter]:
        after = 0
        while letters := await self._store.dead_letters(after=after, limit=_PAGE):
            for letter in letters:
                yield letter
            after = letters[-1].number

    def _details(self, letter: DeadLetter) -> dict[str, Any]:
        what = letter.what
        details: dict[str, Any] = {"state": None, "caller": None, "headers": {}, "traceback": ""}
        if isinstance(what, RejectedRecord):
            return details | {"message": builtins_of(what.data)}
        if isinstance(what, Emitted):
            return details | {"message": builtins_of(what.row.value), "headers": dict(what.row.headers)}
        function = self._functions.get(what.target)
        return details | {
            "message": builtins_of(what.payload, function.codec if function is not None else None),
            "caller": None if what.outside else str(letter.sender),
            "headers": dict(what.headers),
        }


def _summary(letter: DeadLetter) -> dict[str, Any]:
    """A letter in one row."""
    what = letter.what
    code, _, reason = letter.reason.partition(" ")
    match what:
        case RejectedRecord():
            typename, id, origin = "", "", what.place
        case Emitted():
            typename, id, origin = what.egress, "", str(letter.sender)
        case _:
            typename, id, origin = what.target, what.id, "" if what.outside else str(letter.sender)
    return {
        "number": letter.number,
        "at": timestamp(letter.died_ms),
        "function": typename,
        "id": id,
        "code": code,
        "reason": reason,
        "attempts": letter.attempts,
        "origin": origin,
    }
