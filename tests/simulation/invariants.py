"""What must hold in every world, one class each. A world tells them what happens, and they raise Violation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from penstock.checkpoint.control import AttemptBegun, Manifest, Part
from penstock.checkpoint.lineage import Lineage
from penstock.checkpoint.retention import Retained
from penstock.engine.effects import DeadLetter, Effects
from penstock.engine.feeds import RequestFeed
from penstock.engine.journal import PARTITION
from penstock.engine.pending import message_of_pending
from penstock.engine.restore import Restored
from penstock.engine.task import TaskCore
from penstock.errors import CorruptSnapshot
from penstock.functions.app import App
from penstock.records import EgressRow, Frozen, QueuedRow, TaskMeta
from penstock.state import keys
from tests.simulation.walks import IDS, LAST_HOP, NATURE, POISON, Step, Visits

if TYPE_CHECKING:
    from tests.simulation.node import Node
    from tests.simulation.world import Run, World


class Violation(AssertionError):
    """Something happened that never may."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(invariant, what)  # Both, so that it can go from one process to another.
        self.invariant = invariant

    def __str__(self) -> str:
        return ": ".join(self.args)


class Invariant:
    """The base of all: sees everything, minds nothing."""

    def turned(self, world: World, node: Node, effects: Effects) -> None:
        """A task has run a batch."""

    def begun(self, world: World, run: Run, checkpoint: int) -> None:
        """A coordinator told its tasks to begin a checkpoint."""

    def cut(self, world: World, node: Node, frozen: Frozen) -> None:
        """A task was frozen; `frozen` holds what its delta will, failed ones before it included."""

    def read(self, world: World, manifest: Manifest | None, restored: list[Restored]) -> None:
        """What a new attempt continues has been read, and nothing done with it."""

    def restored(
        self, world: World, run: Run, manifest: Manifest | None, restored: list[Restored], replay: bool
    ) -> None:
        """A new attempt has begun."""

    def chosen(self, world: World, attempt: AttemptBegun) -> None:
        """A replay was decided, and the power failed before anything else of it happened."""

    def refused(self, world: World, retained: Retained, error: CorruptSnapshot) -> None:
        """A checkpoint is passed over, because something that it needs is damaged."""

    def regrouping(self, world: World, manifest: Manifest | None, restored: list[Restored]) -> None:
        """The application stands still, to go on with another number of tasks."""

    def retained(self, world: World) -> None:
        """What no retained checkpoint needs was deleted."""

    def committed(self, world: World, task: int) -> None:
        """Rows of a task became visible."""

    def ended(self, world: World) -> None:
        """All work is done."""

    def fail(self, what: str) -> Violation:
        return Violation(type(self).__name__, what)


class Past(NamedTuple):
    """How long a list was at each cut, so that it can be set back with its task."""

    entries: list[Any]
    lengths: dict[int, int]


class EachHopOnce(Invariant):
    """In the surviving state each walk was at each of its hops exactly once, up to its end or its dead letter."""

    def ended(self, world: World) -> None:
        seen = Counter(hop for visits in states(world).values() for hop in visits.seen)
        given_up = dead_letters(world)
        asked = {client.walk for client in world.clients}
        repeated = [hop for hop, times in seen.items() if times > 1]
        if repeated:
            raise self.fail(f"processed more than once: {repeated}")
        for walk in range(world.walks):
            hops = [hop for hop in range(LAST_HOP + 1) if (walk, hop) in seen]
            stuck = [(w, hop) for w, hop in given_up if w == walk]
            ending = len(hops)
            if hops != list(range(ending)):
                raise self.fail(f"walk {walk} was at {hops} only")
            if ending <= LAST_HOP and (walk, ending) not in stuck:
                raise self.fail(f"walk {walk} is lost after {ending} hops")
            # A client repeats a request that became a dead letter, so its first hop may fail more than once.
            if any(hop != ending for _, hop in stuck if not (walk in asked and hop == 0)):
                raise self.fail(f"walk {walk} was at {hops}, and has dead letters {stuck}")
            if walk not in asked and len(stuck) > 1:
                raise self.fail(f"walk {walk} has several dead letters {stuck}")
        buried = sum(letter.payload == POISON for letter in letters(world))
        if buried != world.poison:
            raise self.fail(f"{world.poison} inputs can't be read, and {buried} are dead letters")


