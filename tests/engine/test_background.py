"""What runs beside the turns: its failures reach the worker, and its end is waited for."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from penstock.engine import background
from penstock.engine.background import Background


def test_what_the_work_raises_is_reported_at_once() -> None:
    failures: list[BaseException] = []

    async def fail() -> None:
        raise ValueError("no")

    async def main() -> None:
        task = Background(failures.append).spawn(fail())
        await asyncio.wait([task])

    asyncio.run(main())

    assert [str(error) for error in failures] == ["no"]


def test_nothing_runs_after_it_was_cancelled_and_that_is_no_failure() -> None:
    failures: list[BaseException] = []
    ended: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    async def main() -> None:
        everything = Background(failures.append)
        everything.spawn(work("a"))
        everything.spawn(work("b"))
        await asyncio.sleep(0)
        await everything.cancel_all()
        assert sorted(ended) == ["a", "b"]

    asyncio.run(main())

    assert not failures


def test_work_that_takes_a_cancellation_for_another_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "CANCEL_S", 0.01)
    swallowed: list[str] = []

    async def work() -> None:
        for name in ("first", "second"):
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            swallowed.append(name)
        await asyncio.Event().wait()

    async def main() -> None:
        everything = Background(lambda error: None)
        task = everything.spawn(work())
        await asyncio.sleep(0)
        await everything.cancel_all()
        assert task.cancelled()

    asyncio.run(main())

    assert swallowed == ["first", "second"]
