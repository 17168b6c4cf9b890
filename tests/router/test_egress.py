"""The sinks that need no more than this process, and the choice of a sink."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from penstock.errors import ConfigurationError, Fenced, Unavailable
from penstock.functions.io import EgressSpec, FileEgress, HttpEgress, MemoryEgress, PostgresEgress, StdoutEgress
from penstock.records import EgressRow
from penstock.router.egress import MemorySink, StdoutSink, instance_of, sink_for
from penstock.router.file_egress import FileSink
from penstock.router.http import HttpSink
from penstock.router.postgres import PostgresSink
from penstock.router.sink import Sink
from tests.router.sink_contract import SinkContract, rows


class TestMemorySink(SinkContract):
    def setup_method(self) -> None:
        self.spec = MemoryEgress()

    async def make_sink(self) -> MemorySink:
        sink = MemorySink(self.spec)
        await sink.open()
        return sink

    async def visible(self) -> Sequence[int]:
        return [msgspec.json.decode(row.value)["n"] for row in self.spec.rows]


def test_each_egress_has_its_sink(tmp_path: Path) -> None:
    sinks: list[tuple[EgressSpec, type]] = [
        (MemoryEgress(), MemorySink),
        (StdoutEgress(), StdoutSink),
        (FileEgress("out"), FileSink),
        (PostgresEgress("postgresql://host/db", "t"), PostgresSink),
        (HttpEgress("http://host/"), HttpSink),
    ]

    for spec, kind in sinks:
        assert type(sink_for(spec, tmp_path, application="shop", egress="shop/orders")) is kind


def test_what_is_no_egress_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        sink_for("out", tmp_path, application="shop", egress="shop/orders")  # type: ignore[arg-type]

    assert str(caught.value) == (
        "PEN0141 Egress shop/orders has 'out', which is no egress. Use FileEgress, PostgresEgress, HttpEgress, "
        "StdoutEgress or MemoryEgress."
    )


def test_without_psycopg_postgresql_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "penstock.router.postgres", None)

    with pytest.raises(ConfigurationError) as caught:
        sink_for(PostgresEgress("postgresql://host/db", "t"), tmp_path, application="shop", egress="shop/orders")

    assert str(caught.value) == (
        "PEN0146 Egress shop/orders writes to PostgreSQL, for which psycopg is missing. Install it: "
        "pip install 'penstock[postgres]'."
    )


def test_a_data_directory_keeps_its_instance_and_a_new_one_has_another(tmp_path: Path) -> None:
    first = instance_of(tmp_path / "a")

    assert instance_of(tmp_path / "a") == first
    assert instance_of(tmp_path / "b") != first


def test_rows_go_to_standard_output_as_they_are() -> None:
    stream = io.BytesIO()

    async def run() -> None:
        sink = StdoutSink(stream)
        await sink.open()
        assert await sink.read_marker(0) == {}
        await sink.commit(0, rows(1, 2), {1: 5})
        await sink.tick()
        await sink.close(final=True)

    asyncio.run(run())
    assert stream.getvalue() == b'{"n":1}\n{"n":2}\n'


def test_a_broken_pipe_keeps_the_rows() -> None:
    class Broken(io.BytesIO):
        def flush(self) -> None:
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(Unavailable) as caught:
        asyncio.run(StdoutSink(Broken()).commit(0, [EgressRow(b"x", 1)], {}))

    assert str(caught.value) == (
        "PEN0528 Standard output takes no more rows: [Errno 32] Broken pipe. Keep its reader running, or write to a "
        "file. The rows are kept and tried again."
    )


def test_tasks_of_several_processes_share_a_directory(tmp_path: Path) -> None:
    """Each process opens the files of a task when it gets it, and the next one goes on where it stopped."""

    def sink() -> Sink:
        spec = FileEgress(str(tmp_path / "out"))
        return sink_for(spec, tmp_path, application="shop", egress="shop/orders", instance="i", contested=True)

    async def scene() -> tuple[dict[int, int], str]:
        one, other = sink(), sink()
        await one.open()
        await other.open()
        for number, mine in enumerate((one, other)):
            assert await mine.read_marker(number) == {}
            await mine.commit(number, [EgressRow(b"%d\n" % number, 1)], {1: 5})
        with pytest.raises(Fenced) as fenced:
            await other.read_marker(0)
        await one.release(0, final=False)
        taken_over = await other.read_marker(0)
        await other.commit(0, [EgressRow(b"2\n", 2)], {1: 6})
        await other.close(final=True)
        await one.close(final=True)
        return taken_over, fenced.value.code

    taken_over, code = asyncio.run(scene())
    assert (taken_over, code) == ({1: 5}, "PEN0525")
    visible = sorted(path.read_bytes() for path in (tmp_path / "out").glob("part-*"))
    assert visible == [b"0\n2\n", b"1\n"]