class RowsOnce(Invariant):
    """Every row of the surviving history is committed once, in order, and no other; more than once only after a
    rollback of what was complete."""

    def __init__(self) -> None:
        self._emitted: dict[int, Past] = {}

    def turned(self, world: World, node: Node, effects: Effects) -> None:
        if node in world.current.nodes:
            self._of(node.task).entries.extend(row for rows in effects.egress.values() for row in rows)

    def cut(self, world: World, node: Node, frozen: Frozen) -> None:
        if node in world.current.nodes:
            past = self._of(node.task)
            past.lengths[frozen.checkpoint] = len(past.entries)

    def restored(
        self, world: World, run: Run, manifest: Manifest | None, restored: list[Restored], replay: bool
    ) -> None:
        for task in range(world.tasks):
            past = self._of(task)
            if manifest is not None and not self._known(world, manifest, task):
                past.entries[:] = world.database.rows.get(task, [])  # Tasks were regrouped when all was visible.
                past.lengths[manifest.checkpoint] = len(past.entries)
            length = past.lengths[manifest.checkpoint] if manifest is not None else 0
            if manifest is not None and length > len(past.entries):
                return  # Another branch: what it emitted is not remembered.
            del past.entries[length:]
            self.committed(world, task)

    def regrouping(self, world: World, manifest: Manifest | None, restored: list[Restored]) -> None:
        self.ended(world)

    def _known(self, world: World, manifest: Manifest, task: int) -> bool:
        return manifest.checkpoint in self._of(task).lengths

    def committed(self, world: World, task: int) -> None:
        if world.rolled_back:
            return
        rows = world.database.rows.get(task, [])
        emitted = self._of(task).entries
        if rows != emitted[: len(rows)]:
            raise self.fail(f"task {task} committed {_texts(rows)}, and its history holds {_texts(emitted)}")

    def ended(self, world: World) -> None:
        if not world.rolled_back:
            for task in range(world.tasks):
                rows, emitted = world.database.rows.get(task, []), self._of(task).entries
                if rows != emitted:
                    raise self.fail(f"task {task} committed {_texts(rows)} of {_texts(emitted)}")

    def _of(self, task: int) -> Past:
        return self._emitted.setdefault(task, Past([], {}))


class RowsPresent(Invariant):
    """Every row that the surviving state knows of is committed, whatever was rolled back, replayed or damaged."""

    def ended(self, world: World) -> None:
        committed: Counter[tuple[str, int, tuple[int, int]]] = Counter()
        for rows in world.database.rows.values():
            for row in rows:
                here, number, walk, hop = msgspec.msgpack.decode(row.value)
                committed[here, number, (walk, hop)] += 1
        for here, visits in states(world).items():
            for number, hop in enumerate(visits.rows, 1):
                if not committed[here, number, hop]:
                    raise self.fail(f"row {number} of {here}, for {hop}, was never committed")


