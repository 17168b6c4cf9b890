"""The load generator, a process of its own: `python -m penstock.compare.load OPTIONS`, a file with `LoadOptions`.

It offers every request at the moment it is intended, whatever became of those before, and takes the time until the
answer from that moment on: what waits because the server is slow counts as slow. A client asks again where there was no
answer, or 503, until its patience is over, always under the same key.

What always holds: every request that was offered has one reply in the records, which may be that there is none; the
last line on standard output tells how late the generator was against its own schedule.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import msgspec

from penstock.compare.connections import Connections, NoAnswer
from penstock.compare.messages import Request, Source, outcome_of, source_of
from penstock.compare.records import Event, EventFile, Head
from penstock.compare.schedule import AGAIN_S, Offer, offers
from penstock.loops import loop_factory

AGAIN_AFTER_S: Final = 0.25
"""A client waits so long before it asks again."""
NODE: Final = "client"
REFUSALS: Final = {"PEN0843": "a breaker is open", "PEN0844": "too many wait", "PEN0848": "load is shed"}
"""Answers of policies, with the status of a host that is not there. To ask again would be the storm they prevent."""


class LoadOptions(msgspec.Struct, frozen=True):
    url: str
    out: str
    head: Head
    origin: float
    """When the measured time begins, on the clock of the machine that never jumps."""
    seed: int
    rate: float
    warmup_s: float
    seconds: float
    steps: list[dict[str, Any]]
    theta: float = 0.8
    source: str = ""
    """Where requests come from: empty for the shop, a file of recorded messages, or module:function."""
    folder: str = "."
    patience_s: float = 10.0
    attempts_max: int = 1_000
    keyed: bool = True
    """Whether requests carry an Idempotency-Key."""


class LoadResult(msgspec.Struct, frozen=True):
    """What the last line says."""

    offered: int
    """In the measured time, without the warm-up."""
    late_p99_ms: float
    """How much later than intended requests have left."""
    late_max_ms: float


class Load:
    """Offers a schedule. `write` takes what happens, in seconds from the origin."""

    def __init__(self, options: LoadOptions, source: Source, events: EventFile) -> None:
        self._options = options
        self._source = source
        self._events = events
        url = urlsplit(options.url)
        self._connections = Connections(url.hostname or "127.0.0.1", url.port or 80)
        self._lateness_s: list[float] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    async def run(self, schedule: Sequence[Offer]) -> LoadResult:
        requests = [self._source.request(offer.number) for offer in schedule]
        # What was made so far stays: the collector has nothing to look for in it while time counts.
        gc.collect()
        gc.freeze()
        for offer, request in zip(schedule, requests, strict=True):
            wait_s = self._options.origin + offer.at_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            self._offer(offer, request)
        await self._rest()
        self._connections.close()
        late = sorted(self._lateness_s) or [0.0]
        return LoadResult(
            offered=sum(offer.at_s >= 0 for offer in schedule),
            late_p99_ms=round(late[int(0.99 * (len(late) - 1))] * 1000, 3),
            late_max_ms=round(late[-1] * 1000, 3),
        )

    async def _rest(self) -> None:
        while self._under_way:
            await asyncio.wait(self._under_way)
        if self._failure is not None:
            raise self._failure

    def _offer(self, offer: Offer, request: Request) -> None:
        self._note(Event(offer.at_s, "offered", order=request.key, key=request.id, fn=request.fn))
        self._begin(self._ask(offer, request, offer.held_s))
        if offer.twice:
            self._begin(self._ask(offer, request, AGAIN_S, what="duplicate"))

    def _begin(self, asking: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(asking)
        self._under_way.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error

    async def _ask(self, offer: Offer, request: Request, held_s: float, what: str = "") -> None:
        if held_s:
            await asyncio.sleep(held_s)
        else:
            self._lateness_s.append(self._now() - offer.at_s)
        attempt = 0
        while True:
            attempt += 1
            status, outcome = await self._attempt(offer, request, attempt, what)
            left_s = offer.at_s + held_s + self._options.patience_s - self._now()
            if not _may_ask_again(status, outcome) or attempt >= self._options.attempts_max or left_s < AGAIN_AFTER_S:
                break
            self._note(
                Event(
                    self._now(),
                    "retry",
                    NODE,
                    attempt=attempt,
                    outcome=outcome,
                    status=status,
                    what=what,
                    order=request.key,
                    key=request.id,
                    fn=request.fn,
                )
            )
            await asyncio.sleep(AGAIN_AFTER_S)
        now_s = self._now()
        if status in (429, 503):
            self._note(
                Event(
                    now_s,
                    "shed",
                    NODE,
                    outcome=outcome,
                    status=status,
                    what=what,
                    order=request.key,
                    key=request.id,
                    fn=request.fn,
                )
            )
        self._note(
            Event(
                now_s,
                "reply",
                NODE,
                attempt=attempt,
                outcome=outcome,
                status=status,
                dur_ms=round((now_s - offer.at_s) * 1000, 3),
                what=what,
                order=request.key,
                key=request.id,
                fn=request.fn,
            )
        )

    async def _attempt(self, offer: Offer, request: Request, attempt: int, what: str) -> tuple[int, str]:
        left_s = max(0.05, offer.at_s + offer.held_s + self._options.patience_s - self._now())
        headers = {"Content-Type": "application/json"}
        if self._options.keyed:
            headers["Idempotency-Key"] = request.key
        self._note(
            Event(
                self._now(), "sent", NODE, attempt=attempt, what=what, order=request.key, key=request.id, fn=request.fn
            )
        )
        try:
            answer = await self._connections.post(
                f"/call/{request.fn}/{quote(request.id, safe='')}?timeout={left_s:.3f}", request.body, headers, left_s
            )
        except NoAnswer as error:
            return 0, str(error)
        return answer.status, outcome_of(answer.status, answer.body, of_the_shop=not self._options.source)

    def _now(self) -> float:
        return time.monotonic() - self._options.origin

    def _note(self, event: Event) -> None:
        self._events.write(event)


def _may_ask_again(status: int, outcome: str) -> bool:
    """No answer, or one that says that nothing was done and somebody may be there soon."""
    return (status == 0 and outcome != "timeout") or (status == 503 and outcome not in REFUSALS)


def prefer_this_process() -> None:
    """What is measured keeps the machine busy, and must not make its measure late: have a core whenever there is
    something to do, which is a tenth of a millisecond for each request. The system may allow that to root alone;
    without, the lateness that is told says whether it was needed."""
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def main() -> None:
    """Offer what the options say."""
    prefer_this_process()
    options = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=LoadOptions)
    schedule = offers(
        options.seed, rate=options.rate, warmup_s=options.warmup_s, seconds=options.seconds, steps=options.steps
    )
    source = source_of(options.source, options.seed, options.theta, Path(options.folder))
    with EventFile(Path(options.out), options.head) as events, asyncio.Runner(loop_factory=loop_factory()) as runner:
        result = runner.run(Load(options, source, events).run(schedule))
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")


if __name__ == "__main__":
    main()
