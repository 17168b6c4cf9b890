"""Tables behave as dictionaries and logs as sequences, whatever is done to them, and store only what fits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidInput
from penstock.functions.state import Log, State, Table
from penstock.functions.tables import MemoryCollections, keys_for
from penstock.functions.types import codec_for


class Item(State):
    count: int = 0


def table(keys: Any = str, values: Any = int, storage: MemoryCollections | None = None) -> Table[Any, Any]:
    return Table.bound(storage or MemoryCollections(), "items", keys_for(keys), codec_for(values))


def log(values: Any = int) -> Log[Any]:
    return Log.bound(MemoryCollections(), "events", codec_for(values))


steps = st.lists(st.tuples(st.sampled_from(["set", "delete", "pop"]), st.text(max_size=2), st.integers(0, 9)))


@given(steps)
def test_a_table_does_what_a_dictionary_does(steps: list[tuple[str, str, int]]) -> None:
    real, model = table(), dict[str, int]()
    for step, key, value in steps:
        match step:
            case "set":
                real[key] = model[key] = value
            case "pop":
                assert real.pop(key, None) == model.pop(key, None)
            case _:
                assert (key in real) == (key in model)
                if key in model:
                    del real[key], model[key]

    assert dict(real.items()) == model
    assert list(real) == sorted(model)
    assert sorted(real.values()) == sorted(model.values())
    assert (len(real), bool(real)) == (len(model), bool(model))
    assert real == model


@pytest.mark.parametrize(
    ("annotation", "keys"),
    [
        (str, ["a", "b", "ba", "é"]),
        (bytes, [b"", b"a", b"b"]),
        (int, [0, 1, 127, 128, 70_000, 2**40]),
        (tuple[str, int], [("a", 1), ("b", 0)]),
    ],
)
def test_keys_come_back_in_order(annotation: Any, keys: list[Any]) -> None:
    rows = table(annotation)
    for key in reversed(keys):
        rows[key] = 1

    assert list(rows) == keys


def test_equal_sets_are_one_key() -> None:
    rows = table(frozenset[int])
    rows[frozenset([1, 9, 17])] = 1

    assert frozenset([17, 9, 1]) in rows


def test_a_missing_key_raises() -> None:
    with pytest.raises(KeyError, match="a"):
        table()["a"]
    with pytest.raises(KeyError, match="a"):
        del table()["a"]


def test_a_value_is_one_object_during_an_invocation() -> None:
    rows = table(values=Item)
    rows["a"] = Item()

    rows["a"].count += 1
    rows["a"].count += 1

    assert rows["a"].count == 2
    assert list(rows.items()) == [("a", Item(2))]


def test_what_was_removed_is_not_stored_again() -> None:
    storage = MemoryCollections()
    rows = table(values=Item, storage=storage)
    rows["a"] = Item()
    rows["a"].count = 5
    del rows["a"]

    rows.flush()

    assert "a" not in table(values=Item, storage=storage)


def test_only_what_changed_is_written() -> None:
    storage = MemoryCollections()
    rows = table(values=Item, storage=storage)
    rows["a"] = Item()
    rows["b"] = Item()
    rows.flush()
    written: list[bytes] = []
    storage.put = lambda field, key, value: written.append(key)  # type: ignore[method-assign]

    rows["b"].count = 1
    rows.flush()
    rows.flush()

    assert written == [b"b"]


def test_a_table_can_be_cleared() -> None:
    rows = table()
    rows.update(a=1, b=2)

    rows.clear()

    assert not rows


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("a", "x", 'PEN0205 A value of items is of type int, got str "x". Nothing was stored.'),
        (5, 1, "PEN0205 A key of items is of type str, got int 5. Nothing was stored."),
    ],
)
def test_a_table_refuses_what_it_could_not_read_again(key: Any, value: Any, message: str) -> None:
    rows = table()
    with pytest.raises(InvalidInput) as caught:
        rows[key] = value

    assert str(caught.value) == message
    assert not rows


def test_a_wrong_value_deep_inside_is_refused_whether_set_or_changed_in_place() -> None:
    lists = table(values=list[int])
    with pytest.raises(InvalidInput, match=r"PEN0205 A value of items is of type list\[int\]"):
        lists["a"] = ["x"]

    lists["a"] = [1]
    lists["a"].append("x")
    with pytest.raises(InvalidInput, match="PEN0205"):
        lists.flush()
    with pytest.raises(InvalidInput, match="PEN0205 An entry of events"):
        log(list[int]).append(["x"])


def test_anything_may_be_asked_for() -> None:
    assert 5 not in table()
    assert 5 not in table().values()


@given(st.lists(st.integers(0, 99)), st.integers(-12, 12), st.integers(-12, 12), st.integers(-3, 3).filter(bool))
def test_a_log_is_sliced_as_a_list_is(entries: list[int], start: int, stop: int, step: int) -> None:
    real = log()
    real.extend(entries)

    assert real[start:stop:step] == entries[start:stop:step]
    assert list(real) == entries
    assert real.last(3) == entries[-3:]
    assert list(reversed(real)) == entries[::-1]


def test_a_log_is_indexed_from_its_oldest_entry() -> None:
    events = log()
    events.extend([10, 11, 12])

    assert (events[0], events[-1], len(events), 11 in events, events.index(12)) == (10, 12, 3, True, 2)
    with pytest.raises(IndexError):
        events[3]


@pytest.mark.parametrize(
    ("before", "left"), [(2, [2, 3, 4]), (0, [0, 1, 2, 3, 4]), (9, []), (-2, [3, 4]), (-9, [0, 1, 2, 3, 4])]
)
def test_a_log_forgets_its_oldest_entries(before: int, left: list[int]) -> None:
    events = log()
    events.extend(range(5))

    events.truncate(before)

    assert list(events) == left
    events.append(7)
    assert list(events) == [*left, 7]
    assert events[-1] == 7


def test_a_log_refuses_what_it_could_not_read_again() -> None:
    with pytest.raises(InvalidInput) as caught:
        log().append("x")

    assert str(caught.value) == 'PEN0205 An entry of events is of type int, got str "x". Nothing was stored.'
