"""What the request runtime asks of a database, and the words for it.

A transaction concerns one function type, so that each may have a database of its own. What always holds:

- An address changes by `commit` alone, and only if it still has the version that the invocation began with. A version
  is never used twice, also not after the state was deleted: who has read an older one is refused.
- State, answer and everything the invocation asked for (messages, timers, rows for egresses) become durable together,
  or not at all. A key is answered once: the second commit of the same key is refused as one of an old version is.
- Every write carries the session of its process. When `fence` has returned, nothing that session asks for is written,
  wherever it was on its way.
- Messages from one address to another wait in one lane, in the order they were committed in, and all messages of a
  lane belong to one session: only that one delivers them.

Nothing here waits for time to pass, retries or delivers: see `penstock.mesh.outbox`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

import msgspec

from penstock.errors import Fenced, Refused, Unavailable
from penstock.ids import Address
from penstock.records import EgressRow

CONNECTIONS_MAX = 4
"""To a store that is a server, of one process: one has commits, one loads, and two are left for messages, rows and
upkeep. More would make none of them quicker."""

PURGED_AT_ONCE = 1_000
"""Of a kind, in one transaction: commits wait for no more."""

SCHEMA = 1
"""Of the tables. A store that a later Penstock has written is refused."""


class VersionMismatch(Refused):
    """Another invocation has changed the address, or answered the same key, since it was loaded: load it again."""

    def __init__(self, address: Address, what: str) -> None:
        super().__init__(
            "PEN0822",
            f"{address} was changed by another invocation: {what}. Nothing was written; load it and run again.",
        )
        self.address = address


class Answer(NamedTuple):
    """What an invocation came to, kept under its idempotency key."""

    status: int
    body: bytes


class Loaded(NamedTuple):
    """An address as it is now."""

    value: bytes
    """Its encoded state; empty when it has none."""
    version: int
    """What `commit` compares; 0 when there is nothing."""
    answer: Answer | None
    """The answer that the key has already."""
    rows: Mapping[bytes, bytes]
    """The rows of its collections, when they were asked for."""


class Outgoing(NamedTuple):
    """A message on its way to one address."""

    target: str
    """The typename of the function."""
    id: str
    payload: bytes
    key: str
    """The idempotency key of its delivery."""
    due_ms: int = 0
    """When it is to be delivered; 0 at once, behind what the sender has sent there before."""
    token: str = ""
    """Names a delayed message, so that its sender can cancel it."""
    headers: Mapping[str, str] = {}
    outside: bool = False
    """It was taken in for somebody else than its sender: whoever gets it sees `caller`, if anybody."""
    caller: Address | None = None
    """The function that it was taken in from, by its own word."""
    identity: str = ""
    """Who was proven to have asked for it when it was taken in. Stores written before there was this have none."""


class Kept(NamedTuple):
    """A message as the store keeps it until it is delivered."""

    number: int
    """Unique in the store. Grows along a lane."""
    sender: Address
    outgoing: Outgoing
    attempts: int = 0
    """How often its delivery has failed."""
    previous: int = 0
    """Of one just committed: the last message before it in its lane that is still there; 0 when it is the first."""


class Emitted(NamedTuple):
    """A row on its way to an egress."""

    egress: str
    row: EgressRow


class RejectedRecord(NamedTuple):
    """A record of an ingress that is no message."""

    ingress: str
    place: str
    """Where it stands, for people."""
    data: bytes
    """As it was read."""
    reason: str
    """The coded text of what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Commit:
    """All that one invocation changes and asks for."""

    session: int
    typename: str
    id: str
    version: int | None = None
    """The version it began with; None changes the address whatever it has become meanwhile."""
    value: bytes | None = None
    """The encoded state, empty to delete it; None leaves it alone."""
    rows: Mapping[bytes, bytes | None] = field(default_factory=dict)
    """Changed rows of its collections; None deletes one."""
    key: str = ""
    answer: Answer | None = None
    """Kept under `key`, unless that is empty."""
    answer_until_ms: int = 0
    """How long it is kept at least."""
    outgoing: Sequence[Outgoing] = ()
    emitted: Sequence[Emitted] = ()
    cancelled: Sequence[str] = ()
    """Tokens of delayed messages that are called back, before those of `outgoing` are added."""
    promises: Sequence[str] = ()
    """Names of promises whose values were taken, and are forgotten."""

    @property
    def address(self) -> Address:
        return Address(self.typename, self.id)

    @property
    def changes_state(self) -> bool:
        """Whether the address gets a new version."""
        return self.value is not None or bool(self.rows)


