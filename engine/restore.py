"""Brings one task back to a checkpoint: base, deltas in order, then the core.

    manifest part -> base files linked into a new directory -> store opened -> deltas applied as settled layers -> core

A restore never changes what it reads, and never leaves a half-restored directory that a later one could mistake for
whole: each attempt works in a directory of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from penstock.checkpoint.control import Part
from penstock.checkpoint.delta import DeltaHeader
from penstock.checkpoint.formats import refuse_newer
from penstock.checkpoint.sinks import Staged
from penstock.checkpoint.snapshot import BaseRef
from penstock.errors import CorruptSnapshot
from penstock.faults import fault
from penstock.records import EgressRow, Frozen, QueuedRow, TaskMeta
from penstock.state import keys
from penstock.state.backend import Backend
from penstock.state.overlay import Overlay, decode_queued

SETTLING_META = keys.encode_meta_key("settling")
SETTLED_META = keys.encode_meta_key("settled")
"""A fold writes the first before all its rows, and the second behind them: attempt and checkpoint (PROTOCOL 12)."""
META = keys.encode_meta_key("task")
FORMAT = 1
FORMAT_META = keys.encode_meta_key("format")
"""What the rows of a base mean: a base of a later format has its number there, and those of the first have no such
row."""
_decode_mark = msgspec.msgpack.Decoder(tuple[int, int]).decode
_decode_staged = msgspec.msgpack.Decoder(tuple[int, EgressRow]).decode


class DeltaSource(Protocol):
    """Where deltas are read from. Offsets are those of their first records; both raise CorruptSnapshot."""

    def chain(self, head: int, first: int) -> list[int]:
        """Offsets of the deltas from `first` to `head`, oldest first."""
        ...

    def delta(self, offset: int) -> tuple[DeltaHeader, Frozen, int]:
        """The delta at `offset`, and its size in bytes."""
        ...


@dataclass
class Restored:
    """A task as its checkpoint left it."""

    overlay: Overlay
    meta: TaskMeta = field(default_factory=TaskMeta)
    queues: dict[str, tuple[int, int, list[QueuedRow]]] = field(default_factory=dict)
    staged: dict[str, list[Staged]] = field(default_factory=dict)
    """Rows that the checkpoint decided and that may not be visible yet, by egress, oldest first."""
    stored: list[tuple[str, int, bytes]] = field(default_factory=list)
    """Egress, checkpoint and key of the rows among them that are in the store, because the base holds them."""
    base: BaseRef = field(default_factory=BaseRef)
    head: int = -1
    checksum: int = 0
    deltas: int = 0
    delta_bytes: int = 0
    """Of them all, as they stand in the log."""


def restore_task(
    part: Part,
    deltas: DeltaSource,
    open_base: Callable[[str], Backend],
    *,
    cache_bytes_max: int,
    progress: Callable[[int, int], None],
) -> Restored:
    """Restore the task that `part` describes.

    `open_base` gives a writable store with the content of a base
    (empty for the name ""). Raises CorruptSnapshot when anything it needs is damaged or missing.
    """
    backend = open_base(part.base)
    try:
        return _restore(part, deltas, Overlay(backend, cache_bytes_max=cache_bytes_max), progress)
    except BaseException:
        backend.close()  # The next candidate is restored in the same place.
        raise


def _restore(part: Part, deltas: DeltaSource, overlay: Overlay, progress: Callable[[int, int], None]) -> Restored:
    backend = overlay.backend
    restored = Restored(overlay, base=BaseRef(part.base, part.base_checkpoint), head=part.head, checksum=part.checksum)
    queues: dict[str, dict[int, QueuedRow]] = {}
    staged: dict[str, dict[int, Staged]] = {}
    if part.base:
        _check_base(part, backend)
        _read_base(backend, restored, queues, staged)
    overlay.begin_restore(part.base_checkpoint)
    fault("restore.base")
    chain = deltas.chain(part.head, part.first)
    for number, offset in enumerate(chain, 1):
        header, frozen, size = deltas.delta(offset)
        restored.delta_bytes += size
        overlay.restore(frozen.checkpoint, frozen.values, frozen.rows, frozen.queues)
        restored.meta = frozen.meta
        for typename, queue in frozen.queues.items():
            queues.setdefault(typename, {}).update(enumerate(queue.rows, queue.first))
        for egress, rows in frozen.egress.items():
            staged.setdefault(egress, {})[frozen.checkpoint] = Staged(header.attempt, frozen.checkpoint, rows)
        if offset == part.head:
            _check_head(part, header)
        progress(number, len(chain))
        fault("restore.delta")
    if chain:
        restored.base = restored.base._replace(first=chain[0])
    restored.deltas = len(chain)
    restored.queues = _queues(queues, restored.meta.queues)
    ordered = {egress: [batch for _, batch in sorted(batches.items())] for egress, batches in staged.items()}
    restored.staged = undecided(ordered, restored.meta.committed)
    return restored


def staged_attempts(restored: Iterable[Restored]) -> frozenset[int]:
    """The attempts whose rows may not be visible yet."""
    return frozenset(batch.attempt for each in restored for batches in each.staged.values() for batch in batches)


def rows_of(staged: Iterable[Mapping[str, Sequence[Staged]]]) -> dict[str, int]:
    """How many rows each egress has in these batches, for those that have any."""
    counts: dict[str, int] = {}
    for batches_of in staged:
        for egress, batches in batches_of.items():
            count = sum(len(batch.rows) for batch in batches)
            if count:
                counts[egress] = counts.get(egress, 0) + count
    return counts


def undecided(staged: Mapping[str, Iterable[Staged]], committed: Mapping[str, int]) -> dict[str, list[Staged]]:
    """Those of `staged`, by egress, that no commit is known of."""
    return {
        egress: [batch for batch in batches if batch.checkpoint > committed.get(egress, 0)]
        for egress, batches in staged.items()
    }


def _check_base(part: Part, backend: Backend) -> None:
    """A base is made between two folds, at the cut that its part names (PROTOCOL 13)."""
    version = backend.get(FORMAT_META)
    if version is not None:
        refuse_newer(msgspec.msgpack.decode(version), FORMAT, f"Base {part.base} of task {part.task}")
    settling, settled = backend.get(SETTLING_META), backend.get(SETTLED_META)
    found = None if settled is None else _decode_mark(settled)[1]
    if settling != settled or found != part.base_checkpoint:
        raise CorruptSnapshot(
            "PEN0404",
            f"Base {part.base} of task {part.task} should hold the cut of checkpoint {part.base_checkpoint}, and holds "
            f"{'none' if found is None else found if settling == settled else 'half of a later one'}. An older "
            "checkpoint is used.",
        )


def _check_head(part: Part, header: DeltaHeader) -> None:
    """The manifest and the delta must mean one another."""
    if (header.task, header.checksum) != (part.task, part.checksum):
        raise CorruptSnapshot(
            "PEN0404",
            f"Offset {part.head} of the journal holds a delta of task {header.task} with checksum "
            f"{header.checksum:08x}; the checkpoint names one of task {part.task} with {part.checksum:08x}. An older "
            "checkpoint is used.",
        )


def _read_base(
    backend: Backend,
    restored: Restored,
    queues: dict[str, dict[int, QueuedRow]],
    staged: dict[str, dict[int, Staged]],
) -> None:
    """The rows of a base that live in memory while a task runs."""
    data = backend.get(META)
    assert data is not None, "a base holds the meta of its task"
    try:
        restored.meta = msgspec.msgpack.decode(data, type=TaskMeta)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptSnapshot(
            "PEN0404",
            f"Base {restored.base.name} is whole and can't be read: {error}. Another version wrote it: run that one, "
            "or start from a savepoint. An older checkpoint is used.",
        ) from error
    for key, value in backend.scan(*keys.task_kind_range(keys.QUEUE)):
        typename, number = keys.decode_queue_key(key)
        queues.setdefault(typename, {})[number] = decode_queued(value)
    stored: dict[tuple[str, int], list[EgressRow]] = {}
    for key, value in backend.scan(*keys.task_kind_range(keys.EGRESS)):
        egress, checkpoint, _ = keys.decode_egress_key(key)
        restored.stored.append((egress, checkpoint, key))
        attempt, row = _decode_staged(value)
        rows = stored.setdefault((egress, checkpoint), [])
        rows.append(row)
        staged.setdefault(egress, {})[checkpoint] = Staged(attempt, checkpoint, rows)


def _queues(
    queues: Mapping[str, Mapping[int, QueuedRow]], heads: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int, list[QueuedRow]]]:
    found = {}
    for typename, (head, tail) in heads.items():
        rows = queues.get(typename, {})
        found[typename] = (head, tail, [rows[number] for number in range(head, tail)])
    return found
