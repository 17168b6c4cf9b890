"""The directory of a comparison: what is in it, how it is written, how it is read. Everything else asks here.

    plan.json                       what was to be measured, and on what
    runs/S2-X2-0/                   one arm under one fault with one seed
        run.json                    what became of the run; written last, so that a run without it is done again
        events.jsonl                what happened, one record a line, in no order
        ledger.jsonl                what the bank did: the truth outside both runtimes
        states.jsonl                the state of every address, after everything had come to rest
        verdict.json                what the oracle found in the ledger and the states

What always holds: a run names the plan it belongs to, and its events name the run, so a directory that was mixed from
several is noticed; what a runtime does not tell is absent from a record, never invented; times count in seconds from
the start of the measured load, on the clock of the machine that never jumps, and are negative in the warm-up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

import msgspec

from penstock.errors import InvalidInput
from penstock.files import hash_file, storage_errors, write_atomically

VERSION: Final = 1
RECORDS: Final = ("run.json", "events.jsonl", "ledger.jsonl", "states.jsonl", "verdict.json")
BASELINE: Final = "X0"
"""The fault that is none: what every arm is compared with."""

Kind = Literal[
    "offered",
    "sent",
    "reply",
    "start",
    "end",
    "retry",
    "timeout",
    "cb_state",
    "eject",
    "uneject",
    "shed",
    "ckpt_begin",
    "ckpt_commit",
    "ckpt_abort",
    "rollback",
    "replay",
    "step_do",
    "step_comp",
    "fence_hit",
    "dlq",
    "fault_on",
    "fault_off",
    "ledger",
    "proc",
    "lag",
]
Status = Literal["complete", "na", "invalid", "failed"]
"""`na`: the arm can't express the fault. `invalid`: it ran, and proves nothing. `failed`: it did not run to its end."""
HARMLESS: Final = "a control that was to show damage"
"""How the reason of a run begins that is invalid because it is a control, and shows none."""


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that happened. Fields that say nothing of it have their default, and are absent in the file."""

    t: float
    kind: Kind
    node: str = ""
    """The process it concerns."""
    order: str = ""
    key: str = ""
    """What the request was partitioned by."""
    fn: str = ""
    id: str = ""
    attempt: int = 0
    """Counts from 1; 0 is not known."""
    epoch: int | None = None
    xid: str = ""
    step: str = ""
    outcome: str = ""
    status: int = 0
    dur_ms: float | None = None
    """Of a reply: from when the request was intended, not from when it left."""
    bytes: int | None = None
    what: str = ""
    where: str = ""
    value: float | None = None
    cpu_s: float | None = None
    """Of `proc`: the CPU time that the process has used since it began."""
    rss: int | None = None
    """Of `proc`: its resident memory, in bytes."""


class Head(msgspec.Struct, frozen=True, tag_field="kind", tag="run"):
    """The first line of events.jsonl."""

    run: str
    arm: str
    fault: str
    seed: int
    version: int = VERSION


class LedgerEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the bank: an effect, or a request that came (`what` is `request`)."""

    t: float
    what: str
    key: str = ""
    order: str = ""
    user: str = ""
    amount: float = 0
    request: int = 0


class StateRecord(msgspec.Struct, frozen=True):
    """What an address held in the end."""

    fn: str
    id: str
    state: Any


class Invariant(msgspec.Struct, frozen=True):
    checked: int
    violations: list[str]


class Verdict(msgspec.Struct, frozen=True):
    invariants: dict[str, Invariant]
    counts: dict[str, int]
    terminal: dict[str, int]


class Initial(msgspec.Struct, frozen=True):
    """What there was before the first request."""

    stock: dict[str, int] = {}
    balances: dict[str, int] = {}


