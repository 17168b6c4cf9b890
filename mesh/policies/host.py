"""What policies know of an endpoint of the registry. They choose among those that are ready and serve the function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Host(Protocol):
    @property
    def name(self) -> str:
        """Of one incarnation: a host that is started again has another."""
        ...

    @property
    def url(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def labels(self) -> Mapping[str, str]: ...
