"""Worlds whose handlers await, and what must hold in them beside what holds in all.

A world of trees is one like the others with another application. What only it has: steps that are under way until the
world lets them end, and then may end a second time; people who cancel what an address is busy with; handlers that are
put aside wherever they wait, or after some time.
"""

from __future__ import annotations

from ast import literal_eval
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, NamedTuple
from unittest.mock import patch

import msgspec

from penstock.checkpoint.control import AttemptBegun, Manifest
from penstock.checkpoint.coordinator import Phase
from penstock.engine import awaiting, invocation_journal
from penstock.engine.effects import DeadLetter, Effects, Performed
from penstock.engine.feeds import Completions
from penstock.engine.operations import CancelInvocation, encode_operation
from penstock.engine.restore import Restored
from penstock.engine.task import TaskOptions
from penstock.engine.unit import Suspended
from penstock.functions.answers import encode_answer
from penstock.functions.durable import Stepped
from penstock.ids import Address, cause_of, key_group
from penstock.records import Envelope, Frozen, Meta, Reply
from penstock.router.requests import encode_request
from penstock.state import keys
from tests.simulation.invariants import Invariant, Violation, invariants_of_any
from tests.simulation.mix import EVERYTHING, Move
from tests.simulation.node import Handlers, Node
from tests.simulation.trees import BACK, GROVE, LEAF, LEDGER, NOTING, ROOTS, TREES, Grown, Job, Mark, Note, Received
from tests.simulation.walks import IDS, NATURE, Stumble
from tests.simulation.world import Client, Coverage, Run, World

ASLEEP_MS = 10
"""How long a handler that waits is kept in memory."""
GROWING = EVERYTHING.more(
    {Move.TURN: 60.0, Move.RESUME: 12.0, Move.PUMP: 16.0, Move.TICK: 10.0, Move.ASK: 1.5, Move.RESCALE: 0.1},
    steps=200,
)
STORMS = GROWING.more({Move.CRASH: 1.0, Move.TAKE_OVER: 0.5})
"""With a crash at nearly every await."""


class TreeSights(NamedTuple):
    """How often something worth testing happened."""

    begun: int = 0
    again: int = 0
    """Runs of a handler that was run before."""
    results: int = 0
    steps: int = 0
    """That were taken."""
    cancelled: int = 0
    timed_out: int = 0
    late: int = 0
    """Results that nobody waited for any more."""
    joined: int = 0
    """Calls that came back to who waited for them."""
    looks: int = 0
    """At what an address had noted that mostly was waiting."""


class Steps(Suspended):
    """The steps of one task, held back by the real rule. Those that it begins end when the world says so."""

    def __init__(self, completions: Completions) -> None:
        super().__init__(completions, _nothing)
        self.begun: list[tuple[Address, int, int, Stepped]] = []

    def _begin_step(self, typename: str, id: str, cause: int, index: int, step: Stepped) -> None:
        self.begun.append((Address(typename, id), cause, index, step))

    def end(self, number: int) -> None:
        """One of them ends, or one that will end once more."""
        address, cause, index, step = self.begun[number]
        if not NATURE.dice.chance(0.1):
            del self.begun[number]
        value, error = b"", None
        try:
            value = encode_answer(address, step.call(f"{cause}-{index}"))
        except Stumble:
            error = ("PEN0271", "it stumbled")
        self._tell(Performed(*address, cause, index, value, error))


class TreeHandlers(Handlers):
    """The handlers of one task, and its steps."""

    def __init__(self, completions: Completions) -> None:
        super().__init__(completions)
        self.steps = Steps(completions)

    def __len__(self) -> int:
        return super().__len__() + len(self.steps.begun)

    def resume(self, index: int) -> None:
        suspended = super().__len__()
        if index < suspended:
            GROVE.here = self
            super().resume(index)
        else:
            self.steps.end(index - suspended)
            self.ended += 1

    def close(self) -> None:
        super().close()
        self.steps.begun.clear()


