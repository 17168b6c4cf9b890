from __future__ import annotations

from pathlib import Path

from penstock.compare.canvas import Plot
from penstock.compare.conclusion import Conclusion, conclusion_of
from penstock.compare.hypotheses import findings_of
from penstock.compare.plots import plots_of
from penstock.compare.records import Invariant, Verdict, write_json
from penstock.compare.summary import summarise
from tests.compare.synthetic import CONTROL, KILL, MESH, NOTHING, STREAM, Behaviour, Directory, plan_of


def conclude(
    path: Path, stream: Behaviour, mesh: Behaviour, *, seeds: int = 3, latency: tuple[float, float] = (20, 20)
) -> Conclusion:
    made = Directory(path, plan_of([STREAM, CONTROL, MESH], [NOTHING, KILL], range(seeds)))
    for seed in range(seeds):
        for arm, each_ms, killed in (("S2", latency[0], stream), ("M3", latency[1], mesh)):
            made.play(arm, NOTHING, seed, Behaviour(latency_ms=each_ms))
            made.play(arm, KILL, seed, killed)
        made.play("M1", KILL, seed, Behaviour(harm={"duplicated": 2}))
    return conclusion_of(summarise(path))


def test_without_harm_the_headline_says_so_and_a_bound_stands_beside_it(tmp_path: Path) -> None:
    found = conclude(tmp_path, Behaviour(), Behaviour())
    assert found.headline == "S2 and M3 did no harm"
    assert "in 4,800 orders: with 95 % certainty harm comes to fewer than 0.062 % of them" in found.sentences[1]


def test_what_was_answered_stands_first_because_silence_does_no_harm_either(tmp_path: Path) -> None:
    found = conclude(tmp_path, Behaviour(), Behaviour(failing=(0, 20)), seeds=1)
    assert found.sentences[0] == (
        "Of the orders in all runs with a fault, S2 answered 100.0 % and M3 answered 0.0 % rightly."
    )


def test_harm_is_told_by_arm_fault_and_number(tmp_path: Path) -> None:
    found = conclude(tmp_path, Behaviour(harm={"lost": 1, "lied": 2}), Behaviour())
    assert found.headline == "S2 did harm; M3 did no harm"
    assert "S2 (stream, gives up a message that raises): 3 lost and 6 lied about under X2." in found.sentences
    assert any("every outcome must be right: S2 had 9 that were not" in reason for reason in found.choose_mesh)


def test_a_control_that_shows_harm_vouches_for_the_zeros(tmp_path: Path) -> None:
    found = conclude(tmp_path, Behaviour(), Behaviour())
    assert any(text.startswith("M1 (control: ") and "6 doubled under X2" in text for text in found.sentences)


def test_a_difference_is_a_reason_to_choose(tmp_path: Path) -> None:
    found = conclude(tmp_path, Behaviour(latency_ms=400), Behaviour(failing=(8, 12)), latency=(400, 20))
    assert any(reason.startswith("somebody waits for the answer") for reason in found.choose_mesh)
    assert any(
        reason.startswith("it must go on while a process is killed (X2): 100.0 %") for reason in found.choose_stream
    )


def test_orders_that_only_wait_are_a_reason_too(tmp_path: Path) -> None:
    found = conclude(tmp_path, Behaviour(outage=(8, 11)), Behaviour())
    assert found.choose_mesh == [
        "nobody may be kept waiting while a process is killed (X2): it is normal throughout, and the other after 3 s"
    ]


def test_what_is_alike_is_no_reason(tmp_path: Path) -> None:
    found = conclude(tmp_path, Behaviour(), Behaviour())
    assert found.choose_stream == []
    assert found.choose_mesh == []


def test_one_seed_is_said_to_be_one(tmp_path: Path) -> None:
    found = conclude(tmp_path, Behaviour(), Behaviour(failing=(8, 12)), seeds=1)
    assert any("one seed" in caveat for caveat in found.caveats)
    assert all(reason.endswith("(one seed, so without an interval)") for reason in found.choose_stream)
    assert found.choose_stream


def test_both_sides_stand_next_to_each_other_for_every_fault(tmp_path: Path) -> None:
    found = conclude(tmp_path, Behaviour(outage=(8, 11)), Behaviour())
    assert found.sides == ["S2", "M3"]
    (line,) = [line for line in found.board if line.what.startswith("X2")]
    assert "back to normal after 3 s" in line.figures[0]
    assert "normal throughout" in line.figures[1]


def test_checks_of_an_application_of_ones_own_vouch_for_no_more_than_they_look_at(tmp_path: Path) -> None:
    made = Directory(tmp_path, plan_of([STREAM, MESH], [NOTHING, KILL], [0]))
    checked = Verdict({"app:adds_up": Invariant(1, [])}, {"wrong": 0}, {})
    for arm in ("S2", "M3"):
        for fault in (NOTHING, KILL):
            write_json(made.play(arm, fault, 0, Behaviour()) / "verdict.json", checked)
    summary = summarise(tmp_path)

    told = " ".join(conclusion_of(summary).sentences)
    assert "The checks found nothing wrong with S2 in 2 runs." in told
    assert "lost" not in told
    truth = summary.cells[0].truth
    assert truth is not None
    assert truth.counted == {"wrong": 0}
    verdicts = {found.name: found.verdict for found in findings_of(summary)}
    assert {verdicts[name] for name in ("D4", "D5", "F3", "F8")} == {"silent"}
    (matrix,) = (plot for plot in plots_of(summary) if isinstance(plot, Plot) and plot.name == "P6")
    assert matrix.pictures[0].rows == [("S2", "0", "0"), ("M3", "0", "0")]
