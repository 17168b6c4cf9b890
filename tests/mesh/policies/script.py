"""Hosts whose answers are written down, and a caller on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import NamedTuple

from penstock.mesh.policies.host import Host
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.outcomes import Failure, Outcome
from penstock.mesh.policies.plan import Request
from penstock.mesh.policies.settings import FunctionPolicy, PolicySet, Route
from penstock.mesh.rehearsal import LATENCY_S, Answer, Played, Rehearsal

FUNCTION = "shop/payment"
OK = Outcome(200)
BROKEN = Outcome(500)
NO_CONNECTION = Outcome(failure=Failure.CONNECT)


class Endpoint(NamedTuple):
    name: str
    version: str = ""
    labels: Mapping[str, str] = MappingProxyType({})
    url: str = "http://127.0.0.1:1"


def endpoints(count: int, version: str = "") -> list[Endpoint]:
    return [Endpoint(f"{version}host-{number}", version) for number in range(count)]


def policies(
    policy: FunctionPolicy | None = None,
    *routes: Route,
    seed: int = 1,
    stateful: bool = False,
    draw: Callable[[], float] | None = None,
) -> Policies:
    """In force for FUNCTION."""
    functions = {} if policy is None else {FUNCTION: policy}
    return Policies(
        PolicySet(functions, routes), stateful=[FUNCTION] if stateful else [], draw=draw or Random(seed).random
    )


class Caller(Rehearsal):
    """Calls FUNCTION, one call after the other. Not at zero, so that nothing is taken for never."""

    def __init__(self, policies: Policies, hosts: Sequence[Host]) -> None:
        super().__init__(PolicySet())
        self.policies = policies
        self.hosts = hosts
        self.now_s = 1000.0

    def ask(
        self, answer: Callable[[str, int], Answer], *, keyed: bool = False, timeout_ms: int | None = None
    ) -> Played:
        return self.play(Request(FUNCTION, "7", keyed=keyed, timeout_ms=timeout_ms), answer)


def always(outcome: Outcome, seconds: float = LATENCY_S) -> Callable[[str, int], Answer]:
    return lambda host, attempt: Answer(outcome, seconds)
