"""Which worker should own which task: evenly, and with as few changes as that allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def balance(tasks: int, owners: Mapping[int, str], workers: Sequence[str]) -> dict[int, str]:
    """An owner for every task. The numbers of tasks of any two workers differ by at most one, and a task changes hands
    only where that makes it necessary. `workers` are those that may own tasks, in the order they came.

    The result depends on nothing else, so two leaders that know the same come to the same.
    """
    assert workers, "somebody must own the tasks"
    shares = _shares(tasks, owners, workers)
    kept: dict[str, list[int]] = {worker: [] for worker in workers}
    homeless: list[int] = []
    for task in range(tasks):
        owner = owners.get(task)
        if owner in kept and len(kept[owner]) < shares[owner]:
            kept[owner].append(task)
        else:
            homeless.append(task)
    for worker in workers:
        while len(kept[worker]) < shares[worker]:
            kept[worker].append(homeless.pop(0))
    return {task: worker for worker, owned in kept.items() for task in owned}


def _shares(tasks: int, owners: Mapping[int, str], workers: Sequence[str]) -> dict[str, int]:
    """How many tasks each worker gets. Where the division leaves a rest, those get one more that have most already."""
    least, rest = divmod(tasks, len(workers))
    held = {worker: sum(owner == worker for owner in owners.values()) for worker in workers}
    by_load = sorted(workers, key=lambda worker: -held[worker])
    return {worker: least + (rank < rest) for rank, worker in enumerate(by_load)}
