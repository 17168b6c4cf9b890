"""What differs between the two modes is listed by itself, from how they are started."""

from __future__ import annotations

from penstock.compare.arms import choose_arms
from penstock.compare.differences import Deployment, differences_of
from penstock.compare.records import Difference


def differences(*arms: str, kafka: str = "", detection_s: float = 5.0) -> dict[str, Difference]:
    planned = [arm.planned() for arm in choose_arms(arms)]
    found = differences_of(planned, Deployment(2, 0.2, detection_s, kafka))
    return {each.concern: each for each in found}


def test_equal_is_what_reads_the_same() -> None:
    for each in differences("S2", "M3").values():
        assert each.equal is (each.stream == each.mesh)


def test_what_differs_comes_first() -> None:
    equal = [each.equal for each in differences("S2", "M3").values()]

    assert equal == sorted(equal)
    assert not equal[0]
    assert equal[-1]


def test_on_one_machine_the_stream_has_one_process_and_the_mesh_several() -> None:
    concern = "processes that carry out functions"

    assert not differences("S2", "M3")[concern].equal
    assert differences("S2", "M3", kafka="broker:9092")[concern].equal


def test_another_timeout_is_told() -> None:
    concern = "a failed process is noticed"

    assert differences("S2", "M3", kafka="broker:9092")[concern].equal
    assert not differences("S2", "M3", kafka="broker:9092", detection_s=10.0)[concern].equal


def test_arms_that_are_told_different_things_are_named() -> None:
    assert differences("S2", "M1", "M2")["clients give keys"].mesh == "M1 no, M2 yes"


def test_a_mode_without_arms_has_none() -> None:
    assert differences("S2")["mode of the bank"].mesh == "no arm"
