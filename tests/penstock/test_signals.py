"""Being told to stop by a signal, once and again, and where no signals come."""

from __future__ import annotations

import asyncio
import signal
import threading

import pytest

from penstock.signals import stopped_by_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_stops_and_each_further_one_is_told_apart(number: signal.Signals) -> None:
    said: list[str] = []

    async def main() -> None:
        stopped = asyncio.Event()
        with stopped_by_signals(stopped.set, noticed=lambda: said.append("first"), again=lambda: said.append("again")):
            signal.raise_signal(number)
            assert not stopped.is_set(), "the event loop has not come to it yet"
            await stopped.wait()
            signal.raise_signal(number)
            signal.raise_signal(number)

    asyncio.run(main())

    assert said == ["first", "again", "again"]


def test_former_handlers_are_back_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)

    async def main() -> None:
        with stopped_by_signals(lambda: None):
            assert signal.getsignal(signal.SIGTERM) is not before

    asyncio.run(main())

    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_gets_no_signals_and_needs_none() -> None:
    done: list[bool] = []

    async def main() -> None:
        with stopped_by_signals(lambda: None):
            done.append(True)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join()

    assert done
