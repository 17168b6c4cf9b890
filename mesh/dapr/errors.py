"""Errors as Dapr tells them: a status and a name that its SDKs know."""

from __future__ import annotations


class DaprError(Exception):
    """An answer other than success. `name` is Dapr's, as in `ERR_STATE_STORE_NOT_FOUND`."""

    def __init__(self, status: int, name: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.name = name
        self.message = message
