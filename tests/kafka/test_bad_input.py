"""What must not be there, or goes away: each becomes a dead letter or a coded error, and nothing is lost by it.

Most of it comes to one worker, which all tests of this file share: after each it has to be as good as before.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from penstock import App, Context, Message, State
from penstock.engine.cluster.options import ClusterOptions
from penstock.engine.cluster.worker import ClusterWorker
from penstock.engine.config import Config
from penstock.errors import ConfigurationError, PenstockError, ProtocolError, Refused
from penstock.functions.formats import Avro
from penstock.functions.kafka import KafkaIngress
from penstock.functions.kafka_egress import KafkaEgress
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import KafkaReader
from penstock.router.schema_frames import frame
from tests.kafka.broker import Cluster, temporary_cluster
from tests.kafka.jars import OLDEST
from tests.kafka.plainly import create_topic, records_of
from tests.kafka.waiting import until
from tests.router.registry_stub import RegistryStub, serving
from tests.small_disk import small_disk

pytestmark = pytest.mark.kafka

TASKS = 2
PATIENCE_S = 60
MALFORMED = r"MessagePack data is malformed: invalid opcode '\xc1' (byte 0)"
SCENARIO_S = 120
MESSAGE_BYTES_MAX = 4_096
ROW_BYTES_MAX = 2_000
SCHEMA = '{"type": "record", "name": "Hit", "fields": [{"name": "n", "type": "int"}]}'


OVERSIZE = json.dumps({"note": "x" * MESSAGE_BYTES_MAX}).encode()


class Hit(Message):
    n: int = 1
    blob_bytes: int = 0
    """Of a row emitted beside that of the count."""
    note: str = ""


class Count(State):
    n: int = 0


def counting(name: str, *, function: str = "t/count") -> App:
    """Counts the records of `name`-in by key, and says each count in `name`-out."""
    app = App(name)
    out = app.egress("t/out", KafkaEgress(f"{name}-out", key="id"))

    @app.function(function)
    def count(ctx: Context[Count], hit: Hit) -> None:
        ctx.state.n += hit.n
        ctx.emit(out, {"id": ctx.id, "n": ctx.state.n})
        if hit.blob_bytes:
            ctx.emit(out, {"id": ctx.id, "blob": "x" * hit.blob_bytes})

    app.ingress(KafkaIngress(f"{name}-in"), to=count, name="hits")
    return app


async def create_topics(kafka: str, name: str, *, partitions: int = 1) -> None:
    await create_topic(kafka, f"{name}-in", partitions=partitions)
    limit = {"max.message.bytes": str(ROW_BYTES_MAX)}
    await create_topic(kafka, f"{name}-out", partitions=partitions, settings=limit)


class Record(NamedTuple):
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()


async def produce(kafka: str, topic: str, *records: Record, partition: int | None = None) -> list[int]:
    """Write these as any program may. The offsets."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka, enable_idempotence=True)
    await producer.start()
    try:
        futures = [
            await producer.send(topic, each.value, each.key, partition, headers=list(each.headers)) for each in records
        ]
        return [(await future).offset for future in futures]
    finally:
        await producer.stop()


async def rows_of(kafka: str, name: str) -> dict[str, list[int]]:
    """The counts that are visible, in order, for each id."""
    found: dict[str, list[int]] = defaultdict(list)
    for record in await records_of(kafka, f"{name}-out"):
        row = json.loads(record.value)
        found[row["id"]].append(row["n"])
    return found


async def letters_of(kafka: str, name: str) -> list[dict[str, Any]]:
    """The copies of dead letters that are visible."""
    records = await records_of(kafka, f"{name}.dead")
    return [json.loads(each.value) for each in records if not (each.key or b"").startswith(b"penstock/incarnation/")]


