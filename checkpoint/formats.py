"""Refuses what a newer version has stored.

Each kind of stored data carries the number of its format where every version finds it: as the first item of an array.
So what is newer is told from what is damaged, also when nothing else of it can be read. That matters, because damage is
passed over for an older checkpoint, and a newer checkpoint must not be.
"""

from __future__ import annotations

import msgspec

from penstock.errors import Refused


def item_at(data: bytes, *path: int) -> object:
    """What stands there in nested arrays of msgpack; None when nothing does, or the bytes are something else."""
    try:
        found = msgspec.msgpack.decode(data)
        for index in path:
            found = found[index]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return None
    return found


def is_newer(found: object, known: int) -> bool:
    """Whether `found` is the number of a format after the newest that is `known` here."""
    return type(found) is int and found > known


def refuse_newer(found: object, known: int, what: str) -> None:
    """Raise Refused when `what` has a newer format than the one that is `known` here."""
    if is_newer(found, known):
        raise Refused(
            "PEN0408",
            f"{what} has format {found}; this version reads up to {known}. It was written by a newer Penstock: run "
            "that one.",
        )
