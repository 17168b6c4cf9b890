"""What stands in for the event loop in simulated worlds: coroutines that go on when the world says so.

What always holds: nothing runs by itself; between any two steps of a coroutine anything else may happen. The modules
that run on the stage are given its `loop` in place of asyncio, for as long as a world plays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from types import SimpleNamespace
from typing import Any


class _Pause:
    def __await__(self) -> Generator[None, None, None]:
        yield


async def pause() -> None:
    """Let anything else happen."""
    await _Pause()


class Work:
    """A coroutine on its way. The part of an asyncio.Task that its starters use."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], failed: Callable[[BaseException], None]) -> None:
        self._coroutine = coroutine
        self._failed = failed
        self._done = False

    def step(self) -> None:
        """Go on until the next pause."""
        if self._done:
            return
        try:
            self._coroutine.send(None)
        except StopIteration:
            self._done = True
        except Exception as error:  # noqa: BLE001  # As in a worker: whatever it is, it ends the process.
            self._done = True
            self._failed(error)

    def cancel(self) -> None:
        self._done = True
        self._coroutine.close()

    def done(self) -> bool:
        return self._done


class Stage:
    """Where work that is started belongs to, and what time it is."""

    def __init__(self) -> None:
        self.spawn: Callable[[Coroutine[Any, Any, None]], Work]
        self.clock_ms = 0.0
        self.cpu_s = 0.0
        self.patient: Callable[[], bool] = lambda: True
        """Whether whoever waits with a bound goes on waiting."""

    def time(self) -> float:
        return self.clock_ms / 1000

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> Work:
        return self.spawn(coroutine)

    def thread_time(self) -> float:
        """Every look at it costs a little more than half a slice of encoding."""
        self.cpu_s += 0.0006
        return self.cpu_s

    async def sleep(self, seconds: float) -> None:
        if seconds and not self.patient():
            raise TimeoutError
        await pause()


class _Unbounded:
    """Stands in for asyncio.timeout: `Stage.sleep` raises instead."""

    def __init__(self, _: float) -> None:
        pass

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


async def _gather(*works: Coroutine[Any, Any, Any], return_exceptions: bool) -> list[Any]:
    """Stands in for asyncio.gather: one after the other will do, since others run in between all the same."""
    assert return_exceptions
    results: list[Any] = []
    try:
        for work in works:
            try:
                results.append(await work)
            except Exception as error:  # noqa: BLE001  # That is what it is for.
                results.append(error)
    finally:
        for work in works:
            work.close()
    return results


STAGE = Stage()
"""Of the world that plays at present."""

loop = SimpleNamespace(
    Queue=asyncio.Queue,
    CancelledError=asyncio.CancelledError,
    get_running_loop=lambda: STAGE,
    sleep=STAGE.sleep,
    timeout=_Unbounded,
    gather=_gather,
)
clock = SimpleNamespace(perf_counter=STAGE.time, thread_time=STAGE.thread_time)


async def in_thread(work: Callable[..., Any], *arguments: Any) -> Any:
    """Stands in for `penstock.engine.background.in_thread`."""
    await pause()
    return work(*arguments)
