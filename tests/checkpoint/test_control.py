"""Proves the bytes of decisions: read back as written, and refused when they are anything else."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis.strategies import binary

from penstock.checkpoint.control import (
    Assign,
    AttemptBegun,
    Complete,
    ControlRecord,
    Manifest,
    Part,
    Recap,
    Reserve,
    decode_control,
    encode_control,
)
from penstock.checkpoint.lineage import Lineage
from penstock.errors import ProtocolError

PART = Part(0, "b", 3, 40, 0xC0FFEE, 12, 5, 9, {"ingress-1": [1, "x"], "requests": 4})
MANIFEST = Manifest(1, "shop", 7, Lineage(2, ((1, 4),)), 123, 128, 1, 1, {"shop/cart": {"code": "f"}}, (PART,), 99)
BEGUN = AttemptBegun(Lineage(2, ((1, 4),), (2,)), 4, 2_000, 123, "replay")
WITH_MANIFEST: list[ControlRecord] = [
    Complete(MANIFEST),
    Assign(3, BEGUN, {0: "a#1"}, ("a#1",), (0,), MANIFEST, 7),
    Recap(BEGUN, 2_000, None, (7,), (40, MANIFEST)),
]
RECORDS = [Reserve(1_000), BEGUN, *WITH_MANIFEST]


@pytest.mark.parametrize("record", RECORDS)
def test_a_decision_is_read_as_it_was_written(record: ControlRecord) -> None:
    assert decode_control(encode_control(record)) == record


def test_a_manifest_needs_the_journal_from_its_oldest_delta_on() -> None:
    untouched = Part(1, "", 0, -1, 0, -1, 0, 0)

    assert msgspec.structs.replace(MANIFEST, parts=(PART, untouched)).first == 12
    assert msgspec.structs.replace(MANIFEST, parts=(untouched,)).first == -1


@pytest.mark.parametrize("record", RECORDS)
def test_a_decision_cut_short_is_refused(record: ControlRecord) -> None:
    encoded = encode_control(record)
    for length in range(len(encoded)):
        with pytest.raises(ProtocolError) as refused:
            decode_control(encoded[:length])
        assert refused.value.code == "PEN0505"


@given(binary(max_size=200))
def test_other_bytes_are_refused_or_happen_to_be_a_decision(noise: bytes) -> None:
    with suppress(ProtocolError):
        decode_control(noise)


def test_a_checkpoint_of_a_newer_format_says_what_to_do() -> None:
    newer = encode_control(Complete(msgspec.structs.replace(MANIFEST, format=2)))

    with pytest.raises(ProtocolError) as refused:
        decode_control(newer)

    assert str(refused.value) == (
        "PEN0506 Checkpoint 7 has format 2; this version reads up to 1. It was written by a newer Penstock: "
        "run that one."
    )


@pytest.mark.parametrize("record", WITH_MANIFEST, ids=lambda record: type(record).__name__)
def test_a_newer_checkpoint_is_told_from_a_damaged_one_although_it_can_not_be_read(record: ControlRecord) -> None:
    def newer(item: object) -> object:
        if item == msgspec.msgpack.decode(msgspec.msgpack.encode(MANIFEST)):
            return [2, "shop", 7, "what comes here is something else"]
        return [newer(each) for each in item] if isinstance(item, list | tuple) else item

    data = msgspec.msgpack.encode(newer(msgspec.msgpack.decode(encode_control(record))))

    with pytest.raises(ProtocolError, match="PEN0506 Checkpoint 7 has format 2"):
        decode_control(data)


@pytest.mark.parametrize("record", WITH_MANIFEST, ids=lambda record: type(record).__name__)
def test_a_newer_checkpoint_is_refused_wherever_it_stands(record: ControlRecord) -> None:
    newer = msgspec.structs.replace(MANIFEST, format=2)
    match record:
        case Complete():
            record = Complete(newer)
        case Assign():
            record = msgspec.structs.replace(record, manifest=newer)
        case Recap():
            record = msgspec.structs.replace(record, newest=(3, newer))
        case _:
            pytest.fail("there is no manifest in others")

    with pytest.raises(ProtocolError, match="PEN0506 Checkpoint 7 has format 2"):
        decode_control(encode_control(record))


def test_a_field_added_later_does_not_disturb() -> None:
    tag, high = msgspec.msgpack.decode(encode_control(Reserve(5)))

    assert decode_control(msgspec.msgpack.encode([tag, high, "of a later version"])) == Reserve(5)
