"""Does together what was asked for while something else was being done: one round trip, or one sync, serves them all.

What always holds: one group is under way at a time, and what is asked for meanwhile waits for the next; nothing waits
when nothing is under way. Each who asks gets an outcome of their own. One who does not wait any more keeps nobody from
having it done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Outcome = TypeVar("Outcome")

GROUP_MAX = 256
"""In one group. More would save nothing: what a group costs is divided by this many already."""


def all_of(waiting: Sequence[Asked]) -> Sequence[bool]:
    """A choice for what never gets in one another's way."""
    return [True] * len(waiting)


class Together(Generic[Asked, Outcome]):
    """`carry_out` does a group, and returns an outcome for each, or the exception that it gets. `choose` says of those
    that wait, the oldest first, which may be in one group; the first always is."""

    def __init__(
        self,
        carry_out: Callable[[Sequence[Asked]], Awaitable[Sequence[Outcome | Exception]]],
        choose: Callable[[Sequence[Asked]], Sequence[bool]] = all_of,
    ) -> None:
        self._carry_out = carry_out
        self._choose = choose
        self._waiting: list[tuple[Asked, asyncio.Future[Outcome]]] = []
        self._working: asyncio.Task[None] | None = None

    async def ask(self, asked: Asked) -> Outcome:
        """Have it done with whatever else waits. Raises what it came to."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        return await future

    async def wait_quiet(self) -> None:
        """Until everything that was asked for is done."""
        while (working := self._working) is not None:
            await asyncio.wait([working])

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._do(self._next())
        finally:
            self._working = None

    def _next(self) -> list[tuple[Asked, asyncio.Future[Outcome]]]:
        front = self._waiting[:GROUP_MAX]
        chosen = self._choose([asked for asked, _ in front])
        group = [each for each, is_chosen in zip(front, chosen, strict=True) if is_chosen]
        left = [each for each, is_chosen in zip(front, chosen, strict=True) if not is_chosen]
        self._waiting[: len(front)] = left
        return group

    async def _do(self, group: Sequence[tuple[Asked, asyncio.Future[Outcome]]]) -> None:
        try:
            outcomes = await self._carry_out([asked for asked, _ in group])
        except Exception as error:  # noqa: BLE001  # Whatever it is, it is what each of them came to.
            outcomes = [error] * len(group)
        for (_, future), outcome in zip(group, outcomes, strict=True):
            if future.done():
                continue  # Whoever waited was cancelled. It is done all the same.
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