class RepliesStand(Invariant):
    """What a client was told is still true at the end, unless the checkpoint that decided it was taken back.

    A person, or a broken disk, takes back what is not on the history that goes on. Whether a client hears of it before
    or after that makes no difference: nothing can stop an answer that is on its way.
    """

    def __init__(self) -> None:
        self._lineage = Lineage(0)

    def restored(
        self, world: World, run: Run, manifest: Manifest | None, restored: list[Restored], replay: bool
    ) -> None:
        self._lineage = run.attempt.lineage

    def ended(self, world: World) -> None:
        known, given_up = states(world), dead_letters(world)
        for client in world.clients:
            if client.answer is None or (world.rolled_back and not self._lineage.contains(*client.decided)):
                continue
            if client.answer.error:
                if (client.walk, 0) not in given_up:
                    raise self.fail(f"walk {client.walk} was answered {client.answer.error}, and has no dead letter")
                continue
            walk, count, here = msgspec.msgpack.decode(client.answer.value)
            seen = known[here].seen if here in known else []
            if seen[count - 1 : count] != [(walk, 0)]:
                raise self.fail(f"walk {walk} was told it is number {count} at {here}, which saw {seen}")


class HandlersSee(Invariant):
    """No handler sees its messages out of order, its clock go back, or a timer early."""

    def turned(self, world: World, node: Node, effects: Effects) -> None:
        if NATURE.broken:
            raise self.fail("; ".join(NATURE.broken))


class OnlyForward(Invariant):
    """Within an attempt the positions, marks, clock and number of effects of a task never go back."""

    def __init__(self) -> None:
        self._last: dict[Node, Effects] = {}

    def turned(self, world: World, node: Node, effects: Effects) -> None:
        last, self._last[node] = self._last.get(node), effects
        if last is None:
            return
        forward = (
            effects.n == last.n + 1
            and effects.clock_ms >= last.clock_ms
            and effects.inbox_position >= last.inbox_position
            and all(effects.marks[source] >= mark for source, mark in last.marks.items())
            and all(effects.numbers[name] >= number for name, number in last.numbers.items())
        )
        if not forward:
            raise self.fail(f"task {node.task} went from {last} to {effects}")


class IdsAreNew(Invariant):
    """No checkpoint id is issued twice, and an attempt issues none below those of earlier attempts."""

    def __init__(self) -> None:
        self._used: set[int] = set()
        self._attempts: set[int] = set()
        self._floor: dict[int, int] = {}

    def restored(
        self, world: World, run: Run, manifest: Manifest | None, restored: list[Restored], replay: bool
    ) -> None:
        attempt = run.attempt.lineage.attempt
        if attempt <= max(self._attempts, default=0):
            raise self.fail(f"attempt {attempt} begins after {max(self._attempts)}")
        self._attempts.add(attempt)
        if manifest is not None:
            self._used.add(manifest.checkpoint)  # One that regrouped tasks was begun by nobody.
        self._floor[attempt] = max(self._used, default=0)

    def begun(self, world: World, run: Run, checkpoint: int) -> None:
        if checkpoint in self._used:
            raise self.fail(f"id {checkpoint} is used again, by attempt {run.attempt.lineage.attempt}")
        if checkpoint <= self._floor[run.attempt.lineage.attempt]:
            raise self.fail(f"id {checkpoint} is below {self._floor[run.attempt.lineage.attempt]} of earlier attempts")
        self._used.add(checkpoint)


class Image(NamedTuple):
    """The whole state of a task at a cut."""

    values: dict[tuple[str, str], bytes]
    rows: dict[bytes, bytes]
    queues: dict[str, list[QueuedRow]]
    meta: TaskMeta


