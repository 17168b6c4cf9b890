"""Plays calls under a set of policies: against hosts whose answers are written down, on a clock that only calls move.

    mesh = Rehearsal(text_of_a_policy_file, hosts=3)
    print(mesh.call("shop/payment", "7", ["connect-failure", 200]))

What always holds: the same policies decide as in a mesh, only the hosts and the time are not real; the same rehearsal
gives the same results, because chance is seeded. For trying out a policy file, and for tests of one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, TypeAlias

from penstock.errors import ConfigurationError
from penstock.mesh.policies.access import Peer
from penstock.mesh.policies.guard import Refusal
from penstock.mesh.policies.host import Host
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.outcomes import Failure, Outcome
from penstock.mesh.policies.plan import Finish, GiveUp, Plan, Request, Try, Wait
from penstock.mesh.policies.settings import PolicySet
from penstock.mesh.registry import Endpoint

LATENCY_S = 0.010
"""Of an answer about which nothing else is said."""

Said: TypeAlias = int | str | tuple[int | str, float]
"""What a host answers: a status, or a failure such as "connect-failure"; with the seconds it takes, or without."""


class Answer(NamedTuple):
    outcome: Outcome
    seconds: float = LATENCY_S


class Attempted(NamedTuple):
    """One attempt that was made."""

    at_s: float
    host: str
    timeout_s: float | None
    outcome: Outcome
    mirror: str
    """The host that saw a copy; empty for none."""


@dataclass(frozen=True, slots=True)
class Played:
    """What a caller has seen of one call, and what went on behind it."""

    end: Finish | GiveUp
    took_s: float
    attempts: tuple[Attempted, ...]

    @property
    def status(self) -> int:
        return self.end.outcome.status if isinstance(self.end, Finish) else self.end.status

    def __str__(self) -> str:
        """Such as `200 after 23 ms: host-1 connect-failure, host-0 200`."""
        code = f" {self.end.code}" if isinstance(self.end, GiveUp) else ""
        tried = ", ".join(f"{attempt.host} {_shown(attempt.outcome)}" for attempt in self.attempts)
        return f"{self.status}{code} after {self.took_s * 1000:.0f} ms: {tried or 'nothing was tried'}"


class Arrived(NamedTuple):
    """What a host does with a request at its door."""

    status: int
    """200 when the request is begun."""
    code: str = ""
    delay_s: float = 0.0
    retry_after_s: int = 0

    def __str__(self) -> str:
        """Such as `429 PEN0847, retry after 15 s`."""
        told = " ".join(str(part) for part in (self.status, self.code) if part)
        delayed = f", after {self.delay_s * 1000:.0f} ms" if self.delay_s else ""
        return told + delayed + (f", retry after {self.retry_after_s} s" if self.retry_after_s else "")


class Rehearsal:
    """See the module. `policies` is the text of a policy file; `hosts` is how many there are, or their versions by
    name; `stateful` names the functions whose ids have an owner."""

    def __init__(
        self,
        policies: str | PolicySet,
        *,
        hosts: int | Mapping[str, str] = 3,
        stateful: Collection[str] = (),
        seed: int = 1,
    ) -> None:
        if isinstance(policies, str):
            from penstock.mesh.policy_file import read_policies

            policies = read_policies(policies)
        versions = {f"host-{number}": "" for number in range(hosts)} if isinstance(hosts, int) else hosts
        self.policies = Policies(policies, stateful=stateful, draw=Random(seed).random)
        self.hosts: Sequence[Host] = [Endpoint(name, "", version) for name, version in versions.items()]
        self.now_s = 0.0

    def call(
        self,
        function: str,
        id: str = "",
        answers: Sequence[Said] | Mapping[str, Said] = (200,),
        *,
        keyed: bool = False,
        headers: Mapping[str, str] | None = None,
        caller: str = "",
        timeout_ms: int | None = None,
    ) -> Played:
        """One call. `answers` are those to its attempts, the last one over and over; or those of each host, which
        answers 200 when it is not among them."""

        def answer(host: str, attempt: int) -> Answer:
            if isinstance(answers, Mapping):
                return _answer(answers.get(host, 200))
            return _answer(answers[min(attempt, len(answers)) - 1])

        return self.play(Request(function, id, headers or {}, caller, keyed, timeout_ms), answer)

    def play(self, request: Request, answer: Callable[[str, int], Answer]) -> Played:
        """One call. `answer` says what the host of that name answers to attempt number so and so."""
        began_s, attempts = self.now_s, list[Attempted]()
        plan = self.policies.plan(request, self.hosts, self.now_s)
        end = self._carry_out(plan, answer, attempts)
        plan.close(self.now_s)
        return Played(end, self.now_s - began_s, tuple(attempts))

    def arrive(
        self,
        function: str,
        operation: str = "",
        *,
        caller: str = "",
        identity: str = "",
        headers: Mapping[str, str] | None = None,
        status: int = 200,
    ) -> Arrived:
        """One request at the door of a host, which answers it with `status` if it begins with it."""
        admission = self.policies.admit(function, operation, Peer(caller, identity), self.now_s, headers or {})
        if isinstance(admission, Refusal):
            return Arrived(admission.status, admission.code, retry_after_s=admission.retry_after_s)
        self.now_s += admission.delay_s
        abort = admission.abort
        admission.finish(self.now_s, succeeded=(abort.status if abort is not None else status) < 500)
        if abort is not None:
            return Arrived(abort.status, abort.code, admission.delay_s)
        return Arrived(status, delay_s=admission.delay_s)

    def pass_time(self, seconds: float) -> None:
        """Nothing happens for so long."""
        self.now_s += seconds

    def _carry_out(
        self, plan: Plan, answer: Callable[[str, int], Answer], attempts: list[Attempted]
    ) -> Finish | GiveUp:
        while True:
            step = plan.next(self.now_s)
            match step:
                case Wait(seconds):
                    self.now_s += seconds
                case Try(endpoint, timeout_s, attempt, mirror):
                    began_s = self.now_s
                    outcome, seconds = answer(endpoint.name, attempt)
                    if timeout_s is not None and seconds > timeout_s:
                        outcome, seconds = Outcome(failure=Failure.TIMEOUT), timeout_s
                    self.now_s += seconds
                    mirrored = mirror.name if mirror is not None else ""
                    attempts.append(Attempted(began_s, endpoint.name, timeout_s, outcome, mirrored))
                    plan.result(self.now_s, outcome)
                case Finish() | GiveUp():
                    return step


def _answer(said: Said) -> Answer:
    what, seconds = said if isinstance(said, tuple) else (said, LATENCY_S)
    if isinstance(what, int):
        return Answer(Outcome(what), seconds)
    try:
        return Answer(Outcome(failure=Failure(what)), seconds)
    except ValueError:
        known = ", ".join(failure.value for failure in Failure)
        raise ConfigurationError("PEN0851", f"{what!r} is no failure of a host. There are {known}.") from None


def _shown(outcome: Outcome) -> str:
    return str(outcome.status) if outcome.failure is None else outcome.failure.value
