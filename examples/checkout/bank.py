"""A bank in another house: a database of its own, asked over a network that takes its time.

It knows nothing of Penstock, and no crash takes back what it does. It offers what any payment service offers that can
be used safely: a request that comes again with the same key is done once, and answered as the first time. Every request
is noted, so that one can see that some did come again.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

OPENING = 100
"""What every customer has at first."""
SHOP = "shop"
LATENCY_S = 0.005
"""Of the network, each way."""

_TABLES = """
CREATE TABLE IF NOT EXISTS requests (key TEXT, "order" TEXT, step TEXT);
CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, balance INTEGER);
CREATE TABLE IF NOT EXISTS bookings (key TEXT PRIMARY KEY, "order" TEXT, step TEXT, customer TEXT, amount INTEGER);
CREATE INDEX IF NOT EXISTS by_order ON bookings ("order");
"""


def charge(order: str, customer: str, amount: int, *, idempotency_key: str) -> bool:
    """Take the amount from the customer. False when there is not enough, or the order was refunded before."""
    with _transaction() as bank:
        booked = _noted(bank, idempotency_key, order, "charge")
        if booked is None:
            refunded = _one(bank, "SELECT count(*) FROM bookings WHERE \"order\" = ? AND step = 'refund'", order)
            booked = 0 if refunded or _balance(bank, customer) < amount else amount
            _book(bank, idempotency_key, order, "charge", customer, booked)
    return booked > 0


def refund(order: str, customer: str, *, idempotency_key: str) -> int:
    """Give back what was taken for the order, and take nothing for it from now on: also not by a request that is still
    on its way. Returns how much it was."""
    with _transaction() as bank:
        booked = _noted(bank, idempotency_key, order, "refund")
        if booked is None:
            booked = -_one(bank, 'SELECT coalesce(sum(amount), 0) FROM bookings WHERE "order" = ?', order)
            _book(bank, idempotency_key, order, "refund", customer, booked)
    return -booked


def _noted(bank: sqlite3.Connection, key: str, order: str, step: str) -> int | None:
    """The amount that was booked when the same request came before."""
    bank.execute("INSERT INTO requests VALUES (?, ?, ?)", (key, order, step))
    row = bank.execute("SELECT amount FROM bookings WHERE key = ?", (key,)).fetchone()
    return None if row is None else int(row[0])


def _book(bank: sqlite3.Connection, key: str, order: str, step: str, customer: str, amount: int) -> None:
    """Move the amount from the customer to the shop."""
    bank.execute("INSERT INTO bookings VALUES (?, ?, ?, ?, ?)", (key, order, step, customer, amount))
    for name, change in ((customer, -amount), (SHOP, amount)):
        bank.execute("UPDATE accounts SET balance = ? WHERE name = ?", (_balance(bank, name) + change, name))


def _balance(bank: sqlite3.Connection, name: str) -> int:
    """Of an account, which is opened if there is none."""
    bank.execute("INSERT OR IGNORE INTO accounts VALUES (?, ?)", (name, 0 if name == SHOP else OPENING))
    return _one(bank, "SELECT balance FROM accounts WHERE name = ?", name)


def _one(bank: sqlite3.Connection, query: str, argument: str) -> int:
    return int(bank.execute(query, (argument,)).fetchone()[0])


def rows(table: Literal["requests", "accounts", "bookings"]) -> list[dict[str, Any]]:
    """For those who check the books."""
    with _transaction() as bank:
        bank.row_factory = sqlite3.Row
        return [dict(row) for row in bank.execute(f"SELECT * FROM {table}")]


@contextmanager
def _transaction() -> Iterator[sqlite3.Connection]:
    time.sleep(LATENCY_S)
    with closing(sqlite3.connect(path(), timeout=30, isolation_level=None)) as bank:
        bank.executescript("PRAGMA synchronous = OFF;" + _TABLES)  # No power fails here, only processes.
        bank.execute("BEGIN IMMEDIATE")
        yield bank
        bank.execute("COMMIT")
    time.sleep(LATENCY_S)


def path() -> Path:
    """Where the bank is, as the environment says: CHECKOUT_DIRECTORY."""
    directory = Path(os.environ.get("CHECKOUT_DIRECTORY", "checkout"))
    directory.mkdir(parents=True, exist_ok=True)
    return directory / "bank.db"