class RestoreIsTheCut(Invariant):
    """A task restored to a checkpoint is what it was when it was frozen for it."""

    def __init__(self) -> None:
        self._live: dict[Node, Image] = {}
        self._cuts: dict[tuple[int, int], Image] = {}

    def turned(self, world: World, node: Node, effects: Effects) -> None:
        image = self._live[node]
        for typename, values in effects.values.items():
            for id, value in values.items():
                image.values[typename, id] = value
        for key, row in effects.rows.items():
            if row is None:
                image.rows.pop(key, None)
            else:
                image.rows[key] = row

    def cut(self, world: World, node: Node, frozen: Frozen) -> None:
        image = self._live[node]
        queues = {name: list(entry.queue) for name, entry in node.core.entries.items() if entry.queue}
        self._cuts[node.task, frozen.checkpoint] = Image(image.values.copy(), image.rows.copy(), queues, frozen.meta)

    def restored(
        self, world: World, run: Run, manifest: Manifest | None, restored: list[Restored], replay: bool
    ) -> None:
        for node, each in zip(run.nodes, restored, strict=True):
            expected = Image({}, {}, {}, TaskMeta())
            if manifest is not None:
                cut = (node.task, manifest.checkpoint)
                if cut not in self._cuts:  # Tasks were regrouped: `RescaleChangesNothing` has looked at it.
                    self._cuts[cut] = deepcopy(image_of(world.app, each))
                expected = self._cuts[cut]
                self._compare(node, image_of(world.app, each), expected, manifest.checkpoint)
            self._live[node] = Image(expected.values.copy(), expected.rows.copy(), {}, expected.meta)

    def _compare(self, node: Node, found: Image, expected: Image, checkpoint: int) -> None:
        expected_values = {address: value for address, value in expected.values.items() if value}
        pairs: list[tuple[str, object, object]] = [
            ("values", found.values, expected_values),
            ("rows", found.rows, expected.rows),
            ("queues", found.queues, expected.queues),
            ("clock", found.meta.clock_ms, expected.meta.clock_ms),
            ("marks", found.meta.marks, expected.meta.marks),
            ("numbers", found.meta.numbers, expected.meta.numbers),
            ("inbox", found.meta.inbox_position, expected.meta.inbox_position),
            ("ingresses", found.meta.ingress_positions, expected.meta.ingress_positions),
        ]
        for what, actual, wanted in pairs:
            if actual != wanted:
                raise self.fail(
                    f"task {node.task}, checkpoint {checkpoint}, {what}: restored {actual}, frozen {wanted}"
                )


class RedoIsRun(Invariant):
    """A second core that only redoes the effects of the first is the same as the first at every cut."""

    def __init__(self) -> None:
        self._standbys: dict[Node, TaskCore] = {}

    def restored(
        self, world: World, run: Run, manifest: Manifest | None, restored: list[Restored], replay: bool
    ) -> None:
        if world.standby and manifest is not None:
            for node, part in zip(run.nodes, manifest.parts, strict=True):
                again = world.restore_part(part)
                self._standbys[node] = world.build_core(node.task, again, _never_start)

    def turned(self, world: World, node: Node, effects: Effects) -> None:
        standby = self._standbys.get(node)
        if standby is not None:
            standby.redo(msgspec.msgpack.decode(msgspec.msgpack.encode(effects), type=Effects))

    def cut(self, world: World, node: Node, frozen: Frozen) -> None:
        standby = self._standbys.get(node)
        if standby is None:
            return
        standby.meta.committed = dict(frozen.meta.committed)  # Learnt from the sink, not from effects.
        again = standby.freeze(frozen.checkpoint)
        if again.meta != msgspec.structs.replace(frozen.meta, schedule=again.meta.schedule, ready=again.meta.ready):
            raise self.fail(f"task {node.task} at {frozen.checkpoint}: {again.meta} redone, {frozen.meta} run")
        for name, entry in node.core.entries.items():
            if standby.entries[name].queue != entry.queue:
                raise self.fail(f"task {node.task} at {frozen.checkpoint}: another queue of {name} redone than run")


class RescaleChangesNothing(Invariant):
    """With another number of tasks the state is what it was, and everything that was under way is still."""

    def __init__(self) -> None:
        self._before: tuple[int, Content] | None = None

    def regrouping(self, world: World, manifest: Manifest | None, restored: list[Restored]) -> None:
        assert manifest is not None
        self._before = manifest.checkpoint, content_of(world.app, restored)

    def read(self, world: World, manifest: Manifest | None, restored: list[Restored]) -> None:
        if self._before is None or manifest is None:
            return
        (checkpoint, before), self._before = self._before, None
        if manifest.checkpoint == checkpoint:
            return  # It was not decided.
        after = content_of(world.app, restored)
        if after._replace(waiting={}) != before._replace(waiting={}):
            raise self.fail(f"checkpoint {checkpoint} held {before}, and the other tasks hold {after}")
        for address, messages in before.waiting.items():
            found = iter(after.waiting.get(address, []))  # Among them, what lay in logs of tasks that do not own it.
            if not all(message in found for message in messages):
                raise self.fail(f"{address} had {messages} waiting, and has {after.waiting.get(address)}")


