"""Finds the function and the id in an address that a person or a client wrote: NAMESPACE/NAME/ID.

Both may hold slashes, so only the functions of the application tell where the one ends and the other begins. Undoing an
encoding is left to whoever knows where the text came from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from penstock.errors import InvalidInput
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


def need_address(segments: Sequence[str], typenames: Collection[str], *, what: str) -> Address:
    """The same. Raises InvalidInput when `what`, which people wrote, names no function or no id."""
    address = find_address(segments, typenames)
    if address is None:
        known = ", ".join(sorted(typenames)) or "none"
        raise InvalidInput("PEN0105", f"{'/'.join(segments)} names no function of this application. Known: {known}.")
    if not address.id:
        raise InvalidInput(
            "PEN0203",
            f"The {what} names {address.typename} and no id. An id names one instance: append /ID to the {what}.",
        )
    return address
