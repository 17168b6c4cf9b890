"""Names and numbers that identify things, and the hashes every part must agree on.

What always holds: a typename is `namespace/name` with both parts non-empty; a key group never depends on the Python
process (it is Kafka's own murmur2, fixed for life); a cause is a 64-bit number that is the same whenever the same
message is produced again from the same inputs. Knows nothing of routing tables or of bytes at rest.
"""

from __future__ import annotations

from functools import lru_cache
from struct import unpack
from typing import NamedTuple, NewType

from penstock.errors import ConfigurationError

CheckpointId = NewType("CheckpointId", int)
"""Number of a checkpoint: unique, monotone, never reused, also not after a restore."""
Attempt = NewType("Attempt", int)
"""One run between two rollbacks."""
TaskId = NewType("TaskId", int)
KeyGroup = NewType("KeyGroup", int)
Offset = NewType("Offset", int)
"""Position of a record in one partition of a log."""
Cause = NewType("Cause", int)
"""What a message descends from, in 64 bits: equal for equal histories, so that outsiders can drop repeats."""

KEY_GROUPS_MAX = 128
"""Fixed for the life of an application: it bounds the parallelism and orders the state keys (PROTOCOL 1)."""

MASK_64 = (1 << 64) - 1
GOLDEN_64 = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: an odd step that visits every residue, so neighbouring inputs land far apart."""
ODD_64 = 0xD1342543DE82EF95
"""A multiplier with good spectral properties (Steele and Vigna, Computationally easy, spectrally good multipliers)."""


class Address(NamedTuple):
    """One function instance: the typename of its function and the id it has state under."""

    typename: str
    id: str

    def __str__(self) -> str:
        return f"{self.typename}/{self.id}"


def check_typename(typename: str) -> str:
    """Return `typename` if it reads `namespace/name` (split at the last slash, as StateFun does); raise otherwise."""
    namespace, _, name = typename.rpartition("/")
    if not namespace or not name:
        raise ConfigurationError(
            "PEN0101", f"{typename!r} is not a typename. Write it as 'namespace/name', for example 'shop/cart'."
        )
    return typename


def is_utf8(text: object) -> bool:
    """Whether this is text that can be stored: the halves of surrogate pairs, which JSON may hold, can't."""
    if not isinstance(text, str):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit murmur2 (`org.apache.kafka.common.utils.Utils.murmur2`), as an unsigned number."""
    length = len(data)
    h = 0x9747B28C ^ length
    whole = length & ~3
    for word in unpack(f"<{length >> 2}I", data[:whole]):
        k = word * 0x5BD1E995 & 0xFFFFFFFF
        h = h * 0x5BD1E995 & 0xFFFFFFFF ^ (k ^ k >> 24) * 0x5BD1E995 & 0xFFFFFFFF
    if length != whole:
        h = (h ^ int.from_bytes(data[whole:], "little")) * 0x5BD1E995 & 0xFFFFFFFF
    h = (h ^ h >> 13) * 0x5BD1E995 & 0xFFFFFFFF
    return h ^ h >> 15


@lru_cache(maxsize=65_536)
def key_group(id: str) -> KeyGroup:
    """The key group that owns `id`. All functions share it, as in StateFun (PROTOCOL 1)."""
    return KeyGroup((murmur2(id.encode()) & 0x7FFFFFFF) % KEY_GROUPS_MAX)


def output_cause(cause: int, index: int) -> Cause:
    """The cause of output number `index` (from 1) of an invocation that `cause` caused (PROTOCOL 6).

    Each index permutes the 64-bit numbers in its own way, so equal causes need equal histories, or a collision as rare
    as one of random numbers.
    """
    return Cause((cause ^ index * GOLDEN_64) * ODD_64 & MASK_64)


def cause_of(text: str) -> Cause:
    """The cause that stands for a name: an ingress partition, or an Idempotency-Key. FNV-1a in 64 bits, then mixed."""
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK_64
    return output_cause(h, 1)