class ReplayStands(Invariant):
    """What a person chose to go back to is never undone by a recovery (PROTOCOL 16)."""

    def __init__(self) -> None:
        self._chosen: tuple[int, int] | None = None
        """Attempt of the last replay, and the checkpoint it went back to."""

    def chosen(self, world: World, attempt: AttemptBegun) -> None:
        self._chosen = (attempt.lineage.attempt, attempt.restored)

    def restored(
        self, world: World, run: Run, manifest: Manifest | None, restored: list[Restored], replay: bool
    ) -> None:
        checkpoint = 0 if manifest is None else manifest.checkpoint
        if replay:
            self._chosen = (run.attempt.lineage.attempt, checkpoint)
        elif self._chosen is not None:
            attempt, chosen = self._chosen
            taken_by = 0 if manifest is None else manifest.lineage.attempt
            if taken_by < attempt and checkpoint > chosen:
                raise self.fail(f"attempt {attempt} replayed from {chosen}; a recovery went to {checkpoint}")


class RetainedIsWhole(Invariant):
    """Whatever a retained checkpoint refers to is still there."""

    def retained(self, world: World) -> None:
        names = set(world.bases.names())
        for each in world.directory.history.checkpoints.values():
            for part in self._parts(world, each):
                requests = part.ingress_positions.get(RequestFeed.SOURCE, 0)
                assert isinstance(requests, int)
                needed = {
                    PARTITION: part.first,
                    f"inbox-{part.task}": part.inbox_position,
                    f"requests-{part.task}": requests,
                }
                for partition, offset in needed.items():
                    if 0 <= offset < world.log.start(partition):
                        raise self.fail(f"checkpoint {each.checkpoint} needs offset {offset} of {partition}")
                if part.base and part.base not in names and not world.harmed["base"]:
                    raise self.fail(f"checkpoint {each.checkpoint} needs base {part.base}")

    def _parts(self, world: World, retained: Retained) -> tuple[Part, ...]:
        if retained.checkpoint in world.forgotten:
            return ()  # Known again, because the index was lost.
        try:
            return world.directory.journal.manifest(retained).parts
        except CorruptSnapshot:
            if not world.log.damaged:
                raise
            return ()


class DamageIsNamed(Invariant):
    """A checkpoint is refused only for something that is damaged, or was deleted long ago, and that is named; and
    nobody starts from nothing because of it."""

    def __init__(self) -> None:
        self._complete = False

    def refused(self, world: World, retained: Retained, error: CorruptSnapshot) -> None:
        named = any(place in error.message for place in world.damaged_places)
        if not named and retained.checkpoint not in world.forgotten:
            raise self.fail(f"checkpoint {retained.checkpoint} is refused, and nothing damaged is named: {error}")

    def restored(
        self, world: World, run: Run, manifest: Manifest | None, restored: list[Restored], replay: bool
    ) -> None:
        if manifest is None and world.completed:
            raise self.fail("checkpoints were complete, and the application starts from nothing")


def all_invariants() -> list[Invariant]:
    return [
        EachHopOnce(),
        RowsPresent(),
        RepliesStand(),
        *invariants_of_any(),
    ]


def invariants_of_any() -> list[Invariant]:
    """Those that know nothing of what the application does."""
    return [
        RowsOnce(),
        HandlersSee(),
        OnlyForward(),
        IdsAreNew(),
        RestoreIsTheCut(),
        RedoIsRun(),
        ReplayStands(),
        RetainedIsWhole(),
        DamageIsNamed(),
        RescaleChangesNothing(),
    ]


