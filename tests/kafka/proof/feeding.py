"""The side of the proof that feeds an application, calls it, and counts what comes out.

What always holds: what was sent is durable before it is counted, and stands in Kafka where the checker finds it, and so
does what callers were told. Nothing here judges: `tests.kafka.proof.checker` does.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, get_args

import aiohttp
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from tests.kafka.proof.checker import INPUTS, OUTPUTS
from tests.kill.ledger import ACCOUNTS, Way

PARTITIONS = 4
NODES = 60
KEYS = 24
REGISTRIES = 8
TICK_S = 0.05
CALL_S = 30
ANSWER_S = 90
"""For calls that are made again until there is an answer."""
QUIET_S = 1.5
"""After everything that was due is there: in this time something doubled would have come."""


async def create_topics(bootstrap: str, name: str, *, replicas: int = 1) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(f"{name}-{topic}", PARTITIONS, replicas) for topic in (*INPUTS, *OUTPUTS)])
    finally:
        await admin.close()


class Feed:
    """Sends work, at a steady rate, from `start` to `finish`."""

    def __init__(self, bootstrap: str, name: str, *, seed: int, transfers_per_s: int = 150) -> None:
        self.due: Counter[str] = Counter()
        """Rows of each output that follow from what was sent and is durable."""
        self.failed = 0
        """Calls that brought no answer."""
        self._name = name
        self._random = random.Random(seed)
        self._producer_options: dict[str, Any] = {
            "bootstrap_servers": bootstrap,
            "enable_idempotence": True,
            "request_timeout_ms": 10_000,
            "linger_ms": 1,
        }
        self._per_tick = max(1, round(transfers_per_s * TICK_S))
        self._numbers = Counter[str]()
        self._running: list[asyncio.Task[None]] = []
        self._stopping = False

    async def start(self, url: Callable[[], str]) -> None:
        """`url` tells where calls go at present."""
        self._url = url
        self._producer = AIOKafkaProducer(**self._producer_options)
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CALL_S))
        await self._producer.start()
        self._running = [asyncio.create_task(self._feed())]
        self._running += [asyncio.create_task(self._call(f"registry-{number}")) for number in range(REGISTRIES)]

    async def finish(self) -> bool:
        """Send no more. The last work reaches every account and every key, so that what they hold in the end shows in
        their last row. Returns whether calls under way were answered: they are waited for."""
        self._stopping = True
        ended, unanswered = await asyncio.wait(self._running, timeout=ANSWER_S)
        for task in ended:
            task.result()
        for task in unanswered:
            task.cancel()
        for account in range(ACCOUNTS):
            await self._transfer(f"account-{account}", f"account-{(account + 1) % ACCOUNTS}", 0, "at once")
        for key in range(KEYS):
            await self._reading(f"key-{key}")
        await self.session.close()
        await self._producer.stop()
        return not unanswered

    async def close(self) -> None:
        """End at once."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self.session.close()
        await self._producer.stop()

    async def _feed(self) -> None:
        due = time.monotonic()
        while not self._stopping:
            await asyncio.gather(
                *(self._any_transfer() for _ in range(self._per_tick)),
                *(self._any_reading() for _ in range(self._per_tick // 2)),
                self._any_walk(),
            )
            due = max(due + TICK_S, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _any_transfer(self) -> None:
        payer, payee = self._random.sample(range(ACCOUNTS), 2)
        amount, way = self._random.randint(1, 500), self._random.choice(get_args(Way))
        await self._transfer(f"account-{payer}", f"account-{payee}", amount, way)

    async def _transfer(self, payer: str, payee: str, amount: int, way: str) -> None:
        number = self._next("transfer")
        value = {"number": number, "payer": payer, "payee": payee, "amount": amount, "way": way}
        await self._send("transfers", payer, value, bookings=2)

    async def _any_reading(self) -> None:
        await self._reading(f"key-{self._random.randrange(KEYS)}")

    async def _reading(self, key: str) -> None:
        await self._send("readings", key, {"key": key, "number": self._next(key)}, sequenced=1, followed=1)

    async def _any_walk(self) -> None:
        steps = Counter[str]()
        tree = self._tree(self._next("walk"), steps, depth=0)
        await self._send("walks", tree["node"], tree, steps=steps["step"])

    def _tree(self, walk: int, steps: Counter[str], *, depth: int) -> dict[str, Any]:
        choose = self._random
        number = steps["step"]
        steps["step"] += 1
        children = choose.choice([1, 1, 2, 3]) if depth < 3 else choose.choice([0, 0, 0, 1])
        return {
            "walk": walk,
            "step": number,
            "node": f"node-{choose.randrange(NODES)}",
            "delay_ms": choose.choice([0, 0, 0, 10, 60, 250]),
            "following": [self._tree(walk, steps, depth=depth + 1) for _ in range(children if depth < 6 else 0)],
        }

    async def _call(self, registry: str) -> None:
        """Register one name after the other. Every second one may be asked for again until there is an answer."""
        number = 0
        while not self._stopping:
            number += 1
            request = f"{registry}/{number}"
            repeatable = number % 2 == 0
            place = await self._register(registry, request, repeatable)
            while place is None and repeatable:
                await asyncio.sleep(TICK_S)
                place = await self._register(registry, request, repeatable)
            await self._send("told", registry, {"request": request, "place": place}, registered=place is not None)
            await asyncio.sleep(TICK_S if place is not None else 10 * TICK_S)

    async def _register(self, registry: str, request: str, repeatable: bool) -> int | None:
        headers = {"Idempotency-Key": request} if repeatable else {}
        try:
            async with self.session.post(
                f"{self._url()}/call/proof/registry/{registry}", json={"request": request}, headers=headers
            ) as response:
                if response.status == 200:
                    answer: int = await response.json()
                    return answer
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass
        self.failed += 1
        return None

    async def _send(self, topic: str, key: str, value: dict[str, Any], **due: int) -> None:
        """Returns when the record is durable, however long the brokers are away."""
        data = json.dumps(value).encode()
        while True:
            try:
                await self._producer.send_and_wait(f"{self._name}-{topic}", data, key=key.encode())
                break
            except KafkaError:
                await asyncio.sleep(TICK_S)
        self.due.update(due)

    def _next(self, kind: str) -> int:
        self._numbers[kind] += 1
        return self._numbers[kind]


class Tail:
    """Counts the rows that are visible."""

    def __init__(self, bootstrap: str, name: str) -> None:
        self.seen: Counter[str] = Counter()
        self.changed_at = time.monotonic()
        self._name = name
        self._bootstrap = bootstrap

    async def start(self) -> None:
        self._consumer = AIOKafkaConsumer(
            *(f"{self._name}-{topic}" for topic in OUTPUTS),
            bootstrap_servers=self._bootstrap,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        await self._consumer.start()
        self._running = asyncio.create_task(self._count())

    async def close(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await self._consumer.stop()

    async def _count(self) -> None:
        while True:
            try:
                found = await self._consumer.getmany(timeout_ms=200)
            except KafkaError:
                await asyncio.sleep(TICK_S)
                continue
            for partition, records in found.items():
                self.seen[partition.topic.removeprefix(f"{self._name}-")] += len(records)
            if found:
                self.changed_at = time.monotonic()

    def missing(self, due: Counter[str]) -> Counter[str]:
        """Rows of each topic that are not visible yet."""
        return due - self.seen

    async def wait_for(self, due: Counter[str], *, patience_s: float) -> Counter[str]:
        """Return what is missing: nothing, or what has not come although `patience_s` passed without any row."""
        while True:
            silent_s = time.monotonic() - self.changed_at
            missing = self.missing(due)
            if silent_s > (patience_s if missing else QUIET_S):
                return missing
            await asyncio.sleep(TICK_S)
