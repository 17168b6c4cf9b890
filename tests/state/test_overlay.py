"""The overlay: reads see the newest write, cuts are exact, and folding changes nothing that can be read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.records import QueueCut
from penstock.state import keys, overlay
from penstock.state.memory import MemoryBackend
from penstock.state.overlay import ABSENT, Overlay, decode_queued

TYPE = "t/f"
NO_QUEUES: dict[str, QueueCut] = {}


def fresh() -> Overlay:
    return Overlay(MemoryBackend())


def put(over: Overlay, id: str, value: bytes) -> None:
    """One batch that writes one value."""
    over.put_value(over.cells(TYPE), id, value)
    over.take_batch()


def read(over: Overlay, id: str) -> bytes:
    """As a task core reads: from the cache, or by loading."""
    cells = over.cells(TYPE)
    value = cells.young.get(id)
    return over.load(cells, id) if value is None else value


def forget(over: Overlay) -> None:
    over.cells(TYPE).forget()


def fold(over: Overlay, *, rows_max: int = 1_000) -> None:
    while over.folding or over.next_fold is not None:
        if not over.folding:
            over.begin_fold([], [])
        while over.fold_slice(rows_max):
            pass


def row(number: int) -> bytes:
    return keys.encode_dead_key(number)


@pytest.mark.parametrize("depth", ["batch", "top", "frozen", "settled", "folding", "folded"])
def test_a_value_and_a_row_are_read_wherever_they_are(depth: str) -> None:
    over = fresh()
    over.put_value(over.cells(TYPE), "a", b"1")
    over.put(row(1), b"x")
    steps = ["batch", "top", "frozen", "settled", "folding", "folded"]
    for step in steps[1 : steps.index(depth) + 1]:
        match step:
            case "top":
                over.take_batch()
            case "frozen":
                over.freeze(1, NO_QUEUES)
            case "settled":
                over.settle(1)
            case "folding":
                over.begin_fold([], [])
            case _:
                over.fold_slice()
    if depth != "batch":
        forget(over)

    assert (read(over, "a"), over.get(row(1))) == (b"1", b"x")
    assert list(over.scan(*keys.task_kind_range(keys.DEAD))) == [(row(1), b"x")]
    if depth != "batch":
        assert list(over.ids(TYPE)) == ["a"]


def test_the_newest_write_wins_over_every_older_layer() -> None:
    over = fresh()
    for number, value in enumerate([b"1", b"2", b"3", b"4"], 1):
        put(over, "a", value)
        over.put(row(1), value)
        over.take_batch()
        over.freeze(number, NO_QUEUES)
        if number < 4:
            over.settle(number - 1)
    forget(over)

    assert (read(over, "a"), over.get(row(1))) == (b"4", b"4")


def test_a_deletion_hides_what_lies_below() -> None:
    over = fresh()
    put(over, "a", b"1")
    over.put(row(1), b"x")
    over.put(row(2), b"y")
    over.take_batch()
    over.freeze(1, NO_QUEUES)
    over.settle(1)
    fold(over)
    put(over, "a", ABSENT)
    over.put(row(1), None)
    forget(over)

    assert (read(over, "a"), over.get(row(1)), list(over.ids(TYPE))) == (ABSENT, None, [])
    assert list(over.scan(*keys.task_kind_range(keys.DEAD))) == [(row(2), b"y")]
    over.take_batch()
    over.freeze(2, NO_QUEUES)
    over.settle(2)
    fold(over)
    assert list(over.backend.scan(b"", b"\xff")) == [(row(2), b"y")]


def test_a_batch_is_what_changed_in_it() -> None:
    over = fresh()
    put(over, "a", b"1")
    over.put_value(over.cells(TYPE), "b", b"2")
    over.put(row(1), None)

    assert over.take_batch() == ({TYPE: {"b": b"2"}}, {row(1): None})
    assert over.take_batch() == ({}, {})


def test_a_cut_does_not_change_with_what_is_written_later() -> None:
    over = fresh()
    put(over, "a", b"1")
    first = over.freeze(1, NO_QUEUES)
    put(over, "a", b"2")
    put(over, "b", b"3")
    second = over.freeze(2, NO_QUEUES)

    assert (first.values, second.values) == ({TYPE: {"a": b"1"}}, {TYPE: {"a": b"2", "b": b"3"}})
    assert not over.dirty


def test_a_rollback_leaves_what_the_cuts_up_to_it_contain() -> None:
    over = fresh()
    for number, value in enumerate([b"1", b"2", b"3"], 1):
        put(over, "a", value)
        over.put(row(number), value)
        over.take_batch()
        over.freeze(number, NO_QUEUES)
    put(over, "a", b"4")
    over.settle(1)

    over.rollback(2)

    assert read(over, "a") == b"2"
    assert [value for _, value in over.scan(*keys.task_kind_range(keys.DEAD))] == [b"1", b"2"]
    assert not over.dirty


def test_settling_again_or_an_older_cut_changes_nothing() -> None:
    over = fresh()
    put(over, "a", b"1")
    over.freeze(3, NO_QUEUES)
    for checkpoint in (2, 3, 3, 1):
        over.settle(checkpoint)

    assert (over.settled_checkpoint, over.settled_rows) == (3, 1)


def test_only_settled_changes_reach_the_backend() -> None:
    over = fresh()
    put(over, "a", b"1")
    over.freeze(1, NO_QUEUES)
    put(over, "a", b"2")
    over.freeze(2, NO_QUEUES)
    over.settle(1)

    fold(over)

    assert [value for _, value in over.backend.scan(b"", b"\xff")] == [b"1"]
    assert over.folded_checkpoint == 1


def test_a_fold_is_done_in_slices_between_its_meta_rows() -> None:
    over = fresh()
    for number in range(5):
        put(over, f"id{number}", b"1")
    over.freeze(1, NO_QUEUES)
    over.settle(1)
    first, last = keys.encode_meta_key("settling"), keys.encode_meta_key("settled")

    over.begin_fold([(first, b"1")], [(last, b"1")])
    assert over.fold_slice(3)
    assert (over.backend.get(first), over.backend.get(last)) == (b"1", None)
    put(over, "id0", b"2")
    assert over.fold_slice(3)
    assert over.folding
    over.fold_slice(3)

    assert (over.backend.get(last), over.folded_checkpoint, over.folding) == (b"1", 1, False)
    while over.fold_slice():
        assert over.folded_checkpoint == 1
    forget(over)
    assert read(over, "id0") == b"2"
    assert not over.fold_slice()


def test_small_settled_layers_become_one_and_large_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "MERGED_ROWS_MAX", 2)
    monkeypatch.setattr(overlay, "SETTLED_ROWS_MAX", 1)
    over = fresh()
    for number in range(1, 5):
        put(over, f"id{number}", b"1")
        over.freeze(number, NO_QUEUES)
        over.settle(number)

    folds = []
    while over.next_fold is not None:
        folds.append(over.next_fold)
        over.begin_fold([], [])
        over.fold_slice()
    assert folds == [2, 4]
    assert sorted(over.ids(TYPE)) == ["id1", "id2", "id3", "id4"]


def test_layers_are_merged_in_slices_and_read_the_same_after_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "MERGE_ROWS_MAX", 2)
    monkeypatch.setattr(overlay, "FREED_ROWS_MAX", 2)
    over = fresh()
    expected: dict[str, bytes] = {}
    for checkpoint in (1, 2, 3):
        for number in range(7):
            expected[f"id{number * checkpoint}"] = b"%d" % checkpoint
            put(over, f"id{number * checkpoint}", b"%d" % checkpoint)
        over.freeze(checkpoint, NO_QUEUES)
        over.settle(checkpoint)

        for _ in range(2 * checkpoint):  # Enough for the second layer; the third is being merged when the fold begins.
            forget(over)
            assert {id: read(over, id) for id in expected} == expected
            over.tidy()

    assert over.next_fold == 3
    fold(over, rows_max=2)
    forget(over)
    assert (over.folded_checkpoint, over.settled_rows) == (3, 0)
    assert {id: read(over, id) for id in expected} == expected


def test_what_was_folded_is_freed_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "FREED_ROWS_MAX", 2)
    over = fresh()
    for number in range(5):
        put(over, f"id{number}", b"1")
    over.put(row(1), b"x")
    over.take_batch()
    layer = over.freeze(1, NO_QUEUES)
    over.settle(1)

    over.begin_fold([], [])
    left = []
    while over.fold_slice():
        left.append(len(layer))

    assert left == [6, 4, 2]
    assert len(layer) == 0


def test_a_queue_is_folded_as_the_messages_that_still_wait() -> None:
    over = fresh()

    def messages(*numbers: int) -> list[Any]:
        return [(f"id{number}", b"x", number, None, None) for number in numbers]

    for checkpoint, cut in enumerate(
        [QueueCut(0, 3, 0, messages(0, 1, 2)), QueueCut(2, 5, 3, messages(3, 4)), QueueCut(4, 5, 5, [])], 1
    ):
        over.freeze(checkpoint, {TYPE: cut})
        over.settle(checkpoint)
        if checkpoint == 1:
            fold(over)
    fold(over)

    stored = list(over.backend.scan(*keys.task_kind_range(keys.QUEUE)))
    assert [decode_queued(value)[0] for _, value in stored] == ["id4"]


def test_restored_layers_lie_over_the_base() -> None:
    backend = MemoryBackend()
    backend.write([(row(1), b"base"), (row(2), b"base")])
    over = Overlay(backend)

    over.begin_restore(5)
    over.restore(6, {TYPE: {"a": b"1"}}, {row(1): b"6"}, NO_QUEUES)
    over.restore(7, {TYPE: {"a": b"2"}}, {row(2): None}, NO_QUEUES)

    assert (read(over, "a"), over.get(row(1)), over.get(row(2))) == (b"2", b"6", None)
    assert (over.settled_checkpoint, over.folded_checkpoint) == (7, 5)
    put(over, "a", b"3")
    over.freeze(8, NO_QUEUES)
    over.rollback(7)
    assert read(over, "a") == b"2"


def test_effects_made_elsewhere_are_applied_like_a_batch() -> None:
    over = fresh()
    put(over, "a", b"1")

    over.apply({TYPE: {"a": b"2", "b": b"3"}}, {row(1): b"x"})

    assert (read(over, "a"), read(over, "b"), over.get(row(1))) == (b"2", b"3", b"x")
    assert over.freeze(1, NO_QUEUES).values == {TYPE: {"a": b"2", "b": b"3"}}


def test_prefetching_loads_what_reading_one_by_one_would() -> None:
    over = fresh()
    put(over, "folded", b"1")
    over.freeze(1, NO_QUEUES)
    over.settle(1)
    fold(over)
    put(over, "frozen", b"2")
    over.freeze(2, NO_QUEUES)
    put(over, "top", b"3")
    over.cells(TYPE).rotate()
    over.cells(TYPE).old.pop("folded")

    over.prefetch(over.cells(TYPE), ["folded", "frozen", "top", "none", "top"])

    assert over.cells(TYPE).young == {"folded": b"1", "frozen": b"2", "top": b"3", "none": ABSENT}


def test_a_cache_over_its_share_forgets_and_loses_nothing() -> None:
    over = Overlay(MemoryBackend(), cache_bytes_max=10_000)
    for number in range(200):
        put(over, f"id{number}", b"%d" % number)
        over.tidy()

    assert over.statistics().cached < 200
    assert [read(over, f"id{number}") for number in range(200)] == [b"%d" % number for number in range(200)]


def test_a_few_large_values_fill_the_cache_as_many_small_ones_do() -> None:
    over = Overlay(MemoryBackend(), cache_bytes_max=1_000_000)
    for number in range(100):
        put(over, f"id{number}", bytes(100_000))
        over.tidy()

    assert over.statistics().cached <= 12


Step = tuple[str, str, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["value", "row", "batch", "freeze", "settle", "tidy", "merge", "fold", "fold some", "rollback", "forget"]
        ),
        st.sampled_from("abc"),
        st.integers(0, 3),
    ),
    max_size=60,
)


class Model:
    """What an overlay means: the values and rows now, and as they were at each cut."""

    def __init__(self) -> None:
        self.now: dict[str, int] = {}
        self.unfinished: dict[str, int] = {}
        self.cuts: dict[int, dict[str, int]] = {0: {}}
        self.settled = 0

    def read(self) -> dict[str, int]:
        return {name: value for name, value in {**self.now, **self.unfinished}.items() if value}


@given(steps)
def test_an_overlay_reads_as_a_dictionary_would(program: list[Step]) -> None:
    """Values and rows alike; zero stands for a deletion. The slices are as small as can be, so that all else happens
    between them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlay, "MERGE_ROWS_MAX", 1)
        patch.setattr(overlay, "FREED_ROWS_MAX", 1)
        check_program(program)


