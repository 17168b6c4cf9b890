"""Whether a request of others reaches an application of the mesh, be it beside a sidecar or behind a gateway.

What always holds: what is not admitted is not begun; how it went is told to the policies however it ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

from penstock.mesh.policies.access import Peer
from penstock.mesh.policies.guard import Refusal
from penstock.mesh.policies.live import Policies


class HasStatus(Protocol):
    @property
    def status(self) -> int: ...


A = TypeVar("A", bound=HasStatus)


class Denied(Exception):
    """The policies let a request not pass, or have it fail on purpose."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


async def admitted(
    policies: Policies,
    function: str,
    operation: str,
    peer: Peer,
    headers: Mapping[str, str],
    carry_out: Callable[[], Awaitable[A]],
) -> A:
    """What `carry_out` answers. Raises Denied, and what that raises."""
    lower = {name.lower(): value for name, value in headers.items()}
    admission = policies.admit(function, operation, peer, time.monotonic(), lower)
    if isinstance(admission, Refusal):
        raise Denied(admission)
    succeeded = False
    try:
        if admission.delay_s:
            await asyncio.sleep(admission.delay_s)
        if admission.abort is not None:
            raise Denied(admission.abort)
        answer = await carry_out()
        succeeded = answer.status < 500
        return answer
    finally:
        admission.finish(time.monotonic(), succeeded=succeeded)
