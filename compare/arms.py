"""The arms of the comparison, as data: ways to run the same functions, each as good as its philosophy allows, and
controls that leave out what the others are careful about, to prove that the harm would be seen.

What always holds: an arm differs from its neighbour by what its title says and by nothing else; the functions are the
same file in all of them, and what they are told is told by the environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

from penstock.compare.records import PlannedArm
from penstock.errors import ConfigurationError

DETECTION_S: Final = 5.0
"""After so much silence a process counts as dead, in both modes: the lease of the hosts of a mesh."""


class Arm(NamedTuple):
    """One way to run the shop."""

    name: str
    mode: Literal["stream", "mesh"]
    title: str
    flow: str = "plain"
    bank: str = "keyed"
    environment: Mapping[str, str] = MappingProxyType({})
    policies: str = ""
    """The policy file of a mesh; empty for none."""
    client_keys: bool = True
    """Whether clients give their requests an Idempotency-Key."""
    client_attempts: int = 1_000
    controls: Mapping[str, str] = MappingProxyType({})
    """What the oracle has to count under a fault, or the run proves nothing: a name of its counts by fault."""

    def planned(self) -> PlannedArm:
        settings: dict[str, Any] = {
            "client_keys": self.client_keys,
            "client_attempts": self.client_attempts,
            "environment": dict(self.environment),
        }
        if self.policies:
            settings["policies"] = self.policies
        if self.controls:
            settings["controls"] = dict(self.controls)
        return PlannedArm(self.name, self.mode, self.title, self.flow, self.bank, settings)


NO_RETRIES: Final = """
routes:
  - retries: {attempts: 0}
"""
RETRIES: Final = """
routes:
  - timeout: 10s
    retries: {attempts: 3, per_try_timeout: 3s, retry_on: "5xx,reset,timeout", retry_on_keyed: "5xx,reset,timeout"}
"""
# Two hosts: half of them may be ejected, which is one.
CAREFUL: Final = (
    """
functions:
"""
    + "".join(
        f"""  {function}:
    retry_budget: {{budget_percent: 20, min_retry_concurrency: 10}}
    breaker: {{trip: "consecutiveFailures > 5", timeout: 2s, scope: endpoint}}
    outlier_detection: {{consecutive_5xx: 5, base_ejection_time: 2s, max_ejection_percent: 50}}
    panic_threshold: 0
"""
        for function in ("shop/order", "shop/inventory", "shop/payment", "shop/shipment")
    )
    + RETRIES.lstrip()
)

PATIENT: Final = {"COMPARE_BANK_TRIES": "1000"}
"""Whoever goes on by messages waits for the bank, and holds up nobody but the order: what gives up stays half done."""
HALT: Final = {**PATIENT, "COMPARE_ON_FAILURE": "halt"}
ONCE: Final = {"COMPARE_BANK_TRIES": "1", "COMPARE_ATTEMPTS": "1"}

ARMS: Final[Mapping[str, Arm]] = {
    arm.name: arm
    for arm in (
        Arm("S1", "stream", "stream, stops at a message that raises", bank="transactional", environment=HALT),
        Arm("S2", "stream", "stream, gives up a message that raises", bank="transactional", environment=PATIENT),
        Arm(
            "S2-plain",
            "stream",
            "control: S2, and the bank prepares nothing",
            bank="plain",
            environment=PATIENT,
            controls={"X9": "duplicated"},
        ),
        Arm("S3", "stream", "stream, asks the bank at least once, and that knows keys", environment=PATIENT),
        Arm(
            "M0",
            "mesh",
            "control: mesh without retries",
            environment=ONCE,
            policies=NO_RETRIES,
            client_keys=False,
            client_attempts=1,
        ),
        Arm(
            "M1",
            "mesh",
            "control: mesh with retries, and no key reaches the bank",
            bank="plain",
            policies=RETRIES,
            client_keys=False,
            controls={"X9": "duplicated"},
        ),
        Arm("M2", "mesh", "mesh with keys, budget, breaker and ejection", policies=CAREFUL),
        # Sagas undo what they gave up waiting for: the bank has to remember that, as their participants do.
        Arm(
            "M3",
            "mesh",
            "M2, and an order is a saga that is conducted",
            flow="saga",
            bank="transactional",
            policies=CAREFUL,
        ),
        Arm(
            "M3-nofence",
            "mesh",
            "control: M3 without fences",
            flow="saga",
            environment={"COMPARE_FENCE": "off"},
            policies=CAREFUL,
            controls={"X4": "orphaned"},
        ),
        Arm(
            "M4",
            "mesh",
            "M2, and the parts of an order hand it on by messages",
            flow="choreography",
            bank="transactional",
            environment=PATIENT,
            policies=CAREFUL,
        ),
        Arm(
            "M5",
            "mesh",
            "M2, and the parts of an order work at once",
            flow="parallel",
            bank="transactional",
            policies=CAREFUL,
        ),
        Arm(
            "M6",
            "mesh",
            "M2, and an order tries, then confirms or cancels",
            flow="tcc",
            bank="transactional",
            policies=CAREFUL,
        ),
    )
}
QUICK_ARMS: Final = ("S2", "M1", "M2", "M3")
QUICK_FAULTS: Final = ("X0", "X2", "X5", "X9")
CONTROLS: Final = ("M1", "M3-nofence")


OWN_ARMS: Final[Mapping[str, Arm]] = {
    arm.name: arm
    for arm in (
        Arm("S2", "stream", "stream", flow="own", bank="none"),
        Arm("M2", "mesh", "mesh with keys and retries", flow="own", bank="none", policies=RETRIES),
    )
}
"""Those of an application that is not the shop: what is told to the shop means nothing to it."""


def choose_arms(names: Sequence[str], known: Mapping[str, Arm] = ARMS) -> list[Arm]:
    """Those of these names. Raises ConfigurationError for one that is unknown, and lists them, or is named twice."""
    found: list[Arm] = []
    for name in names:
        if name not in known:
            near = get_close_matches(name.upper(), known, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigurationError("PEN0908", f"There is no arm {name!r}.{hint} There are {', '.join(known)}.")
        if known[name] in found:
            raise ConfigurationError(
                "PEN0908", f"The arm {name} is named twice, and its runs would overwrite one another. Name it once."
            )
        found.append(known[name])
    return found


def na_reason(arm: PlannedArm, steps: Sequence[Mapping[str, Any]], *, kafka: bool, broker: bool) -> str:
    """Why an arm can't express a fault; empty when it can. `kafka`: streams run on it; `broker`: its pid is known."""
    stream = arm.mode == "stream"
    for step in steps:
        match step["what"], step["where"]:
            case ("poison" | "slow", _) | (_, "bank") if arm.bank == "none":
                return "it is about the shop and its bank, and the application is another one"
            case "kill", "function" if stream:
                return (
                    "in a stream functions run in the worker that owns their state, so none can be killed alone: see X2"
                )
            case _, "coordinator" if stream and not kafka:
                return "on one machine the only process leads itself, so no leader can fail alone: see X2"
            case "stop-broker", _ if not stream:
                return "a mesh keeps nothing in Kafka"
            case "stop-broker", _ if not kafka:
                return "no broker takes part: give --kafka and --kafka-pid"
            case "stop-broker", _ if not broker:
                return "the process of the broker is not known: give --kafka-pid"
            case "crash", _ if not stream:
                return "a mesh has no fault points: every one of its transactions is one local commit, see X2"
            case "rescale", _ if stream and not kafka:
                return "on one machine there is one process, and no other can join it"
    return ""
