"""The decisions of a coordinator, as the records that make them durable, and their bytes.

A record here is the one place where its fact exists: a checkpoint is complete because its COMPLETE can be read, an
attempt has begun because its ATTEMPT can. Format version 1. A field is only ever added, at the end and with a default.
"""

from __future__ import annotations

import msgspec

from penstock.checkpoint.formats import is_newer, item_at
from penstock.checkpoint.lineage import Lineage
from penstock.errors import CorruptSnapshot, ProtocolError

FORMAT = 1


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One task's part of a checkpoint: where its rows are, and where its inputs continue."""

    task: int
    base: str
    """Name of the base the deltas build on; empty for the empty state."""
    base_checkpoint: int
    """The cut of that base; 0 for the empty state."""
    head: int
    """Offset of the first record of the newest delta; -1 when the base is all there is."""
    checksum: int
    """CRC-32 of the whole of that delta."""
    first: int
    """Offset of the oldest record a restore of this checkpoint reads."""
    inbox_position: int
    inbox_end: int
    """Frames before the cut lie before this offset of the inbox."""
    ingress_positions: dict[str, object] = {}
    staged: tuple[int, ...] | None = None
    """The earlier attempts of rows it holds that may be visible, as only the markers of their egresses tell. None:
    nobody has said which those are."""
    fingerprints: dict[str, dict[str, object]] | None = None
    """Of the code that ran the task, where they are not those of the manifest: a worker may have another version."""
    visible: int = -1
    """All rows of egresses that checkpoints up to this one have decided were visible at the cut. -1: nobody said."""


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """Everything needed to restore one checkpoint (PROTOCOL 11)."""

    format: int
    application: str
    checkpoint: int
    lineage: Lineage
    """Of the attempt that took it."""
    created_ms: int
    key_groups_max: int
    parallelism: int
    generation: int
    """Of the topology: grows when the parallelism changes."""
    fingerprints: dict[str, dict[str, object]]
    """Function -> {"code": fingerprint, "state": shape of its state}."""
    parts: tuple[Part, ...]
    delta_bytes: int = 0
    """What this checkpoint added, for people."""
    reason: str = ""
    """Why it was taken: `interval`, `request`, `stop`, or what a person said."""

    def of(self, task: int) -> Manifest:
        """What it says to somebody who continues this task: the fingerprints are those of the code that ran it."""
        own = next((part.fingerprints for part in self.parts if part.task == task), None)
        return self if own is None else msgspec.structs.replace(self, fingerprints=own)

    @property
    def first(self) -> int:
        """Offset of the oldest record a restore reads; -1 when it reads none."""
        return min((part.first for part in self.parts if part.first >= 0), default=-1)


class Reserve(msgspec.Struct, frozen=True, array_like=True, tag="reserve"):
    """Checkpoint ids up to `high` may be used from now on, and never again."""

    high: int


class AttemptBegun(msgspec.Struct, frozen=True, array_like=True, tag="attempt"):
    """A new attempt continues from checkpoint `restored` (0: from nothing)."""

    lineage: Lineage
    restored: int
    high: int
    """Ids up to here have been reserved; the attempt's epochs start above."""
    at_ms: int
    reason: str = ""
    retained: tuple[int, ...] | None = None
    """What markers of egresses say of other attempts need not be kept: no retained checkpoint descends from them. None:
    of none, because it is not known."""
    fingerprints: dict[str, dict[str, object]] = {}
    """Of the code of the leader that began it; those of its manifests, too."""


class Complete(msgspec.Struct, frozen=True, array_like=True, tag="complete"):
    """The decision: this checkpoint exists, and what waits for it may become visible."""

    manifest: Manifest


class Assign(msgspec.Struct, frozen=True, array_like=True, tag="assign"):
    """Who owns which task from now on. The owner of a task in `moved` continues it from `manifest`; everybody else goes
    on with what it has, and lets go of what it does not own."""

    version: int
    """Grows with every assignment, over all attempts."""
    attempt: AttemptBegun
    owners: dict[int, str]
    members: tuple[str, ...]
    """The workers that belong to the application. One that did and is not named any more must end."""
    moved: tuple[int, ...]
    manifest: Manifest | None
    """None: the moved tasks start empty."""
    resolved: int
    """Tasks that stand still since the cut of this checkpoint, or of one before, go on where they are named; those
    released later wait for the next assignment."""
    topics: dict[str, str] = {}
    """The id of each topic of the application, as the cluster gave it: one that was deleted and created anew has
    another."""
    generation: int = 1
    """Of these topics: it grows with every change of the parallelism, and only tasks of the newest count."""
    tasks: int = 0
    """The parallelism; 0 where nobody said."""


class Recap(msgspec.Struct, frozen=True, array_like=True, tag="recap"):
    """What records before this one have said and none after it repeats, so that those may be deleted."""

    attempt: AttemptBegun
    high: int
    assigned: Assign | None
    retained: tuple[int, ...]
    """Of the checkpoints complete so far, those that can still be restored. What the others need may be deleted, though
    their records may stand between those of retained ones."""
    newest: tuple[int, Manifest] | None = None
    """The one that a recovery would restore, and the offset of its record: whoever leads next begins with this record,
    and reads what stands before it afterwards."""


ControlRecord = Reserve | AttemptBegun | Complete | Assign | Recap

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ControlRecord).decode


def encode_control(record: ControlRecord) -> bytes:
    return _encode(record)


def decode_control(data: bytes) -> ControlRecord:
    """Raises ProtocolError for bytes that are no control record of this format."""
    try:
        record: ControlRecord = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _refuse_newer(data)
        raise ProtocolError("PEN0505", f"A control record can't be read: {error}.") from error
    manifest = _manifest_in(record)
    if manifest is not None and manifest.format > FORMAT:
        _refuse_newer(data)
    return record


def _manifest_in(record: ControlRecord) -> Manifest | None:
    match record:
        case Complete(manifest) | Assign(manifest=manifest) | Recap(newest=(_, manifest)):
            return manifest
        case _:
            return None


_MANIFEST_AT = {"complete": (1,), "assign": (6,), "recap": (5, 1)}
"""Where records have their manifest, behind the tag that names their kind."""


def _refuse_newer(data: bytes) -> None:
    """Raise ProtocolError when there is a manifest of a newer format, of which perhaps nothing else can be read."""
    at = _MANIFEST_AT.get(str(item_at(data, 0)), ())
    found = item_at(data, *at, 0)
    if is_newer(found, FORMAT):
        raise ProtocolError(
            "PEN0506",
            f"Checkpoint {item_at(data, *at, 2)} has format {found}; this version reads up to {FORMAT}. It was written "
            "by a newer Penstock: run that one.",
        )


def manifest_in(record: ControlRecord | None, checkpoint: int, place: str) -> Manifest:
    """The manifest of `checkpoint`, which `record` should hold. `place` names where it stands.

    Raises CorruptSnapshot when something else stands there, or nothing.
    """
    if isinstance(record, Complete) and record.manifest.checkpoint == checkpoint:
        return record.manifest
    raise CorruptSnapshot(
        "PEN0404",
        f"{place} should hold the manifest of checkpoint {checkpoint} and does not. An older checkpoint is used.",
    )