def check_program(program: list[Step]) -> None:
    over, model, checkpoint = fresh(), Model(), 0
    for step, name, number in program:
        match step:
            case "value":
                over.put_value(over.cells(TYPE), name, b"%d" % number if number else ABSENT)
                model.unfinished[name] = number
            case "row":
                over.put(row(ord(name)), b"%d" % number if number else None)
                model.unfinished["row " + name] = number
            case "batch" | "freeze":
                over.take_batch()
                model.now.update(model.unfinished)
                model.unfinished = {}
                if step == "freeze":
                    checkpoint += 1
                    over.freeze(checkpoint, NO_QUEUES)
                    model.cuts[checkpoint] = dict(model.now)
            case "settle":
                over.settle(checkpoint - number)
                model.settled = max(model.settled, checkpoint - number)
            case "fold":
                fold(over, rows_max=2)
            case "fold some":
                if not over.folding and over.next_fold is not None:
                    over.begin_fold([], [])
                over.fold_slice(1)
            case "tidy":
                over.tidy()
            case "merge":
                over.merge_slice()
            case "rollback":
                checkpoint = max(model.settled, checkpoint - number)
                over.rollback(checkpoint)
                model.now, model.unfinished = dict(model.cuts[checkpoint]), {}
            case _:
                if not model.unfinished:
                    forget(over)
        found = {name: int(value) for name in "abc" if (value := read(over, name))}
        found |= {f"row {name}": int(data) for name in "abc" if (data := over.get(row(ord(name)))) is not None}
        assert found == model.read()
        if not over.folding:
            cut = model.cuts[over.folded_checkpoint]
            assert stored(over) == {name: value for name, value in cut.items() if value}


def stored(over: Overlay) -> dict[str, int]:
    """What the store below the overlay holds."""
    backend = over.backend
    values = {
        keys.decode_value_key(key)[2]: int(value)
        for start, end in keys.value_ranges(TYPE)
        for key, value in backend.scan(start, end)
    }
    rows = {f"row {name}": int(data) for name in "abc" if (data := backend.get(row(ord(name)))) is not None}
    return values | rows
