"""Reads the files of results, and shows what stands out in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from examples.flights.feed import names
from penstock.engine.worker import Worker

Row = dict[str, Any]


def rows(results: Path, name: str) -> Iterator[Row]:
    """All that was written to the egress `flights/NAME`."""
    for part in sorted(results.glob(f"{name}-*.jsonl")):
        with part.open("rb") as lines:
            yield from map(msgspec.json.decode, lines)


def show_results(results: Path, console: Console) -> None:
    for table in (chains_table(results), airports_table(results), carriers_table(results)):
        console.print(table)


def chains_table(results: Path) -> Table:
    chains: dict[tuple[str, str, str], Row] = {}
    for row in rows(results, "knock-on"):  # One for each link of a chain: the longest is the whole.
        chain = row["tailnum"], row["date"], row["chain"][0]
        chains[chain] = max(row, chains.get(chain, row), key=lambda link: len(link["chain"]))
    table = table_of("Worst knock-on chains", "aircraft", "date", "legs", "knock-on min", "route")
    for row in sorted(chains.values(), key=lambda row: (-row["chain_knock_on"], row["tailnum"], row["date"]))[:8]:
        route = ", ".join(leg.partition(" ")[2] for leg in row["chain"])
        table.add_row(row["tailnum"], row["date"], number(len(row["chain"])), number(row["chain_knock_on"]), route)
    return table


def airports_table(results: Path) -> Table:
    """The days of each airport, added up."""
    airports: defaultdict[str, Row] = defaultdict(lambda: defaultdict(int))
    for day in rows(results, "days"):
        airport = airports[day["id"].partition(" ")[0]]
        airport["worst_delay"] = max(airport["worst_delay"], day.pop("worst_delay"))
        for name, value in day.items():
            if name != "id":
                airport[name] += value
    return totals_table("Worst airports", "airport", airports, names("airports", "faa"))


def carriers_table(results: Path) -> Table:
    carriers = {row["id"]: row for row in rows(results, "carriers")}
    return totals_table("Worst airlines", "airline", carriers, names("airlines", "carrier"))


def totals_table(title: str, what: str, totals: dict[str, Row], names: dict[str, str]) -> Table:
    table = table_of(title, what, "flights", "cancelled", "delay min", "knock-on min", "share", "worst")
    for id, row in sorted(totals.items(), key=lambda each: (-each[1]["knock_on_minutes"], each[0]))[:8]:
        delay, knock_on = row["delay_minutes"], row["knock_on_minutes"]
        counts = (row["flights"], row["cancelled"], delay, knock_on)
        share = f"{knock_on / max(1, delay):.1%}"
        table.add_row(f"{id} {names.get(id, '')}", *map(number, counts), share, number(row["worst_delay"]))
    return table


def show_figures(worker: Worker, took_s: float, console: Console) -> None:
    """How much was done in this run, and what durability cost."""
    (feed,) = worker.ingresses
    tasks = [unit.core.statistics() for unit in worker.units]
    invocations = sum(task.invocations for task in tasks)
    retained = worker.data.history.checkpoints.values()
    checkpoints = [each for each in retained if each.attempt == worker.recovery.attempt]
    table = Table.grid(padding=(0, 2))
    table.add_row("records", f"{feed.records:,} in {took_s:.1f} s, {feed.records / took_s:,.0f} a second")
    table.add_row("invocations", f"{invocations:,}, {invocations / took_s:,.0f} a second")
    table.add_row("dead letters", number(sum(task.dead_letters for task in tasks)))
    table.add_row("delayed messages", number(sum(task.timers_fired for task in tasks)))
    if len(worker.checkpoint_driver.durations_ms) > 1:
        percentiles = quantiles(worker.checkpoint_driver.durations_ms, n=100, method="inclusive")
        megabytes = sum(each.delta_bytes for each in checkpoints) / 1e6
        duration = f"p50 {percentiles[49]:.1f} ms, p99 {percentiles[98]:.1f} ms"
        table.add_row("checkpoints", f"{len(checkpoints):,}, {duration}, {megabytes:.1f} MB in all")
    console.print(table)


def table_of(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(first, no_wrap=True, max_width=18)
    for column in columns:
        text = column in ("date", "route")
        table.add_column(column, justify="left" if text else "right", no_wrap=not text)
    return table


def number(value: int) -> str:
    return f"{value:,}"
