"""What is asked for while something is under way is done together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from penstock.mesh.together import GROUP_MAX, Together


class World:
    """Doubles numbers in groups, each of which takes until it is let go."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def double(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.groups.append(list(numbers))
        await self.gate.wait()
        if 13 in numbers:
            raise RuntimeError("not together with 13")
        return [ValueError(f"{number} is odd") if number % 2 else 2 * number for number in numbers]


def test_nothing_waits_when_nothing_is_under_way_and_what_comes_meanwhile_shares_the_next_group() -> None:
    async def main() -> None:
        world = World()
        together = Together(world.double)
        world.gate.clear()
        first = asyncio.create_task(together.ask(2))
        while not world.groups:  # noqa: ASYNC110  # Until it is under way.
            await asyncio.sleep(0)
        others = [asyncio.create_task(together.ask(number)) for number in (4, 6, 8)]
        await asyncio.sleep(0)
        world.gate.set()

        assert await asyncio.gather(first, *others) == [4, 8, 12, 16]
        assert world.groups == [[2], [4, 6, 8]]

    asyncio.run(main())


def test_each_gets_an_outcome_of_its_own() -> None:
    async def main() -> None:
        together = Together(World().double)

        outcomes = await asyncio.gather(*map(together.ask, (2, 3, 4)), return_exceptions=True)

        assert [str(outcome) for outcome in outcomes] == ["4", "3 is odd", "8"]
        with pytest.raises(RuntimeError):
            await together.ask(13)
        assert await together.ask(6) == 12

    asyncio.run(main())


def test_what_may_not_be_in_one_group_waits_for_the_next_in_its_order() -> None:
    async def main() -> None:
        world = World()
        together = Together(
            world.double, lambda numbers: [number not in numbers[:n] for n, number in enumerate(numbers)]
        )

        assert await asyncio.gather(*map(together.ask, (2, 4, 2, 6, 2))) == [4, 8, 4, 12, 4]
        assert world.groups == [[2, 4, 6], [2], [2]]

    asyncio.run(main())


def test_groups_are_bounded() -> None:
    async def main() -> None:
        world = World()
        together = Together(world.double)

        await asyncio.gather(*(together.ask(2) for _ in range(GROUP_MAX + 1)))

        assert [len(group) for group in world.groups] == [GROUP_MAX, 1]

    asyncio.run(main())


def test_it_is_done_also_for_one_who_does_not_wait_any_more() -> None:
    async def main() -> None:
        world = World()
        together = Together(world.double)
        cancelled = asyncio.create_task(together.ask(2))
        await asyncio.sleep(0)
        cancelled.cancel()
        await together.wait_quiet()

        assert world.groups == [[2]]
        assert cancelled.cancelled()

    asyncio.run(main())