async def delete_topics(kafka: str, *topics: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.delete_topics(list(topics))
    await admin.close()


# The worker that tests share.


class Shared:
    """A worker in a thread of its own, so that tests need not be asynchronous."""

    def __init__(self, kafka: str, directory: Path) -> None:
        self.kafka = kafka
        self.name = f"test-{uuid4().hex[:12]}"
        self.registry = RegistryStub()
        self.schema_id = self.registry.add("hits", SCHEMA)
        self.worker: ClusterWorker
        self._directory = directory
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="worker")

    def __enter__(self) -> Shared:
        asyncio.run(create_topics(self.kafka, self.name))
        asyncio.run(create_topic(self.kafka, f"{self.name}-avro"))
        self._thread.start()
        assert self._started.wait(PATIENCE_S), "the worker has not started"
        # What is said before the leader listens, it never hears.
        self.until(lambda: self.worker.ready)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self.worker.stop)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._work())
        except BaseException as error:  # noqa: BLE001  # Raised in the thread of the tests.
            self._failure = error
        finally:
            self._started.set()

    async def _work(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with serving(self.registry):
            app = counting(self.name)
            avro = KafkaIngress(f"{self.name}-avro", format=Avro(registry=self.registry.spec))
            app.ingress(avro, to=app.functions["t/count"], name="avro")
            self.worker = worker_of(self.kafka, app, self._directory, message_bytes_max=MESSAGE_BYTES_MAX)

            async def started() -> None:
                self._started.set()

            await self.worker.run(started)

    def put(self, part: str, *records: Record, partition: int | None = None) -> list[int]:
        return asyncio.run(produce(self.kafka, f"{self.name}{part}", *records, partition=partition))

    def until(self, holds: Callable[[], Any]) -> Any:
        """What it returns, once that is anything."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := holds()):
            assert self._failure is None, self._failure
            assert time.monotonic() < deadline
        return found

    def letter(self, origin: str) -> dict[str, Any]:
        """The dead letter of what stood there, once it is visible, and that there is one only."""
        (found,) = self.until(
            lambda: [each for each in asyncio.run(letters_of(self.kafka, self.name)) if each["origin"] == origin]
        )
        return {name: found[name] for name in ("code", "reason", "function", "id", "headers")} | {
            "payload": base64.b64decode(found["payload"])
        }

    def goes_on(self) -> None:
        """A record that comes now is counted."""
        key = uuid4().hex
        self.put("-in", Record(b'{"n": 3}', key.encode()))
        assert self.until(lambda: self.rows(key)) == [3]

    def rows(self, id: str) -> list[Any]:
        records = asyncio.run(records_of(self.kafka, f"{self.name}-out"))
        return [row.get("n") for each in records if (row := json.loads(each.value))["id"] == id]


def worker_of(
    kafka: str | KafkaOptions,
    app: App,
    directory: Path,
    *,
    number: int = 0,
    parallelism: int = TASKS,
    clock: Callable[[], float] = time.time,
    message_bytes_max: int = 1 << 20,
    fresh: bool = False,
    **options: Any,
) -> ClusterWorker:
    config = Config(
        directory=directory / str(number),
        parallelism=parallelism,
        port=None,
        memory_bytes=64 << 20,
        interval_ms=50,
        message_bytes_max=message_bytes_max,
        fresh=fresh,
    )
    cluster = ClusterOptions(
        kafka=KafkaOptions(kafka, {}) if isinstance(kafka, str) else kafka,
        store=str(directory / "store"),
        instance=f"worker-{number}",
        **options,
    )
    return ClusterWorker(app, config, cluster, clock=clock)


@pytest.fixture(scope="module")
def shared(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with Shared(kafka, tmp_path_factory.mktemp("shared")) as shared:
        yield shared
    topics = [shared.worker._topics, ["-in", "-out", "-avro"]]
    asyncio.run(delete_topics(kafka, *topics[0], *(shared.name + part for part in topics[1])))


HEADERS = [("trace", b"abc"), ("raw", b"\xff")]
TEXTS = {"trace": "abc", "raw": "base64:/w=="}


@pytest.mark.parametrize(
    ("key", "value", "code", "reason", "told"),
    [
        (None, b"{}", "PEN0730", "it has no key, so no address. Give the ingress key= or a router.", {}),
        (
            b"",
            b"{}",
            "PEN0730",
            "it has an empty key, so no address. Give the ingress key= or a router.",
            {"kafka.key": ""},
        ),
        (
            b"\xff\xfe",
            b"{}",
            "PEN0730",
            (
                r"its key b'\xff\xfe' is no text in UTF-8 (invalid start byte at byte 0), so no id. Give the ingress "
                "key= or a router."
            ),
            {"kafka.key": "base64://4="},
        ),
        (
            b"k",
            None,
            "PEN0731",
            "it has no value: a tombstone, which deletes its key from a compacted topic.",
            {"kafka.key": "k"},
        ),
        (
            b"k",
            OVERSIZE,
            "PEN0204",
            'message of 4,129 bytes to t/count "k" exceeds message_bytes_max = 4,096.',
            {"kafka.key": "k"},
        ),
    ],
    ids=["null key", "empty key", "key not in UTF-8", "tombstone", "oversize"],
)
def test_a_record_that_can_be_no_message_becomes_a_dead_letter(
    shared: Shared, key: bytes | None, value: bytes | None, code: str, reason: str, told: dict[str, str]
) -> None:
    (offset,) = shared.put("-in", Record(value, key, HEADERS))

    letter = shared.letter(origin := f"topic {shared.name}-in partition 0 offset {offset}")

    assert (letter["code"], letter["function"], letter["payload"]) == (code, "hits", value or b"")
    assert letter["headers"] == TEXTS | told
    assert letter["reason"] == f"Record rejected: {reason} Read from {origin}; nothing else was affected."
    shared.goes_on()


def test_a_value_that_can_not_be_decoded_becomes_a_dead_letter(shared: Shared) -> None:
    (offset,) = shared.put("-in", Record(b"\x80 not JSON", b"k", HEADERS))

    letter = shared.letter(f"topic {shared.name}-in partition 0 offset {offset}")

    assert (letter["code"], letter["payload"]) == ("PEN0201", b"\x80 not JSON")
    shared.goes_on()


def test_an_unknown_schema_becomes_a_dead_letter(shared: Shared) -> None:
    offset, _ = shared.put("-avro", Record(frame(9_999, b"\x02"), b"k", HEADERS), Record(b"{}", b"k"))

    letter = shared.letter(f"topic {shared.name}-avro partition 0 offset {offset}")

    assert letter["code"] == "PEN0241"
    other = shared.letter(f"topic {shared.name}-avro partition 0 offset {offset + 1}")
    assert (other["code"], other["payload"]) == ("PEN0240", b"{}")


def test_a_registry_that_does_not_answer_is_waited_for(shared: Shared, caplog: pytest.LogCaptureFixture) -> None:
    key = uuid4().hex
    schema = shared.registry.add("hits", SCHEMA.replace('"n"', '"n", "doc": "another"'))
    shared.registry.down = True
    shared.put("-avro", Record(frame(schema, b"\x0e"), key.encode()))
    shared.until(lambda: "PEN0560" in caplog.text)
    shared.goes_on()

    shared.registry.down = False

    assert shared.until(lambda: shared.rows(key)) == [7]


@pytest.mark.parametrize("key", [None, b"k"], ids=["no key", "a key"])
@pytest.mark.parametrize(
    ("part", "value", "code", "reason"),
    [
        (
            "inbox",
            b"\xc1",
            "PEN0507",
            f"{{}} holds no frames: {MALFORMED}. Only Penstock may write to an inbox; find out who does.",
        ),
        ("inbox", b"\x92\x63\x90", "PEN0508", "{} has frame format 99; this version reads 1."),
        ("requests", b"\xc1", "PEN0509", f"{{}} holds no request: {MALFORMED}. Find out who writes there."),
    ],
    ids=["inbox", "magic of an inbox", "requests"],
)
def test_what_somebody_else_writes_for_tasks_becomes_a_dead_letter(
    shared: Shared, part: str, value: bytes, code: str, reason: str, key: bytes | None
) -> None:
    (offset,) = shared.put(f".{part}", Record(value, key, HEADERS), partition=1)

    letter = shared.letter(origin := f"Offset {offset} of {shared.name}.{part}-1")

    assert letter == {
        "code": code,
        "reason": reason.format(origin),
        "function": "",
        "id": "",
        "headers": TEXTS | ({} if key is None else {"kafka.key": "k"}),
        "payload": value,
    }
    shared.goes_on()


@pytest.mark.parametrize("key", [None, b"k"], ids=["no key", "a key"])
@pytest.mark.parametrize(
    ("part", "partition", "said"),
    [
        ("reports", 0, "PEN0511 A report of a worker can't be read: "),
        ("control", 1, "PEN0511 A hint of the leader can't be read: "),
        ("replies", None, "PEN0512 Offset {} of {}.replies-{} holds no answer: "),
    ],
)
def test_what_somebody_else_says_to_workers_is_named_and_passed_over(
    shared: Shared, caplog: pytest.LogCaptureFixture, part: str, partition: int | None, said: str, key: bytes | None
) -> None:
    if partition is None:
        partition = int(shared.worker.replies.prefix.partition("/")[0])
    (offset,) = shared.put(f".{part}", Record(b"\xc1", key), partition=partition)

    shared.until(lambda: said.format(offset, shared.name, partition) in caplog.text)

    shared.goes_on()
    assert shared.worker.link.member.number == 1


def test_deltas_and_markers_of_somebody_else_are_of_no_interest(shared: Shared) -> None:
    for partition in range(TASKS):
        foreign = Record(b"\xc1", None, [("penstock-piece", b"of something")])
        shared.put(".deltas", foreign, Record(b"\xc1", b"k"), partition=partition)
        shared.put(".egress-marks", Record(b"\xc1", b"k"), partition=partition)

    shared.goes_on()


def test_a_row_too_large_for_its_topic_becomes_a_dead_letter(shared: Shared) -> None:
    key = uuid4().hex
    shared.put("-in", Record(json.dumps({"blob_bytes": ROW_BYTES_MAX}).encode(), key.encode()))

    letter = shared.until(
        lambda: [each for each in asyncio.run(letters_of(shared.kafka, shared.name)) if key in (each["text"] or "")]
    )

    assert [(each["code"], each["function"], each["origin"]) for each in letter] == [
        ("PEN0215", "t/out", "egress t/out")
    ]
    assert json.loads(letter[0]["text"]) == {"id": key, "blob": "x" * ROW_BYTES_MAX}
    assert shared.until(lambda: shared.rows(key)) == [1]
    shared.goes_on()


# Workers of their own.


@asynccontextmanager
async def working(*workers: ClusterWorker) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Workers that all run until the block ends, and stop in order. What one fails with is raised."""
    tasks = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        yield tasks
    finally:
        for worker in workers:
            worker.stop()
        await asyncio.gather(*tasks)


async def until_counted(kafka: str, name: str, counts: dict[str, int], *running: asyncio.Task[None]) -> None:
    """Until each id was counted so often: once each, and in order."""
    wanted = {id: list(range(1, count + 1)) for id, count in counts.items()}
    while sum(map(len, (found := await rows_of(kafka, name)).values())) < sum(counts.values()):
        for task in running:
            if task.done():
                task.result()
    assert found == wanted


async def failure_of(worker: ClusterWorker) -> PenstockError:
    """What a worker ends with."""
    with pytest.raises(PenstockError) as caught:
        await worker.run()
    return caught.value


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario, SCENARIO_S))


