"""What a fault did to a run: how long it was felt, whom it reached, and where on the map of keys and time.

Every function is pure. Compared is always with the same arm without a fault (`Baseline`): philosophies differ, and so
do the processes behind them, but each is its own measure. What can't be told is None.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from penstock.compare.orders import LOAD, Order, Place, orders_of
from penstock.compare.records import Event
from penstock.compare.series import Second, latency_of, seconds_of
from penstock.compare.statistics import ratio

WINDOWS: Final = 5
"""So many healthy seconds in a row are a recovery."""

HEALTHY_SHARE: Final = 0.99

HEALTHY_P99: Final = 2.0
"""Times the 99th percentile of the same arm without a fault."""

HEAT_ROWS: Final = 32
"""Rows of the heat map: enough that a row is a few keys, and few enough that a cell is seen."""


def homes_of(orders: Iterable[Order], baseline: Baseline | None) -> dict[str, Place]:
    """Where each order belongs on the map: at the function of which most orders touch exactly one instance that is not
    theirs alone, such as the account of who pays. An order that touches none stands for itself."""
    touched: dict[str, dict[str, list[Place]]] = {}
    keys = {}
    for order in orders:
        by_function = touched[order.name] = {}
        keys[order.name] = Place("", order.key)
        for place in baseline.places_of(order) if baseline else order.places:
            if place.id not in (order.name, order.key) or order.key != order.name:
                by_function.setdefault(place.fn, []).append(place)
    single = Counter(fn for by_function in touched.values() for fn, found in by_function.items() if len(found) == 1)
    if not single:
        return keys
    function = max(single, key=lambda fn: (single[fn], fn))
    found = {name: by_function.get(function, []) for name, by_function in touched.items()}
    return {name: places[0] if len(places) == 1 else keys[name] for name, places in found.items()}


HEAT_CODES: Final = ".orsx"
"""From the best to the worst."""


class Baseline(NamedTuple):
    """What the same arm does without a fault."""

    p99_ms: float
    p999_ms: float
    starts: Mapping[str, int] = MappingProxyType({})
    """Handlers that begin for each order of the same seed; empty if the run is of another one."""
    places: Mapping[str, frozenset[Place]] = MappingProxyType({})
    """Function instances that each order of the same seed touches: where one belongs that never ran."""

    def of_another_seed(self) -> Baseline:
        return Baseline(self.p99_ms, self.p999_ms)

    def places_of(self, order: Order) -> frozenset[Place]:
        return order.places | self.places.get(order.name, frozenset())

    def repeats(self, order: Order) -> int:
        """Handlers that began for it more often than they have to."""
        return max(order.starts - self.starts[order.name], 0) if order.name in self.starts else 0


def baseline_of(events: Iterable[Event]) -> Baseline | None:
    """Of a run without a fault; None if it answered nothing."""
    orders = orders_of(events, None)
    latency = latency_of(order for order in orders if order.offered_s >= 0)
    if latency is None:
        return None
    # One that failed here has begun less than it takes.
    starts = {order.name: order.starts for order in orders if order.right}
    return Baseline(latency.p99, latency.p999, starts, {order.name: order.places for order in orders})


class Window(msgspec.Struct, frozen=True):
    """A fault from its injection to its removal. One that has no end, such as a kill, ends where it begins."""

    what: str
    where: str
    node: str
    """The process that was hit; empty if none was."""
    on_s: float
    off_s: float


class Recovery(msgspec.Struct, frozen=True):
    """Seconds since the fault. None: it did not happen within the run, or nothing tells of it."""

    detect_s: float | None
    """Until the runtime first noted something: a roll-back, a retry, an ejection, an open breaker."""
    repair_s: float | None
    """From the detection (or the fault, if none is told) until the first right answer to an affected order."""
    catch_up_s: float | None
    """From the repair until the recovery."""
    recovery_s: float | None
    """Until the first of five consecutive seconds that are healthy."""
    hit: bool
    """Whether any order was affected at all."""


class Blast(msgspec.Struct, frozen=True):
    """Orders of the impact window, by whether they touch a function instance that lived on the process that was hit."""

    own_offered: int
    own_affected: int
    collateral_offered: int
    collateral_affected: int
    unplaced_offered: int
    unplaced_affected: int

    @property
    def share(self) -> float | None:
        return ratio(
            self.own_affected + self.collateral_affected + self.unplaced_affected,
            self.own_offered + self.collateral_offered + self.unplaced_offered,
        )

    @property
    def own(self) -> float | None:
        return ratio(self.own_affected, self.own_offered)

    @property
    def collateral(self) -> float | None:
        return ratio(self.collateral_affected, self.collateral_offered)


class Heat(msgspec.Struct, frozen=True):
    """For the map of keys and time. A cell is the worst that happened to an order of the row in the second:
    `.` nothing offered, `o` right, `r` right after work was repeated, `s` slow, `x` failed or wrong."""

    owners: list[str]
    """The process that held the keys of a row before the fault; empty if it is not known."""
    rows: list[str]


def windows_of(events: Iterable[Event], seconds: float) -> list[Window]:
    """Each fault with the first removal of the same that follows it. One that is never removed ends where it begins."""
    listed = sorted((event for event in events if event.kind in ("fault_on", "fault_off")), key=lambda event: event.t)
    removals = [event for event in listed if event.kind == "fault_off"]
    windows: list[Window] = []
    for on in (event for event in listed if event.kind == "fault_on"):
        off = next((event for event in removals if event.t >= on.t and _same_fault(event, on)), None)
        if off:
            removals.remove(off)
        windows.append(Window(on.what, on.where, on.node, on.t, min(off.t, seconds) if off else on.t))
    return windows


def _same_fault(a: Event, b: Event) -> bool:
    return (a.what, a.where, a.node) == (b.what, b.where, b.node)


def is_during(t: float, windows: Sequence[Window]) -> bool:
    """At any time, if there is no fault that lasts."""
    lasting = [window for window in windows if window.off_s > window.on_s]
    return not lasting or any(window.on_s <= t < window.off_s for window in lasting)


def recovery_of(
    orders: Sequence[Order],
    seconds: Sequence[Second],
    windows: Sequence[Window],
    events: Iterable[Event],
    baseline: Baseline | None,
) -> Recovery | None:
    """Of the first fault of the run."""
    if not windows or baseline is None:
        return None
    on_s = windows[0].on_s
    length = seconds[-1].start_s + 1 if seconds else 0.0
    recovery_s = _recovered(seconds_of(orders, length, from_s=on_s), baseline)
    end_s = length if recovery_s is None else max(on_s + recovery_s, *(window.off_s for window in windows))
    hit = [order for order in orders if _in_reach(order, on_s, end_s) and is_affected(order, baseline)]
    detected = min((event.t for event in events if event.t >= on_s and _is_detection(event)), default=None)
    noticed_s = on_s if detected is None else detected
    answers = (order.answered_s for order in hit if order.right and order.answered_s is not None)
    repaired = min((t for t in answers if t >= noticed_s), default=None)
    repair_s = None if repaired is None else repaired - noticed_s
    return Recovery(
        detect_s=None if detected is None else detected - on_s,
        repair_s=repair_s,
        catch_up_s=None if repaired is None or recovery_s is None else max(on_s + recovery_s - repaired, 0.0),
        recovery_s=recovery_s,
        hit=bool(hit),
    )


def is_affected(order: Order, baseline: Baseline) -> bool:
    """It failed, was answered wrongly, or took longer than all but one in a thousand do without a fault."""
    return not order.right or order.latency_ms is None or order.latency_ms > baseline.p999_ms


def _in_reach(order: Order, on_s: float, end_s: float) -> bool:
    """Offered while the fault and its consequences lasted, or under way when it struck."""
    under_way = order.offered_s < on_s and (order.answered_s is None or order.answered_s >= on_s)
    return under_way or on_s <= order.offered_s < end_s


def _recovered(windows: Sequence[Second], baseline: Baseline) -> float | None:
    healthy = [_is_healthy(window, baseline) for window in windows]
    for place in range(len(healthy) - WINDOWS + 1):
        if all(healthy[place : place + WINDOWS]):
            return float(place)
    return None


def _is_healthy(window: Second, baseline: Baseline) -> bool:
    """A second in which nothing was offered speaks neither for nor against."""
    if not window.offered:
        return True
    slow = window.p99_ms is None or window.p99_ms > HEALTHY_P99 * baseline.p99_ms
    return not slow and window.right >= HEALTHY_SHARE * window.offered


def _is_detection(event: Event) -> bool:
    """By the runtime itself: that a client asks again does not mean that it knows."""
    if event.node == LOAD:
        return False
    match event.kind:
        case "rollback" | "retry" | "eject" | "ckpt_abort":
            return True
        case "cb_state":
            return bool(event.value)
        case _:
            return False


def blast_of(
    orders: Sequence[Order],
    events: Sequence[Event],
    windows: Sequence[Window],
    recovery: Recovery | None,
    baseline: Baseline | None,
    seconds: float,
) -> Blast | None:
    """None without a fault, without a baseline, or where no process of the application was hit: a slow bank has no keys
    of its own, so there is nothing to be collateral to."""
    if not windows or baseline is None or recovery is None:
        return None
    victims = victims_of(events, windows)
    if not victims:
        return None
    on_s = windows[0].on_s
    end_s = seconds if recovery.recovery_s is None else max(on_s + recovery.recovery_s, *(w.off_s for w in windows))
    owners = owners_of(events, before_s=on_s)
    # An impact that is over within a second is still looked for in one, for otherwise nothing would be offered in it.
    in_window = [order for order in orders if on_s <= order.offered_s < max(end_s, on_s + 1)]
    tally: Counter[tuple[str, bool]] = Counter(
        (_side(order, baseline, owners, victims), is_affected(order, baseline)) for order in in_window
    )
    return Blast(
        own_offered=tally["own", True] + tally["own", False],
        own_affected=tally["own", True],
        collateral_offered=tally["collateral", True] + tally["collateral", False],
        collateral_affected=tally["collateral", True],
        unplaced_offered=tally["unplaced", True] + tally["unplaced", False],
        unplaced_affected=tally["unplaced", True],
    )


def victims_of(events: Iterable[Event], windows: Sequence[Window]) -> frozenset[str]:
    """The processes that were hit and on which handlers ran."""
    hit = {window.node or window.where for window in windows}
    return frozenset(event.node for event in events if event.kind == "start" and event.node in hit)


def owners_of(events: Iterable[Event], *, before_s: float) -> dict[Place, str]:
    """The process on which each function instance last ran before the given time."""
    last: dict[Place, tuple[float, str]] = {}
    for event in events:
        if event.kind == "start" and event.node and event.t < before_s:
            place = Place(event.fn, event.id)
            last[place] = max(last.get(place, (-math.inf, "")), (event.t, event.node))
    return {place: node for place, (_, node) in last.items()}


def _side(order: Order, baseline: Baseline, owners: dict[Place, str], victims: frozenset[str]) -> str:
    known = {owners[place] for place in baseline.places_of(order) if place in owners}
    if not known:
        return "unplaced"
    return "own" if known & victims else "collateral"


def heat_of(
    orders: Sequence[Order],
    events: Iterable[Event],
    windows: Sequence[Window],
    baseline: Baseline | None,
    seconds: float,
) -> Heat:
    """Rows of one owner stand together, so that what befell one process is a band."""
    node_of = owners_of(events, before_s=windows[0].on_s if windows else math.inf)
    homes = homes_of(orders, baseline)
    nodes = set(node_of.values())
    # Where there is one process, it owns also what was not seen before the fault.
    unseen = nodes.pop() if len(nodes) == 1 else ""
    owner_of = {home: node_of.get(home, unseen) for home in homes.values()}
    keys = Counter(owner_of[home] for home in homes.values())
    # An owner has rows by the number of its orders, and one at least; those whose owner is not known come last.
    many = {owner: max(round(HEAT_ROWS * keys[owner] / keys.total()), 1) for owner in sorted(keys) if owner}
    if "" in keys:
        many[""] = max(HEAT_ROWS - sum(many.values()), 1)
    owners = [owner for owner, rows in many.items() for _ in range(rows)]
    columns = math.ceil(seconds - 1e-9)
    cells = [[0] * columns for _ in owners]
    for order in orders:
        column = math.floor(order.offered_s)
        if column >= columns:
            continue
        home = homes[order.name]
        owner = owner_of[home]
        row = owners.index(owner) + crc32(home.id.encode()) % many[owner]
        cells[row][column] = max(cells[row][column], HEAT_CODES.index(_heat_code(order, baseline)))
    return Heat(owners=owners, rows=["".join(HEAT_CODES[cell] for cell in row) for row in cells])


def _heat_code(order: Order, baseline: Baseline | None) -> str:
    if not order.right:
        return "x"
    if baseline and order.latency_ms is not None and order.latency_ms > baseline.p999_ms:
        return "s"
    return "r" if baseline and baseline.repeats(order) else "o"
