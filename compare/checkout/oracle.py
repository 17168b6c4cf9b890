"""Says what is true in the end, and what went wrong: from files alone, by code that knows nothing of the runtimes.

    python -m penstock.compare.checkout.oracle RUN      reads the directory of a run, and writes verdict.json there

| file          | what of it                                                              |
| initial.json  | stock of each sku and money of each user, before the first order        |
| ledger.jsonl  | what the bank did; not what it was asked                                |
| states.jsonl  | what each address held, after everything had come to rest               |
| events.jsonl  | which orders were offered, and what those who placed them were told     |

I1  goods are neither made nor lost: initial = on hand + reserved + sold, of each sku
I2  nor is money: initial = balance + held + captured - refunded, of each user
I3  an order that was begun, or whose end was told, has come to one end
I4  a confirmed order has what it is made of, once each: its money captured, its goods sold, its parcel sent
I5  an order that is not confirmed has nothing: no goods, no money put aside or taken, no parcel; and none has what it
    does not need any more, such as goods that are still reserved
I6  nobody was told that an order ended otherwise than it did

Every violation is counted once, as harm of one kind: `lost` (it should be there), `duplicated` (more often than once),
`orphaned` (left behind by an order that has not got it), `lied` (told otherwise), `wrong` (sums that do not add up).
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from penstock.compare.checkout.data import answer_in, outcome_of

Harm = Literal["lost", "duplicated", "orphaned", "lied", "wrong"]
HARMS: Final[tuple[Harm, ...]] = ("lost", "duplicated", "orphaned", "lied", "wrong")
INVARIANTS: Final = ("I1", "I2", "I3", "I4", "I5", "I6")
CONFIRMED: Final = "CONFIRMED"
Record = Mapping[str, Any]


class Evidence(NamedTuple):
    """What there is to judge by."""

    stock: Mapping[str, int]
    balances: Mapping[str, int]
    ledger: Iterable[Record]
    states: Iterable[Record]
    events: Iterable[Record]


class Violation(NamedTuple):
    invariant: str
    harm: Harm
    text: str


class Deeds:
    """What there is of one order, wherever it was found."""

    def __init__(self) -> None:
        self.reserved: Counter[str] = Counter()
        """By sku, as the next one."""
        self.sold: Counter[str] = Counter()
        self.held = 0
        """Money that its user can't spend, and has not spent."""
        self.paid = 0
        self.authorised: list[int] = []
        """Each amount that the bank has put aside, and neither captured nor voided."""
        self.captured: list[int] = []
        """Each amount that it has taken, and not given back."""
        self.packed = 0
        self.sent = 0
        self.ends: list[Record] = []
        """What its own state says, as often as there was one."""
        self.told: set[str] = set()

    @property
    def outcome(self) -> str:
        """How it has ended; empty if it has not."""
        return outcome_of(self.ends[0]) if len(self.ends) == 1 else ""

    def pending(self) -> Iterator[str]:
        """What there is of it that no order has which has ended, in words."""
        yield from (f"{count} of {sku} reserved" for sku, count in self.reserved.items())
        yield from (f"{amount} authorised at the bank" for amount in self.authorised)
        if self.held:
            yield f"{self.held} held"
        if self.packed:
            yield "its parcel packed"

    def final(self) -> Iterator[str]:
        """What there is of it that an order has which is confirmed."""
        yield from (f"{count} of {sku} sold" for sku, count in self.sold.items())
        yield from (f"{amount} captured by the bank" for amount in self.captured)
        if self.paid:
            yield f"{self.paid} paid"
        if self.sent:
            yield "its parcel sent"


