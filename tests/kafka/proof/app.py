"""The application of the proof: Kafka in, messages between tasks, delays, calls, Kafka out.

    NAME-transfers -> ledger/account ...  -> NAME-bookings     money that moves in four ways (tests.kill.ledger)
    NAME-walks     -> proof/walker ...    -> NAME-steps        a tree of commands, over many addresses, now and later
    NAME-readings  -> proof/sequencer     -> NAME-sequenced    numbers of one key, in the order they came
                      -> proof/follower   -> NAME-followed     the same, one hop further
    calls          -> proof/registry      -> NAME-registered   names, each with its place in the order of registration

What always holds: every row says what `tests.kafka.proof.checker` needs to find out whether it is the only one, whether
one is missing before it, and in which order they came. NAME is in the environment: all processes of a run share it.
"""

from __future__ import annotations

import os

from penstock import Context, KafkaEgress, KafkaIngress, Message, State
from tests.kill import ledger

app = ledger.app

NAME = os.environ.get("PROOF_NAME", "proof")


class Step(Message):
    """A command, and all commands that follow from it."""

    walk: int
    step: int
    node: str
    delay_ms: int
    following: list[Step]


class Visits(State):
    count: int = 0


@app.function("proof/walker")
def walker(ctx: Context[Visits], step: Step) -> None:
    ctx.state.count += 1
    ctx.emit("proof/steps", {"walk": step.walk, "step": step.step, "node": ctx.id, "visit": ctx.state.count})
    for following in step.following:
        if following.delay_ms:
            ctx.send_after(following.delay_ms / 1000, walker, following.node, following)
        else:
            ctx.send(walker, following.node, following)


class Reading(Message):
    key: str
    number: int


class Read(State):
    count: int = 0


@app.function("proof/sequencer")
def sequencer(ctx: Context[Read], reading: Reading) -> None:
    ctx.state.count += 1
    ctx.emit("proof/sequenced", {"key": ctx.id, "number": reading.number, "count": ctx.state.count})
    ctx.send(follower, f"{ctx.id}'s follower", reading)


@app.function("proof/follower")
def follower(ctx: Context[Read], reading: Reading) -> None:
    ctx.state.count += 1
    ctx.emit("proof/followed", {"key": reading.key, "number": reading.number, "count": ctx.state.count})


class Registered(State):
    count: int = 0


class Register(Message):
    request: str


@app.function("proof/registry")
def registry(ctx: Context[Registered], message: Register) -> int:
    ctx.state.count += 1
    ctx.emit("proof/registered", {"registry": ctx.id, "request": message.request, "place": ctx.state.count})
    return ctx.state.count


app.ingress(KafkaIngress(f"{NAME}-transfers", type=ledger.Transfer), to=ledger.account, name="transfers")
app.ingress(KafkaIngress(f"{NAME}-walks", type=Step), to=walker, name="walks")
app.ingress(KafkaIngress(f"{NAME}-readings", type=Reading), to=sequencer, name="readings")
app.egress("ledger/bookings", KafkaEgress(f"{NAME}-bookings", key="account"))
app.egress("proof/steps", KafkaEgress(f"{NAME}-steps", key="node"))
app.egress("proof/sequenced", KafkaEgress(f"{NAME}-sequenced", key="key"))
app.egress("proof/followed", KafkaEgress(f"{NAME}-followed", key="key"))
app.egress("proof/registered", KafkaEgress(f"{NAME}-registered", key="registry"))
