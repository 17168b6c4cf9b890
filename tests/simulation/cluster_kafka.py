"""A Kafka for simulated worlds: partitions that all see alike, writers whose records arrive late, readers that lag.

What always holds: the records of one writer for one partition arrive in order, some of them twice; what arrived stays;
a transactional id is held by whoever fenced it last, and only that one commits. Deciding when anything happens is left
to the world.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from penstock.router.kafka_batches import Record
from penstock.router.kafka_client import Bounds
from penstock.router.kafka_records import Fetched
from tests.simulation.cluster_stage import pause
from tests.simulation.dice import Dice

Place = tuple[str, int]


class Overtaken(Exception):
    """What a reader would read next was deleted."""

    def __init__(self, place: Place, offset: int) -> None:
        super().__init__(f"offset {offset} of {place} was deleted")
        self.place = place


class Partition:
    """Records by their offset. Deleting them only moves `start`."""

    def __init__(self) -> None:
        self.start = 0
        self.records: list[Fetched] = []

    @property
    def end(self) -> int:
        return len(self.records)

    def append(self, value: bytes | None, key: bytes | None = None) -> int:
        self.records.append(Fetched(len(self.records), key, value, (), 0))
        return len(self.records) - 1


class SimulatedKafka:
    """See the module."""

    def __init__(self, dice: Dice, *, resend: float, forgets: Collection[str], lag: float, lagging: str) -> None:
        self.dice = dice
        self.resend = resend
        """How often the answer to a batch gets lost, so that it is sent again."""
        self.forgets = forgets
        """Of these topics as often nobody learns where a batch stands: it was sent again and not taken twice."""
        self.lag, self.lagging = lag, lagging
        """How often a reader of this topic gets nothing."""
        self.calm = False
        """Whether readers get everything there is at once."""
        self.refusing: set[Place] = set()
        """Partitions that take nothing at present."""
        self.silent: set[Place] = set()
        """Partitions that can't be read at present."""
        self.damaged: set[tuple[Place, int]] = set()
        self.removed: set[tuple[Place, int]] = set()
        """Records that are read with another byte, and records that are read no more."""
        self._partitions: dict[Place, Partition] = {}
        self._holders: dict[str, object] = {}

    def partition(self, place: Place) -> Partition:
        found = self._partitions.get(place)
        if found is None:
            found = self._partitions[place] = Partition()
        return found

    def truncate(self, place: Place, before: int) -> None:
        stored = self.partition(place)
        stored.start = max(stored.start, min(before, stored.end))

    def heal(self) -> None:
        """Let every partition be written and read again."""
        self.refusing.clear()
        self.silent.clear()

    def places(self) -> list[Place]:
        return list(self._partitions)

    def fence(self, transactional_id: str, holder: object) -> None:
        self._holders[transactional_id] = holder

    def holds(self, transactional_id: str, holder: object) -> bool:
        return self._holders.get(transactional_id) is holder


async def offsets(kafka: SimulatedKafka, places: Collection[Place], *, isolation: str = "") -> dict[Place, Bounds]:
    """Stands in for `penstock.router.kafka_client.offsets`."""
    await pause()
    return {place: Bounds(kafka.partition(place).start, kafka.partition(place).end) for place in places}


async def read_range(
    kafka: SimulatedKafka, topic: str, partition: int, start: int, end: int | None = None, *, isolation: str = ""
) -> list[Fetched]:
    """Stands in for `penstock.router.kafka_reader.read_range`."""
    place = (topic, partition)
    await pause()
    while place in kafka.silent:
        await pause()
    stored = kafka.partition(place)
    records = stored.records[max(start, stored.start) : end]
    if kafka.removed:
        records = [each for each in records if (place, each.offset) not in kafka.removed]
    if kafka.damaged:
        records = [_changed(each) if (place, each.offset) in kafka.damaged else each for each in records]
    return records


def _changed(record: Fetched) -> Fetched:
    """The same with another byte, which is one of the body."""
    assert record.value is not None
    at = len(record.value) - 1 - record.offset % 3
    return record._replace(value=record.value[:at] + bytes((record.value[at] ^ 1,)) + record.value[at + 1 :])


class Promise:
    """The part of a future that a writer's callers use."""

    __slots__ = ("_callbacks", "_offset")

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Promise], object]] = []
        self._offset: int | None = None

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        self._callbacks.append(callback)

    def keep(self, offset: int) -> None:
        self._offset = offset
        for callback in self._callbacks:
            callback(self)

    def done(self) -> bool:
        return self._offset is not None

    def cancelled(self) -> bool:
        return False

    def exception(self) -> BaseException | None:
        return None

    def result(self) -> int:
        assert self._offset is not None
        return self._offset


