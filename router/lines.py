"""Cuts byte streams into lines, and CSV lines into rows, many at a time.

What always holds: every line is given exactly once and in order; the offset behind a record is a place where
reading may start again; no more than one record of the maximal size is held beyond a block. One malformed
record never hides its neighbours: it comes out as a `BadRecord` and the next line is read as usual. Opens no
files and knows no positions: see `penstock.router.ingress`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

BLOCK_BYTES = 32 << 10
"""Read at once. As Python objects rows are some 20 times as large, and should stay in the processor's cache: with
256 KiB reading took 1.7 times as long, with 16 KiB no less."""


class BadRecord(NamedTuple):
    """A record that can't be given as a value: its bytes, perhaps cut, and what is wrong with them."""

    raw: bytes
    reason: str


class Block(NamedTuple):
    """Consecutive whole lines of a stream."""

    start: int
    """Offset of the first byte of the first line."""
    data: bytes
    """The lines, without the line end of the last."""
    end: int
    """Offset behind the last line. More than the length of the data says if an overlong line was cut."""


class Batch(NamedTuple):
    """Records of one block, and how to find each again."""

    records: list[Any]
    starts: Sequence[int]
    """For each record, how many lines of the block come before it."""
    ends: Sequence[int]
    """For each record, how many lines of the block it and those before it take."""
    lines: list[bytes]
    start: int
    end: int

    def offset_after(self, count: int) -> int:
        """The offset behind the first `count` records: where reading continues after them."""
        if count == len(self.records):
            return self.end
        if count == 0:
            return self.start
        lines = self.ends[count - 1]
        return self.start + sum(map(len, self.lines[:lines])) + lines

    def lines_after(self, count: int) -> int:
        """How many lines the first `count` records take; after the last, those blank lines that follow it as
        well.
        """
        if count == len(self.records):
            return len(self.lines)
        return self.ends[count - 1] if count else 0


class LineSource:
    """Reads whole lines from a binary stream that stands at `offset`."""

    def __init__(self, stream: BinaryIO, offset: int, *, line_bytes_max: int) -> None:
        self._stream = stream
        self._offset = offset
        self._line_bytes_max = line_bytes_max
        self._rest = b""
        self.exhausted = False
        """Whether the stream has ended. Data that was put back may still be waiting."""

    def next_block(self) -> Block | None:
        """The next lines, at least one; None at the end of the stream."""
        data = self._rest
        while not self.exhausted:
            more = self._stream.read(BLOCK_BYTES)
            if not more:
                self.exhausted = True
                break
            data += more
            if (cut := data.rfind(b"\n")) >= 0:
                return self._take(data[:cut], data[cut + 1 :], cut + 1)
            if len(data) > self._line_bytes_max:
                return self._skip_line(data)
        if not data:
            return None
        if data.endswith(b"\n"):  # What was put back ends with a line end; what ends a stream need not.
            return self._take(data[:-1], b"", len(data))
        return self._take(data, b"", len(data))

    def put_back(self, data: bytes) -> None:
        """Give `data`, the end of the last block, again: together with what follows it."""
        self._offset -= len(data)
        self._rest = data + self._rest

    def _take(self, data: bytes, rest: bytes, taken: int) -> Block:
        start = self._offset
        self._offset += taken
        self._rest = rest
        return Block(start, data, self._offset)

    def _skip_line(self, data: bytes) -> Block:
        """The overlong line that `data` begins, cut so that it is still recognised as too long."""
        kept = data[: self._line_bytes_max + 1]
        taken = len(data)
        rest = b""
        while more := self._stream.read(BLOCK_BYTES):
            cut = more.find(b"\n")
            if cut >= 0:
                taken += cut + 1
                rest = more[cut + 1 :]
                break
            taken += len(more)
        else:
            self.exhausted = True
        return self._take(kept, rest, taken)


def parse_lines(block: Block, record_bytes_max: int) -> Batch:
    """Every line that is not blank as one record: its bytes."""
    lines = block.data.split(b"\n")
    if max(map(len, lines)) <= record_bytes_max and all(map(bytes.strip, lines)):
        records: list[Any] = lines[:]
        return Batch(records, range(len(lines)), range(1, len(lines) + 1), lines, block.start, block.end)
    kept = [number for number, line in enumerate(lines) if line.strip()]
    records = [
        lines[number] if len(lines[number]) <= record_bytes_max else _too_long(lines[number], record_bytes_max)
        for number in kept
    ]
    return Batch(records, kept, [number + 1 for number in kept], lines, block.start, block.end)


