"""What must hold in every simulated cluster, beside what must hold in every world."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.checkpoint.control import Manifest
from penstock.engine.build import Origin
from penstock.engine.feeds import RequestFeed
from penstock.engine.restore import Restored, staged_attempts
from penstock.records import TaskMeta
from tests.simulation.cluster_worker import TOPICS, ClusterUnit
from tests.simulation.invariants import (
    EachHopOnce,
    HandlersSee,
    IdsAreNew,
    Image,
    Invariant,
    OnlyForward,
    ReplayStands,
    RepliesStand,
    RestoreIsTheCut,
    RowsOnce,
    RowsPresent,
    image_of,
)
from tests.simulation.walks import WALKS

if TYPE_CHECKING:
    from tests.simulation.cluster_leader import SimulatedLeader
    from tests.simulation.cluster_world import ClusterWorld


class PlacedIsTheCut(RestoreIsTheCut):
    """A task placed at a worker is what it was when it was frozen for the checkpoint that it continues."""

    def restored(self, *_: Any) -> None:
        pass  # Tasks come one by one.

    def placed(self, unit: ClusterUnit, restored: Restored, manifest: Manifest | None) -> None:
        expected = Image({}, {}, {}, TaskMeta())
        node: Any = unit
        if manifest is not None:
            expected = self._cuts[unit.task, manifest.checkpoint]
            if not unit.replaced:
                self._compare(node, image_of(WALKS, restored), expected, manifest.checkpoint)
        self._live[node] = Image(expected.values.copy(), expected.rows.copy(), {}, expected.meta)


class OneOwner(Invariant):
    """A task is continued in its attempt only from the cut at which its last owner let it stand still, by whom the
    newest assignment names."""

    def placed(self, world: ClusterWorld, unit: ClusterUnit, previous: ClusterUnit | None, checkpoint: int) -> None:
        owner = world.owner_of(unit)
        if owner != unit.worker.name:
            raise self.fail(f"task {unit.task} is placed at {unit.worker.name}, and its owner is {owner}")
        if previous is not None and (previous.cut_at, previous.turns_since_cut) != (checkpoint, 0):
            raise self.fail(
                f"task {unit.task} is continued from {checkpoint}, and {previous.worker.name} has taken "
                f"{previous.turns_since_cut} turns after cut {previous.cut_at}"
            )

    def took_turn(self, world: ClusterWorld, unit: ClusterUnit) -> None:
        if unit.attempt != world.newest_attempt:
            return
        if unit.replaced:
            raise self.fail(f"task {unit.task} takes turns at {unit.worker.name}, which has given it away")
        if unit.released_at:
            resolved = world.resolved_for(unit)
            if resolved < unit.released_at:
                raise self.fail(
                    f"task {unit.task} stands still since {unit.released_at}, and takes a turn at {unit.worker.name}; "
                    f"decided is {resolved}"
                )


class RowsAreNamed(Invariant):
    """The lineage of an attempt names the attempts of all rows whose fate only markers tell: markers keep those."""

    def placed(self, restored: Restored, origin: Origin) -> None:
        attempts, lineage = staged_attempts([restored]), origin.attempt.lineage
        if not attempts <= lineage.attempts:
            raise self.fail(f"rows of attempts {sorted(attempts)} may be visible, and markers keep those of {lineage}")


class RetainedIsThere(Invariant):
    """Whatever a retained checkpoint refers to is still there."""

    def forgot(self, world: ClusterWorld, leader: SimulatedLeader) -> None:
        kafka, names = world.kafka, set(world.bases.names())
        for checkpoint in leader.core.history.checkpoints:
            for part in leader.core.manifest(checkpoint).parts:
                requests = part.ingress_positions.get(RequestFeed.SOURCE, 0)
                assert isinstance(requests, int)
                needed = {
                    TOPICS.deltas: part.first,
                    TOPICS.inbox: part.inbox_position,
                    TOPICS.requests: requests,
                }
                for topic, offset in needed.items():
                    if 0 <= offset < kafka.partition((topic, part.task)).start:
                        raise self.fail(f"checkpoint {checkpoint} needs offset {offset} of {topic}-{part.task}")
                if part.base and part.base not in names:
                    raise self.fail(f"checkpoint {checkpoint} needs base {part.base}")


def shared_invariants() -> list[Invariant]:
    """Those that know nothing of workers."""
    return [
        EachHopOnce(),
        RowsOnce(),
        RowsPresent(),
        RepliesStand(),
        HandlersSee(),
        OnlyForward(),
        IdsAreNew(),
        ReplayStands(),
    ]
