"""The changes of one task that its store does not have yet, and a cache of what it does have.

    read    batch -> top layer -> frozen layers, newest first -> settled layers, newest first -> backend
    write   batch only; `merge` moves a finished batch into the top layer
    freeze  the top layer becomes a frozen one: a pointer swap, whatever its size
    settle  COMPLETE(k) was read: frozen layers up to k become settled (PROTOCOL 12), and are merged, in slices
    fold    settled layers are written to the backend, a slice at a time between turns

What always holds: a layer never changes between its freezing and its settling; the backend holds only settled
changes; a read sees the newest write; `rollback(k)` leaves exactly what the cuts up to k contain, without touching
the backend. Values of addresses (typename, id) have dictionaries of their own, because their look-up is the hot path;
all other rows go by explicit key. Empty bytes stand for "no value", so that a cached miss and a deletion cost no
second look-up.

Takes no snapshots, knows no checkpoints beyond their numbers, and never decides when to fold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import msgspec

from penstock.ids import key_group
from penstock.records import QueueCut, QueuedRow
from penstock.state import keys
from penstock.state.backend import Backend

ABSENT = b""
FOLD_ROWS_MAX = 50
"""Rows written at a time: a row costs 4 to 7 us, during which nobody else has the interpreter."""
FREED_ROWS_MAX = 1_000
"""Values freed between two turns: 100 ns each, more when they are large. A whole generation would take 10 ms."""
MERGE_ROWS_MAX = 1_000
"""Rows merged between two turns: 0.1 ms when the rows are in the CPU's cache, 0.5 ms when they are not."""
MERGED_ROWS_MAX = 50_000
"""A larger layer is not merged into the settled one before it: what changes so much in one interval seldom repeats."""
SETTLED_ROWS_MAX = 150_000
"""A settled layer that has grown beyond this is left alone and waits to be folded."""
CELL_OVERHEAD_BYTES = 180
"""What a cached value costs beside its bytes: dictionary slot, id and bytes objects (CPython 3.11, 64 bits)."""
COUNTED_VALUES_MAX = 1_000
SAMPLED_VALUES = 64

_encode_row = msgspec.msgpack.Encoder().encode
_K = TypeVar("_K")
_V = TypeVar("_V")
_END = object()


class Cells:
    """The cached values of one function type, in two generations: when the young one is full it becomes the old one,
    and what was only in the old one is forgotten. Unsettled values are also in a layer, so forgetting loses nothing."""

    __slots__ = ("dirty", "old", "typename", "young")

    def __init__(self, typename: str) -> None:
        self.typename = typename
        self.young: dict[str, bytes] = {}
        self.old: dict[str, bytes] = {}
        self.dirty: dict[str, bytes] = {}
        """Values written by the running batch."""

    def forget(self) -> None:
        self.young, self.old = {}, {}

    def rotate(self) -> dict[str, bytes]:
        """Make the young generation the old one. Returns what is forgotten, for the caller to free."""
        forgotten, self.old, self.young = self.old, self.young, {}
        return forgotten


class Layer:
    """Changes between two cuts."""

    __slots__ = ("checkpoint", "queues", "rows", "values")

    def __init__(self) -> None:
        self.checkpoint = 0
        self.values: dict[str, dict[str, bytes]] = {}
        self.rows: dict[bytes, bytes | None] = {}
        self.queues: dict[str, QueueCut] = {}

    def __len__(self) -> int:
        return len(self.rows) + sum(map(len, self.values.values())) + sum(len(q.rows) for q in self.queues.values())

    def absorb(self, newer: Layer) -> Iterator[None]:
        """Say what both layers say, some more of it with every step. The newer one wins. Until the last step, who reads
        the newer layer before this one reads the same as after it."""
        self.checkpoint = newer.checkpoint
        return self._absorb(newer)

    def _absorb(self, newer: Layer) -> Iterator[None]:
        for typename, changed in newer.values.items():
            yield from _update(self.values.setdefault(typename, {}), changed)
        yield from _update(self.rows, newer.rows)
        for typename, queue in newer.queues.items():
            older = self.queues.get(typename)
            self.queues[typename] = queue if older is None else older.followed_by(queue)


def _update(known: dict[_K, _V], changed: dict[_K, _V]) -> Iterator[None]:
    """`known.update(changed)` in slices."""
    items = iter(changed.items())
    for _ in range(0, len(changed), MERGE_ROWS_MAX):
        known.update(islice(items, MERGE_ROWS_MAX))
        yield