class Run(msgspec.Struct, frozen=True):
    """What became of one run."""

    run: str
    arm: str
    fault: str
    seed: int
    plan: str
    """The SHA-256 of plan.json."""
    status: Status
    reason: str = ""
    """Empty if it is complete."""
    seconds: float = 0
    rate: float = 0
    """Of the requests that were offered, per second."""
    late_p99_ms: float | None = None
    """How late the load generator was, against its own schedule."""
    quiet_s: float | None = None
    """When everything had come to rest, counted like the times of events."""
    initial: Initial = Initial()
    protection: dict[str, Any] = {}
    """The settings that were in force."""


class AppInfo(msgspec.Struct, frozen=True):
    name: str
    sha256: str


class PlannedArm(msgspec.Struct, frozen=True):
    name: str
    mode: Literal["stream", "mesh"]
    title: str
    flow: str
    bank: str
    settings: dict[str, Any]


class PlannedFault(msgspec.Struct, frozen=True):
    name: str
    title: str
    steps: list[dict[str, Any]]


class Difference(msgspec.Struct, frozen=True):
    """What the two modes do about one concern, and whether it is the same."""

    concern: str
    stream: str
    mesh: str
    equal: bool


class Plan(msgspec.Struct, frozen=True):
    command: list[str]
    app: AppInfo
    machine: dict[str, Any]
    arms: list[PlannedArm]
    faults: list[PlannedFault]
    seeds: list[int]
    seconds: float
    warmup_s: float
    rate: float
    theta: float
    differences: list[Difference]
    threats: list[str]
    na: dict[str, str] = {}
    """Why an arm can't express a fault, by `ARM-FAULT`."""
    version: int = VERSION


def run_name(arm: str, fault: str, seed: int) -> str:
    return f"{arm}-{fault}-{seed}"


# ---- writing


class EventFile:
    """Appends events to events.jsonl. Raises Unavailable, which names the file, when the disk refuses."""

    def __init__(self, path: Path, head: Head) -> None:
        self._path = path
        self._encoder = msgspec.json.Encoder()
        with storage_errors(path, "recording a run"):
            self._file = path.open("wb")
        self._write_line(self._encoder.encode(head))

    def write(self, event: Event) -> None:
        self._write_line(self._encoder.encode(event))

    def write_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self.write(event)

    def close(self) -> None:
        with storage_errors(self._path, "recording a run"):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_line(self, line: bytes) -> None:
        with storage_errors(self._path, "recording a run"):
            self._file.write(line + b"\n")


def write_json(path: Path, value: msgspec.Struct) -> bytes:
    """As a whole or not at all. Returns what was written."""
    data = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    write_atomically(path, data)
    return data


def write_lines(path: Path, values: Iterable[msgspec.Struct]) -> None:
    with storage_errors(path, "recording a run"), path.open("wb") as file:
        for value in values:
            file.write(msgspec.json.encode(value) + b"\n")


# ---- reading

_S = TypeVar("_S")


class RunDirectory:
    """The files of one run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = directory.name

    @property
    def done(self) -> bool:
        return (self.directory / "run.json").is_file()

    def run(self) -> Run:
        return _read_json(self.directory / "run.json", Run)

    def events(self) -> Iterator[Event]:
        """In the order of the file. Raises InvalidInput for a file that is cut off, or of another run."""
        return read_events(self.directory / "events.jsonl", self.name)

    def ledger(self) -> list[LedgerEntry]:
        return _read_lines(self.directory / "ledger.jsonl", LedgerEntry)

    def states(self) -> list[StateRecord]:
        return _read_lines(self.directory / "states.jsonl", StateRecord)

    def verdict(self) -> Verdict | None:
        """None for a run without an oracle, such as of an application of one's own without checks."""
        path = self.directory / "verdict.json"
        return _read_json(path, Verdict) if path.is_file() else None


