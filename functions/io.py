"""Where an application reads from and writes to, as plain values such as `FileIngress("flights.csv")`.

A declaration is checked when it is made and then never changes; it opens nothing. What it holds is read by the
adapters in `penstock.router`. The one thing it *does* is turn an emitted value into the bytes of a row: that happens
inside `ctx.emit`, so a value that can't be written fails the handler that emitted it, not a checkpoint later.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import msgspec

from penstock.errors import ConfigurationError, InvalidInput
from penstock.functions.plain import to_json, to_msgpack, to_row
from penstock.records import EgressRow

FileFormat = Literal["csv", "jsonl"]
GeneratorFormat = Literal["msgpack", "json"]
Delivery = Literal["exactly-once", "eager", "at-least-once"]
"""When a row becomes visible and how often.

exactly-once: after its checkpoint is complete, together with a marker that says so. at-least-once: after its
checkpoint is complete; again when the outcome of an attempt is unknown. eager: at once, before the
checkpoint, so a row may be repeated, or contradicted, after a restore.
"""

_SUFFIXES: Mapping[str, FileFormat] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_COMPRESSIONS = (".gz", ".zip")
_DELIVERIES = ("exactly-once", "eager", "at-least-once")
_NEEDS_A_MARKER = "its rows and the marker that prevents repeats can't become visible in one step"
MEMBER_SEPARATOR = "::"
"""Between an archive and the member of it to read: `data.zip::flights.csv`."""


class IngressSpec(Protocol):
    """What every ingress declaration has."""

    @property
    def type(self) -> object: ...


class EgressSpec(Protocol):
    """What every egress declaration has."""

    @property
    def delivery(self) -> Delivery: ...

    def encode(self, value: Any) -> bytes:
        """The bytes of one row. Raises InvalidInput for a value this egress can't write."""
        ...


# Ingresses.


@dataclass(frozen=True, slots=True)
class FileIngress:
    """Records of one file, or of the files a pattern matches in the order of their names: a bounded input.

    `path` is a file, a glob pattern, or `archive.zip::member`. Format and compression follow from the
    suffixes: `flights.csv`, `events.jsonl.gz`, `flights.csv.zip`. CSV records are dictionaries of text,
    `None` where a cell has no value; with `type` they are converted to it. The first line names the
    columns unless `columns` does. Lines may be appended to a plain file between two runs; a file that shrank
    or was replaced is refused.
    """

    path: str
    format: FileFormat | None = None
    type: object = None
    columns: tuple[str, ...] | None = None
    delimiter: str = ","
    na: frozenset[str] | None = None
    """Cells that mean "no value". Left out: an empty cell and NA, in a record with a `type` only where it may be
    None."""
    rate: float | None = None
    """Records per second at most; None reads as fast as they are taken."""
    record_bytes_max: int = 1 << 20
    """A longer record becomes a dead letter. It bounds the memory that a missing line end or quote can cost."""

    def __post_init__(self) -> None:
        _check_text(self.path, "FileIngress", "path", "the name of a file")
        chosen = self.format or format_of(self.path)
        _check_choice(
            chosen,
            ("csv", "jsonl"),
            f"The format of FileIngress({self.path!r})",
            'Give format="csv" or format="jsonl"',
        )
        object.__setattr__(self, "format", chosen)
        if self.columns is not None:
            object.__setattr__(self, "columns", _check_columns(self.columns, f"FileIngress({self.path!r})"))
        if chosen == "jsonl" and self.columns is not None:
            raise ConfigurationError(
                "PEN0143",
                f"FileIngress({self.path!r}) has columns, but JSON lines name their own fields. Remove columns.",
            )
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise ConfigurationError(
                "PEN0143",
                f"FileIngress({self.path!r}) has delimiter={self.delimiter!r}. Give one character that is "
                'neither a quote nor a line end, such as ";".',
            )
        if self.na is not None:
            object.__setattr__(self, "na", frozenset(self.na))
        if self.rate is not None:
            _check_positive(self.rate, f"FileIngress({self.path!r})", "rate")
        _check_positive(self.record_bytes_max, f"FileIngress({self.path!r})", "record_bytes_max")