# What invariants look at.


def states(world: World) -> dict[str, Visits]:
    """The present state of every address."""
    found = {}
    for node in world.current.nodes:
        for typename, entry in node.core.entries.items():
            for id in IDS:
                raw = entry.raw(id)
                if raw:
                    found[f"{typename}/{id}"] = _decode_visits(raw)
    return found


def dead_letters(world: World) -> list[tuple[int, int]]:
    """Walk and hop of the messages that were given up."""
    readable = (letter.payload for letter in letters(world) if letter.payload != POISON)
    return [(step.walk, step.hop) for step in map(_decode_step, readable)]


def letters(world: World) -> list[DeadLetter]:
    return [letter for node in world.current.nodes for letter in node.core.letters.all()]


_decode_visits: Callable[[bytes], Visits] = msgspec.msgpack.Decoder(Visits).decode
_decode_step: Callable[[bytes], Step] = msgspec.msgpack.Decoder(Step).decode
_NOT_STATE = frozenset({keys.META, keys.QUEUE, keys.EGRESS})


def image_of(app: App, restored: Restored) -> Image:
    """Everything a restored task knows, read through its overlay."""
    values: dict[tuple[str, str], bytes] = {}
    overlay = restored.overlay
    for typename in app.functions:
        cells = overlay.cells(typename)
        values.update(((typename, id), value) for id in IDS if (value := overlay.load(cells, id)))
    rows = {
        key: value
        for key, value in overlay.scan(b"", b"\xff")
        if key[0] not in _NOT_STATE and not (key[0] < keys.META and key[1] == keys.VALUE)
    }
    queues = {name: rows for name, (_, _, rows) in restored.queues.items() if rows}
    return Image(values, rows, queues, restored.meta)


class Content(NamedTuple):
    """What the tasks of a checkpoint hold together, whichever of them holds it."""

    values: dict[tuple[str, str], bytes]
    rows: dict[bytes, object]
    """Those of key groups; one that names a delayed message has that instead of its number."""
    timers: list[tuple[int, bytes]]
    held: list[bytes]
    letters: list[bytes]
    waiting: dict[tuple[str, str], list[QueuedRow]]
    """Messages in queues, by their target."""


def content_of(app: App, restored: list[Restored]) -> Content:
    content = Content({}, {}, [], [], [], {})
    for each in restored:
        image = image_of(app, each)
        content.values.update(image.values)
        timers = {key: (keys.decode_timer_key(key).due_ms, row) for key, row in _of_kind(image, keys.TIMER)}
        content.timers.extend(timers.values())
        content.held.extend(row for _, row in _of_kind(image, keys.PENDING) if not _is_asked(row))
        content.letters.extend(row for _, row in _of_kind(image, keys.DEAD))
        content.rows.update({key: timers.get(row, row) for key, row in image.rows.items() if key[0] < keys.META})
        for typename, rows in image.queues.items():
            for row in rows:
                content.waiting.setdefault((typename, row[0]), []).append(row)
    for unordered in (content.timers, content.held, content.letters):
        unordered.sort()
    return content


def _is_asked(row: bytes) -> bool:
    """Whether a pending row is what a function asked of a task, which was under way and is about to be carried out."""
    message = message_of_pending(row)
    return message.caller is not None and message.meta is not None and bool(message.meta.operation)


def _of_kind(image: Image, kind: int) -> list[tuple[bytes, bytes]]:
    return [(key, row) for key, row in image.rows.items() if key[0] == kind]


def _texts(rows: list[EgressRow]) -> list[Any]:
    return [msgspec.msgpack.decode(row.value) for row in rows]


def _never_start(number: int, handler: Any) -> None:
    raise AssertionError("a standby runs no handler")
