"""Errors as Dapr tells them: a status and a name that its SDKs know."""

from __future__ import annotations

import msgspec


class DaprError(Exception):
    """An answer other than success. `name` is Dapr's, as in `ERR_STATE_STORE_NOT_FOUND`."""

    def __init__(self, status: int, name: str, message: str, *, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.name = name
        self.message = message
        self.retry_after_s = retry_after_s
        """0 is not said."""

    @property
    def body(self) -> bytes:
        """As the SDKs read it."""
        return msgspec.json.encode({"errorCode": self.name, "message": self.message})