@dataclass(frozen=True, slots=True)
class GeneratorIngress:
    """Records of a Python generator that can start anywhere: `factory(n)` yields record n and what follows.

    The factory is called again after a restart with the number of the first record that is not yet taken, and
    must then yield the same records as before. It returns an iterator or an asynchronous iterator. With
    `format` None a record is a value (of `type`, if given); with "json" it is the bytes of one; with
    "msgpack" it is a pair of an id and the encoded message, which is passed on untouched: the fastest way in.
    """

    factory: Callable[[int], Iterator[Any] | AsyncIterator[Any]]
    type: object = None
    format: GeneratorFormat | None = None

    def __post_init__(self) -> None:
        if not callable(self.factory):
            raise ConfigurationError(
                "PEN0141",
                f"GeneratorIngress(factory={self.factory!r}) can't be called. Give a function of one "
                "argument, the number of the record to start at.",
            )
        if self.format is not None:
            _check_choice(
                self.format,
                ("msgpack", "json"),
                "The format of GeneratorIngress",
                'Give "msgpack", "json" or leave it out',
            )


@dataclass(frozen=True, slots=True, eq=False)
class MemoryIngress:
    """Records fed by hand, for tests: `feed(...)`, then `finish()` when no more will come.

    All are kept, so that a restored application reads them again from its position. Feed it from the thread
    the application runs in.
    """

    type: object = None
    records: list[Any] = field(default_factory=list, init=False)
    listeners: list[Callable[[], None]] = field(default_factory=list, init=False, repr=False)
    """Called after each change: how a waiting reader learns that there is more."""
    _finished: list[bool] = field(default_factory=list, init=False, repr=False)

    def feed(self, *records: Any) -> None:
        """Append records. Raises ConfigurationError after `finish`."""
        if self._finished:
            raise ConfigurationError(
                "PEN0141",
                "MemoryIngress.feed() after finish(): its end was announced. Feed first, then finish.",
            )
        self.records.extend(records)
        self._notify()

    def finish(self) -> None:
        """Say that no more records will come."""
        self._finished.append(True)
        self._notify()

    @property
    def finished(self) -> bool:
        """Whether `finish` was called."""
        return bool(self._finished)

    def _notify(self) -> None:
        for listener in list(self.listeners):
            listener()


def format_of(path: str) -> FileFormat | None:
    """The format that the suffix of `path` names, looking through compression; None when it names none."""
    name = path.rpartition(MEMBER_SEPARATOR)[2].lower()
    for compression in _COMPRESSIONS:
        name = name.removesuffix(compression)
    return next((format_ for suffix, format_ in _SUFFIXES.items() if name.endswith(suffix)), None)


# Egresses.


@dataclass(frozen=True, slots=True)
class FileEgress:
    """Rows appended to files in `directory`, as JSON lines or CSV.

    Rows are committed to a hidden part; a part gets its visible name when it is `part_bytes_max` large or
    `part_seconds_max` old, and at the end of the input or of the run. Names sort by time and task and are
    never used twice. A CSV egress needs `columns`, which every part begins with.
    """

    directory: str
    format: FileFormat = "jsonl"
    columns: tuple[str, ...] | None = None
    part_bytes_max: int = 128 << 20
    part_seconds_max: float = 60.0
    prefix: str = "part"
    delivery: Delivery = "exactly-once"

    def __post_init__(self) -> None:
        where = f"FileEgress({self.directory!r})"
        _check_text(self.directory, "FileEgress", "directory", "a directory to write to")
        _check_choice(self.format, ("csv", "jsonl"), f"The format of {where}", 'Give format="csv" or format="jsonl"')
        _check_delivery(self.delivery, where)
        if self.columns is not None:
            object.__setattr__(self, "columns", _check_columns(self.columns, where))
        if (self.format == "csv") != (self.columns is not None):
            remedy = "Name them: columns=(...)" if self.format == "csv" else "Remove columns, or write CSV"
            raise ConfigurationError(
                "PEN0143",
                f"{where} writes {self.format} with columns={self.columns!r}: CSV needs them, JSON has none. {remedy}.",
            )
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.prefix):
            raise ConfigurationError(
                "PEN0141",
                f"{where} has prefix={self.prefix!r}, which begins the name of each part. Use letters, "
                "digits, '_', '.', '-'.",
            )
        _check_positive(self.part_bytes_max, where, "part_bytes_max")
        _check_positive(self.part_seconds_max, where, "part_seconds_max")

    def encode(self, value: Any) -> bytes:
        """One line. JSON has no NaN or infinity: they are written as null."""
        if self.columns is None:
            return to_json(value, "a file of JSON lines") + b"\n"
        return _csv_line(_cells(value, self.columns))

    @property
    def part_header(self) -> bytes:
        """What every part begins with: the names of the CSV columns."""
        return b"" if self.columns is None else _csv_line(self.columns)