class Committed(NamedTuple):
    """What became of a commit."""

    version: int
    """Of the address now. 0 after a commit that had none to compare and changed no state."""
    kept: Sequence[Kept]
    """The messages without delay that are this session's to deliver. One that is missing joined a lane whose earlier
    messages another session delivers, and is delivered by that."""


class Batch(NamedTuple):
    """Rows of an egress that are written in one step, with a marker that says which batch it was."""

    lane: int
    """Batches are numbered from 1 in each lane. Rows of one address are all in one, in their order."""
    number: int
    rows: Sequence[tuple[int, EgressRow]]


class DeadLetter(NamedTuple):
    """A message, a row of an egress or a record of an ingress that could not be delivered."""

    number: int
    sender: Address | None
    """None of a record."""
    what: Outgoing | Emitted | RejectedRecord
    reason: str
    """The coded text of the last error."""
    attempts: int
    died_ms: int


class Session(NamedTuple):
    """A process that writes, or did."""

    number: int
    holder: str
    """As it named itself, for people and for who compares it with the registry."""
    begun_ms: int
    ended_ms: int = 0
    """When it was fenced; 0 while it may write."""

    @property
    def fenced(self) -> bool:
        return bool(self.ended_ms)


class Pending(NamedTuple):
    """How much there is in the store that is not delivered yet, of all sessions."""

    messages: int
    delayed: int
    """Messages with a delay, due or not."""
    rows: int


class Past(NamedTuple):
    """What nobody needs any more: times in milliseconds, before which it was there for long enough."""

    answers_ms: int
    """They were to be kept until some time before it."""
    promises_ms: int
    """Kept before it, and not taken since."""
    sessions_ms: int
    """Fenced before it, with nothing left of them that is still to be delivered."""


class Store(Protocol):
    """A database of a mesh. Its methods raise `Unavailable` when it does not answer: whether what they should write is
    written is unknown then, and asking again with the same key or number does no harm. Those that take a session, and
    `commit`, raise `Fenced` when that was fenced."""

    async def instance(self) -> str:
        """A name that no other store has: what outsiders keep of this one, they keep under it."""
        ...

    # Sessions.

    async def begin_session(self, holder: str) -> int:
        """A number higher than every one before. All writes of this process carry it."""
        ...

    async def fence(self, session: int) -> None:
        """End a session, one's own or that of a process that is taken for dead. What it left can be adopted then."""
        ...

    async def sessions(self) -> list[Session]:
        """Those that may write, and those that were fenced not long ago: the oldest first."""
        ...

    # Addresses.

    async def load(self, typename: str, id: str, key: str = "", *, rows: bool = False) -> Loaded:
        """An address and the answer that `key` has, as they are at one moment."""
        ...

    async def commit(self, commit: Commit) -> Committed:
        """Make it durable as a whole. Raises VersionMismatch: nothing was changed."""
        ...

    async def commit_all(self, commits: Sequence[Commit]) -> list[Committed]:
        """Several of one function type, in this order, all or none. Each `version` is the one before the first."""
        ...

    async def typenames(self) -> list[str]:
        """The function types that have a database, in order."""
        ...

    async def ids(self, typename: str, *, prefix: str = "", after: str = "", limit: int = 1_000) -> list[str]:
        """Ids of addresses with a state that begin with `prefix` and come after `after`, in order."""
        ...

    # Promises.

    async def resolve(self, session: int, address: Address, name: str, value: bytes) -> bool:
        """Keep a promise of `address`. False when it was kept before: the first value stands."""
        ...

    async def resolution(self, address: Address, name: str) -> bytes | None:
        """The value of a promise, once it is kept."""
        ...

    # Messages that wait.

    async def due(self, session: int, now_ms: int, limit: int) -> list[Kept]:
        """The session's messages that are due: of those without delay the oldest `limit`, and as many of the others."""
        ...

    async def next_due_ms(self, session: int, after_ms: int) -> int | None:
        """When the first delayed message of the session is due that is due after `after_ms`."""
        ...

    async def done(self, session: int, numbers: Collection[int]) -> None:
        """They are delivered: forget them. Those that are gone already are passed over."""
        ...

    async def failed(self, session: int, number: int) -> None:
        """A delivery has failed, and is tried again: count it."""
        ...

    async def bury(self, session: int, number: int, reason: str, now_ms: int) -> None:
        """A message can't be delivered: make it a dead letter, and its lane go on."""
        ...

    async def adopt(self, session: int) -> int:
        """Take over the messages of all sessions that are fenced; returns how many."""
        ...

    # Rows for egresses.

    async def open_batch(self, session: int, egress: str, limit: int) -> list[Batch]:
        """The batches that were opened and not closed; where there is none, one of the oldest `limit` rows."""
        ...

    async def refuse_rows(self, session: int, refused: Mapping[int, str], now_ms: int) -> None:
        """Rows can never be written: make dead letters of them, with these reasons. Their batch goes on without."""
        ...

    async def close_batch(self, session: int, egress: str, batch: Batch) -> None:
        """All rows of the batch are written: forget them."""
        ...

    # Dead letters.

    async def dead_letters(self, *, after: int = 0, limit: int = 1_000) -> list[DeadLetter]:
        """In the order of their numbers, from the first behind `after`."""
        ...

    async def redrive(self, session: int, numbers: Collection[int]) -> int:
        """Deliver dead letters again, as new messages or rows with their old keys; returns how many there were.
        Records are passed over: what is wrong with them is in them."""
        ...

    async def discard(self, session: int, numbers: Collection[int]) -> int:
        """Forget dead letters; returns how many there were."""
        ...

    # Work that one process does for all.

    async def claim(self, session: int, name: str) -> bool:
        """Whether `name` is the session's now: nobody had it, or a session that is fenced."""
        ...

    async def position(self, ingress: str) -> Any:
        """Where reading continues; None at the beginning."""
        ...

    async def keep_position(
        self, session: int, ingress: str, position: Any, rejected: Sequence[RejectedRecord] = (), now_ms: int = 0
    ) -> None:
        """Everything before this position is taken; these records before it became dead letters."""
        ...

    # Upkeep.

    async def pending(self) -> Pending:
        """What is still to be delivered."""
        ...

    async def purge(self, past: Past) -> int:
        """Forget the oldest of what is past, `PURGED_AT_ONCE` of each kind at most. Returns how many of the kind of
        which there were most: fewer than that, and nothing is left."""
        ...

    async def close(self) -> None:
        """Finish what was begun and release everything."""
        ...