class TreeWorld(World):
    """See the module."""

    app = TREES
    fingerprints = TREES.fingerprints()

    def make_invariants(self) -> list[Invariant]:
        return [
            NotesOnce(),
            AnswersStand(),
            NothingContradicted(),
            NothingParked(),
            StepsFollow(),
            *invariants_of_any(),
        ]

    def _draw_inputs(self) -> None:
        dice = self.dice
        self.always_replay = dice.chance(0.4)
        self.walks = 2 + dice.below(3)
        self.people = 0
        for tree in range(self.walks):
            typename, id = dice.choose(ROOTS), dice.choose(IDS)
            if typename == "trees/asked":
                self.clients.append(TreeClient(tree, Address(typename, id)))
            else:
                self.inputs[f"source-{dice.below(self.tasks)}"].append((typename, id, encode(Job(str(tree)))))
        self.poison = 0

    def run(self) -> Coverage:
        GROVE.clear()
        with patch.object(awaiting, "ASLEEP_MS", ASLEEP_MS):
            return super().run()

    @property
    def sights(self) -> TreeSights:
        """What there was to see in a world that has been."""
        seen, labels = GROVE.seen, len(GROVE.labels)
        return TreeSights(
            labels,
            seen["runs"] - labels,
            seen["results"],
            len(GROVE.taken),
            seen["cancelled"],
            seen["timed out"],
            sum(node.core.late_answers for node in self.current.nodes),
            seen["joined"],
            seen["looks"],
        )

    def make_handlers(self, completions: Completions) -> TreeHandlers:
        return TreeHandlers(completions)

    def options_of(self, task: int) -> TaskOptions:
        return TaskOptions(task=task, tasks=self.tasks, always_replay=self.always_replay)

    def _build_node(self, attempt: AttemptBegun, epoch: int, task: int, restored: Restored) -> Node:
        node = super()._build_node(attempt, epoch, task, restored)
        assert isinstance(node.handlers, TreeHandlers)
        node.core.outside = node.handlers.steps
        return node

    def _tick(self, run: Run) -> None:
        """A step that waits for a cut has one taken as soon as may be, and not at the end of an interval."""
        coordinator = run.coordinator
        handlers = (node.handlers for node in run.nodes)
        waits = any(isinstance(each, TreeHandlers) and each.steps.waits_for_cut for each in handlers)
        is_due = coordinator is not None and coordinator.due_in_ms(self.clock_ms, dirty=False, urgent=waits) == 0
        super()._tick(run)
        if is_due and run.coordinator is not None and run.coordinator.phase is Phase.IDLE:
            raise Violation("StepsDoNotWait", "a step waits for a checkpoint, and none was begun although one was due")

    def _turn(self, run: Run, node: Node, invocations_max: int) -> bool:
        GROVE.here = node.handlers
        return super()._turn(run, node, invocations_max)

    def _prepare_moves(self) -> dict[Move, Any]:
        return {**super()._prepare_moves(), Move.ASK: (self._some_request, None)}

    def _some_request(self, run: Run, node: Node) -> None:
        """A client asks, or a person cancels what some address is busy with."""
        if self._unanswered and self.dice.chance(0.6):
            super()._some_request(run, node)
            return
        address = Address(self.dice.choose(CANCELLED), self.dice.choose(IDS))
        self.people += 1
        operation, payload = encode_operation(CancelInvocation())
        request = f"{PERSON}{self.people}"
        envelope = Envelope(*address, payload, cause_of(request), None, Meta(request_id=request, operation=operation))
        self.log.append(f"requests-{key_group(address.id) % self.tasks}", encode_request(envelope))

    def answer(self, reply: Reply, attempt: int, checkpoint: int) -> None:
        if not reply.request_id.startswith(PERSON):
            super().answer(reply, attempt, checkpoint)


PERSON = "person-"
CANCELLED = ("trees/root", "trees/branch", "trees/twig")


class TreeClient(Client):
    """Somebody outside who asks for a tree."""

    @property
    def payload(self) -> bytes:
        return encode(Job(str(self.walk)))


