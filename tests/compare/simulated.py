"""The arms of the comparison on simulated worlds: correctness alone, under many seeded schedules of faults.

    python -m tests.compare.simulated 1000 [ARM ...]      (make compare-simulated SCHEDULES=1000)

A stream is killed anywhere; the hosts of a mesh die, and its network loses, repeats and delays; in both the bank does
not hear, or its answers are lost, or requests reach it much too late. A table says how often the oracle has found what,
and the command fails when an arm that should be right is not, or a control does no harm.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from penstock.compare.arms import ARMS, Arm
from penstock.compare.checkout.bank import Mode
from penstock.compare.checkout.oracle import HARMS
from penstock.testing import Crash, Harness, Repeats
from tests.compare.mesh_world import Manners, Weather, World
from tests.compare.shops import Till, orders, play, shop_with

ORDERS: Final = 10
THETA: Final = 1.2
UNHARMED: Final = ("S1", "S2", "S3", "M3", "M4", "M5", "M6")
"""In which nothing may ever go wrong. The others are controls, or promise less: M2 undoes nothing that it gives up."""
CONTROLS: Final = {"S2-plain": "duplicated", "M1": "duplicated", "M3-nofence": "orphaned"}


def verdict(arm: Arm, seed: int) -> dict[str, Any]:
    """What the oracle says of one schedule."""
    dice = Random(f"{arm.name} {seed}")
    till = Till(Mode(arm.bank), Weather(dice).fate)
    shop = shop_with(till, COMPARE_FLOW=arm.flow, COMPARE_BANK_MODE=arm.bank, **arm.environment)
    placed = orders(ORDERS, seed=seed, theta=THETA)
    if arm.mode == "stream":
        faults = (Crash(every=dice.choice((10, 30, 100))), Repeats())
        with Harness(shop.app, seed=seed, parallelism=2).faults(*faults) as harness:
            return play(harness, till, placed)
    return World(shop, till, Manners(arm.client_attempts > 1, arm.client_keys), dice).play(placed)


def harms(arm: Arm, seeds: range) -> Iterator[tuple[int, Counter[str]]]:
    """By seed: how many of each, and the ends of all orders."""
    for seed in seeds:
        found = verdict(arm, seed)
        yield seed, Counter(found["counts"]) + Counter(found["terminal"])


def main(arguments: list[str]) -> int:
    options = argparse.ArgumentParser(prog="python -m tests.compare.simulated")
    options.add_argument("seeds", type=int)
    options.add_argument("arms", nargs="*", default=list(ARMS))
    chosen = options.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # What goes wrong is counted, and is meant to.
    numbers = (Column(each, justify="right", no_wrap=True) for each in ("orders", "confirmed", *HARMS))
    table = Table(Column("arm", no_wrap=True), *numbers, "seeds that harm", box=SIMPLE_HEAD, pad_edge=False)
    wrong = []
    for name in track(chosen.arms, "Playing schedules", transient=True):
        total, bad = Counter[str](), []
        for seed, found in harms(ARMS[name], range(chosen.seeds)):
            total += found
            if any(found[harm] for harm in HARMS):
                bad.append(str(seed))
        counts = [chosen.seeds * ORDERS, total["CONFIRMED"], *(total[harm] for harm in HARMS)]
        table.add_row(name, *map(str, counts), " ".join(bad[:8]))
        if name in UNHARMED and bad:
            wrong.append(f"{name} must do no harm.")
        if name in CONTROLS and not total[CONTROLS[name]]:
            wrong.append(f"{name} is a control, and nothing is {CONTROLS[name]}: the worlds prove nothing.")
    Console(width=120).print(table, *wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