# What both stores have in common.


def lane_of(sender: Address, outgoing: Outgoing) -> int:
    """The lane of a message, as a signed number of 64 bits. Two lanes with the same number wait for one another."""
    text = "\0".join((*sender, outgoing.target, outgoing.id))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), signed=True)


def after_prefix(prefix: str) -> str | None:
    """The first text behind all that begin with `prefix`, by code points; None when there is none."""
    kept = prefix.rstrip("\U0010ffff")
    if not kept:
        return None
    following = ord(kept[-1]) + 1
    # Halves of surrogate pairs are no text of their own.
    return kept[:-1] + chr(0xE000 if following == 0xD800 else following)


def fenced(session: int) -> Fenced:
    return Fenced(
        "PEN0821",
        f"Session {session} of this process was fenced: others took it for dead and have its messages. "
        "This process stops; start it again.",
    )


def unavailable(where: str, reason: object) -> Unavailable:
    return Unavailable(
        "PEN0820",
        f"The store at {where} does not take part: {str(reason).strip().rstrip('.')}. What was committed is safe; "
        "repair it, and requests with a key can be sent again.",
    )


def newer_schema(where: str, found: int) -> Refused:
    return Refused(
        "PEN0823",
        f"The store at {where} has schema {found}, and this Penstock knows {SCHEMA}. Use the release that wrote it, "
        "or another store.",
    )


_encode = msgspec.msgpack.Encoder().encode
_outgoing = msgspec.msgpack.Decoder(Outgoing)
_row = msgspec.msgpack.Decoder(EgressRow)
_rejected = msgspec.msgpack.Decoder(RejectedRecord)


def encode_outgoing(outgoing: Outgoing) -> bytes:
    return _encode(outgoing)


def decode_outgoing(data: bytes) -> Outgoing:
    return _outgoing.decode(data)


def encode_row(row: EgressRow) -> bytes:
    return _encode(row)


def decode_row(data: bytes) -> EgressRow:
    return _row.decode(data)


def encode_rejected(record: RejectedRecord) -> bytes:
    return _encode(record)


def decode_rejected(data: bytes) -> RejectedRecord:
    return _rejected.decode(data)


def encode_position(position: Any) -> bytes:
    return _encode(position)


def decode_position(data: bytes) -> Any:
    return msgspec.msgpack.decode(data)