class Comparison:
    """A directory with a plan, and the runs that are done so far.

    Raises InvalidInput for a directory without a plan, or with runs of another one.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        path = directory / "plan.json"
        if not path.is_file():
            raise InvalidInput(
                "PEN0901", f"{directory} has no plan.json, so it is no comparison. Name the --out of penstock compare."
            )
        self.plan = _read_json(path, Plan)
        if self.plan.version != VERSION:
            raise _unreadable(path, 1, f"version {self.plan.version}, and version {VERSION} is read here")
        self.plan_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def run_directory(self, name: str) -> RunDirectory:
        return RunDirectory(self.directory / "runs" / name)

    def planned(self) -> list[tuple[str, str, int]]:
        """Every arm, fault and seed that a run belongs to."""
        plan = self.plan
        return [(arm.name, fault.name, seed) for arm in plan.arms for fault in plan.faults for seed in plan.seeds]

    def missing(self) -> list[str]:
        """The runs that are not done."""
        names = (run_name(*each) for each in self.planned())
        return [name for name in names if not self.run_directory(name).done]

    def done(self) -> Iterator[tuple[Run, RunDirectory]]:
        """The runs that are, in the order of the plan. Raises InvalidInput for one that is not of this plan."""
        known = {run_name(*each) for each in self.planned()}
        for folder in sorted((self.directory / "runs").glob("*")):
            if folder.is_dir() and folder.name not in known:
                raise _mixed(folder, "the plan has no such run")
        for arm, fault, seed in self.planned():
            directory = self.run_directory(run_name(arm, fault, seed))
            if directory.done:
                run = directory.run()
                if (run.run, run.plan) != (directory.name, self.plan_sha256):
                    raise _mixed(directory.directory, f"its run.json is of {run.run} by the plan {run.plan[:12]}")
                yield run, directory

    def records_sha256(self) -> str:
        """Of the files of all runs that are done, by their places: whoever has the same records can tell so by it."""
        hash = hashlib.sha256()
        for run, found in self.done():
            for name in RECORDS:
                path = found.directory / name
                if path.is_file():
                    hash.update(f"{hash_file(path)}  {run.run}/{name}\n".encode())
        return hash.hexdigest()


def read_events(path: Path, run: str) -> Iterator[Event]:
    """Those of a run that one file has."""
    lines = _lines(path)
    head = _decode(next(lines, b""), Head, path, 1)
    if head.run != run:
        raise _mixed(path, f"it has the events of {head.run}")
    if head.version != VERSION:
        raise _unreadable(path, 1, f"version {head.version}, and version {VERSION} is read here")
    decoder = msgspec.json.Decoder(Event)
    for number, line in enumerate(lines, 2):
        yield _decoded(decoder, line, path, number)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError as error:
        raise _unreadable(path, 1, "there is no such file") from error


def _read_lines(path: Path, kind: type[_S]) -> list[_S]:
    decoder = msgspec.json.Decoder(kind)
    return [_decoded(decoder, line, path, number) for number, line in enumerate(_lines(path), 1)]


def _read_json(path: Path, kind: type[_S]) -> _S:
    try:
        return _decode(path.read_bytes(), kind, path, 1)
    except FileNotFoundError as error:
        raise _unreadable(path, 1, "there is no such file") from error


def _decode(data: bytes, kind: type[_S], path: Path, line: int) -> _S:
    return _decoded(msgspec.json.Decoder(kind), data, path, line)


def _decoded(decoder: msgspec.json.Decoder[_S], data: bytes, path: Path, line: int) -> _S:
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        raise _unreadable(path, line, str(error)) from error


def _unreadable(path: Path, line: int, reason: str) -> InvalidInput:
    return InvalidInput(
        "PEN0902",
        f"{path}, line {line}, is no record of a comparison: {reason}. The run is incomplete or was changed. "
        f"Delete {path.parent} and repeat the command that wrote it: only what is missing is measured again.",
    )


def _mixed(path: Path, reason: str) -> InvalidInput:
    return InvalidInput(
        "PEN0903",
        f"{path} does not belong to the plan beside it: {reason}. Runs of two comparisons were mixed. Move it away, "
        "or measure into another --out.",
    )