class CsvParser:
    """Turns blocks of CSV into dictionaries of text."""

    def __init__(self, header: Sequence[str], *, delimiter: str, na: frozenset[str], record_bytes_max: int) -> None:
        self._header = tuple(header)
        self._width = len(self._header)
        self._delimiter = delimiter
        self._na = na
        self._record_bytes_max = record_bytes_max
        # The limit of the csv module (128 KiB a field) is one for the whole process, and only ever raised
        # here.
        if csv.field_size_limit() < record_bytes_max:
            csv.field_size_limit(record_bytes_max)

    def parse(self, block: Block, source: LineSource) -> Batch | None:
        """The records of `block`; None if it ends within its first record, which was then put back into
        `source`.
        """
        lines = block.data.split(b"\n")
        text = self._plain_text(block.data)
        if text is None or max(map(len, lines)) > self._record_bytes_max:
            return self._parse_carefully(block, lines, source)
        return self._parse_plain(block, lines, text.split("\n"))

    def _plain_text(self, data: bytes) -> str | None:
        """`data` decoded, if each of its lines is one row whose cells are what stands between the delimiters."""
        if b'"' in data:
            return None
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return None
        if "\r" in text:
            text = text.replace("\r\n", "\n").removesuffix("\r")
        return None if "\r" in text else text

    def _parse_plain(self, block: Block, lines: list[bytes], text: list[str]) -> Batch:
        """Without quotes, splitting finds the same cells as the csv module, in half the time."""
        delimiter = self._delimiter
        rows = [line.split(delimiter) for line in text]
        count = len(rows)
        if set(map(len, rows)) == {self._width} and all(text):
            return Batch(self._values(rows), range(count), range(1, count + 1), lines, block.start, block.end)
        kept = [number for number in range(count) if text[number]]
        records = [self._value_or_bad(rows[number], lines[number]) for number in kept]
        return Batch(records, kept, [number + 1 for number in kept], lines, block.start, block.end)

    def _values(self, rows: list[list[str]]) -> list[Any]:
        # All rows are as wide as the header; `strict` would check that again, for an eighth of the time.
        header = self._header
        na = self._na
        if not na:
            return [dict(zip(header, row)) for row in rows]  # noqa: B905
        free_of_na = na.isdisjoint
        return [
            dict(zip(header, row))  # noqa: B905
            if free_of_na(row)
            else {name: None if cell in na else cell for name, cell in zip(header, row)}  # noqa: B905
            for row in rows
        ]

    def _value_or_bad(self, row: list[str], raw: bytes) -> Any:
        if len(row) != self._width:
            return BadRecord(raw, f"{len(row)} columns where {self._width} are named")
        return self._values([row])[0]

    def _parse_carefully(self, block: Block, lines: list[bytes], source: LineSource) -> Batch | None:
        """Record by record: with quotes a row may take several lines, and any of them may be malformed."""
        text = block.data.decode(errors="surrogateescape").split("\n")
        records: list[Any] = []
        starts: list[int] = []
        ends: list[int] = []
        at = 0
        end = block.end
        for row, looked_at in _rows(text, self._delimiter):
            stop = looked_at
            if isinstance(row, csv.Error):
                left = sum(map(len, lines[at:])) + len(lines) - at
                if looked_at == len(lines) and not source.exhausted and left <= self._record_bytes_max:
                    # Perhaps its closing quote is in the next block.
                    end -= left
                    source.put_back(b"\n".join(lines[at:]) + b"\n")
                    del lines[at:]
                    break
                records.append(self._malformed(lines[at], row))
                stop = at + 1
            elif not row:
                at = stop
                continue
            else:
                records.append(self._checked(row, b"\n".join(lines[at:stop])))
            starts.append(at)
            ends.append(stop)
            at = stop
        return Batch(records, starts, ends, lines, block.start, end) if lines else None

    def _checked(self, row: list[str], raw: bytes) -> Any:
        if len(raw) > self._record_bytes_max:
            return _too_long(raw, self._record_bytes_max)
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            return BadRecord(raw, f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start}")
        return self._value_or_bad(row, raw)

    def _malformed(self, raw: bytes, error: csv.Error) -> BadRecord:
        if len(raw) > self._record_bytes_max:
            return _too_long(raw, self._record_bytes_max)
        return BadRecord(raw, f"its quotes are malformed: {error}")


def _rows(text: list[str], delimiter: str) -> Iterator[tuple[list[str] | csv.Error, int]]:
    """Each row with the number of lines up to its end. An error stands for one line; reading goes on after it.

    The number that comes with an error says how far the csv module looked for the end of the row.
    """
    at = 0
    while at < len(text):
        base = at
        reader = csv.reader(_with_line_ends(text, base), delimiter=delimiter, strict=True)
        while at < len(text):
            try:
                row = next(reader)
            except csv.Error as error:
                yield error, base + reader.line_num
                at += 1
                break
            at = base + reader.line_num
            yield row, at


def _with_line_ends(text: list[str], first: int) -> Iterator[str]:
    for number in range(first, len(text)):
        yield text[number] + "\n"


def read_header(stream: BinaryIO, delimiter: str, *, line_bytes_max: int) -> tuple[list[str], int, int] | None:
    """The names in the first row of a CSV stream, the offset behind it, and its lines; None for an empty one.

    Raises UnicodeDecodeError or csv.Error if it can't be read.
    """
    source = LineSource(stream, stream.tell(), line_bytes_max=line_bytes_max)
    block = source.next_block()
    if block is None:
        return None
    lines = block.data.split(b"\n")
    reader = csv.reader(_decoded(lines), delimiter=delimiter, strict=True)
    names = next(reader)
    count = reader.line_num
    after = block.start + sum(map(len, lines[:count])) + count
    return names, min(after, block.end), count


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for line in lines:
        yield line.decode() + "\n"


def _too_long(raw: bytes, record_bytes_max: int) -> BadRecord:
    return BadRecord(raw[:record_bytes_max], f"longer than record_bytes_max = {record_bytes_max:,} bytes")


Parse = Callable[[Block, LineSource], Batch | None]
"""How a format turns a block into records."""
