"""What an application reaches on Kafka: `python -m benchmarks.kafka [NAME ...]`.

A broker of its own runs beside it, or the one of KAFKA_BOOTSTRAP; the processor time it takes is reported apart. Input
is written before a worker starts, which is a process of its own: records of 100 bytes in a topic with 4 partitions,
for an application with 4 tasks. Every scenario prints one JSON object. CPU seconds per million records depend less on
what else a machine does than rates do; floors are taken in the same run.
"""

from __future__ import annotations

import asyncio
import bisect
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from benchmarks.embedded import Result, percentile, zipf_ids
from benchmarks.kafka_apps import CALLED, Click, Count, Order, Sum, payload
from penstock.errors import PenstockError
from penstock.ids import key_group, murmur2
from penstock.router.kafka_batches import Record
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import KafkaReader, read_range
from penstock.router.kafka_records import Fetched
from penstock.router.kafka_transactions import KafkaTransactions
from tests.kafka.broker import FAST, Cluster, temporary_cluster

PARTITIONS = 4
RECORDS = 1_000_000
APPS = Path(__file__).with_name("kafka_apps.py")
START_S = 60


# The broker, and what is written and read there.


@dataclass
class Bench:
    """One run of a scenario."""

    bootstrap: str
    cluster: Cluster | None
    name: str = field(default_factory=lambda: f"bench-{uuid.uuid4().hex[:8]}")

    @property
    def options(self) -> KafkaOptions:
        return KafkaOptions(self.bootstrap)

    def broker_cpu_s(self) -> float:
        """0 for a broker that is not ours."""
        return sum(node.cpu_s() for node in self.cluster.nodes) if self.cluster is not None else 0.0

    def create(self, *parts: str) -> None:
        """Make the topics of the application that are not its own: NAME-in and so on."""
        topics = [NewTopic(f"{self.name}-{part}", PARTITIONS, 1) for part in parts]

        async def create() -> None:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
            await admin.start()
            await admin.create_topics(topics)
            names = [topic.name for topic in topics]
            while any(topic["error_code"] for topic in await admin.describe_topics(names)):
                await asyncio.sleep(0.1)
            await admin.close()

        asyncio.run(create())

    def fill(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Write keys and values to NAME-in, as fast as that can be."""
        asyncio.run(_fill(self.bootstrap, f"{self.name}-in", records))

    def run_worker(self, app: str, kind: str, expected: int, directory: str, **order: Any) -> Result:
        """What a worker says of itself, and what the broker took per million records."""
        command = Order(self.bootstrap, directory, expected, **order)
        before = self.broker_cpu_s()
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.kafka_apps", kind, json.dumps(asdict(command))],
            env=self.environment(app),
            stdout=subprocess.PIPE,
            check=True,
        )
        spent = self.broker_cpu_s() - before
        return json.loads(child.stdout) | {"broker_cpu_s_per_million": round(spent / expected * 1e6, 2)}

    def environment(self, app: str) -> dict[str, str]:
        return {**os.environ, "BENCH_APP": app, "BENCH_NAME": self.name}

    @contextmanager
    def started(self, app: str, directory: str, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
        """`penstock run`, killed at the end with all it started."""
        penstock = "from penstock.engine.cli import main; main()"
        base = [sys.executable, "-c", penstock, "run", f"{APPS}:app", "--kafka", self.bootstrap, "--port", "none"]
        command = [
            *base,
            "--dir",
            directory,
            "--parallelism",
            str(PARTITIONS),
            "--log-level",
            "error",
            "--log-json",
            *flags,
        ]
        with subprocess.Popen(command, env=self.environment(app), start_new_session=True) as process:
            try:
                yield process
            finally:
                for pid in [*_children(process.pid), process.pid]:
                    _kill(pid)


async def _fill(bootstrap: str, topic: str, records: Iterable[tuple[bytes, bytes]]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_batch_size=256 << 10)
    await producer.start()
    known: dict[bytes, int] = {}
    batches = [producer.create_batch() for _ in range(PARTITIONS)]
    for key, value in records:
        partition = known.get(key)
        if partition is None:
            partition = known[key] = (murmur2(key) & 0x7FFFFFFF) % PARTITIONS
        if batches[partition].append(key=key, value=value, timestamp=None) is None:
            await producer.send_batch(batches[partition], topic, partition=partition)
            batches[partition] = producer.create_batch()
            batches[partition].append(key=key, value=value, timestamp=None)
    for partition, batch in enumerate(batches):
        if batch.record_count():
            await producer.send_batch(batch, topic, partition=partition)
    await producer.stop()


def _read_all(bench: Bench, topic: str) -> list[list[Fetched]]:
    """All that a reader of committed records finds in each partition."""

    async def read() -> list[list[Fetched]]:
        return [await read_range(bench.options, topic, partition, 0) for partition in range(PARTITIONS)]

    return asyncio.run(read())


def _children(pid: int) -> list[int]:
    """All processes below this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            child = int(path.parent.name)
            found += [child, *_children(child)]
    return found


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# Floors.


def _floor(loop: Coroutine[Any, Any, None], count: int) -> Result:
    """What a loop costs that reads, counts in a dictionary, and writes if asked to."""

    async def run() -> Result:
        began, cpu = time.perf_counter(), time.process_time()
        await loop
        took, spent = time.perf_counter() - began, time.process_time() - cpu
        return {"per_s": round(count / took), "cpu_s_per_million": round(spent / count * 1e6, 2)}

    return asyncio.run(run())


async def _plain_loop(bench: Bench, count: int, output: bool) -> None:
    """With the calls of the client library."""
    topic = f"{bench.name}-in"
    decode, encode = msgspec.msgpack.Decoder(Click).decode, msgspec.msgpack.Encoder().encode
    counts: dict[bytes, Count] = {}
    consumer = AIOKafkaConsumer(bootstrap_servers=bench.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    consumer.assign([TopicPartition(topic, partition) for partition in range(PARTITIONS)])
    producer: Any = AIOKafkaProducer(
        bootstrap_servers=bench.bootstrap, transactional_id=f"{bench.name}-plain", max_batch_size=256 << 10
    )
    if output:
        await producer.start()
        await producer.begin_transaction()
    done, committed_at = 0, time.perf_counter()
    while done < count:
        for place, records in (await consumer.getmany(timeout_ms=500, max_records=10_000)).items():
            batch = producer.create_batch() if output else None
            for record in records:
                click = decode(record.value)
                state = counts.get(record.key)
                if state is None:
                    state = counts[record.key] = Count()
                state.clicks += 1
                state.amount += click.amount
                if batch is not None:
                    value = encode(Sum(click.at, state.clicks, click.text))
                    if batch.append(key=record.key, value=value, timestamp=None) is None:
                        await producer.send_batch(batch, f"{bench.name}-floor", partition=place.partition)
                        batch = producer.create_batch()
                        batch.append(key=record.key, value=value, timestamp=None)
            if batch is not None and batch.record_count():
                await producer.send_batch(batch, f"{bench.name}-floor", partition=place.partition)
            done += len(records)
        if output and time.perf_counter() - committed_at > 0.1:
            await producer.commit_transaction()
            await producer.begin_transaction()
            committed_at = time.perf_counter()
    if output:
        await producer.commit_transaction()
        await producer.stop()
    await consumer.stop()


async def _plain_chain(bench: Bench, count: int) -> None:
    """With the calls of the client library, three counts by different keys, with topics between them."""
    topics = [f"{bench.name}-{part}" for part in ("in", "second", "third", "floor")]
    following = dict(pairwise(topics))
    prefixes = dict(zip(topics, (b"second-", b"third-", b""), strict=False))
    decode, encode = msgspec.msgpack.Decoder(Click).decode, msgspec.msgpack.Encoder().encode
    counts: dict[tuple[str, bytes], Count] = {}
    consumer = AIOKafkaConsumer(bootstrap_servers=bench.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    consumer.assign([TopicPartition(topic, partition) for topic in topics[:3] for partition in range(PARTITIONS)])
    producer: Any = AIOKafkaProducer(
        bootstrap_servers=bench.bootstrap, transactional_id=f"{bench.name}-plain", max_batch_size=256 << 10
    )
    await producer.start()
    await producer.begin_transaction()
    done, committed_at = 0, time.perf_counter()
    while done < count:
        batches: dict[tuple[str, int], Any] = {}
        for place, records in (await consumer.getmany(timeout_ms=100, max_records=10_000)).items():
            target, prefix, last = following[place.topic], prefixes[place.topic], place.topic == topics[2]
            for record in records:
                click = decode(record.value)
                address = place.topic, record.key
                state = counts.get(address)
                if state is None:
                    state = counts[address] = Count()
                state.clicks += 1
                state.amount += click.amount
                key = prefix + record.key
                value = encode(Sum(click.at, state.clicks, click.text)) if last else encode(click)
                to = target, (murmur2(key) & 0x7FFFFFFF) % PARTITIONS
                batch = batches.get(to)
                if batch is None:
                    batch = batches[to] = producer.create_batch()
                if batch.append(key=key, value=value, timestamp=None) is None:
                    await producer.send_batch(batch, target, partition=to[1])
                    batch = batches[to] = producer.create_batch()
                    batch.append(key=key, value=value, timestamp=None)
            done += len(records) * last
        for (target, partition), batch in batches.items():
            await producer.send_batch(batch, target, partition=partition)
        if time.perf_counter() - committed_at > 0.1:
            await producer.commit_transaction()
            await producer.begin_transaction()
            committed_at = time.perf_counter()
    await producer.commit_transaction()
    await producer.stop()
    await consumer.stop()


async def _own_loop(bench: Bench, count: int, output: bool) -> None:
    """With fetches and transactions of our own."""
    topic = f"{bench.name}-in"
    decode, encode = msgspec.msgpack.Decoder(Click).decode, msgspec.msgpack.Encoder().encode
    counts: dict[bytes | None, Count] = {}
    came = asyncio.Event()

    def failed(error: PenstockError) -> None:
        raise error

    reader = KafkaReader(bench.options, on_records=came.set, failed=failed)
    await reader.start()
    for partition in range(PARTITIONS):
        reader.add(topic, partition, 0)
    transactions = KafkaTransactions(bench.options, f"{bench.name}-own", compression="lz4")
    rows: list[Record] = []
    done, committed_at = 0, time.perf_counter()
    while done < count:
        before = done
        for partition in range(PARTITIONS):
            taken = reader.take_columns(topic, partition, 2_000)
            if taken is None:
                continue
            done += len(taken.keys)
            for key, value in zip(taken.keys, taken.values, strict=True):
                click = decode(value or b"")
                state = counts.get(key)
                if state is None:
                    state = counts[key] = Count()
                state.clicks += 1
                state.amount += click.amount
                if output:
                    row = encode(Sum(click.at, state.clicks, click.text))
                    rows.append(Record(f"{bench.name}-floor", partition, row, key))
        if output and (time.perf_counter() - committed_at > 0.1 or done >= count):
            await transactions.fence()
            await transactions.commit(rows)
            rows, committed_at = [], time.perf_counter()
        if done == before:
            await came.wait()
            came.clear()
        await asyncio.sleep(0)
    await transactions.close()
    await reader.close()


# Throughput.


def _clicks(ids: Sequence[str], count: int) -> Iterator[tuple[bytes, bytes]]:
    keys, value = [id.encode() for id in ids], payload()
    return ((keys[n % len(keys)], value) for n in range(count))


def _throughput(bench: Bench, app: str, ids: Sequence[str], *, output: bool, floors: bool = True) -> Result:
    bench.create("in", "out", "floor")
    bench.fill(_clicks(ids, RECORDS))
    result: Result = {}
    if floors:
        result["floor_plain"] = _floor(_plain_loop(bench, RECORDS, output), RECORDS)
        result["floor_own"] = _floor(_own_loop(bench, RECORDS, output), RECORDS)
    with tempfile.TemporaryDirectory() as directory:
        return bench.run_worker(app, "rate", RECORDS, directory) | result


def count(bench: Bench) -> Result:
    """A keyed count, exactly-once state, Zipf 0.99 over 10,000 keys."""
    return _throughput(bench, "count", zipf_ids(10_000, 200_000), output=False)


def output(bench: Bench) -> Result:
    """The same with one record out for each in, exactly once, as a reader of committed records finds it."""
    result = _throughput(bench, "output", zipf_ids(10_000, 200_000), output=True)
    return result | {"verified": _verified(bench)}


def _verified(bench: Bench) -> int:
    """How many committed records there are; asserts that they are all, once each and in order for each key."""
    decode = msgspec.msgpack.Decoder(Sum).decode
    counts: dict[bytes | None, int] = defaultdict(int)
    total = 0
    for records in _read_all(bench, f"{bench.name}-out"):
        for record in records:
            counts[record.key] += 1
            total += 1
            assert decode(record.value or b"").clicks == counts[record.key], record
    assert total == RECORDS, total
    return total


def chain(bench: Bench) -> Result:
    """Three functions under three ids each, then a record out, exactly once."""
    result = _throughput(bench, "chain", zipf_ids(10_000, 200_000), output=True, floors=False)
    bench.create("second", "third")
    result["floor_plain"] = _floor(_plain_chain(bench, RECORDS), RECORDS)
    return result | {"verified": _verified(bench)}


def hot(bench: Bench) -> Result:
    """One hot key."""
    return _throughput(bench, "count", ["user-1"], output=False)


# Latencies.


def hops(bench: Bench) -> Result:
    """A hop between two tasks of one worker, with so many messages under way at any time."""
    result: Result = {}
    for number in (1, 10, 100, 1_000):
        bench.name = f"bench-{uuid.uuid4().hex[:8]}"
        bench.create("in")
        value = payload()
        bench.fill((id.encode(), value) for id in _to_and_fro(number))
        with tempfile.TemporaryDirectory() as directory:
            expected = min(200_000, number * 2_000)
            result[f"{number}_under_way"] = bench.run_worker("hops", "hops", expected, directory, settled=False)
    return result


def _to_and_fro(count: int) -> Iterator[str]:
    """Ids of tasks other than those of the ids that a message goes on to."""
    found = 0
    while count:
        id = f"user-{found}"
        found += 1
        if key_group(id) % PARTITIONS != key_group(f"{id}'") % PARTITIONS:
            count -= 1
            yield id


class Load:
    """Writes to NAME-in at a rate, and reads what comes out, in the process of the benchmark. `value` makes the value
    of a record from the time at which it was due."""

    def __init__(self, bench: Bench, ids: Sequence[str], per_s: float, *outputs: str, poisson: bool = True) -> None:
        self._bench = bench
        self._ids = ids
        self._per_s = per_s
        self._outputs = outputs or ("out",)
        self._poisson = poisson
        self.seen: dict[str, list[Seen]] = {part: [] for part in self._outputs}
        self.late_s = 0.0
        """How far behind its plan the load was at most."""
        self._working: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        self._producer = AIOKafkaProducer(bootstrap_servers=self._bench.bootstrap)
        await self._producer.start()
        self._came = asyncio.Event()
        self._readers = {}
        for part in self._outputs:
            isolation = "read_uncommitted" if part == "eager" else "read_committed"
            reader = KafkaReader(self._bench.options, isolation=isolation, on_records=self._came.set, failed=print)  # type: ignore[arg-type]
            await reader.start()
            for partition in range(PARTITIONS):
                reader.add(f"{self._bench.name}-{part}", partition, 0)
            self._readers[part] = reader
        self._working = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        await self._producer.stop()
        for reader in self._readers.values():
            await reader.close()

    async def _write(self) -> None:
        draw = random.Random(2)
        due, number = time.time(), 0
        topic = f"{self._bench.name}-in"
        while True:
            now = time.time()
            self.late_s = max(self.late_s, now - due)
            while due <= now:
                key = self._ids[number % len(self._ids)].encode()
                partition = (murmur2(key) & 0x7FFFFFFF) % PARTITIONS
                await self._producer.send(topic, payload(at=due), key=key, partition=partition)
                number += 1
                due += draw.expovariate(self._per_s) if self._poisson else 1 / self._per_s
            await asyncio.sleep(max(0.0, due - time.time()))

    async def _read(self) -> None:
        decode = msgspec.msgpack.Decoder(Sum).decode
        while True:
            await self._came.wait()
            self._came.clear()
            now = time.time()
            for part, reader in self._readers.items():
                for partition in range(PARTITIONS):
                    for record in reader.take(f"{self._bench.name}-{part}", partition, 1 << 20):
                        at = decode(record.value or b"").at
                        self.seen[part].append(Seen(now, at, record.key or b"", partition))

    async def until(self, part: str, count: int) -> None:
        """Wait until so many records came out."""
        deadline = time.monotonic() + START_S
        while len(self.seen[part]) < count:
            assert time.monotonic() < deadline, f"{len(self.seen[part])} records came out in {START_S} s"
            assert not any(task.done() for task in self._working)
            await asyncio.sleep(0.02)

    async def until_current(self, part: str) -> None:
        """Wait until what comes out was written less than a second ago, for three seconds."""
        deadline = time.monotonic() + 3 * START_S
        late_at = time.time()
        while time.time() - late_at < 3:
            assert time.monotonic() < deadline, "the output stays behind"
            latest = {each.partition: each.due_s for each in self.seen[part][-2_000:]}
            if len(latest) < PARTITIONS or min(latest.values()) < time.time() - 1:
                late_at = time.time()
            await asyncio.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Seen:
    """A record that came out."""

    at_s: float
    due_s: float
    """When the record that caused it was to be written."""
    key: bytes
    partition: int


def latency(bench: Bench) -> Result:
    """From when a record was due to its visible output, exactly once, at 200/s, over one function and over three."""
    return {name: asyncio.run(_latency(bench, app)) for name, app in (("one_hop", "output"), ("three_hops", "chain"))}


async def _latency(bench: Bench, app: str) -> Result:
    bench.name = f"bench-{uuid.uuid4().hex[:8]}"
    await asyncio.to_thread(bench.create, "in", "out")
    ids = zipf_ids(10_000, 200_000)
    with tempfile.TemporaryDirectory() as directory, bench.started(app, directory) as process:
        async with Load(bench, ids, 200) as load:
            await load.until("out", 1_000)
            load.seen["out"].clear()
            cpu, broker = _cpu_s(process.pid), bench.broker_cpu_s()
            began = time.perf_counter()
            await load.until("out", 6_000)
            took = time.perf_counter() - began
            found = [seen.at_s - seen.due_s for seen in load.seen["out"]]
        return {
            "p50_ms": round(percentile(found, 0.5) * 1000, 1),
            "p90_ms": round(percentile(found, 0.9) * 1000, 1),
            "p99_ms": round(percentile(found, 0.99) * 1000, 1),
            "share_of_a_core": round((_cpu_s(process.pid) - cpu) / took, 2),
            "broker_share_of_a_core": round((bench.broker_cpu_s() - broker) / took, 2),
        }


# Failures.


def kill(bench: Bench) -> Result:
    """SIGKILL of one of two workers under a steady load, and of the leader alone."""
    return {"worker": asyncio.run(_kill_one(bench, "worker")), "leader": asyncio.run(_kill_one(bench, "leader"))}


LOAD_PER_S = 5_000
"""What the benchmark itself can write and read beside two workers and a broker on two cores."""


async def _kill_one(bench: Bench, whom: str) -> Result:
    bench.name = f"bench-{uuid.uuid4().hex[:8]}"
    await asyncio.to_thread(bench.create, "in", "out", "eager")
    ids = [f"user-{n}" for n in range(1_000)]
    with tempfile.TemporaryDirectory() as directory, bench.started("both", directory, "--workers", "2") as process:
        async with Load(bench, ids, LOAD_PER_S, "out", "eager", poisson=False) as load:
            await load.until("out", 5 * LOAD_PER_S)
            leader, *workers = sorted(_python_children(process.pid))
            killed_at = time.time()
            _kill(leader if whom == "leader" else workers[0])
            await load.until("out", len(load.seen["out"]) + 8 * LOAD_PER_S)
            result = {
                part: {
                    "new_output_of_every_key_s": round(_until_all(load.seen[part], ids, killed_at), 2),
                    "longest_gap_s": round(_longest_gap(load.seen[part], killed_at - 0.5), 2),
                }
                for part in ("out", "eager")
            }
            return {**result, "load_late_s": round(load.late_s, 2)}


def _python_children(pid: int) -> list[int]:
    return [
        child for child in _children(pid) if b"engine.cluster.process" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def _until_all(seen: Sequence[Seen], ids: Sequence[str], moment_s: float) -> float:
    """How long after a moment there was output of every key that a record written after it has caused."""
    first: dict[bytes, float] = {}
    for each in seen:
        if each.due_s > moment_s:
            first.setdefault(each.key, each.at_s)
    assert len(first) == len(ids), f"{len(ids) - len(first)} keys without new output"
    return max(first.values()) - moment_s


def _longest_gap(seen: Sequence[Seen], since_s: float) -> float:
    """The longest time in which one partition gave no output."""
    times: dict[int, list[float]] = defaultdict(list)
    for each in seen:
        if each.at_s > since_s:
            times[each.partition].append(each.at_s)
    return max(max(b - a for a, b in pairwise(found)) for found in times.values())


# Large state.

ADDRESSES = 1_000_000
STATE_LOAD_PER_S = 1_000


def state(bench: Bench) -> Result:
    """A million addresses of 100 bytes: gaps in the output at checkpoints, and how long a start takes after SIGKILL."""
    bench.create("in", "out", "eager")
    bench.fill((b"user-%d" % n, payload(amount=0)) for n in range(ADDRESSES))
    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(_state(bench, directory))


async def _state(bench: Bench, directory: str) -> Result:
    ids = [f"user-{n * 7_368_787 % ADDRESSES}" for n in range(ADDRESSES)]
    gc.freeze()  # A look through a million ids would hold up whoever takes the time.
    async with Load(bench, ids, STATE_LOAD_PER_S, "out", "eager", poisson=False) as load:
        with bench.started("blobs", directory) as process:
            await load.until_current("out")
            since = time.time()
            await asyncio.sleep(15)
            gaps = {part: round(_gap_of_all(load.seen[part], since) * 1000) for part in ("eager", "out")}
            _kill(process.pid)
        with bench.started("blobs", directory):
            again = await _first_output(load, "out")
            await asyncio.sleep(3)
        shutil.rmtree(Path(directory) / "cache", ignore_errors=True)
        shutil.rmtree(Path(directory) / "tasks", ignore_errors=True)
        with bench.started("blobs", directory):
            without_cache = await _first_output(load, "out")
    return {
        "longest_gap_ms_eager": gaps["eager"],
        "longest_gap_ms_exactly_once": gaps["out"],
        "ready_again_s": round(again, 2),
        "ready_again_without_cache_s": round(without_cache, 2),
        "load_late_s": round(load.late_s, 2),
    }


async def _first_output(load: Load, part: str) -> float:
    """Seconds until the first output for a record that was written after a process was started."""
    began = time.time()
    deadline = time.monotonic() + START_S
    while not (new := [each for each in load.seen[part][-10_000:] if each.due_s > began]):
        assert time.monotonic() < deadline, f"no output in {START_S} s"
        await asyncio.sleep(0.02)
    return new[0].at_s - began


def _gap_of_all(seen: Sequence[Seen], since_s: float) -> float:
    times = [each.at_s for each in seen]
    times = times[bisect.bisect(times, since_s) :]
    return max(b - a for a, b in pairwise(times))


# Moves.


def moves(bench: Bench) -> Result:
    """A worker joins another, and leaves it again: the longest gap in the output of one partition."""
    return asyncio.run(_moves(bench))


async def _moves(bench: Bench) -> Result:
    await asyncio.to_thread(bench.create, "in", "out", "eager")
    ids = [f"user-{n}" for n in range(1_000)]
    with tempfile.TemporaryDirectory() as directory:
        store = ("--store", f"{directory}/store")
        async with Load(bench, ids, 2_000, "out", "eager", poisson=False) as load:
            with bench.started("both", f"{directory}/one", *store):
                await load.until("out", 5_000)
                joined_at = time.time()
                with bench.started("both", f"{directory}/two", *store) as second:
                    await asyncio.sleep(8)
                    join = {part: _longest_gap(load.seen[part], joined_at) for part in ("eager", "out")}
                    left_at = time.time()
                    second.terminate()
                    await asyncio.to_thread(second.wait)
                    await asyncio.sleep(2)
                    leave = {part: _longest_gap(load.seen[part], left_at) for part in ("eager", "out")}
    return {
        "join_gap_ms": {part: round(gap * 1000) for part, gap in join.items()},
        "leave_gap_ms": {part: round(gap * 1000) for part, gap in leave.items()},
    }


def idle(bench: Bench) -> Result:
    """An application with 16 tasks and nothing to do."""
    bench.create("in")
    with (
        tempfile.TemporaryDirectory() as directory,
        bench.started("count", directory, "--parallelism", "16") as process,
    ):
        time.sleep(10)
        cpu, broker = _cpu_s(process.pid), bench.broker_cpu_s()
        time.sleep(20)
        return {
            "share_of_a_core": round((_cpu_s(process.pid) - cpu) / 20, 4),
            "broker_share_of_a_core": round((bench.broker_cpu_s() - broker) / 20, 4),
        }


CALL_ROUNDS = 50


def calls(bench: Bench) -> Result:
    """A call after the other, of functions in the caller's worker and in the other one of two."""
    bench.create("in", "out")
    expected = CALL_ROUNDS * len(CALLED)
    with tempfile.TemporaryDirectory() as directory, bench.started("calls", directory, "--workers", "2"):
        bench.fill([(b"caller", payload(CALL_ROUNDS))])
        deadline = time.monotonic() + START_S
        rows: list[Sum] = []
        while len(rows) < expected and time.monotonic() < deadline:
            time.sleep(1)
            found = (row for part in _read_all(bench, f"{bench.name}-out") for row in part)
            rows = [msgspec.msgpack.decode(row.value or b"", type=Sum) for row in found]
    return {
        where: {
            "calls": len(took_ms),
            "p50_ms": round(percentile(took_ms, 0.5), 2),
            "p99_ms": round(percentile(took_ms, 0.99), 2),
        }
        for where, other in (("same_worker", 0), ("other_worker", 1))
        if (took_ms := [row.at * 1_000 for row in rows if row.clicks == other])
    }


SCENARIOS: dict[str, Callable[[Bench], Result]] = {
    each.__name__: each  # type: ignore[attr-defined]
    for each in (count, output, chain, hot, hops, latency, calls, kill, state, moves, idle)
}


def main(names: Sequence[str]) -> None:
    given = os.environ.get("KAFKA_BOOTSTRAP")
    for name in names or SCENARIOS:
        with nullcontext() if given else temporary_cluster(java=FAST) as cluster:
            bench = Bench(given or cluster.bootstrap, cluster)
            print(json.dumps({"scenario": name, **SCENARIOS[name](bench)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