class NotesOnce(Invariant):
    """In the surviving state each invocation has made each of its notes once, up to its end, its cancellation or its
    dead letter, and none while another was busy at its address; each is a message that has arrived once, in order, and
    a row."""

    def ended(self, world: World) -> None:
        grown, received = states(world)
        given_up = set(labels_given_up(world))
        where: dict[str, str] = {}
        for here, state in grown.items():
            self._check_joined(here, state.notes, where)
            own = [note for note in state.notes if not note.label.endswith(BACK)]
            for label, group in groupby(own, key=lambda note: note.label):
                notes = list(group)
                if label in where:
                    raise self.fail(f"{label} made notes at {where[label]}, and again at {here}, behind others")
                where[label] = here
                self._check_notes(here, label, notes, label in given_up)
        self._check_begun(world, where, given_up)
        self._check_marks(grown, received)
        self._check_rows(world, grown)
        self._check_leftovers(world)

    def _check_joined(self, here: str, notes: list[Note], where: dict[str, str]) -> None:
        for note in notes:
            if note.label.endswith(BACK):
                if note.label in where:
                    raise self.fail(f"{note.label} joined at {where[note.label]}, and again at {here}")
                where[note.label] = here

    def _check_notes(self, here: str, label: str, notes: list[Note], was_given_up: bool) -> None:
        texts = [note.text for note in notes]
        if [note.n for note in notes] != list(range(len(notes))):
            raise self.fail(f"{label} made these notes at {here}: {[(note.n, note.text) for note in notes]}")
        has_ended = texts[-1] == "ended"
        if not (has_ended or was_given_up or "cancelled" in texts):
            raise self.fail(f"{label} at {here} did not end: {texts}")
        if has_ended and was_given_up:
            raise self.fail(f"{label} at {here} has ended, and is a dead letter: {texts}")

    def _check_begun(self, world: World, where: dict[str, str], given_up: set[str]) -> None:
        for tree in range(world.walks):
            if str(tree) not in where and str(tree) not in given_up:
                raise self.fail(f"tree {tree} is lost")
        for label in where:
            parent = label.rpartition(".")[0]
            if parent and parent not in where:
                raise self.fail(f"{label} has begun, and {parent} has not")

    def _check_marks(self, grown: dict[str, Grown], received: dict[str, Received]) -> None:
        found: dict[str, list[Mark]] = {here: [] for here in grown}
        for there, state in received.items():
            last: dict[str, int] = {}
            for mark in state.marks:
                if mark.index <= last.get(mark.here, -1):
                    raise self.fail(f"{there} received mark {mark.index} of {mark.here} after {last[mark.here]}")
                last[mark.here] = mark.index
                found.setdefault(mark.here, []).append(mark)
        for here, marks in found.items():
            noted = list(enumerate(grown[here].notes)) if here in grown else []
            sent = sorted(((mark.index, mark.note) for mark in marks), key=lambda each: each[0])
            if sent != noted:
                raise self.fail(f"{here} made the notes {noted}, and of these marks have arrived: {sent}")

    def _check_rows(self, world: World, grown: dict[str, Grown]) -> None:
        committed = Counter(
            tuple(msgspec.msgpack.decode(row.value)) for rows in world.database.rows.values() for row in rows
        )
        for here, state in grown.items():
            for index, note in enumerate(state.notes):
                if not committed[here, index, note.label, note.n]:
                    raise self.fail(f"the row of note {index} of {here} was never committed")

    def _check_leftovers(self, world: World) -> None:
        for node in world.current.nodes:
            left = [key for key, _ in node.unit.overlay.scan(b"", b"\xff") if is_of_awaiting(key)]
            if left:
                raise self.fail(f"task {node.task} has rows of invocations that are over: {left}")


class AnswersStand(Invariant):
    """What an invocation or a client was told of another is true in the end: an answer of one that has ended, a
    failure of one that is a dead letter."""

    def ended(self, world: World) -> None:
        grown, received = states(world)
        given_up = set(labels_given_up(world))
        texts = {(note.label, note.text) for state in grown.values() for note in state.notes}
        answered = Counter(label for state in received.values() for label in state.answered)
        for here, state in grown.items():
            for note in state.notes:
                called, _, told = note.text.partition(" ")
                if not called.endswith(("!", BACK)):
                    continue
                end = "joined" if called.endswith(BACK) else "ended"
                if told.startswith("[") and (called, end) not in texts and not answered[called]:
                    raise self.fail(f"{here} was told {told} by {called}, which has not ended")
                if told.startswith("PEN0210") and called not in given_up:
                    raise self.fail(f"{here} was told that {called} failed, and there is no dead letter")
        self._check_looks(grown)
        twice = [label for label, times in answered.items() if times > 1]
        if twice:
            raise self.fail(f"these calls were answered by several leaves, or twice: {twice}")
        if not world.rolled_back:
            self._check_clients(world, grown)

    def _check_looks(self, grown: dict[str, Grown]) -> None:
        """Whatever was seen of an address was committed: it stands there in the end."""
        for here, state in grown.items():
            for note in state.notes:
                name, bracket, _ = note.text.partition(" [")
                told = literal_eval(note.text[len(name) + 1 :]) if bracket else []
                if len(told) == 5:
                    _, there, count, *last = told
                    notes = grown[there].notes if there in grown else []
                    stands = [[each.label, each.n] for each in notes[count - 1 : count]] if count else [["", 0]]
                    if stands != [last]:
                        raise self.fail(f"{here} was shown note {count} of {there}, {last}, and it is {stands}")

    def _check_clients(self, world: World, grown: dict[str, Grown]) -> None:
        for client in world.clients:
            assert client.answer is not None
            if client.answer.error:
                raise self.fail(f"tree {client.walk} was answered {client.answer.error}")
            label, count, here = msgspec.msgpack.decode(client.answer.value)
            notes = grown[here].notes if here in grown else []
            if [(note.label, note.text) for note in notes[count - 1 : count]] != [(label, "ended")]:
                raise self.fail(f"tree {client.walk} was told it ended with note {count} at {here}, which has {notes}")


