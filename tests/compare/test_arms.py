"""Arms are data that the runtimes understand, and what one can't express is told with the reason."""

from __future__ import annotations

import pytest

from penstock.compare.arms import ARMS, CONTROLS, OWN_ARMS, QUICK_ARMS, QUICK_FAULTS, Arm, choose_arms, na_reason
from penstock.compare.script import built_in, built_in_names
from penstock.errors import ConfigurationError
from penstock.mesh.policy_file import read_policies

EVERY = (*ARMS.values(), *OWN_ARMS.values())


def reason_of(arm: str, fault: str, *, kafka: bool = False, broker: bool = False) -> str:
    steps = [step.within(60) for step in built_in(fault).steps]
    return na_reason(ARMS[arm].planned(), steps, kafka=kafka, broker=broker)


@pytest.mark.parametrize("arm", EVERY, ids=lambda arm: arm.name)
def test_the_policies_of_an_arm_can_be_used(arm: Arm) -> None:
    policies = read_policies(arm.policies, replicas=2)

    warned = [warning for warning in policies.warnings if "without an idempotency key" not in warning]
    assert warned == []


def test_streams_have_no_policies_and_meshes_do() -> None:
    assert [arm.name for arm in EVERY if bool(arm.policies) is (arm.mode == "stream")] == []


def test_controls_expect_harm_that_the_oracle_counts() -> None:
    assert {harm for arm in EVERY for harm in arm.controls.values()} <= {"lost", "duplicated", "orphaned", "lied"}
    assert all(ARMS[name].controls for name in CONTROLS)


def test_the_quick_comparison_has_both_modes_a_control_and_a_baseline() -> None:
    assert {ARMS[name].mode for name in QUICK_ARMS} == {"stream", "mesh"}
    assert any(fault in ARMS[arm].controls for arm in QUICK_ARMS for fault in QUICK_FAULTS)
    assert QUICK_FAULTS[0] == "X0"


def test_an_unknown_arm_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        choose_arms(["S2", "m3"])
    assert refusal.value.code == "PEN0908"
    assert "Did you mean M3?" in refusal.value.message


def test_an_arm_that_is_named_twice_is_refused_since_its_runs_would_have_one_name() -> None:
    with pytest.raises(ConfigurationError, match="S2 is named twice") as refusal:
        choose_arms(["S2", "M3", "S2"])
    assert refusal.value.code == "PEN0908"


def test_every_arm_can_express_the_baseline_and_that_a_process_is_killed() -> None:
    assert [reason for arm in ARMS for fault in ("X0", "X2") if (reason := reason_of(arm, fault))] == []


def test_what_a_mode_does_not_have_is_told() -> None:
    assert "see X2" in reason_of("S2", "X1")
    assert "mesh keeps nothing in Kafka" in reason_of("M3", "X10")
    assert "no fault points" in reason_of("M3", "X13")


def test_an_application_of_ones_own_has_no_bank() -> None:
    steps = [step.within(60) for step in built_in("X9").steps]

    assert "about the shop" in na_reason(OWN_ARMS["S2"].planned(), steps, kafka=False, broker=False)


def test_on_kafka_streams_can_express_more() -> None:
    assert "the only process leads itself" in reason_of("S2", "X3")
    assert reason_of("S2", "X3", kafka=True) == ""
    assert "--kafka-pid" in reason_of("S2", "X10", kafka=True)
    assert reason_of("S2", "X10", kafka=True, broker=True) == ""


def test_no_fault_is_beyond_every_arm() -> None:
    for fault in built_in_names():
        assert any(not reason_of(arm, fault, kafka=True, broker=True) for arm in ARMS), fault
