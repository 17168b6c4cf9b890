"""Coded errors on their way from one process to another, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from penstock.errors import (
    ConfigurationError,
    CorruptSnapshot,
    InvalidInput,
    PenstockError,
    Refused,
    Unavailable,
)

_KINDS: Final = {kind.__name__: kind for kind in (ConfigurationError, CorruptSnapshot, InvalidInput, Refused)}


def told(error: PenstockError) -> dict[str, str]:
    """What `heard` makes the same error of, for those kinds that say what to do about it."""
    return {"kind": type(error).__name__, "code": error.code, "message": error.message}


def heard(error: Mapping[str, str]) -> PenstockError:
    """The error that was told. All kinds that are not known here may pass."""
    return _KINDS.get(error["kind"], Unavailable)(error["code"], error["message"])
