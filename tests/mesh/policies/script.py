"""A caller on a virtual clock: it carries a plan out against hosts whose answers are written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType
from typing import NamedTuple

from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.outcomes import Failure, Outcome
from penstock.mesh.policies.plan import Finish, GiveUp, Plan, Request, Try, Wait
from penstock.mesh.policies.settings import FunctionPolicy, PolicySet, Route

FUNCTION = "shop/payment"
OK = Outcome(200)
BROKEN = Outcome(500)
NO_CONNECTION = Outcome(failure=Failure.CONNECT)
TIMED_OUT = Outcome(failure=Failure.TIMEOUT)


class Endpoint(NamedTuple):
    name: str
    version: str = ""
    labels: Mapping[str, str] = MappingProxyType({})
    url: str = "http://127.0.0.1:1"


def endpoints(count: int, version: str = "") -> list[Endpoint]:
    return [Endpoint(f"{version}host-{number}", version) for number in range(count)]


class Answer(NamedTuple):
    """How a host answers: with what, and after how long."""

    outcome: Outcome = OK
    seconds: float = 0.010


class Attempted(NamedTuple):
    """One attempt that was made."""

    at_s: float
    host: str
    timeout_s: float | None
    mirror: str = ""


@dataclass
class Result:
    """What the caller saw."""

    end: Finish | GiveUp
    took_s: float
    attempts: list[Attempted] = field(default_factory=list)

    @property
    def status(self) -> int:
        return self.end.outcome.status if isinstance(self.end, Finish) else self.end.status


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


class Caller:
    """Carries out one call after the other."""

    def __init__(self, policies: Policies, hosts: Sequence[Endpoint]) -> None:
        self.policies = policies
        self.hosts = hosts
        self.now_s = 1000.0

    def call(
        self, answer: Callable[[str, int], Answer], *, id: str = "7", keyed: bool = False, timeout_ms: int | None = None
    ) -> Result:
        """One call. `answer` says what the host of that name does with attempt number so and so."""
        began_s = self.now_s
        plan = self.policies.plan(Request(FUNCTION, id, keyed=keyed, timeout_ms=timeout_ms), self.hosts, self.now_s)
        attempts: list[Attempted] = []
        end = self._carry_out(plan, answer, attempts)
        plan.close(self.now_s)
        return Result(end, self.now_s - began_s, attempts)

    def _carry_out(
        self, plan: Plan, answer: Callable[[str, int], Answer], attempts: list[Attempted]
    ) -> Finish | GiveUp:
        while True:
            step = plan.next(self.now_s)
            match step:
                case Wait(seconds):
                    assert seconds > 0
                    self.now_s += seconds
                case Try():
                    mirror = step.mirror.name if step.mirror else ""
                    attempts.append(Attempted(self.now_s, step.endpoint.name, step.timeout_s, mirror))
                    outcome, seconds = answer(step.endpoint.name, step.attempt)
                    if step.timeout_s is not None and seconds > step.timeout_s:
                        outcome, seconds = TIMED_OUT, step.timeout_s
                    self.now_s += seconds
                    plan.result(self.now_s, outcome)
                case Finish() | GiveUp():
                    return step


def always(outcome: Outcome, seconds: float = 0.010) -> Callable[[str, int], Answer]:
    return lambda host, attempt: Answer(outcome, seconds)
