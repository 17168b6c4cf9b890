"""What people ask of a task travels as bytes under a name."""

from __future__ import annotations

import pytest

from penstock.engine.looks import LettersOf, StateOf
from penstock.engine.operations import (
    BuryRows,
    Drop,
    Look,
    Operation,
    Redrive,
    SetState,
    decode_operation,
    encode_operation,
)
from penstock.errors import ProtocolError
from penstock.records import EgressRow


@pytest.mark.parametrize(
    "operation",
    [
        SetState(b"x"),
        SetState(b"", b"y"),
        Look(StateOf("t/count", "a")),
        Look(LettersOf(None, "PEN0210", 0, 100)),
        Redrive([1, 2]),
        Drop([]),
        BuryRows("t/out", [(EgressRow(b"row", 2**64 - 1), "why")]),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_an_operation_comes_back_as_it_was(operation: Operation) -> None:
    assert decode_operation(*encode_operation(operation)) == operation


@pytest.mark.parametrize(("name", "payload"), [("dead.burn", b"\x90"), ("dead.drop", b"\x01"), ("state.set", b"")])
def test_what_is_no_operation_is_refused(name: str, payload: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_operation(name, payload)

    assert str(caught.value).startswith(f"PEN0504 A request asks for the unknown operation {name!r}: ")
