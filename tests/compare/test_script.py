"""Fault scripts are read as a whole: what is wrong is told with file, line and field, and what there is instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.compare.script import Moment, built_in, built_in_names, check_fits, parse_script, read_script
from penstock.errors import ConfigurationError


def refusal_of(text: str) -> str:
    with pytest.raises(ConfigurationError) as refusal:
        parse_script(text, "own.yaml")
    assert refusal.value.code == "PEN0905"
    return refusal.value.message


def script(*steps: str) -> str:
    return "\n".join(["name: own", "title: of my own", "steps:", *(f"  - {step}" for step in steps)])


@pytest.mark.parametrize("name", built_in_names())
def test_those_that_come_with_it_can_be_read_and_fit_runs_of_any_length(name: str) -> None:
    fault = built_in(name)

    assert fault.name == name
    for seconds in (5, 15, 60):
        check_fits(fault, seconds)


def test_there_are_a_baseline_and_thirteen_faults() -> None:
    assert built_in_names() == [f"X{number}" for number in range(14)]


def test_times_are_seconds_or_shares_of_what_is_measured() -> None:
    (step,) = parse_script(script("{at: 40%, for: 3s, what: stop, where: worker}"), "own.yaml").steps

    assert (step.at, step.lasts) == (Moment(0.0, 0.4), Moment(3.0, 0.0))
    assert step.within(60) == {"at_s": 24.0, "for_s": 3.0, "what": "stop", "where": "worker"}


def test_what_a_step_does_not_take_is_not_in_the_plan() -> None:
    (step,) = parse_script(script("{at: 1s, for: 2s, what: lose-replies, where: bank, share: 25}"), "own.yaml").steps

    assert step.within(10) == {"at_s": 1.0, "for_s": 2.0, "what": "lose-replies", "where": "bank", "share": 0.25}


def test_an_unknown_action_is_told_with_its_line_and_what_there_is() -> None:
    message = refusal_of(script("{at: 1s, what: kill, where: worker}", "{at: 2s, what: kil, where: worker}"))

    assert "own.yaml" in message
    assert "line 5, steps[1].what: 'kil' can't be done. Did you mean kill?" in message
    assert "lose-replies" in message


def test_an_unknown_place_is_told_with_those_there_are() -> None:
    message = refusal_of(script("{at: 1s, for: 1s, what: cut, where: banks}"))

    assert "'banks'. Did you mean bank?" in message
    assert "client (between the clients and the runtime)" in message


def test_a_missing_field_is_told() -> None:
    assert "steps[0].for: stop needs this field" in refusal_of(script("{at: 1s, what: stop, where: worker}"))


def test_a_field_that_the_action_does_not_take_is_told() -> None:
    assert "there is no such field" in refusal_of(script("{at: 1s, what: kill, where: worker, delay: 2s}"))


def test_a_value_of_another_type_is_told() -> None:
    assert "steps[0].at" in refusal_of(script("{at: soon, what: kill, where: worker}"))


def test_an_unknown_fault_point_is_told() -> None:
    message = refusal_of(script("{at: 1s, what: crash, where: worker, point: complete.durabel}"))

    assert "steps[0].point" in message


def test_a_file_that_is_no_yaml_is_told_with_its_line() -> None:
    assert "line 2" in refusal_of("name: own\n  title: [")


def test_a_fault_on_the_command_line_needs_no_file() -> None:
    fault = read_script("stop:worker@2s+3s")

    assert fault.name == "stop_worker_2s_3s"
    assert fault.steps[0].within(10) == {"at_s": 2.0, "for_s": 3.0, "what": "stop", "where": "worker"}


def test_one_without_a_time_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="says no time"):
        read_script("kill:worker")


def test_a_script_of_ones_own_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(script("{at: 1s, what: kill, where: worker}"), encoding="utf-8")

    assert read_script(str(path)).title == "of my own"


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        read_script("X99")
    assert refusal.value.code == "PEN0904"
    assert "X13" in refusal.value.message


def test_a_step_that_is_not_over_in_time_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="ends after 12 s, and 10 s are measured"):
        check_fits(read_script("stop:worker@9s+3s"), 10)


@pytest.mark.parametrize("text", ["kill:worker@5", "kill:worker@soon"])
def test_a_time_without_a_unit_is_refused_with_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigurationError, match="write numbers with units") as refusal:
        read_script(text)
    assert ".." not in refusal.value.message
    assert "as a number" not in refusal.value.message
