"""Time that stands still until it is moved."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from penstock.errors import FunctionError
from penstock.functions.virtual_loop import VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.close()


def test_sleeping_takes_no_time_and_moves_the_clock(loop: VirtualLoop) -> None:
    async def work() -> str:
        await asyncio.sleep(3_600)
        await asyncio.sleep(0.5)
        return "done"

    assert loop.run(work()) == "done"
    assert (loop.now_ms, loop.time()) == (3_600_500, 3_600.5)


def test_nothing_happens_before_its_time(loop: VirtualLoop) -> None:
    seen: list[str] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append(name)

    tasks = [loop.create_task(sleeper(*each)) for each in [("b", 0.002), ("a", 0.001), ("c", 5)]]
    loop.run_ready()
    assert (seen, loop.next_ms) == ([], 1)
    loop.jump(2)
    loop.run_ready()
    assert (seen, loop.next_ms) == (["a", "b"], 5_000)
    loop.jump(5_000)
    loop.run_ready()
    assert (seen, loop.next_ms, all(task.done() for task in tasks)) == (["a", "b", "c"], None, True)


def test_timeouts_and_locks_work_as_usual(loop: VirtualLoop) -> None:
    async def work() -> str:
        lock = asyncio.Lock()
        async with lock:
            try:
                async with asyncio.timeout(10):
                    await lock.acquire()
            except TimeoutError:
                return "timed out"
        return "not reached"

    assert (loop.run(work()), loop.now_ms) == ("timed out", 10_000)


def test_a_cancelled_timer_is_no_reason_to_wait(loop: VirtualLoop) -> None:
    handle = loop.call_later(5, lambda: None)
    handle.cancel()
    loop.run_ready()

    assert loop.next_ms is None


@pytest.mark.parametrize("seconds", [0.0001, 1 / 3, 12_345_678.9, 3e9])
def test_a_sleep_of_any_length_ends(loop: VirtualLoop, seconds: float) -> None:
    loop.jump(86_400_000 * 365)
    loop.run(asyncio.sleep(seconds))

    assert abs(loop.now_ms - 86_400_000 * 365 - seconds * 1000) <= 2


def test_what_work_raises_is_raised(loop: VirtualLoop) -> None:
    async def work() -> None:
        await asyncio.sleep(1)
        raise ValueError("as told")

    with pytest.raises(ValueError, match="as told"):
        loop.run(work())


def test_waiting_for_what_never_happens_is_told(loop: VirtualLoop) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(FunctionError) as caught:
        loop.run(forever())

    assert caught.value.code == "PEN0230"
    assert "forever waits for something that never happens in virtual time" in caught.value.message