class NothingContradicted(Invariant):
    """Whatever a handler was told once, it is told again whenever it is run again, as long as the history in which it
    was told goes on."""

    def __init__(self) -> None:
        self._told: dict[object, dict[Any, str]] = {}
        self._cuts: dict[int, dict[int, dict[Any, str]]] = {}
        """By checkpoint and task."""
        self._regrouped: dict[int, dict[Any, str]] = {}

    def turned(self, world: World, node: Node, effects: Effects) -> None:
        self._hear()

    def cut(self, world: World, node: Node, frozen: Frozen) -> None:
        self._hear()
        self._cuts.setdefault(frozen.checkpoint, {})[node.task] = dict(self._told.get(node.handlers, {}))

    def restored(
        self, world: World, run: Run, manifest: Manifest | None, restored: list[Restored], replay: bool
    ) -> None:
        GROVE.told.clear()
        regrouped, self._regrouped = self._regrouped, {}
        known: dict[Any, str] = {}
        if manifest is not None:
            for told in self._cuts.setdefault(manifest.checkpoint, regrouped).values():
                known.update(told)
        for node in run.nodes:
            self._told[node.handlers] = dict(known)

    def regrouping(self, world: World, manifest: Manifest | None, restored: list[Restored]) -> None:
        """What is restored next has another number, and is the same."""
        assert manifest is not None
        self._regrouped = self._cuts.get(manifest.checkpoint, {})

    def _hear(self) -> None:
        for task, here, which, text in GROVE.told:
            known = self._told.setdefault(task, {}).setdefault((here, which), text)
            if known != text:
                raise self.fail(f"{here} was told {known!r} for note {which}, and now {text!r}")
        GROVE.told.clear()


class StepsFollow(Invariant):
    """What a step that has been taken followed from is true in the end: nothing takes its effects back."""

    def ended(self, world: World) -> None:
        if world.rolled_back:
            return
        grown, _ = states(world)
        texts = {(note.label, note.n): note.text for state in grown.values() for note in state.notes}
        for label, n, text in GROVE.taken:
            found = texts.get((label, n))
            if found != text:
                raise self.fail(f"a step was taken after {text!r}, and note {n} of {label} is {found!r}")


class NothingParked(Invariant):
    """No handler goes another way when it is run again: none of these does by itself."""

    def turned(self, world: World, node: Node, effects: Effects) -> None:
        for key, row in effects.rows.items():
            if row is not None and is_progress(key):
                parked = decode_progress(row).parked
                if parked:
                    raise self.fail(f"task {node.task}: {parked}")


# What invariants look at.

encode = msgspec.msgpack.Encoder().encode
decode_progress: Callable[[bytes], Any] = invocation_journal._decode_progress
_decode_job = msgspec.msgpack.Decoder(Job).decode


def _nothing() -> None:
    pass


def states(world: World) -> tuple[dict[str, Grown], dict[str, Received]]:
    """What every address that awaits remembers, and every other."""
    grown, received = {}, {}
    for node in world.current.nodes:
        for typename, entry in node.core.entries.items():
            for id in IDS:
                raw = entry.raw(id)
                if raw and typename in NOTING:
                    grown[f"{typename}/{id}"] = msgspec.msgpack.decode(raw, type=Grown)
                elif raw and typename in (LEAF, LEDGER):
                    received[f"{typename}/{id}"] = msgspec.msgpack.decode(raw, type=Received)
    return grown, received


def letters(world: World) -> Iterator[DeadLetter]:
    for node in world.current.nodes:
        yield from node.core.letters.all()


def labels_given_up(world: World) -> Iterator[str]:
    """Labels of the invocations that are dead letters. A promise that is resolved twice is one as well."""
    for letter in letters(world):
        if letter.code != "PEN0268":
            yield _decode_job(letter.payload).label


def is_progress(key: bytes) -> bool:
    return key[0] < keys.META and key[1] == keys.JOURNAL and key[-5] == invocation_journal._PROGRESS


def is_of_awaiting(key: bytes) -> bool:
    """Whether a row is of an invocation: its journal, or the name of a timer."""
    return key[0] < keys.META and key[1] in (keys.JOURNAL, keys.TOKEN)
