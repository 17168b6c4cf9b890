"""Which version of a function takes a request, and whether another one sees a copy.

What always holds: the same id of the same function goes to the same subset as long as the weights are the same, in
every process; a change of weights moves only the share by which they changed, when two subsets share the requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from penstock.mesh.policies.backoff import Draw
from penstock.mesh.policies.host import Host
from penstock.mesh.policies.ring import hash_64
from penstock.mesh.policies.settings import Weighted


def choose_subset(split: Sequence[Weighted], function: str, id: str, draw: Draw) -> str:
    """The subset for an id. A request without one is assigned by chance."""
    place = hash_64(f"{function}/{id}") / 2**64 if id else draw()
    total = sum(part.weight for part in split)
    ends = accumulate(part.weight for part in split)
    return next(part.subset for part, end in zip(split, ends, strict=True) if place * total < end)


def members(endpoints: Sequence[Host], subset: str, definitions: Mapping[str, Mapping[str, str]]) -> list[Host]:
    """The endpoints of a subset: those with its labels or, if nothing says what it is, of that version."""
    wanted = definitions.get(subset)
    if wanted is None:
        return [endpoint for endpoint in endpoints if endpoint.version == subset]
    return [endpoint for endpoint in endpoints if _has(endpoint, wanted)]


def _has(endpoint: Host, wanted: Mapping[str, str]) -> bool:
    labels = {"version": endpoint.version, **endpoint.labels}
    return all(labels.get(name) == value for name, value in wanted.items())
