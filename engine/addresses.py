"""Finds the function and the id in an address that a person or a client wrote: NAMESPACE/NAME/ID.

Both may hold slashes, so only the functions of the application tell where the one ends and the other begins. Undoing an
encoding, and refusing what names nothing, is left to whoever knows where the text came from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from penstock.ids import Address


def find_address(segments: Sequence[str], typenames: Collection[str]) -> Address | None:
    """What `segments` name, which stood between slashes. A slash within one is part of the id, never a separator.

    The typename is the longest of `typenames` that the first segments make up and that leaves an id; the id is all that
    follows. Where none leaves an id it is empty; None when no function is named.
    """
    without_id = None
    for length in range(len(segments), 1, -1):
        typename = "/".join(segments[:length])
        if typename not in typenames or any("/" in segment for segment in segments[:length]):
            continue
        if id := "/".join(segments[length:]):
            return Address(typename, id)
        without_id = without_id or Address(typename, "")
    return without_id