class SimulatedWriter:
    """Stands in for `KafkaWriter`: what is appended is nowhere but in memory until it is pumped."""

    def __init__(self, kafka: SimulatedKafka) -> None:
        self._kafka = kafka
        self._waiting: dict[Place, deque[tuple[int, Record, Promise]]] = {}
        self._appended = 0

    @property
    def idle(self) -> bool:
        return not self._waiting

    def append(self, record: Record) -> Promise:
        assert record.partition is not None
        promise = Promise()
        self._appended += 1
        self._waiting.setdefault((record.topic, record.partition), deque()).append((self._appended, record, promise))
        return promise

    async def flush(self) -> None:
        mark = self._appended
        while any(waiting[0][0] <= mark for waiting in self._waiting.values()):
            await pause()

    def pump(self, times: int) -> None:
        """Some of what waits for some partitions arrives."""
        dice = self._kafka.dice
        for _ in range(times):
            places = self._answering()
            if not places:
                return
            place = dice.choose(places)
            self._pump(place, 1 + dice.below(len(self._waiting[place])))

    def _pump(self, place: Place, count: int) -> None:
        if self._kafka.dice.chance(self._kafka.resend):
            stored = self._kafka.partition(place)
            for _, record, _ in list(self._waiting[place])[:count]:
                stored.append(record.value, record.key)  # Nobody was told: they stay, and are sent again.
        else:
            self._send(place, count)

    def pump_all(self) -> None:
        for place in self._answering():
            self._send(place, len(self._waiting[place]))

    def _answering(self) -> list[Place]:
        """Partitions that take what waits for them."""
        refusing = self._kafka.refusing
        return [place for place in self._waiting if place not in refusing] if refusing else list(self._waiting)

    def crash(self) -> None:
        """Of what waits for each partition some first records arrive, and nobody is told."""
        for place in self._answering():
            waiting, stored = self._waiting[place], self._kafka.partition(place)
            for _, record, _ in list(waiting)[: self._kafka.dice.below(len(waiting) + 1)]:
                stored.append(record.value, record.key)
        self._waiting.clear()

    def _send(self, place: Place, count: int) -> None:
        waiting, stored = self._waiting[place], self._kafka.partition(place)
        sent = [waiting.popleft() for _ in range(count)]
        if not waiting:
            del self._waiting[place]
        unknown = place[0] in self._kafka.forgets and self._kafka.dice.chance(self._kafka.resend)
        for _, record, promise in sent:
            offset = stored.append(record.value, record.key)
            promise.keep(-1 if unknown else offset)


class SimulatedReader:
    """Stands in for `KafkaReader`. Of what there is it gives some, or nothing while a partition is slow."""

    def __init__(self, kafka: SimulatedKafka, **_: object) -> None:
        self._kafka = kafka
        self._positions: dict[Place, int] = {}
        self.slow: set[Place] = set()

    def add(self, topic: str, partition: int, offset: int) -> None:
        assert (topic, partition) not in self._positions, "a partition is read by one reader of a task at a time"
        self._positions[topic, partition] = offset

    def remove(self, topic: str, partition: int) -> None:
        del self._positions[topic, partition]

    def position(self, topic: str, partition: int) -> int:
        return self._positions[topic, partition]

    def end(self, topic: str, partition: int) -> int:
        return self._kafka.partition((topic, partition)).end

    def places(self) -> list[Place]:
        return list(self._positions)

    @property
    def behind(self) -> bool:
        """Whether there is anything that was not taken yet."""
        return any(self._kafka.partition(place).end > at for place, at in self._positions.items())

    def take(self, topic: str, partition: int, count_max: int) -> list[Fetched]:
        place = (topic, partition)
        at, stored = self._positions[place], self._kafka.partition(place)
        if at == stored.end or place in self.slow or place in self._kafka.silent:
            return []
        if at < stored.start:
            raise Overtaken(place, at)
        count = min(count_max, stored.end - at)
        if not self._kafka.calm:
            if self._kafka.dice.chance(0.7):
                count = self._kafka.dice.below(min(count, 4) + 1)
            if topic == self._kafka.lagging and self._kafka.dice.chance(self._kafka.lag):
                return []
        self._positions[place] = at + count
        return stored.records[at : at + count]
