"""Deltas as Kafka holds them: chains across what zombies wrote, and records in pieces."""

from __future__ import annotations

import pytest

from penstock.checkpoint.delta import DeltaEncoder, DeltaIdentity
from penstock.engine.cluster.deltas import PIECE, PIECE_BYTES, Deltas, joined, pieces
from penstock.errors import CorruptSnapshot
from penstock.records import Frozen, TaskMeta
from penstock.router.kafka_batches import Record
from penstock.router.kafka_records import Fetched


def delta(checkpoint: int, previous: int, values: dict[str, bytes], *, attempt: int = 1) -> list[bytes]:
    frozen = Frozen(0, checkpoint, TaskMeta(), {"shop/cart": values}, {}, {}, {}, [])
    encoder = DeltaEncoder(frozen, DeltaIdentity("shop", attempt, 1, previous))
    records = []
    while not encoder.done:
        record = encoder.step()
        if record is not None:
            records.append(record)
    return records


def fetched(records: list[Record], first: int = 0) -> list[Fetched]:
    return [
        Fetched(offset, record.key, record.value, list(record.headers), 0)
        for offset, record in enumerate(records, first)
    ]


def plain(records: list[bytes]) -> list[Record]:
    return [record for each in records for record in pieces("deltas", 0, each)]


def test_a_chain_follows_what_each_delta_extends() -> None:
    zombie = delta(7, 0, {"a": b"zombie"}, attempt=9)
    written = plain([*delta(5, -1, {"a": b"1"}), *zombie, *delta(6, 0, {"a": b"2"})])
    deltas = Deltas("here", fetched(written))

    assert deltas.chain(2, 0) == [0, 2]
    assert deltas.delta(2)[1].values == {"shop/cart": {"a": b"2"}}


def test_records_of_others_between_those_of_a_delta_do_no_harm() -> None:
    mine = delta(5, -1, {f"id-{n}": bytes(100_000) for n in range(9)})
    assert len(mine) > 2
    other = delta(6, 3, {"x": b"y"}, attempt=2)
    mixed = [mine[0], *other, *(each for record in mine[1:] for each in (record, *other))]

    header, frozen, _ = Deltas("here", fetched(plain(mixed))).delta(0)

    assert (header.checkpoint, len(frozen.values["shop/cart"])) == (5, 9)


def test_bytes_of_somebody_else_between_records_and_pieces_do_no_harm() -> None:
    mine = delta(5, -1, {"a": bytes(range(256)) * (PIECE_BYTES // 64), "b": bytes(100_000)})
    noise = [
        Record("deltas", 0, b"\xc1"),
        Record("deltas", 0, b"x", headers=[(PIECE, b"of something")]),
        Record("deltas", 0, b"x", headers=[(PIECE, b"\xff/1/x")]),
        Record("deltas", 0, None),
    ]
    written = [each for record in plain(mine) for each in (record, *noise)]

    header, frozen, _ = Deltas("here", fetched(written)).delta(0)

    assert (header.checkpoint, set(frozen.values["shop/cart"])) == (5, {"a", "b"})


def test_a_very_large_value_comes_in_pieces() -> None:
    records = delta(5, -1, {"a": bytes(range(256)) * (PIECE_BYTES // 64)})
    record = max(records, key=len)
    written = plain(records)
    assert len(written) > 3
    assert record is records[0]
    # The second piece was sent again, and another record came in between.
    disturbed = [*written[:2], written[1], *plain(delta(6, 3, {"b": b"1"})), *written[2:]]

    assert joined(fetched(disturbed))[0] == record
    assert Deltas("here", fetched(disturbed)).delta(0)[1].values["shop/cart"]["a"][:3] == b"\x00\x01\x02"


def test_a_first_piece_that_was_sent_again_counts_at_both_places() -> None:
    record = bytes(3 * PIECE_BYTES)
    written = list(pieces("deltas", 0, record))

    assert joined(fetched([written[0], *written], 10)).keys() == {10, 11}


def test_a_delta_that_ends_too_early_is_damaged() -> None:
    records = delta(5, -1, {f"id-{n}": bytes(100_000) for n in range(9)})

    with pytest.raises(CorruptSnapshot, match=r"The delta at offset 0 of here ends after \d+ records"):
        Deltas("here", fetched(plain(records[:-1]))).delta(0)


def test_an_offset_without_a_delta_is_damage() -> None:
    with pytest.raises(CorruptSnapshot, match="here holds no delta at offset 3"):
        Deltas("here", ()).chain(3, 0)
