"""`penstock compare`: measures an application in both runtimes; and `penstock compare report`, which draws it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock.output import debug_option, note

if TYPE_CHECKING:
    from penstock.compare.arms import Arm
    from penstock.compare.campaign import Clock, Due
    from penstock.compare.records import Comparison, Run
    from penstock.compare.runner import Conditions
    from penstock.compare.script import Fault


class CompareVerbs(click.Group):
    """`penstock compare ...` is short for `penstock compare run ...`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return "run", run, args


@click.group(cls=CompareVerbs, context_settings={"ignore_unknown_options": True})
def compare() -> None:
    """Measure what failures do to the two runtimes.

    `penstock compare --quick` is short for `penstock compare run --quick`.
    """


@compare.command()
@click.argument("target", metavar="[APP]", default="")
@click.option("--arms", metavar="NAMES", help="Such as S2,M3. S1 to S3 are streams, M0 to M6 meshes.")
@click.option("--faults", metavar="NAMES", help="Such as X0,X2. X0 is none; a file ending in .yaml is a script.")
@click.option("--fault", "single", multiple=True, metavar="WHAT", help="A fault, a file, or kill:worker@10s.")
@click.option("--quick", is_flag=True, help="4 arms, 4 faults, 1 seed, 15 s each: ten minutes.")
@click.option("--full", is_flag=True, help="All arms under all faults.")
@click.option("--seeds", type=click.IntRange(1, 1000), help="How often each is repeated, with other orders.")
@click.option("--seconds", type=click.FloatRange(5), help="What is measured of each run.")
@click.option("--warmup", type=click.FloatRange(1), help="Seconds of load before that.")
@click.option("--rate", type=click.FloatRange(0.1), help="Requests a second.")
@click.option("--theta", type=click.FloatRange(0, 5), default=0.8, show_default=True, help="How much orders crowd.")
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Processes, of each runtime.")
@click.option("--interval", metavar="TIME", default="200ms", show_default=True, help="Between checkpoints.")
@click.option("--kafka", metavar="BROKERS", default="", help="Run streams on Kafka, at host:port,...")
@click.option("--kafka-pid", type=int, default=0, help="The process of the broker, so that it can be stopped.")
@click.option("--load", metavar="SOURCE", default="", help="Of your application: messages.jsonl, or module:function.")
@click.option("--check", "checks", multiple=True, metavar="FUNCTION", help="Of your application: module:function.")
@click.option("--out", metavar="DIR", default="comparison", show_default=True, help="Where everything goes.")
@click.option("--report", metavar="FILE", help="The page with the results; DIR/report.html if left out.")
@click.option("--again", is_flag=True, help="Measure what failed or came to nothing once more.")
@click.option("--keep", is_flag=True, help="Keep logs and state of every run.")
@debug_option
def run(target: str, quick: bool, full: bool, interval: str, **flags: Any) -> None:
    """Measure an application in both runtimes, under the same load and the same faults.

    APP is your own application; without one, it is a shop that comes with Penstock. A command that was interrupted goes
    on when it is repeated.
    """
    from penstock.compare.campaign import forget_unusable, opened
    from penstock.compare.planning import Asked, plan_of
    from penstock.compare.runner import SHOP

    if quick and full:
        raise click.UsageError("--quick and --full exclude one another.")
    conditions = _conditions(target, interval, flags)
    arms, faults = _chosen(target, quick=quick, full=full, flags=flags)
    given = {name: flags[name] for name in ("seeds", "seconds", "warmup", "rate") if flags[name] is not None}
    values = _defaults(target, quick=quick) | given
    asked = Asked(
        command=["penstock", *sys.argv[1:]],
        app=target or SHOP,
        arms=arms,
        faults=faults,
        seeds=values["seeds"],
        seconds=values["seconds"],
        warmup_s=values["warmup"],
        rate=values["rate"],
        theta=flags["theta"],
    )
    comparison = opened(Path(flags["out"]), plan_of(asked, conditions))
    if flags["again"]:
        forget_unusable(comparison)
    _measure(comparison, conditions)
    _finish(comparison, flags["report"])


def _conditions(target: str, interval: str, flags: dict[str, Any]) -> Conditions:
    from penstock.compare.runner import Conditions
    from penstock.durations import parse_duration

    if not target and (flags["load"] or flags["checks"]):
        raise click.UsageError("--load and --check are for an application of your own: name it.")
    if target and not flags["load"]:
        raise click.UsageError("An application of your own needs --load: recorded messages, or a generator.")
    return Conditions(
        folder=Path.cwd(),
        workers=flags["workers"],
        interval_s=parse_duration(interval) / 1000,
        kafka=flags["kafka"],
        kafka_pid=flags["kafka_pid"],
        load=flags["load"],
        checks=flags["checks"],
        keep=flags["keep"],
    )


def _chosen(target: str, *, quick: bool, full: bool, flags: dict[str, Any]) -> tuple[list[Arm], list[Fault]]:
    from penstock.compare.arms import ARMS, OWN_ARMS, QUICK_ARMS, QUICK_FAULTS, choose_arms
    from penstock.compare.script import built_in_names, read_script

    known = OWN_ARMS if target else ARMS
    usual = list(known) if full or target else list(QUICK_ARMS)
    faults = built_in_names() if full else list(QUICK_FAULTS if not target else ["X0"])
    names = _names(flags["faults"]) or ([] if flags["single"] and not target else faults)
    arms = choose_arms(_names(flags["arms"]) or usual, known)
    return arms, [read_script(name) for name in (*names, *flags["single"])]


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _defaults(target: str, *, quick: bool) -> dict[str, Any]:
    if quick or target:
        return {"seeds": 1, "seconds": 15.0, "warmup": 3.0, "rate": 20.0}
    return {"seeds": 5, "seconds": 60.0, "warmup": 10.0, "rate": 20.0}


def _measure(comparison: Comparison, conditions: Conditions) -> None:
    from penstock.compare.campaign import carry_out
    from penstock.compare.progress import Progress

    with Progress(len(comparison.missing())) as progress:

        def say(due: Due, run: Run | None, clock: Clock) -> None:
            progress.show(due.name, clock.left_s) if run is None else progress.done(run)

        try:
            asyncio.run(carry_out(comparison, conditions, say))
        except KeyboardInterrupt:
            left, planned = len(comparison.missing()), len(comparison.planned())
            note(
                f"Interrupted: {planned - left} of {planned} runs are done, and are kept. Repeat the command to go on, "
                f"or draw what there is: penstock compare report {comparison.directory}."
            )
            raise click.exceptions.Exit(1) from None


def _finish(comparison: Comparison, out: str | None) -> None:
    """What became of the runs, and the page, if there is anything to be drawn."""
    from collections import Counter

    counts = Counter(run.status for run, _ in comparison.done())
    note(", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    if counts["complete"]:
        _write_report(comparison.directory, out)
    else:
        note(
            f"No run is complete, so there is nothing to draw. What each came to is in {comparison.directory / 'runs'}."
        )


def _write_report(directory: Path, out: str | None) -> None:
    from penstock.compare.report import write_report

    note(f"The report is {write_report(directory, Path(out) if out else None)}.")


@compare.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--report", "out", metavar="FILE", help="The page; DIR/report.html if left out.")
@debug_option
def report(directory: Path, out: str | None) -> None:
    """Compute all figures of a comparison again, and draw them.

    DIR is the --out of penstock compare. Runs may be missing still: the page says which.
    """
    _write_report(directory, out)
