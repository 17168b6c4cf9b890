"""Verdicts over comparisons that were made so that the verdict is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.compare.hypotheses import CLAIMS, findings_of
from penstock.compare.predictions import predicted_recovery_s
from penstock.compare.records import HARMLESS, PlannedArm
from penstock.compare.summary import summarise
from tests.compare.synthetic import (
    CONTROL,
    KEYED,
    KILL,
    LOST,
    MESH,
    NODES,
    NOTHING,
    STREAM,
    Behaviour,
    Directory,
    plan_of,
)


def verdicts(directory: Directory) -> dict[str, tuple[str, str]]:
    return {found.name: (found.verdict, found.figure) for found in findings_of(summarise(directory.path))}


def keys(path: Path, *, doubled: int, with_keys: int = 0) -> Directory:
    made = Directory(path, plan_of([CONTROL, KEYED], [NOTHING, LOST], [0]))
    for arm, harm in (("M1", doubled), ("M2", with_keys)):
        made.play(arm, NOTHING, 0, Behaviour())
        made.play(arm, LOST, 0, Behaviour(harm={"duplicated": harm} if harm else {}))
    return made


def test_every_claim_has_a_falsifier_and_says_what_it_needs() -> None:
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS) == 37
    assert all(claim.falsifier.endswith(".") and claim.text.endswith(".") for claim in CLAIMS)
    assert all(bool(claim.needs) != bool(claim.judge) for claim in CLAIMS)


def test_keys_are_confirmed_by_harm_without_them_and_none_with_them(tmp_path: Path) -> None:
    verdict, figure = verdicts(keys(tmp_path, doubled=4))["D8"]
    assert verdict == "confirmed"
    assert "4 doubled without keys" in figure
    assert "0 doubled with keys in 400 orders (95 %: below 0.746 % of them)" in figure


def test_a_control_that_shows_nothing_refutes(tmp_path: Path) -> None:
    assert verdicts(keys(tmp_path, doubled=0))["D8"][0] == "refuted"


def test_a_control_whose_runs_are_invalid_because_it_shows_nothing_is_not_passed_over(tmp_path: Path) -> None:
    made = Directory(tmp_path, plan_of([CONTROL, KEYED], [NOTHING, LOST], [0, 1]))
    reason = f"{HARMLESS} (duplicated) shows none, so that others show none proves nothing"
    for seed in (0, 1):
        made.play("M2", LOST, seed, Behaviour())
        made.add("M1", LOST.name, seed, [], status="invalid", reason=reason)

    verdict, figure = verdicts(made)["D8"]
    assert verdict == "refuted"
    assert figure.startswith("0 doubled without keys, and none in 2 runs more; 0 doubled with keys in 800 orders")


def test_a_run_that_is_invalid_for_another_reason_refutes_nothing(tmp_path: Path) -> None:
    made = Directory(tmp_path, plan_of([CONTROL, KEYED], [NOTHING, LOST], [0]))
    made.play("M2", LOST, 0, Behaviour())
    made.add("M1", LOST.name, 0, [], status="invalid", reason="the load generator was late by 9 ms (p99)")

    assert verdicts(made)["D8"][0] == "silent"


def test_harm_in_spite_of_keys_refutes(tmp_path: Path) -> None:
    assert verdicts(keys(tmp_path, doubled=4, with_keys=1))["D8"][0] == "refuted"


def test_what_was_not_run_is_silent_and_says_what_is_missing(tmp_path: Path) -> None:
    found = verdicts(keys(tmp_path, doubled=4))
    assert found["F1"] == (
        "silent",
        "Needs a worker killed in both modes, and orders that touch nothing on it.",
    )
    assert found["C3"][0] == "silent"


@pytest.mark.parametrize(
    ("seeds", "slow", "fast", "verdict"),
    [
        pytest.param(3, 400, 20, "confirmed", id="the stream is slower"),
        pytest.param(3, 20, 400, "refuted", id="the stream is faster"),
        pytest.param(1, 400, 20, "undecided", id="one seed gives no interval"),
    ],
)
def test_a_matter_of_degree_needs_intervals_that_are_apart(
    tmp_path: Path, seeds: int, slow: float, fast: float, verdict: str
) -> None:
    made = Directory(tmp_path, plan_of([STREAM, MESH], [NOTHING], range(seeds)))
    for seed in range(seeds):
        made.play("S2", NOTHING, seed, Behaviour(latency_ms=slow))
        made.play("M3", NOTHING, seed, Behaviour(latency_ms=fast))
    found, figure = verdicts(made)["E1"]
    assert found == verdict
    assert ("points to confirmed" in figure) == (seeds == 1)


def test_the_blast_of_a_kill_is_told_apart_by_who_lived_where(tmp_path: Path) -> None:
    made = Directory(tmp_path, plan_of([STREAM, MESH], [NOTHING, KILL], [0, 1, 2]))
    for seed in (0, 1, 2):
        for arm in ("S2", "M3"):
            made.play(arm, NOTHING, seed, Behaviour())
        made.play("S2", KILL, seed, Behaviour(outage=(8, 11), struck=NODES[0]))
        made.play("M3", KILL, seed, Behaviour(failing=(8, 11), only_node=NODES[0]))
    verdict, figure = verdicts(made)["F1"]
    assert verdict == "confirmed"
    assert figure.startswith("stream hits 100.0 %")
    assert "mesh 0.0 %" in figure


def test_one_order_lost_refutes_however_many_were_not(tmp_path: Path) -> None:
    made = Directory(tmp_path, plan_of([STREAM], [NOTHING, KILL], [0, 1]))
    for seed in (0, 1):
        made.play("S2", NOTHING, seed, Behaviour())
        made.play("S2", KILL, seed, Behaviour(harm={"lost": seed}))
    found = verdicts(made)
    assert found["F3"] == ("refuted", "1 lost in 800 orders")
    assert found["F8"][0] == "refuted"
    assert found["D4"][0] == "refuted"


@pytest.mark.parametrize(("down_s", "verdict"), [(3, "confirmed"), (1, "refuted")])
def test_recoveries_are_held_against_the_prediction(tmp_path: Path, down_s: float, verdict: str) -> None:
    # Two and a half seconds are predicted for an outage of one, because a checkpoint a second has to be repeated.
    made = Directory(tmp_path, plan_of([STREAM], [NOTHING, KILL], [0, 1]))
    for seed in (0, 1):
        made.play("S2", NOTHING, seed, Behaviour())
        made.play("S2", KILL, seed, Behaviour(outage=(8, 8 + down_s), checkpoint_every_s=1.0))
    inside = 2 if verdict == "confirmed" else 0
    assert verdicts(made)["F2"] == (verdict, f"{inside} of 2 recoveries within a factor of 2 of the prediction")


def test_controls_are_no_arms_to_judge_a_mode_by(tmp_path: Path) -> None:
    bare = PlannedArm("S2-plain", "stream", "control: the bank knows no keys", "plain", "plain", {})
    made = Directory(tmp_path, plan_of([STREAM, bare], [NOTHING, KILL], [0]))
    for arm in ("S2", "S2-plain"):
        made.play(arm, NOTHING, 0, Behaviour())
        made.play(arm, KILL, 0, Behaviour(harm={"duplicated": 2} if arm == "S2-plain" else {}))
    found = verdicts(made)
    assert found["F8"][0] == "confirmed"
    assert found["D1"][0] == "confirmed"
    assert found["D1"][1].startswith("2 doubled by a plain bank")


@pytest.mark.parametrize(
    ("arm", "verdict", "told"),
    [
        (MESH, "undecided", "plain in the stream, saga in the mesh"),
        (KEYED, "confirmed", "both modes run its flow plain"),
    ],
)
def test_the_same_code_is_the_same_flow_and_not_only_the_same_file(
    tmp_path: Path, arm: PlannedArm, verdict: str, told: str
) -> None:
    made = Directory(tmp_path, plan_of([STREAM, arm], [NOTHING], [0]))
    for name in (STREAM.name, arm.name):
        made.play(name, NOTHING, 0, Behaviour())

    found, figure = verdicts(made)["E3"]
    assert found == verdict
    assert told in figure


def test_the_prediction_is_that_of_the_formula() -> None:
    # Down for 2 s at 50 a second; what came in half of 4 s, in 1 s and in the 2 s is worked off at 100 - 50 a second.
    found = predicted_recovery_s(down_s=2, rate=50, interval_s=4, checkpoint_s=1, capacity=100)
    assert found == pytest.approx(2 + 50 * (2 + 1 + 2) / 50)
    assert predicted_recovery_s(down_s=2, rate=50, interval_s=4, checkpoint_s=1, capacity=50) is None