@dataclass(frozen=True, slots=True)
class PostgresEgress:
    """Rows inserted into a PostgreSQL table; rows and marker in one database transaction.

    A row is a mapping, struct or dataclass; its fields name the columns, or `columns` says which are written.
    PostgreSQL converts the values itself, as from JSON. `on_conflict` is what follows ON CONFLICT, for
    instance `"(airport) DO UPDATE SET delay = excluded.delay"`. The marker is kept in the table
    `penstock_markers` of the same database. Needs the extra: `pip install 'penstock[postgres]'`.
    """

    dsn: str = field(repr=False)
    """A connection string, `postgresql://user@host/database`. Never shown: it may hold a password."""
    table: str
    columns: tuple[str, ...] | None = None
    on_conflict: str | None = None
    delivery: Delivery = "exactly-once"

    def __post_init__(self) -> None:
        _check_text(self.dsn, "PostgresEgress", "dsn", "a connection string")
        _check_text(self.table, "PostgresEgress", "table", "the name of a table")
        _check_delivery(self.delivery, f"PostgresEgress({self.table!r})")
        if self.columns is not None:
            object.__setattr__(self, "columns", _check_columns(self.columns, f"PostgresEgress({self.table!r})"))

    def encode(self, value: Any) -> bytes:
        """One JSON object whose members are the columns."""
        row = to_row(value, f"table {self.table}", self.columns, keep=(bytes, bytearray, memoryview))
        for name, cell in row.items():
            if isinstance(cell, bytes | bytearray | memoryview):
                row[name] = "\\x" + bytes(cell).hex()  # How PostgreSQL reads bytea from text.
        if self.columns is not None:
            _refuse_unknown(row, self.columns, f"table {self.table}")
            row = {name: row.get(name) for name in self.columns}
        if not row:
            raise InvalidInput(
                "PEN0206", f"A row without columns can't be written to table {self.table}. Give it fields."
            )
        data = to_json(row, f"table {self.table}")
        if _NUL_IN_JSON.search(data):
            raise InvalidInput(
                "PEN0206",
                f"Text with a NUL character can't be stored in table {self.table}: PostgreSQL has none. Remove it.",
            )
        return data