class Case:
    """All that is known, by order, sku and user."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.orders: defaultdict[str, Deeds] = defaultdict(Deeds)
        self.shelves: dict[str, Record] = {}
        self.purses: dict[str, Record] = {}
        self.spent: Counter[str] = Counter()
        """By user, as the ledger has it: captured, and not refunded."""
        for each in evidence.states:
            self._state(each["fn"], each["id"], each["state"] or {})
        for each in evidence.ledger:
            self._entry(each)
        for each in evidence.events:
            self._event(each)

    def _state(self, function: str, id: str, state: Record) -> None:
        match function:
            case "shop/order":
                self.orders[id].ends.append(answer_in(state) or {})
            case "shop/inventory":
                self.shelves[id] = state
                for order, quantity in state["reserved"].items():
                    self.orders[order].reserved[id] += quantity
                for order, quantity in state["sold"].items():
                    self.orders[order].sold[id] += quantity
            case "shop/payment":
                self.purses[id] = state
                for order, amount in state["held"].items():
                    self.orders[order].held += amount
                for order, amount in state["paid"].items():
                    self.orders[order].paid += amount
            case "shop/shipment":
                self.orders[id].packed += state["packed"]
                self.orders[id].sent += state["sent"]
            case _:
                pass  # What else there is helps one of these.

    def _entry(self, entry: Record) -> None:
        deeds, amount = self.orders[entry["order"]], entry["amount"]
        match entry["what"]:
            case "authorise":
                deeds.authorised.append(amount)
            case "capture":
                del deeds.authorised[:1]
                deeds.captured.append(amount)
                self.spent[entry["user"]] += amount
            case "refund":
                del deeds.captured[:1]
                self.spent[entry["user"]] -= amount
            case "void":
                del deeds.authorised[:1]
            case _:
                pass  # A request, which may have had no effect.

    def _event(self, event: Record) -> None:
        if event["kind"] == "offered":
            self.orders[event["order"]]  # Which makes it known.
        elif event["kind"] == "reply" and _is_end(outcome := event.get("outcome", "")):
            self.orders[event["order"]].told.add(outcome)


def _is_end(outcome: str) -> bool:
    return outcome == CONFIRMED or outcome.startswith("REJECTED")


def judge(evidence: Evidence) -> dict[str, Any]:
    """The verdict, as verdict.json has it."""
    case = Case(evidence)
    checks = {
        "I1": (len(case.shelves), _goods(case)),
        "I2": (len(evidence.balances), _money(case)),
        "I3": (len(case.orders), _ends(case)),
        "I4": (sum(deeds.outcome == CONFIRMED for deeds in case.orders.values()), _confirmed(case)),
        "I5": (len(case.orders), _left_behind(case)),
        "I6": (sum(bool(deeds.told) for deeds in case.orders.values()), _lies(case)),
    }
    found = {name: (checked, list(violations)) for name, (checked, violations) in checks.items()}
    harms = Counter(violation.harm for _, violations in found.values() for violation in violations)
    return {
        "invariants": {
            name: {"checked": checked, "violations": [violation.text for violation in violations]}
            for name, (checked, violations) in found.items()
        },
        "counts": {harm: harms[harm] for harm in HARMS},
        "terminal": dict(Counter(deeds.outcome or "none" for deeds in case.orders.values())),
    }


def _goods(case: Case) -> Iterator[Violation]:
    for sku, shelf in case.shelves.items():
        initial = case.evidence.stock.get(sku, 0)
        reserved, sold = sum(shelf["reserved"].values()), sum(shelf["sold"].values())
        found = shelf["on_hand"] + reserved + sold
        if found != initial or shelf["on_hand"] < 0:
            parts = f"{shelf['on_hand']} on hand + {reserved} reserved + {sold} sold = {found}"
            yield Violation("I1", "wrong", f"{sku}: there were {initial}, and there are {parts}.")


def _money(case: Case) -> Iterator[Violation]:
    for user in sorted(case.evidence.balances.keys() | case.purses.keys() | case.spent.keys()):
        initial = case.evidence.balances.get(user, 0)
        purse = case.purses.get(user, {"balance": initial, "held": {}})
        held, spent = sum(purse["held"].values()), case.spent[user]
        found = purse["balance"] + held + spent
        if found != initial or purse["balance"] < 0:
            parts = f"a balance of {purse['balance']} + {held} held + {spent} taken by the bank = {found}"
            yield Violation("I2", "wrong", f"{user}: there were {initial}, and there are {parts}.")


def _ends(case: Case) -> Iterator[Violation]:
    for order, deeds in case.orders.items():
        if len(deeds.ends) > 1:
            yield Violation("I3", "duplicated", f"{order} has {len(deeds.ends)} states.")
        elif deeds.outcome:
            continue
        elif deeds.told:
            yield Violation("I3", "lost", f"{order} has not come to an end, and {_told(deeds)} was told.")
        elif deeds.ends:
            yield Violation("I3", "lost", f"{order} was begun, and has not come to an end.")
        # One without a state and without an answer never was, as far as it knows. What it has left behind is for I5.


def _confirmed(case: Case) -> Iterator[Violation]:
    """What is missing, and what is there more than once."""
    for order, deeds in case.orders.items():
        if deeds.outcome != CONFIRMED:
            continue
        wanted = deeds.ends[0].get("value", deeds.ends[0])
        if deeds.sent != 1:
            yield Violation(
                "I4", _harm(deeds.sent, 1), f"{order} is confirmed, and its parcel sent {deeds.sent} times."
            )
        if deeds.captured != [wanted["amount"]]:
            harm = _harm(sum(deeds.captured), wanted["amount"])
            captured = " + ".join(map(str, deeds.captured)) or "nothing"
            yield Violation(
                "I4", harm, f"{order} is confirmed and costs {wanted['amount']}, and the bank captured {captured}."
            )
        lines = dict(wanted["lines"])
        for sku in sorted(lines.keys() | deeds.sold.keys()):
            sold, ordered = deeds.sold[sku], lines.get(sku, 0)
            if sold != ordered:
                yield Violation(
                    "I4", _harm(sold, ordered), f"{order} is confirmed with {ordered} of {sku}, and has {sold}."
                )


def _harm(found: int, expected: int) -> Harm:
    return "lost" if found < expected else "duplicated"


def _left_behind(case: Case) -> Iterator[Violation]:
    for order, deeds in case.orders.items():
        is_confirmed = deeds.outcome == CONFIRMED
        left = [*deeds.pending(), *(() if is_confirmed else deeds.final())]
        if left:
            ended = f"ended as {deeds.outcome}" if deeds.outcome else "has not ended"
            yield Violation("I5", "orphaned", f"{order} {ended}, and there is still {', '.join(left)}.")


def _lies(case: Case) -> Iterator[Violation]:
    for order, deeds in case.orders.items():
        ended = (deeds.outcome or "nothing").partition(":")[0]
        if any(told.partition(":")[0] != ended for told in deeds.told):
            yield Violation(
                "I6", "lied", f"{order} ended as {deeds.outcome or 'nothing'}, and {_told(deeds)} was told."
            )


def _told(deeds: Deeds) -> str:
    return " and ".join(sorted(deeds.told))


# The files.


def judge_directory(run: Path) -> dict[str, Any]:
    """The verdict on the run whose files are there. Raises OSError and ValueError for files that can't be read."""
    initial = json.loads((run / "initial.json").read_bytes())
    return judge(
        Evidence(
            initial["stock"],
            initial["balances"],
            _lines(run / "ledger.jsonl"),
            _lines(run / "states.jsonl"),
            _lines(run / "events.jsonl"),
        )
    )


def _lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as lines:
        yield from map(json.loads, lines)


def main(arguments: list[str]) -> None:
    (name,) = arguments
    run = Path(name)
    verdict = judge_directory(run)
    (run / "verdict.json").write_text(json.dumps(verdict, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
