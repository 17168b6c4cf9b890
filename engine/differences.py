"""What differs between the states of two checkpoints, address by address.

    both checkpoints -> each in a scratch store, layers folded -> key group by key group, in the order of the keys

What always holds: both may have any parallelism; an address is named once, whatever of it differs (value, rows of
tables, entries of logs); at most so many are named as are wanted, and all are counted. What is compared is what is
stored: a default that was written and one that was not are two states. Checkpoints are only read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from penstock.engine.offline import Checkpoints, restored_checkpoint
from penstock.engine.regroup import fold_all
from penstock.ids import KEY_GROUPS_MAX, Address
from penstock.state import keys
from penstock.state.backend import Backend

Change = Literal["added", "removed", "changed"]
STATE_KINDS = (keys.VALUE, keys.TABLE, keys.LOG)
_Row = tuple[bytes, bytes]


class Difference(NamedTuple):
    """An address whose state is not the same in both."""

    address: Address
    change: Change


class Differences(NamedTuple):
    """The first of them, function by function in the order of their names and ids within a key group, and how many
    there are in all."""

    found: list[Difference]
    counts: dict[Change, int]


def differences(directory: Checkpoints, before: int, after: int, *, typename: str | None, limit: int) -> Differences:
    """What became of the states of `before` by `after`, of one function if it is named.

    Raises InvalidInput for a checkpoint that is not there, and CorruptSnapshot for one that is damaged.
    """
    counts: dict[Change, int] = {"added": 0, "removed": 0, "changed": 0}
    found: list[Difference] = []
    with restored_checkpoint(directory, before) as old, restored_checkpoint(directory, after) as new:
        for restored in (*old, *new):
            fold_all(restored)
        stores = [each.overlay.backend for each in old], [each.overlay.backend for each in new]
        for difference in compare(*stores, typename=typename):
            counts[difference.change] += 1
            if len(found) < limit:
                found.append(difference)
    return Differences(found, counts)


def compare(old: Sequence[Backend], new: Sequence[Backend], *, typename: str | None = None) -> Iterator[Difference]:
    """The differences between the tasks of one checkpoint and those of another, as their stores hold them."""
    for group in range(KEY_GROUPS_MAX):
        before, after = old[group % len(old)], new[group % len(new)]
        changed = _changed(_states(before, group, typename), _states(after, group, typename))
        for address in sorted(set(changed)):
            if not _has_state(before, group, address):
                yield Difference(address, "added")
            else:
                yield Difference(address, "changed" if _has_state(after, group, address) else "removed")


def _states(store: Backend, group: int, typename: str | None) -> Iterator[_Row]:
    """The rows that make up the states of a key group, in the order of their keys."""
    for kind in STATE_KINDS:
        yield from store.scan(
            *(keys.group_kind_range(group, kind) if typename is None else keys.function_range(group, kind, typename))
        )


def _has_state(store: Backend, group: int, address: Address) -> bool:
    ranges = (keys.address_range(group, kind, *address) for kind in STATE_KINDS)
    return any(next(iter(store.scan(*each)), None) is not None for each in ranges)


def _changed(old: Iterator[_Row], new: Iterator[_Row]) -> Iterator[Address]:
    """The address of every row that only one of them has, or that they have with different values."""
    before, after = next(old, None), next(new, None)
    while before is not None or after is not None:
        if after is None or (before is not None and before[0] < after[0]):
            assert before is not None
            yield Address(*keys.address_of(before[0]))
            before = next(old, None)
        elif before is None or after[0] < before[0]:
            yield Address(*keys.address_of(after[0]))
            after = next(new, None)
        else:
            if before[1] != after[1]:
                yield Address(*keys.address_of(after[0]))
            before, after = next(old, None), next(new, None)
