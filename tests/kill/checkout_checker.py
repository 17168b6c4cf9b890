"""What must be true of the checkout example when all its orders have ended, whatever was killed meanwhile.

It shares nothing with the example but the list of orders: it reads the rows that were written, and the books of the
bank, which no crash takes back.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from examples.checkout.app import STOCK
from examples.checkout.bank import OPENING, SHOP
from examples.checkout.orders import order
from tests.kill.killing import lines_of

ENDS = {"delivered", "sold out", "declined", "undeliverable", "cancelled"}


def check(directory: Path, orders: int) -> int:
    """Every order has ended once, and money and goods are where its end says. Returns how often the bank was asked
    again for what it had done."""
    written = list(map(json.loads, lines_of(directory / "results")))
    ends = {row["order"]: row for row in written if "outcome" in row}
    counted = Counter(row["order"] for row in written if "outcome" in row)
    assert counted == Counter(f"order-{number}" for number in range(orders))
    assert {row["outcome"] for row in ends.values()} <= ENDS
    with opened(directory / "bank.db") as bank:
        check_money(ends, bank)
        repeated = check_keys(bank)
    check_stock(ends, (row for row in written if "change" in row))
    return repeated


def opened(path: Path) -> closing[sqlite3.Connection]:
    """The books of the bank, to be read without its help."""
    return closing(sqlite3.connect(path))


def check_money(ends: dict[str, dict[str, Any]], bank: sqlite3.Connection) -> None:
    """A delivered order is paid for, once, and no other is. No money comes from nowhere."""
    paid: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    for number, customer, amount in bank.execute('SELECT "order", customer, amount FROM bookings'):
        paid[number] += amount
        spent[customer] += amount
    for number, row in ends.items():
        wanted = order(int(number.removeprefix("order-")))
        assert paid[number] == (wanted.price if row["outcome"] == "delivered" else 0), row
    balances = dict(bank.execute("SELECT name, balance FROM accounts"))
    assert balances.pop(SHOP) == sum(paid.values())
    assert balances == {customer: OPENING - spent[customer] for customer in balances}
    assert min(balances.values()) >= 0


def check_keys(bank: sqlite3.Connection) -> int:
    """Each step of an order has one key, however often it was asked for, and no key is that of two."""
    steps: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    asked = list(bank.execute('SELECT key, "order", step FROM requests'))
    for key, *step in asked:
        steps[key].add(tuple(step))
    assert [key for key, known in steps.items() if len(known) != 1] == []
    charges = Counter(step for known in steps.values() for step in known if step[1] == "charge")
    assert [step for step, keys in charges.items() if keys != 1] == []
    return len(asked) - len(steps)


def check_stock(ends: dict[str, dict[str, Any]], rows: Iterable[dict[str, Any]]) -> None:
    """Shelves count their changes without a gap, nothing vanishes, and what was sold was delivered."""
    shelves: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        shelves[row["item"]].append(row)
    sold: Counter[str] = Counter()
    for number, row in ends.items():
        wanted = order(int(number.removeprefix("order-")))
        sold[wanted.item] += wanted.quantity if row["outcome"] == "delivered" else 0
    for item, changes in shelves.items():
        changes.sort(key=lambda row: int(row["change"]))
        assert [row["change"] for row in changes] == list(range(1, len(changes) + 1))
        for row in changes:
            assert sum(row[place] for place in ("available", "reserved", "sold", "lost")) == STOCK, row
        assert changes[-1]["reserved"] == 0
        assert changes[-1]["sold"] == sold[item]


def judge(directory: Path, orders: int, kills: int, capsys: pytest.CaptureFixture[str]) -> int:
    """As `check`, and say to the person who watches what it was about."""
    again = check(directory, orders)
    written = map(json.loads, lines_of(directory / "results"))
    ends = Counter(row["outcome"] for row in written if "outcome" in row)
    with capsys.disabled():
        print(f"\nkilled {kills} times, {again} steps done again; {dict(ends)}")  # noqa: T201  # For whoever runs it.
    return again


def ended(directory: Path) -> int:
    """About how many orders have come to their end by now: also those in files that are not finished."""
    count = 0
    for part in (directory / "results").rglob("orders-*.jsonl"):
        with suppress(FileNotFoundError):  # It has just got another place.
            count += part.read_bytes().count(b"\n")
    return count
