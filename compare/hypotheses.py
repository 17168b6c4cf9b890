"""The claims that a comparison is about, each with what would refute it: both were fixed before anything was measured.

What always holds: every claim is in the table, also those of which no run can tell anything, with what that would need.
How each of the others is judged is in `penstock.compare.judging`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from penstock.compare.judging import (
    Judgement,
    Verdict,
    a3,
    b4,
    d1,
    d2,
    d3,
    d4,
    d5,
    d6,
    d8,
    e1,
    e3,
    f1,
    f2,
    f3,
    f4,
    f5,
    f6,
    f7,
    f8,
    g1,
    g2,
    g4,
    silent,
)
from penstock.compare.summary import Summary


class Claim(NamedTuple):
    name: str
    text: str
    falsifier: str
    judge: Callable[[Summary], Judgement] | None
    """None if no run of this kind can speak to it."""
    needs: str = ""
    """What a comparison that speaks to it would have to measure."""


class Finding(msgspec.Struct, frozen=True):
    """One line of the table of hypotheses."""

    name: str
    claim: str
    falsifier: str
    verdict: Verdict
    figure: str


def findings_of(summary: Summary) -> list[Finding]:
    """Every claim, in their order."""
    return [_finding(claim, summary) for claim in CLAIMS]


def _finding(claim: Claim, summary: Summary) -> Finding:
    judged = claim.judge(summary) if claim.judge else silent(claim.needs)
    return Finding(claim.name, claim.text, claim.falsifier, judged.verdict, judged.figure)


CLAIMS: Final = (
    Claim(
        "A1",
        "A stream starts slowly for the first time and replaces a function quickly; a mesh the other way round.",
        "Time to the first answer is not longer in the stream.",
        None,
        "starts from cold, which are not part of a run",
    ),
    Claim(
        "A2",
        "A function is light to roll out in a stream, a service heavy in a mesh.",
        "The bytes and seconds of a roll-out do not differ.",
        None,
        "roll-outs of one function; both modes ship one file here",
    ),
    Claim(
        "A3",
        "Without its coordinator a stream stops answering; a mesh goes on.",
        "The stream stays available to 99 %, or the mesh does not.",
        a3,
    ),
    Claim(
        "A4",
        "A stream is one thing to run, a mesh is several.",
        "Both need the same processes, files and ports.",
        None,
        "a count of what a demonstration needs, which is no measurement of a run",
    ),
    Claim(
        "A5",
        "A noisy function slows its neighbours unless each has a limit of its own.",
        "The p99 of the neighbour stays the same without limits.",
        None,
        "a run in which one function alone is saturated",
    ),
    Claim(
        "B1",
        "A stream has no access control, a mesh has.",
        "A denied message is refused in both.",
        None,
        "a policy that denies a caller",
    ),
    Claim(
        "B2",
        "Skewed keys make one partition of a stream hot; a mesh spreads them.",
        "p99 rises with the skew alike in both.",
        None,
        "runs with several skews",
    ),
    Claim(
        "B3",
        "A mesh can try a new version on a share of the traffic, a stream can't.",
        "Both route by version.",
        None,
        "two versions at once",
    ),
    Claim(
        "B4",
        "An error spoils a stream's whole job, but one request of a mesh; dead letters close the gap.",
        "S1 keeps half of its availability under poison, or S2 or the mesh lose more than 1 %.",
        b4,
    ),
    Claim(
        "B5",
        "A mesh steers around a slow replica, a stream is stuck with it.",
        "p99 is the same in both.",
        None,
        "one replica that is slowed",
    ),
    Claim(
        "C1",
        "State beside the function is faster than a database per service.",
        "Operations on state take as long.",
        None,
        "the times of single operations on state",
    ),
    Claim(
        "C2",
        "A stream re-partitions state when it is rescaled; a mesh moves owners.",
        "Neither stops answering.",
        None,
        "runs in which processes are added",
    ),
    Claim(
        "C3",
        "A checkpoint of a stream is consistent over all functions; reading a live mesh is not.",
        "A checkpoint violates conservation, or no live read does.",
        None,
        "reads of all state while orders are under way",
    ),
    Claim(
        "D1",
        "A commit in two phases needs a participant that takes part: a plain bank is charged twice.",
        "A plain bank shows no double charge after a kill or a lost answer, or one with keys or transactions does.",
        d1,
    ),
    Claim(
        "D2",
        "A coordinator that dies stalls the commit; afterwards nothing is lost or doubled.",
        "Any order lost or doubled.",
        d2,
    ),
    Claim(
        "D3a",
        "The slowest participant of a commit slows everybody: all orders wait for a slow reservation.",
        "The p99 of orders without a payment rises by less than 0.3 ms for each ms of delay.",
        d3("prepare"),
    ),
    Claim(
        "D3b",
        "The same for a slow call within a handler.",
        "The p99 of orders without a payment rises by less than 0.3 ms for each ms of delay.",
        d3("handler"),
    ),
    Claim(
        "D4",
        "Sagas give up isolation: without counter-measures they show anomalies, which a stream does not.",
        "The stream violates any of I1 to I5, or the mesh without fences violates none at a skew of 1.2.",
        d4,
    ),
    Claim(
        "D5",
        "Compensation with fences leaves no orphan; without fences it does.",
        "Any orphaned reservation or authorisation in an arm with fences.",
        d5,
    ),
    Claim(
        "D6",
        "Steps in parallel take as long as the slowest of them, steps in turn as long as their sum.",
        "Half of the orders of M5 take as long as those of M3, or longer.",
        d6,
    ),
    Claim(
        "D7",
        "Long transactions are no trouble for a stream, because nobody else writes to its sink.",
        "A second writer causes conflicts in the stream.",
        None,
        "a second writer to the bank",
    ),
    Claim(
        "D8",
        "Retries without the application's help double effects; keys prevent it.",
        "M1 doubles nothing while replies are lost, or M2 does.",
        d8,
    ),
    Claim(
        "E1",
        "An answer of a stream waits for its epoch, an answer of a mesh does not.",
        "Half of the orders are answered as fast in the stream as in the mesh, or faster.",
        e1,
    ),
    Claim(
        "E2",
        "Functions find one another at run time, without a new deployment.",
        "An added call needs a new deployment in one mode.",
        None,
        "a call that is added at run time",
    ),
    Claim("E3", "The same code runs in both.", "The source of the functions differs between arms.", e3),
    Claim(
        "F1",
        "A failure in a stream reaches everything that is connected; in a mesh what lived on the process.",
        "Fewer than half of the orders of other processes are hit in the stream, or more than half in the mesh.",
        f1,
    ),
    Claim(
        "F2",
        "The time to recover follows from detection, restart and what is to be replayed.",
        "A recovery is off by more than a factor of 2 from the prediction.",
        f2,
    ),
    Claim("F3", "A stream loses nothing that was in memory: it reads it again.", "Any order lost.", f3),
    Claim(
        "F4",
        "A mesh hides a dead process by trying elsewhere.",
        "The client sees as many errors with retries as without.",
        f4,
    ),
    Claim(
        "F5",
        "Services that talk by messages rely on the queue to hand over.",
        "Any order lost or doubled under M4.",
        f5,
    ),
    Claim(
        "F6",
        "Without faults a stream does more for its CPU time.",
        "An order costs the stream as much CPU time as it costs M2, or more.",
        f6,
    ),
    Claim(
        "F7",
        "The death of a worker rolls a stream back; that of a function's process does not.",
        "A roll-back after the death of a function's process, or none after that of a worker.",
        f7,
    ),
    Claim(
        "F8",
        "A stream is right or fails; it is never right for a share of its orders only.",
        "Any wrong outcome in a stream arm.",
        f8,
    ),
    Claim(
        "G1",
        "Overloaded, a stream answers late, and a mesh turns requests away.",
        "The stream turns away more than 1 %, or the mesh less.",
        g1,
    ),
    Claim("G2", "A budget holds retry storms down.", "More than 1.2 attempts for each order with a budget.", g2),
    Claim(
        "G3",
        "A deadline at the edge decides who gets a late answer.",
        "Answers arrive after their deadline.",
        None,
        "requests with a deadline of their own",
    ),
    Claim(
        "G4", "A process that was taken for dead and wakes up does no harm.", "Any order lost or doubled after it.", g4
    ),
)
