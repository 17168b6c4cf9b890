"""What differs between two states, whatever the number of tasks that hold them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.differences import Difference, compare
from penstock.ids import Address, key_group
from penstock.state import keys
from penstock.state.memory import MemoryBackend

States = dict[str, int]


def stores(states: States, tasks: int, typename: str = "test/one") -> list[MemoryBackend]:
    made = [MemoryBackend() for _ in range(tasks)]
    for id, value in states.items():
        group = key_group(id)
        made[group % tasks].write([(keys.encode_value_key(group, typename, id), bytes((value,)))])
    return made


@given(
    old=st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 2), max_size=20),
    new=st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 2), max_size=20),
    before=st.sampled_from([1, 4]),
    after=st.sampled_from([1, 8]),
)
def test_addresses_are_added_removed_or_changed(old: States, new: States, before: int, after: int) -> None:
    found = {each.address.id: each.change for each in compare(stores(old, before), stores(new, after))}

    expected = dict.fromkeys(new.keys() - old.keys(), "added") | dict.fromkeys(old.keys() - new.keys(), "removed")
    expected |= {id: "changed" for id in old.keys() & new.keys() if old[id] != new[id]}
    assert found == expected


def test_an_address_with_rows_of_collections_is_named_once() -> None:
    group = key_group("a")
    old, new = stores({"a": 1}, 1), stores({"a": 2}, 1)
    new[0].write([(keys.encode_table_key(group, "test/one", "a", "items", b"1"), b"x")])
    new[0].write([(keys.encode_log_key(group, "test/one", "a", "events", 0), b"x")])

    assert list(compare(old, new)) == [Difference(Address("test/one", "a"), "changed")]
    old[0].delete_range(b"", b"\xff")
    assert list(compare(old, new)) == [Difference(Address("test/one", "a"), "added")]


def test_one_function_may_be_looked_at_alone() -> None:
    old, new = stores({"a": 1}, 1), stores({"a": 2}, 1)
    new[0].write(list(stores({"b": 1}, 1, "test/two")[0].scan(b"", b"\xff")))

    assert [each.address.id for each in compare(old, new, typename="test/two")] == ["b"]