_NUL_IN_JSON = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""An escaped NUL: an even number of backslashes before it, or they would escape its own."""


@dataclass(frozen=True, slots=True)
class HttpEgress:
    """Each row is the JSON body of one request: at least once, in order, with an `Idempotency-Key`.

    Answers 2xx accept a row; 408, 429, 5xx and silence are tried again until they pass; any other answer
    makes the row a dead letter.
    """

    url: str
    method: str = "POST"
    timeout_s: float = 10.0
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    """Sent with each request. Never shown: they may hold a token."""
    delivery: Delivery = "at-least-once"

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(
                "PEN0141",
                f"HttpEgress({self.url!r}) is no address of a server. Write http://host/path or https://host/path.",
            )
        _check_choice(
            self.method,
            ("POST", "PUT", "PATCH"),
            f"The method of HttpEgress({self.url!r})",
            "Use one that carries a body",
        )
        _check_positive(self.timeout_s, f"HttpEgress({self.url!r})", "timeout_s")
        _check_delivery(self.delivery, f"HttpEgress({self.url!r})", why_not_exactly_once=_NEEDS_A_MARKER)

    def encode(self, value: Any) -> bytes:
        """One JSON body. `bytes` are sent as they are."""
        return bytes(value) if isinstance(value, bytes) else to_json(value, self.url)


@dataclass(frozen=True, slots=True)
class StdoutEgress:
    """Each row is one JSON line on standard output: at least once."""

    delivery: Delivery = "at-least-once"

    def __post_init__(self) -> None:
        _check_delivery(self.delivery, "StdoutEgress", why_not_exactly_once=_NEEDS_A_MARKER)

    def encode(self, value: Any) -> bytes:
        """One line of JSON."""
        return to_json(value, "standard output") + b"\n"


@dataclass(frozen=True, slots=True, eq=False)
class MemoryEgress:
    """Rows kept in a list, for tests: `values()` shows them decoded, as `type` if one is given.

    `markers` survive with the object, as a database would: a restored application does not repeat its rows.
    """

    type: Any = Any
    delivery: Delivery = "exactly-once"
    rows: list[EgressRow] = field(default_factory=list, init=False)
    markers: dict[int, dict[int, int]] = field(default_factory=dict, init=False, repr=False)
    """For each task, its marker: attempt to highest committed checkpoint."""

    def __post_init__(self) -> None:
        _check_delivery(self.delivery, "MemoryEgress")

    def encode(self, value: Any) -> bytes:
        """The value in msgpack, which keeps bytes and times as they are."""
        return to_msgpack(value, "memory")

    def values(self) -> list[Any]:
        """What was emitted, in the order of the commits."""
        return [msgspec.msgpack.decode(row.value, type=self.type) for row in self.rows]


# Encoding.


def _cells(value: Any, columns: Sequence[str]) -> list[str]:
    row = to_row(value, "a CSV file", columns)
    _refuse_unknown(row, columns, "a CSV file")
    return [_cell(row.get(name)) for name in columns]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return to_json(value, "a CSV file").decode()


def _refuse_unknown(row: Mapping[str, Any], columns: Sequence[str], destination: str) -> None:
    if unknown := row.keys() - set(columns):
        names = ", ".join(sorted(unknown))
        raise InvalidInput(
            "PEN0206",
            f"Row for {destination} has fields that are no columns of it: {names}. Columns: "
            f"{', '.join(columns)}. Add them to columns, or leave them out of the row.",
        )


def _csv_line(cells: Iterable[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()


# Checks.


def _check_text(value: object, owner: str, name: str, what: str) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigurationError("PEN0141", f"{owner}({name}={value!r}) needs {what}. Give it as text.")


def _check_positive(value: float, owner: str, name: str) -> None:
    if not value > 0:
        raise ConfigurationError("PEN0141", f"{owner} has {name}={value!r}. Give a number above 0.")


def _check_choice(value: object, choices: Sequence[str], what: str, remedy: str) -> None:
    if value not in choices:
        raise ConfigurationError("PEN0140", f"{what} is {value!r}, not one of {', '.join(choices)}. {remedy}.")


def _check_columns(columns: Iterable[str], owner: str) -> tuple[str, ...]:
    names = tuple(columns)
    if isinstance(columns, str) or not names or not all(names) or len(set(names)) < len(names):
        raise ConfigurationError(
            "PEN0143", f"{owner} has columns={columns!r}. Give a tuple of names, none empty and none twice."
        )
    return names


def _check_delivery(delivery: str, owner: str, *, why_not_exactly_once: str = "") -> None:
    _check_choice(delivery, _DELIVERIES, f"The delivery of {owner}", 'Leave it out, or use "at-least-once"')
    if why_not_exactly_once and delivery == "exactly-once":
        raise ConfigurationError(
            "PEN0142",
            f'{owner} can\'t deliver exactly once: {why_not_exactly_once}. Use delivery="at-least-once"; '
            "or write to files or PostgreSQL, which can.",
        )
