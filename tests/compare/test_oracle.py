"""The oracle: finds nothing in a run that is right, and each thing that can be wrong."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.compare.checkout import data, oracle
from penstock.compare.checkout.oracle import HARMS, INVARIANTS, Evidence, judge
from penstock.compare.records import RunDirectory

STOCK, BALANCE = 40, 400
Record = dict[str, Any]


class World:
    """A shop in which everything is right, until somebody changes it."""

    def __init__(self, ends: list[str], seed: int = 1, *, as_sagas: bool = False) -> None:
        self.shelves: dict[str, Record] = {}
        self.purses: dict[str, Record] = {}
        self.parcels: dict[str, Record] = {}
        self.orders: dict[str, Record] = {}
        self.ledger: list[Record] = []
        self.events: list[Record] = [{"kind": "run"}]
        self.placed = {number: data.order(seed, number, 0.8) for number in range(len(ends))}
        for number, end in enumerate(ends):
            self._live(self.placed[number], end, as_sagas)

    def _live(self, order: data.Placed, end: str, as_sagas: bool) -> None:
        self.events.append({"kind": "offered", "order": order.id})
        if end == "never came":
            return
        lines = [list(line) for line in order.lines]
        state = {"outcome": "CONFIRMED", "reason": "", "user": order.user, "lines": lines, "amount": order.amount}
        purse = self.purses.setdefault(order.user, {"balance": BALANCE, "held": {}, "paid": {}})
        shelves = [self.shelves.setdefault(sku, _shelf()) for sku, _ in order.lines]
        fits = purse["balance"] >= order.amount
        fits &= all(shelf["on_hand"] >= count for shelf, (_, count) in zip(shelves, order.lines, strict=True))
        if end == "CONFIRMED" and fits:
            for shelf, (_, count) in zip(shelves, order.lines, strict=True):
                shelf["on_hand"] -= count
                shelf["sold"][order.id] = count
            purse["balance"] -= order.amount
            purse["paid"][order.id] = order.amount
            self.note(order, "authorise", "capture")
            self.parcels[order.id] = {"packed": 0, "sent": 1}
            told = "CONFIRMED"
        else:
            state["outcome"], state["reason"] = "REJECTED", end if end.startswith("no ") else "failed"
            self.note(order, "authorise", "void", "request", "capture", "refund")
            told = f"REJECTED:{state['reason']}"
        self.orders[order.id] = _as_saga(state) if as_sagas else state
        if end != "nobody was told":
            self.events.append({"kind": "reply", "order": order.id, "outcome": told})

    def note(self, order: data.Placed, *what: str) -> None:
        entry = {"order": order.id, "user": order.user, "amount": order.amount}
        self.ledger += [{"what": each, **entry} for each in what]

    @property
    def evidence(self) -> Evidence:
        kept = [("order", self.orders), ("inventory", self.shelves), ("payment", self.purses)]
        kept += [("shipment", self.parcels)]
        states = [{"fn": f"shop/{name}", "id": id, "state": each} for name, of in kept for id, each in of.items()]
        initial = data.initial(STOCK, BALANCE)
        return Evidence(initial["stock"], initial["balances"], self.ledger, states, self.events)

    @property
    def confirmed(self) -> data.Placed:
        return self._first("CONFIRMED")

    @property
    def rejected(self) -> data.Placed:
        return self._first("REJECTED")

    def _first(self, outcome: str) -> data.Placed:
        ended = {id: data.outcome_of(data.answer_in(state)) for id, state in self.orders.items()}
        return next(each for each in self.placed.values() if ended[each.id].startswith(outcome))


def _shelf() -> Record:
    return {"on_hand": STOCK, "reserved": {}, "sold": {}}


def _as_saga(state: Record) -> Record:
    """As the record of a saga has it."""
    if state["outcome"] == "CONFIRMED":
        return {"phase": "new", "ended": {"outcome": {"type": "Completed", "value": state}}}
    return {"phase": "new", "ended": {"outcome": {"type": "Compensated", "reason": state["reason"], "step": "pay"}}}


ENDS = st.sampled_from(["CONFIRMED", "CONFIRMED", "no stock", "no funds", "failed", "nobody was told", "never came"])


@given(st.lists(ENDS, max_size=30), st.integers(0, 1000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_run_that_is_right_has_no_violation(ends: list[str], seed: int, as_sagas: bool) -> None:
    verdict = judge(World(ends, seed, as_sagas=as_sagas).evidence)

    assert [verdict["invariants"][name]["violations"] for name in INVARIANTS] == [[]] * 6
    assert verdict["counts"] == dict.fromkeys(HARMS, 0)
    assert sum(verdict["terminal"].values()) == len(ends)


class Damage(NamedTuple):
    """What is done to a world, and what must be found."""

    what: str
    do: Callable[[World], None]
    invariants: set[str]
    harms: set[str]


def _first_shelf(world: World) -> Record:
    return world.shelves[world.confirmed.lines[0][0]]


def _lose_goods(world: World) -> None:
    _first_shelf(world)["on_hand"] -= 1


def _oversell(world: World) -> None:
    shelf = _first_shelf(world)
    shelf["reserved"]["o-1-99"] = shelf["on_hand"] + 1
    shelf["on_hand"] = -1


def _lose_money(world: World) -> None:
    world.purses[world.confirmed.user]["balance"] -= 1


def _forget_the_end(world: World) -> None:
    del world.orders[world.confirmed.id]


def _stop_half_way(world: World) -> None:
    order = world.rejected
    world.orders[order.id] = {"phase": "running", "ended": None}
    world.events = [each for each in world.events if each.get("order") != order.id]


def _charge_twice(world: World) -> None:
    world.note(world.confirmed, "capture")


def _charge_nothing(world: World) -> None:
    order = world.confirmed
    world.ledger = [each for each in world.ledger if (each["order"], each["what"]) != (order.id, "capture")]
    world.note(order, "void")


def _send_twice(world: World) -> None:
    world.parcels[world.confirmed.id]["sent"] = 2


def _send_nothing(world: World) -> None:
    del world.parcels[world.confirmed.id]


def _sell_twice(world: World) -> None:
    shelf = _first_shelf(world)
    count = shelf["sold"][world.confirmed.id]
    shelf["sold"][world.confirmed.id] += count
    shelf["on_hand"] -= count


def _sell_nothing(world: World) -> None:
    shelf = _first_shelf(world)
    shelf["on_hand"] += shelf["sold"].pop(world.confirmed.id)


def _keep_reserved(world: World) -> None:
    order = world.rejected
    sku, count = order.lines[0]
    world.shelves[sku]["reserved"][order.id] = count
    world.shelves[sku]["on_hand"] -= count


def _keep_authorised(world: World) -> None:
    world.note(world.rejected, "authorise")


def _keep_charged(world: World) -> None:
    order = world.rejected
    world.note(order, "capture")
    world.purses[order.user]["balance"] -= order.amount


def _keep_held(world: World) -> None:
    order = world.confirmed
    world.purses[order.user]["held"][order.id] = 5
    world.purses[order.user]["balance"] -= 5


def _keep_packed(world: World) -> None:
    world.parcels[world.rejected.id] = {"packed": 1, "sent": 0}


def _send_the_rejected(world: World) -> None:
    world.parcels[world.rejected.id] = {"packed": 0, "sent": 1}


def _reserve_for_nobody(world: World) -> None:
    shelf = _first_shelf(world)
    shelf["reserved"]["o-1-never"] = 1
    shelf["on_hand"] -= 1


def _confirm_the_rejected(world: World) -> None:
    world.events.append({"kind": "reply", "order": world.rejected.id, "outcome": "CONFIRMED"})


def _reject_the_confirmed(world: World) -> None:
    world.events.append({"kind": "reply", "order": world.confirmed.id, "outcome": "REJECTED:no stock"})


DAMAGES = [
    Damage("goods are lost", _lose_goods, {"I1"}, {"wrong"}),
    Damage("more is sold than there was", _oversell, {"I1", "I5"}, {"wrong", "orphaned"}),
    Damage("money is lost", _lose_money, {"I2"}, {"wrong"}),
    Damage("an end is forgotten", _forget_the_end, {"I3", "I5", "I6"}, {"lost", "orphaned", "lied"}),
    Damage("an order stops half-way", _stop_half_way, {"I3"}, {"lost"}),
    Damage("money is taken twice", _charge_twice, {"I2", "I4"}, {"wrong", "duplicated"}),
    Damage("no money is taken", _charge_nothing, {"I2", "I4"}, {"wrong", "lost"}),
    Damage("a parcel is sent twice", _send_twice, {"I4"}, {"duplicated"}),
    Damage("no parcel is sent", _send_nothing, {"I4"}, {"lost"}),
    Damage("goods are sold twice", _sell_twice, {"I4"}, {"duplicated"}),
    Damage("goods are not sold", _sell_nothing, {"I4"}, {"lost"}),
    Damage("a reservation stays", _keep_reserved, {"I5"}, {"orphaned"}),
    Damage("an authorisation stays", _keep_authorised, {"I5"}, {"orphaned"}),
    Damage("a charge stays", _keep_charged, {"I5"}, {"orphaned"}),
    Damage("money stays put aside", _keep_held, {"I5"}, {"orphaned"}),
    Damage("a parcel stays packed", _keep_packed, {"I5"}, {"orphaned"}),
    Damage("a rejected order is sent", _send_the_rejected, {"I5"}, {"orphaned"}),
    Damage("something is reserved for nobody", _reserve_for_nobody, {"I5"}, {"orphaned"}),
    Damage("a rejected order was told to be confirmed", _confirm_the_rejected, {"I6"}, {"lied"}),
    Damage("a confirmed order was told to be rejected", _reject_the_confirmed, {"I6"}, {"lied"}),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=[damage.what for damage in DAMAGES])
@given(ends=st.lists(ENDS, max_size=15), seed=st.integers(0, 1000), as_sagas=st.booleans())
@settings(max_examples=10, deadline=None)
def test_damage_is_found(damage: Damage, ends: list[str], seed: int, as_sagas: bool) -> None:
    world = World(["CONFIRMED", "failed", *(end for end in ends if end != "never came")], seed, as_sagas=as_sagas)
    damage.do(world)

    verdict = judge(world.evidence)

    assert {name for name in INVARIANTS if verdict["invariants"][name]["violations"]} == damage.invariants
    assert {harm for harm in HARMS if verdict["counts"][harm]} == damage.harms


def test_every_invariant_is_damaged_and_every_harm_done() -> None:
    assert set().union(*(damage.invariants for damage in DAMAGES)) == set(INVARIANTS)
    assert set().union(*(damage.harms for damage in DAMAGES)) == set(HARMS)


def test_two_states_of_one_order_are_found() -> None:
    evidence = World(["CONFIRMED"]).evidence
    states = list(evidence.states)

    verdict = judge(evidence._replace(states=[*states, deepcopy(states[0])]))

    assert verdict["invariants"]["I3"]["violations"] == ["o-1-0 has 2 states."]
    assert verdict["counts"]["duplicated"] == 1


def test_a_violation_names_the_order_and_what_is_wrong() -> None:
    world = World(["CONFIRMED", "failed"])
    _charge_twice(world)
    _keep_reserved(world)
    order, rejected = world.confirmed, world.rejected
    sku, count = rejected.lines[0]

    found = judge(world.evidence)["invariants"]

    amount = order.amount
    assert found["I4"]["violations"] == [
        f"{order.id} is confirmed and costs {amount}, and the bank captured {amount} + {amount}."
    ]
    assert found["I5"]["violations"] == [
        f"{rejected.id} ended as REJECTED:failed, and there is still {count} of {sku} reserved."
    ]


def test_an_order_that_fails_and_leaves_nothing_is_no_violation() -> None:
    world = World(["never came"])
    world.events.append({"kind": "reply", "order": "o-1-0", "outcome": "error PEN0842"})

    verdict = judge(world.evidence)

    assert sum(verdict["counts"].values()) == 0
    assert verdict["terminal"] == {"none": 1}


def test_the_verdict_is_written_beside_the_files(tmp_path: Path) -> None:
    evidence = World(["CONFIRMED", "no stock"]).evidence
    (tmp_path / "initial.json").write_text(json.dumps({"stock": evidence.stock, "balances": evidence.balances}))
    for name in ("ledger", "states", "events"):
        lines = "".join(json.dumps(each) + "\n" for each in getattr(evidence, name))
        (tmp_path / f"{name}.jsonl").write_text(lines)

    oracle.main([str(tmp_path)])

    verdict = RunDirectory(tmp_path).verdict()
    assert verdict is not None
    assert verdict.terminal == {"CONFIRMED": 1, "REJECTED:no stock": 1}
    assert {name: len(each.violations) for name, each in verdict.invariants.items()} == dict.fromkeys(INVARIANTS, 0)


def test_it_imports_nothing_but_the_standard_library_and_plain_data() -> None:
    assert _imports(Path(oracle.__file__)) - sys.stdlib_module_names == {"penstock.compare.checkout.data"}
    assert _imports(Path(data.__file__)) <= sys.stdlib_module_names


def test_it_runs_without_the_runtimes() -> None:
    code = "import sys; import penstock.compare.checkout.oracle; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    runtimes = ("penstock.engine", "penstock.mesh", "penstock.functions", "penstock.router", "penstock.checkpoint")
    assert [name for name in done.stdout.split() if name.startswith(runtimes)] == []


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found.add(module if module.startswith("penstock") else module.partition(".")[0])
    return found
