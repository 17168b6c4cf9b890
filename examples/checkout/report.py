"""Reads what the shop wrote and what the bank has in its books, and shows how they fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from examples.checkout import bank
from examples.checkout.orders import order

Row = dict[str, Any]


def rows(results: Path, name: str) -> Iterator[Row]:
    """All that was written to the egress `checkout/NAME`."""
    for part in sorted(results.glob(f"{name}-*.jsonl")):
        with part.open("rb") as lines:
            yield from map(msgspec.json.decode, lines)


def show_results(results: Path, console: Console) -> None:
    console.print(outcomes_table(results))
    console.print(stock_table(results))
    show_money(results, console)


def outcomes_table(results: Path) -> Table:
    counts = Counter((row["outcome"], row["fate"]) for row in rows(results, "orders"))
    table = table_of("How orders ended", "order", "parcel", "orders")
    for (outcome, fate), count in sorted(counts.items(), key=lambda each: -each[1]):
        table.add_row(outcome, fate, f"{count:,}")
    return table


def stock_table(results: Path) -> Table:
    shelves: dict[str, Row] = {}
    for row in rows(results, "stock"):
        shelves[row["item"]] = max(row, shelves.get(row["item"], row), key=lambda each: each["change"])
    table = table_of("Where the goods are", "item", "available", "reserved", "sold", "lost")
    for item, row in sorted(shelves.items()):
        table.add_row(item, *(str(row[name]) for name in ("available", "reserved", "sold", "lost")))
    return table


def show_money(results: Path, console: Console) -> None:
    due = sum(order_price(row["order"]) for row in rows(results, "orders") if row["outcome"] == "delivered")
    balances = {row["name"]: row["balance"] for row in bank.rows("accounts")}
    requests = bank.rows("requests")
    repeated = len(requests) - len({row["key"] for row in requests})
    took = balances.get(bank.SHOP, 0)
    console.print(f"The shop took {took:,} for what it delivered, at a price of {due:,}.", highlight=False)
    console.print(
        f"The bank had {len(requests):,} requests, {repeated:,} of them again with the same key.", highlight=False
    )


def order_price(number: str) -> int:
    return order(int(number.removeprefix("order-"))).price


def table_of(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 or column == "parcel" else "right")
    return table