def hits(count: int, ids: int = 20) -> list[Record]:
    return [Record(b"{}", f"id-{number % ids}".encode()) for number in range(count)]


def test_what_was_foreign_is_one_dead_letter_also_after_a_restart(
    kafka: str, kafka_app: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        await create_topics(kafka, kafka_app)
        for _ in range(2):
            async with working(worker := worker_of(kafka, counting(kafka_app), tmp_path)) as tasks:
                await until(lambda: worker.ready and len(worker.units) == TASKS, *tasks)
                await produce(kafka, f"{kafka_app}-in", Record(b"{}", b"k"))
                if not (found := await letters_of(kafka, kafka_app)):
                    await produce(kafka, f"{kafka_app}.inbox", Record(b"\xc1"), partition=0)
                while not (found := await letters_of(kafka, kafka_app)):
                    pass
            assert len(found) == 1
        assert len(await letters_of(kafka, kafka_app)) == 1
        assert await rows_of(kafka, kafka_app) == {"k": [1, 2]}

    run(scenario())
    assert caplog.text.count("1 dead letter more: penstock dead list") == 1


def test_a_foreign_decision_ends_workers_and_no_other_one_starts(kafka: str, kafka_app: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await create_topics(kafka, kafka_app)
        worker = worker_of(kafka, counting(kafka_app), tmp_path)
        running = asyncio.create_task(worker.run())
        await until(lambda: worker.ready and len(worker.units) == TASKS, running)

        (offset,) = await produce(kafka, f"{kafka_app}.control", Record(b"\xc1", b"k"), partition=0)
        with pytest.raises(ProtocolError) as caught:
            await running

        assert str(caught.value) == (
            f"PEN0505 Offset {offset} of {kafka_app}.control-0: A control record can't be read: MessagePack data is "
            "malformed: invalid opcode '\\xc1' (byte 0). Only leaders write there; find out who does. Nothing was "
            "skipped: without every decision the application can't go on. Restore the topic, or begin anew, under "
            "another name or after: penstock destroy."
        )
        again = await failure_of(worker_of(kafka, counting(kafka_app), tmp_path, number=1))
        assert str(again) == str(caught.value)

    run(scenario())


def test_a_topic_that_is_deleted_ends_its_reader(
    kafka: str, kafka_app: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults: Any = KafkaReader.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "gone_s", 0.5)

    async def scenario() -> None:
        await create_topics(kafka, kafka_app)
        worker = worker_of(kafka, counting(kafka_app), tmp_path)
        running = asyncio.create_task(worker.run())
        await produce(kafka, f"{kafka_app}-in", *hits(3, ids=1))
        await until_counted(kafka, kafka_app, {"id-0": 3}, running)

        await delete_topics(kafka, f"{kafka_app}-in")
        with pytest.raises(Refused) as caught:
            await running

        assert str(caught.value) == (
            f"PEN0722 No broker knows topic {kafka_app}-in partition 0 any more, which was read up to offset 3. If it "
            "was deleted on purpose, remove it from the ingress; otherwise restore it, with its records."
        )
        again = await failure_of(worker_of(kafka, counting(kafka_app), tmp_path))
        assert str(again) == (
            f"PEN0727 Ingress hits reads topic {kafka_app}-in, which Kafka does not have. Create it, or correct the "
            "name in KafkaIngress."
        )
        await delete_topics(kafka, f"{kafka_app}-out")
        again = await failure_of(worker_of(kafka, counting(kafka_app), tmp_path))
        assert str(again) == (
            f"PEN0727 Egress t/out writes to topic {kafka_app}-out, which Kafka does not have. Create it, or correct "
            "the name in KafkaEgress."
        )
        await delete_topics(kafka, f"{kafka_app}.inbox")
        await create_topic(kafka, f"{kafka_app}-in")
        again = await failure_of(worker_of(kafka, counting(kafka_app), tmp_path))
        assert str(again) == (
            f"PEN0746 {kafka_app}.inbox is missing, while {kafka_app}.control holds records: deleted by somebody. What "
            "it held is lost, and the application can't continue. Begin anew, under another name or after: penstock "
            "destroy."
        )

    run(scenario())


def test_what_does_not_go_with_what_is_stored_is_refused(kafka: str, kafka_app: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await create_topics(kafka, kafka_app)
        other = (
            f"PEN0780 The topics of {kafka_app} hold the state of functions t/count, and this application has t/other: "
            "it is another one. Give it another name with --name, or start it from nothing with --from none."
        )
        async with working(first := worker_of(kafka, counting(kafka_app), tmp_path, workers_expected=1)) as tasks:
            await produce(kafka, f"{kafka_app}-in", *hits(4, ids=2))
            await until_counted(kafka, kafka_app, {"id-0": 2, "id-1": 2}, *tasks)

            joining = worker_of(kafka, counting(kafka_app, function="t/other"), tmp_path, number=1)
            assert str(await failure_of(joining)) == other
            assert str(await failure_of(worker_of(kafka, counting(kafka_app), tmp_path, number=2, parallelism=4))) == (
                f"PEN0745 Topic {kafka_app}.inbox has 2 partitions, and needs 4: one for each task. Start it with "
                "parallelism = 2, or under another name. For another parallelism, stop it and use penstock rescale."
            )
            await produce(kafka, f"{kafka_app}-in", *hits(4, ids=2))
            await until_counted(kafka, kafka_app, {"id-0": 4, "id-1": 4}, *tasks)
            assert first.link.member.number == 1

        alone = worker_of(kafka, counting(kafka_app, function="t/other"), tmp_path, number=3)
        assert str(await failure_of(alone)) == other

    run(scenario())


class Ring(Message):
    pass


def delaying(name: str) -> App:
    """Each record rings once more, half a second later, at an id that is another worker's as often as not."""
    app = App(name)
    out = app.egress("t/out", KafkaEgress(f"{name}-out", key="id"))

    @app.function("t/ring")
    def ring(ctx: Context[Count], _: Ring) -> None:
        ctx.state.n += 1
        ctx.emit(out, {"id": ctx.id, "n": ctx.state.n})

    @app.function("t/first")
    def first(ctx: Context[None], _: Hit) -> None:
        ctx.send_after(timedelta(seconds=0.5), ring, f"ring-{ctx.id}", Ring())

    app.ingress(KafkaIngress(f"{name}-in"), to=first, name="hits")
    return app


def ahead(seconds: float) -> float:
    return time.time() + seconds


def test_workers_whose_clocks_differ_work_together(kafka: str, kafka_app: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        await create_topics(kafka, kafka_app, partitions=2)
        workers = [
            worker_of(
                kafka,
                delaying(kafka_app),
                tmp_path,
                number=number,
                parallelism=4,
                workers_expected=2,
                settle_ms=10_000,
                clock=partial(ahead, seconds),
            )
            for number, seconds in enumerate((0, 300))
        ]
        async with working(*workers) as tasks:
            await until(lambda: all(worker.ready for worker in workers), *tasks)
            await produce(kafka, f"{kafka_app}-in", *hits(40))
            await until_counted(kafka, kafka_app, {f"ring-id-{n}": 2 for n in range(20)}, *tasks)
            # The tasks of the clock that is ahead go to the other one, and none of their times goes back.
            await produce(kafka, f"{kafka_app}-in", *hits(40))
            workers[1].stop()
            await until(lambda: len(workers[0].units) == 4, tasks[0])
            await until_counted(kafka, kafka_app, {f"ring-id-{n}": 4 for n in range(20)}, tasks[0])
            assert {worker.link.member.number for worker in workers} == {1}, "nobody was taken for dead"

    run(scenario())


@pytest.fixture(scope="module")
def own() -> Iterator[Cluster]:
    """A broker that may be killed, and that users log in to."""
    with temporary_cluster(users={"app": "secret"}) as cluster:
        yield cluster


@pytest.mark.usefixtures("java")
def test_wrong_credentials_are_told(own: Cluster, tmp_path: Path) -> None:
    properties = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "app",
        "sasl.password": "wrong",
    }
    worker = worker_of(KafkaOptions(own.bootstrap_sasl, properties), counting("guarded"), tmp_path)

    failure = asyncio.run(failure_of(worker))

    assert isinstance(failure, ConfigurationError)
    assert str(failure) == (
        f"PEN0741 The Kafka broker at {own.bootstrap_sasl} does not let this client in (SASL_PLAINTEXT, User:app: "
        "SaslAuthenticationFailed). Correct the user, the password, the certificates or the mechanism in the "
        "properties."
    )


@pytest.mark.usefixtures("java")
def test_a_broker_away_for_longer_than_a_session_costs_nobody_anything(own: Cluster, tmp_path: Path) -> None:
    session_ms = 1_500

    async def scenario() -> None:
        kafka = own.bootstrap
        await create_topics(kafka, "away", partitions=2)
        workers = [
            worker_of(
                kafka,
                counting("away"),
                tmp_path,
                number=number,
                workers_expected=2,
                settle_ms=10_000,
                session_ms=session_ms,
                heartbeat_ms=session_ms / 5,
            )
            for number in range(2)
        ]
        async with working(*workers) as tasks:
            await until(lambda: all(worker.ready for worker in workers), *tasks)
            await produce(kafka, "away-in", *hits(200))
            await until(lambda: any(worker.totals().messages for worker in workers), *tasks)

            own.nodes[0].kill()
            await asyncio.sleep(3 * session_ms / 1000)
            assert not any(task.done() for task in tasks)
            await asyncio.to_thread(own.nodes[0].start)

            await produce(kafka, "away-in", *hits(200))
            await until_counted(kafka, "away", {f"id-{n}": 20 for n in range(20)}, *tasks)
            assert [worker.link.member.number for worker in workers] == [1, 1], "nobody was taken for dead"

    run(scenario())


@pytest.mark.slow
@pytest.mark.usefixtures("java")
def test_a_broker_whose_disk_is_full_loses_nothing(tmp_path: Path) -> None:
    small = {"log.segment.bytes": str(1 << 20), "log.index.size.max.bytes": str(1 << 16)}

    async def scenario(cluster: Cluster, ballast: Path) -> None:
        kafka = cluster.bootstrap
        await create_topics(kafka, "full")
        async with working(worker := worker_of(kafka, counting("full"), tmp_path)) as tasks:
            await produce(kafka, "full-in", *hits(200))
            await until_counted(kafka, "full", {f"id-{n}": 10 for n in range(20)}, *tasks)

            fill(ballast)
            late = asyncio.create_task(produce(kafka, "full-in", Record(b"{}" + b" " * 500_000, b"id-0")))
            await until(lambda: not cluster.nodes[0].running, *tasks)
            await until(lambda: worker.problem, *tasks)
            assert "No space left on device" in cluster.nodes[0].log.read_text(encoding="utf-8")
            await asyncio.to_thread(ballast.unlink)
            await asyncio.to_thread(cluster.nodes[0].start)

            await late
            await produce(kafka, "full-in", *hits(200))
            await until_counted(kafka, "full", {f"id-{n}": 20 + (n == 0) for n in range(20)}, *tasks)
            assert worker.link.member.number == 1

    with small_disk(tmp_path / "disk", megabytes=48) as disk, Cluster(disk / "kafka", properties=small) as cluster:
        run(scenario(cluster, disk / "ballast"))


def fill(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4_096))


@pytest.mark.slow
@pytest.mark.usefixtures("java")
def test_the_oldest_release_counts_exactly_once(tmp_path: Path) -> None:
    async def scenario(kafka: str) -> None:
        await create_topics(kafka, "old", partitions=2)
        for number in range(2):
            async with working(worker_of(kafka, counting("old"), tmp_path)) as tasks:
                await produce(kafka, "old-in", *hits(400))
                await until_counted(kafka, "old", {f"id-{n}": 20 * (number + 1) for n in range(20)}, *tasks)

    with temporary_cluster(version=OLDEST) as cluster:
        run(scenario(cluster.bootstrap))
