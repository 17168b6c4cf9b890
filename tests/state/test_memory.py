"""The memory backend: the contract, and what its checkpoint does when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import CorruptSnapshot
from penstock.state import memory
from penstock.state.memory import MemoryBackend
from tests.state.backend_contract import BackendContract


class TestMemoryBackend(BackendContract):
    def open(self, path: Path) -> MemoryBackend:
        return MemoryBackend.open(path)

    def restore(self, base: Path, target: Path) -> None:
        memory.restore(base, target)


def test_a_flipped_byte_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    backend = MemoryBackend()
    backend.write([(b"key", b"value")])
    backend.checkpoint(tmp_path / "base")
    file = tmp_path / "base" / "rows"
    file.write_bytes(file.read_bytes().replace(b"value", b"velue"))

    with pytest.raises(CorruptSnapshot) as raised:
        MemoryBackend.open(tmp_path / "base")

    assert str(file) in str(raised.value)
