"""Fault scripts: what is done to an application, where and when, as data.

    name: X2
    title: a worker that owns state is killed
    steps:
      - {at: 40%, what: kill, where: worker}

What always holds: a script that was read has no mistake left to find; times are told in seconds or as a share of the
measured time, so the same script fits a short run and a long one; the same script and the same length give the same
times in every arm. Does nothing by itself: see `penstock.compare.faulting`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

from penstock.durations import parse_duration
from penstock.errors import ConfigurationError, InvalidInput
from penstock.faults import ACTIONS as POINT_ACTIONS
from penstock.faults import POINTS
from penstock.mesh.fields import Notes, Section
from penstock.mesh.yaml_tree import Table, YamlError, parse_yaml


class Moment(NamedTuple):
    """A time: so many seconds, or such a share of what is measured."""

    seconds: float
    share: float

    def within(self, seconds: float) -> float:
        return self.seconds + self.share * seconds


class Kind(NamedTuple):
    """What can be done, and what has to be said about it."""

    about: str
    where: Mapping[str, str]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


_PROCESSES: Final = {
    "worker": "a process that carries out functions",
    "coordinator": "the process that leads or supervises them",
}
_LINKS: Final = {
    "client": "between the clients and the runtime",
    "bank": "between the application and the bank",
}
KINDS: Final[Mapping[str, Kind]] = {
    "kill": Kind("SIGKILL", _PROCESSES | {"function": "a process that carries out functions and owns no state"}),
    "stop": Kind("SIGSTOP, and SIGCONT at the end", _PROCESSES, needs=("for",)),
    "crash": Kind(
        "a process dies, hangs or raises as it comes past a fault point",
        {"worker": _PROCESSES["worker"]},
        needs=("point",),
        takes=("action",),
    ),
    "delay": Kind("everything takes longer", _LINKS, needs=("for", "delay")),
    "cut": Kind(
        "nothing comes through; with a direction, that way alone", _LINKS, needs=("for",), takes=("direction",)
    ),
    "lose-replies": Kind(
        "connections end after the request was processed and before its answer is back",
        _LINKS,
        needs=("for",),
        takes=("share",),
    ),
    "slow": Kind(
        "the bank takes longer", {"prepare": "to reserve money", "handler": "for everything"}, needs=("for", "delay")
    ),
    "poison": Kind("the next request raises at every try", {"client": _LINKS["client"]}),
    "duplicate": Kind(
        "requests come twice, under the same key", {"client": _LINKS["client"]}, needs=("for",), takes=("share",)
    ),
    "reorder": Kind(
        "requests come later than others behind them",
        {"client": _LINKS["client"]},
        needs=("for", "delay"),
        takes=("share",),
    ),
    "overload": Kind("more requests come", {"client": _LINKS["client"]}, needs=("for", "factor")),
    "stop-broker": Kind("the broker stands still", {"kafka": "the one that --kafka-pid names"}, needs=("for",)),
    "replace": Kind("all processes are replaced, in the order of an upgrade", {"worker": _PROCESSES["worker"]}),
    "rescale": Kind("as many processes again are started", {"worker": _PROCESSES["worker"]}),
}
DIRECTIONS: Final = ("both", "there", "back")
OF_THE_LOAD: Final = frozenset({"poison", "duplicate", "reorder", "overload"})
"""What the load generator does by itself: it is known before the run begins."""


class Step(NamedTuple):
    """One thing that is done. Fields that its kind does not take have their defaults."""

    what: str
    where: str
    at: Moment
    lasts: Moment = Moment(0, 0)
    delay_s: float = 0.0
    direction: str = "both"
    share: float = 1.0
    factor: float = 1.0
    point: str = ""
    action: str = "kill"

    def within(self, seconds: float) -> dict[str, Any]:
        """As it is written into the plan of runs of that length."""
        told: dict[str, Any] = {"at_s": round(self.at.within(seconds), 3), "what": self.what, "where": self.where}
        kind = KINDS[self.what]
        if "for" in kind.needs:
            told["for_s"] = round(self.lasts.within(seconds), 3)
        values = {
            "delay": ("delay_s", self.delay_s),
            "direction": ("direction", self.direction),
            "share": ("share", self.share),
            "factor": ("factor", self.factor),
            "point": ("point", self.point),
            "action": ("action", self.action),
        }
        return told | dict(values[name] for name in (*kind.needs, *kind.takes) if name in values)


class Fault(NamedTuple):
    """A script."""

    name: str
    title: str
    steps: tuple[Step, ...]


def built_in(name: str) -> Fault:
    """One of those that come with Penstock. Raises ConfigurationError, which lists them."""
    known = built_in_names()
    if name not in known:
        near = get_close_matches(name.upper(), known, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigurationError(
            "PEN0904", f"There is no fault {name!r}.{hint} There are {', '.join(known)}, and files of your own."
        )
    place = files("penstock.compare") / "faults" / f"{name}.yaml"
    return parse_script(place.read_text(encoding="utf-8"), f"{name}.yaml")


def built_in_names() -> list[str]:
    """X0 to X13."""
    names = [each.name.removesuffix(".yaml") for each in (files("penstock.compare") / "faults").iterdir()]
    return sorted((name for name in names if name.startswith("X")), key=lambda name: int(name[1:]))


def read_script(text: str) -> Fault:
    """What `--fault` means: the name of a built-in one, a file, or `kill:worker@10s` and `stop:worker@10s+5s`."""
    if text.endswith((".yaml", ".yml")):
        path = Path(text)
        try:
            return parse_script(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError("PEN0905", f"The fault script {text} can't be read: {error}.") from error
    return _parse_short(text) if ":" in text else built_in(text)


def _parse_short(text: str) -> Fault:
    """`what:where@at[+for]`, for what needs no more than that."""
    what, _, rest = text.partition(":")
    where, at_sign, times = rest.partition("@")
    at, plus, lasts = times.partition("+")
    if not at_sign:
        raise _refused(text, 1, [f"{text!r} says no time: write it as kill:worker@10s"])
    lines = [f"name: {_name_of(text)}", f"title: {what} {where}", "steps:", f"  - what: {what}"]
    lines += [f"    where: {where}", f"    at: {at}", *([f"    for: {lasts}"] if plus else [])]
    return parse_script("\n".join(lines), text)


def _name_of(text: str) -> str:
    """What a fault on the command line is called in names of files."""
    return "".join(character if character.isalnum() else "_" for character in text)


def parse_script(text: str, source: str) -> Fault:
    """Raises ConfigurationError, which tells all mistakes with their lines, and what there is instead."""
    try:
        documents = parse_yaml(text)
    except YamlError as error:
        raise _refused(source, error.line, [error.message]) from error
    if len(documents) != 1 or not isinstance(documents[0], Table):
        raise _refused(source, 1, ["expected one document with name, title and steps"])
    notes = Notes()
    section = Section(documents[0], "", notes)
    name, title = section.text("name"), section.text("title")
    steps = [_step(each) for each in section.sections("steps")]
    if not name or not name.replace("_", "").isalnum():
        section.error("name", "expected letters and digits, since files are named after it")
    section.finish()
    if notes.errors:
        raise _refused(source, 0, [str(each) for each in notes.errors])
    return Fault(name, title, tuple(step for step in steps if step is not None))


def _step(section: Section) -> Step | None:
    what, where = section.text("what"), section.text("where")
    kind = KINDS.get(what)
    if kind is None:
        section.error("what", f"{what!r} can't be done.{_near(what, KINDS)} There are {', '.join(KINDS)}")
        return None
    if where not in kind.where:
        section.error("where", f"{what} is not done to {where!r}.{_near(where, kind.where)} It has {_listed(kind)}")
    for name in ("at", *kind.needs):
        if not section.has(name):
            section.error(name, f"{what} needs this field")
    step = Step(what, where, section.parsed("at", Moment(0, 0), _moment, "a time such as 10s or 40%"))
    for name in (*kind.needs, *kind.takes):
        step = _with_field(step, section, name)
    section.finish()
    return step


def _with_field(step: Step, section: Section, name: str) -> Step:
    match name:
        case "for":
            lasts = section.parsed("for", Moment(0, 0), _moment, "a time such as 10s or 20%")
            if lasts.seconds <= 0 and lasts.share <= 0:
                section.error("for", "expected more than nothing")
            return step._replace(lasts=lasts)
        case "delay":
            return step._replace(delay_s=section.duration_s("delay", 0.0))
        case "direction":
            return step._replace(direction=section.parsed("direction", "both", _one_of(DIRECTIONS), "a direction"))
        case "share":
            return step._replace(share=section.percentage("share", 100.0) / 100)
        case "factor":
            return step._replace(factor=section.number("factor", 1.0, least=1.0, most=100.0))
        case "point":
            return step._replace(point=section.parsed("point", "", _one_of(tuple(POINTS)), "a fault point"))
        case "action":
            return step._replace(action=section.parsed("action", "kill", _one_of(tuple(POINT_ACTIONS)), "an action"))
        case _:
            raise AssertionError(f"no field of a step: {name}")


def _moment(text: str) -> Moment:
    if text.endswith("%"):
        share = float(text[:-1]) / 100
        if not 0 <= share <= 1:
            raise ValueError("a share is from 0% to 100%")
        return Moment(0.0, share)
    try:
        return Moment(parse_duration(text) / 1000, 0.0)
    except (ConfigurationError, InvalidInput) as error:
        raise ValueError("write numbers with units, such as 250ms or 1m30s") from error


def _one_of(known: Sequence[str]) -> Any:
    def parse(text: str) -> str:
        if text not in known:
            raise ValueError(f"{text!r} is unknown.{_near(text, known)} There are {', '.join(known)}")
        return text

    return parse


def _near(text: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    near = get_close_matches(text, known, 1)
    return f" Did you mean {near[0]}?" if near else ""


def _listed(kind: Kind) -> str:
    return ", ".join(f"{where} ({about})" for where, about in kind.where.items())


def _refused(source: str, line: int, mistakes: Sequence[str]) -> ConfigurationError:
    place = f"{source}, line {line}" if line else source
    return ConfigurationError("PEN0905", f"{place}: this fault script can't be used: {'; '.join(mistakes)}.")


def check_fits(fault: Fault, seconds: float) -> None:
    """Raises ConfigurationError for a step that is not over when the measured time is."""
    for step in fault.steps:
        ends_s = step.at.within(seconds) + step.lasts.within(seconds)
        if ends_s > seconds:
            raise ConfigurationError(
                "PEN0905",
                f"{fault.name}: {step.what} {step.where} ends after {ends_s:g} s, and {seconds:g} s are measured: "
                "what comes of it would not be seen. Raise --seconds, or write the times as shares, such as 40%.",
            )