class Refuse:
    """Dictionaries nobody reads any more, to be freed some rows at a time."""

    def __init__(self) -> None:
        self._dropped: list[dict[Any, Any]] = []

    def __bool__(self) -> bool:
        return bool(self._dropped)

    def add(self, dropped: Iterable[dict[Any, Any]]) -> None:
        """Take over dictionaries, which are emptied."""
        self._dropped.extend(dropped)

    def free_some(self) -> None:
        left = FREED_ROWS_MAX
        while self._dropped and left > 0:
            last = self._dropped[-1]
            count = min(left, len(last))
            for _ in range(count):
                last.popitem()
            if not last:
                self._dropped.pop()
            left -= count


class OverlayStatistics(NamedTuple):
    """Sizes in rows."""

    unsettled: int
    settled: int
    cached: int


class Overlay:
    """See the module. One per task; used from one thread."""

    def __init__(self, backend: Backend, *, cache_bytes_max: int = 256 << 20) -> None:
        self._backend = backend
        self._cache_bytes_max = cache_bytes_max
        self._cells: dict[str, Cells] = {}
        self._batch_rows: dict[bytes, bytes | None] = {}
        self._top = Layer()
        self._frozen: deque[Layer] = deque()
        self._settled: deque[Layer] = deque()
        self._merging: Iterator[None] | None = None
        """The newest settled layer on its way into the one before it."""
        self._refuse = Refuse()
        self._folding: Iterator[tuple[bytes, bytes | None]] | None = None
        self._folding_layer: Layer | None = None
        self.settled_checkpoint = 0
        self.folded_checkpoint = 0
        """The backend holds exactly the cuts up to here whenever nothing is being folded."""
        self.rows_folded = 0

    # Reading and writing, within a batch.

    def cells(self, typename: str) -> Cells:
        """The cache of one function type. The caller may read `young` itself, and writes `young` and `dirty`
        together."""
        found = self._cells.get(typename)
        if found is None:
            found = self._cells[typename] = Cells(typename)
        return found

    def load(self, cells: Cells, id: str) -> bytes:
        """The value of an address that is not in `cells.young`; `ABSENT` when it has none. Caches what it finds."""
        value = cells.old.get(id)
        if value is None:
            value = self._find_value(cells.typename, id)
        cells.young[id] = value
        return value

    def prefetch(self, cells: Cells, ids: Iterable[str]) -> None:
        """Load the values of many addresses with one call into the backend."""
        young, old = cells.young, cells.old
        layers = [layer.values[cells.typename] for layer in self._layers() if cells.typename in layer.values]
        missing = []
        for id in ids:
            if id in young:
                continue
            value = old.get(id)
            if value is None:
                for layer in layers:
                    value = layer.get(id)
                    if value is not None:
                        break
                else:
                    missing.append(id)
                    continue
            young[id] = value
        if missing:
            typename = cells.typename
            found = self._backend.get_many([keys.encode_value_key(key_group(id), typename, id) for id in missing])
            for id, value in zip(missing, found, strict=True):
                young[id] = ABSENT if value is None else value

    def put_value(self, cells: Cells, id: str, value: bytes) -> None:
        cells.young[id] = value
        cells.dirty[id] = value

    def get(self, key: bytes) -> bytes | None:
        if key in self._batch_rows:
            return self._batch_rows[key]
        for layer in self._layers():
            if key in layer.rows:
                return layer.rows[key]
        return self._backend.get(key)

    def put(self, key: bytes, value: bytes | None) -> None:
        self._batch_rows[key] = value

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < end in key order, as the running batch sees them. Values of addresses excepted."""
        changed: dict[bytes, bytes | None] = {}
        for layer in reversed(list(self._layers())):
            changed.update({key: value for key, value in layer.rows.items() if start <= key < end})
        changed.update({key: value for key, value in self._batch_rows.items() if start <= key < end})
        if not changed:
            return self._backend.scan(start, end)
        below = ((key, value) for key, value in self._backend.scan(start, end) if key not in changed)
        above = sorted((key, value) for key, value in changed.items() if value is not None)
        return merge(below, above)

    def ids(self, typename: str) -> Iterator[str]:
        """Every id that has a value under `typename`, in no particular order."""
        changed: dict[str, bytes] = {}
        for layer in reversed(list(self._layers())):
            changed.update(layer.values.get(typename, {}))
        yield from (id for id, value in changed.items() if value)
        for start, end in keys.value_ranges(typename):
            for key, _ in self._backend.scan(start, end):
                _, _, id = keys.decode_value_key(key)
                if id not in changed:
                    yield id

    # Batches and cuts.

    def take_batch(self) -> tuple[dict[str, dict[str, bytes]], dict[bytes, bytes | None]]:
        """The changes of the batch that just ended, which are merged into the top layer by this call."""
        values: dict[str, dict[str, bytes]] = {}
        for typename, cells in self._cells.items():
            if cells.dirty:
                values[typename] = cells.dirty
                cells.dirty = {}
        rows = self._batch_rows
        if rows:
            self._batch_rows = {}
        self._merge_top(values, rows)
        return values, rows

    def apply(self, values: dict[str, dict[str, bytes]], rows: dict[bytes, bytes | None]) -> None:
        """The same changes, made elsewhere: by another run of the batch."""
        for typename, changed in values.items():
            self.cells(typename).young.update(changed)
        self._merge_top(values, rows)

    def _merge_top(self, values: dict[str, dict[str, bytes]], rows: dict[bytes, bytes | None]) -> None:
        top = self._top
        for typename, changed in values.items():
            known = top.values.get(typename)
            if known is None:
                top.values[typename] = changed.copy()
            else:
                known.update(changed)
        if rows:
            top.rows.update(rows)

    @property
    def dirty(self) -> bool:
        return bool(self._top.values or self._top.rows)

    def freeze(self, checkpoint: int, queues: dict[str, QueueCut]) -> Layer:
        """Close the top layer at the cut `checkpoint`. What is written next belongs to the following interval."""
        assert not self._batch_rows
        assert checkpoint > (self._frozen[-1].checkpoint if self._frozen else self.settled_checkpoint)
        layer, self._top = self._top, Layer()
        layer.checkpoint = checkpoint
        layer.queues = queues
        self._frozen.append(layer)
        return layer

    def settle(self, checkpoint: int) -> None:
        """The cuts up to `checkpoint` can't be rolled back any more. Repeating it, or an older number, changes
        nothing."""
        while self._frozen and self._frozen[0].checkpoint <= checkpoint:
            layer = self._frozen.popleft()
            self.settled_checkpoint = layer.checkpoint
            self._add_settled(layer)

    def rollback(self, checkpoint: int) -> None:
        """Forget every change after the cut `checkpoint`, which must be settled or frozen here."""
        assert checkpoint >= self.settled_checkpoint
        while self._frozen and self._frozen[-1].checkpoint > checkpoint:
            self._frozen.pop()
        self._top = Layer()
        self._batch_rows = {}
        for cells in self._cells.values():
            cells.dirty = {}
            cells.forget()

    def begin_restore(self, checkpoint: int) -> None:
        """The backend holds the cuts up to `checkpoint`."""
        self.settled_checkpoint = self.folded_checkpoint = checkpoint

    def restore(
        self,
        checkpoint: int,
        values: dict[str, dict[str, bytes]],
        rows: dict[bytes, bytes | None],
        queues: dict[str, QueueCut],
    ) -> None:
        """Add a settled layer that was read back from a delta. Called in the order of the chain, before any batch."""
        layer = Layer()
        layer.checkpoint, layer.values, layer.rows, layer.queues = checkpoint, values, rows, queues
        self.settled_checkpoint = checkpoint
        self._add_settled(layer)

    def _add_settled(self, layer: Layer) -> None:
        """Hot rows change in every interval: merging keeps one copy of them, and few layers to look through."""
        self._merge_all()
        last = self._settled[-1] if self._settled else None
        self._settled.append(layer)
        if last is not None and len(layer) <= MERGED_ROWS_MAX and len(last) <= SETTLED_ROWS_MAX:
            self._merging = last.absorb(layer)

    def merge_slice(self) -> bool:
        """Merge some of the newest settled layer. True while more is left to do."""
        if self._merging is not None and next(self._merging, _END) is _END:
            self._merging = None
            self._settled.pop()  # What it says is in the other one now, so next to nothing is freed by this.
        return self._merging is not None

    def _merge_all(self) -> None:
        while self.merge_slice():
            pass

    # Folding settled layers into the backend.

    @property
    def settled_rows(self) -> int:
        return sum(map(len, self._settled))

    @property
    def next_fold(self) -> int | None:
        """The cut that the next fold would take the backend to; None when nothing is settled."""
        return self._settled[0].checkpoint if self._settled else None

    @property
    def backend(self) -> Backend:
        return self._backend

    @property
    def folding(self) -> bool:
        return self._folding is not None

    def begin_fold(
        self, first: Iterable[tuple[bytes, bytes | None]], last: Iterable[tuple[bytes, bytes | None]]
    ) -> None:
        """Start to write the oldest settled layer. `first` and `last` are the meta rows around it (PROTOCOL 12). Quick
        when `merge_slice` had nothing left to do."""
        assert not self.folding
        if len(self._settled) == 2:  # One may be on its way into the other.
            self._merge_all()
        layer = self._folding_layer = self._settled.popleft()
        self._folding = _rows_of(layer, first, last)

    def fold_slice(self, rows_max: int = FOLD_ROWS_MAX) -> bool:
        """Write one slice, or free what was written. True while more is left to do."""
        if self._folding is None:
            self._refuse.free_some()
            return bool(self._refuse)
        slice = list(islice(self._folding, rows_max))
        if slice:
            self._backend.write(slice)
            self.rows_folded += len(slice)
        if len(slice) < rows_max:
            self._end_fold()
        return self.folding or bool(self._refuse)

    def _end_fold(self) -> None:
        layer = self._folding_layer
        assert layer is not None
        for typename, queue in layer.queues.items():
            self._backend.delete_range(keys.encode_queue_key(typename, 0), keys.encode_queue_key(typename, queue.head))
        self.folded_checkpoint = layer.checkpoint
        self._folding, self._folding_layer = None, None
        self._refuse.add((*layer.values.values(), layer.rows))

    # Bounds.

    def tidy(self) -> None:
        """Do what keeps memory bounded and need not be done at once, some of it after each batch: merge settled layers,
        free what nobody reads, forget the older half of the cache of any type that outgrew its share."""
        self.merge_slice()
        self._refuse.free_some()
        share = self._cache_bytes_max // max(1, len(self._cells))
        for cells in self._cells.values():
            if len(cells.young) * CELL_OVERHEAD_BYTES > share // 2 or self._cached_bytes(cells) > share // 2:
                self._refuse.add((cells.rotate(),))

    @staticmethod
    def _cached_bytes(cells: Cells) -> int:
        """All of a few values are counted, which takes 5 us; what many weigh is told by a sample."""
        count = len(cells.young)
        if count <= COUNTED_VALUES_MAX:
            return count * CELL_OVERHEAD_BYTES + sum(map(len, cells.young.values()))
        sample = [len(value) for value in islice(cells.young.values(), SAMPLED_VALUES)]
        return count * (CELL_OVERHEAD_BYTES + sum(sample) // len(sample))

    def statistics(self) -> OverlayStatistics:
        return OverlayStatistics(
            unsettled=len(self._top) + sum(map(len, self._frozen)),
            settled=self.settled_rows,
            cached=sum(len(cells.young) + len(cells.old) for cells in self._cells.values()),
        )

    # Inside.

    def _layers(self) -> Iterator[Layer]:
        yield self._top
        yield from reversed(self._frozen)
        yield from reversed(self._settled)
        if self._folding_layer is not None:
            yield self._folding_layer

    def _find_value(self, typename: str, id: str) -> bytes:
        for layer in self._layers():
            values = layer.values.get(typename)
            if values is not None:
                value = values.get(id)
                if value is not None:
                    return value
        return self._backend.get(keys.encode_value_key(key_group(id), typename, id)) or ABSENT


def _rows_of(
    layer: Layer,
    first: Iterable[tuple[bytes, bytes | None]],
    last: Iterable[tuple[bytes, bytes | None]],
) -> Iterator[tuple[bytes, bytes | None]]:
    yield from first
    for typename, values in layer.values.items():
        for id, value in values.items():
            yield keys.encode_value_key(key_group(id), typename, id), value or None
    yield from layer.rows.items()
    for typename, queue in layer.queues.items():
        for number, row in enumerate(queue.rows, queue.first):
            yield keys.encode_queue_key(typename, number), encode_queued(row)
    yield from last


encode_queued: Callable[[QueuedRow], bytes] = _encode_row
decode_queued: Callable[[bytes], QueuedRow] = msgspec.msgpack.Decoder(QueuedRow).decode
