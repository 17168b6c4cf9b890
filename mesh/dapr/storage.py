"""What a sidecar keeps: state, actors' state and reminders, locks, events on their way. One SQLite file.

What always holds: what has been answered is durable; a transaction is done as a whole or not at all; an etag is never
used twice; the state of an actor changes only under the number of its latest activation, so that a sidecar that no
longer has the actor changes nothing; what has expired is not there, whether it was removed already or not. Sidecars of
one machine share the file; where applications lie on several, each machine has state of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from penstock.files import make_directory
from penstock.mesh.dapr.errors import DaprError
from penstock.mesh.dapr.schedule import Schedule
from penstock.mesh.sqlite_file import File, Transaction

FILE: Final = "dapr.sqlite"
NEVER_MS: Final = (1 << 63) - 1

_SCHEMA: Final = """
CREATE TABLE counter (last INTEGER NOT NULL);
INSERT INTO counter VALUES (0);
CREATE TABLE items (
    store TEXT, app TEXT, key TEXT, value BLOB NOT NULL, etag INTEGER NOT NULL, until_ms INTEGER NOT NULL,
    PRIMARY KEY (store, app, key)
) WITHOUT ROWID;
CREATE TABLE activations (type TEXT, id TEXT, number INTEGER NOT NULL, PRIMARY KEY (type, id)) WITHOUT ROWID;
CREATE TABLE actor_items (
    type TEXT, id TEXT, key TEXT, value BLOB NOT NULL, until_ms INTEGER NOT NULL, PRIMARY KEY (type, id, key)
) WITHOUT ROWID;
CREATE TABLE reminders (
    type TEXT, id TEXT, name TEXT, number INTEGER NOT NULL, due_ms INTEGER NOT NULL, attempts INTEGER NOT NULL,
    schedule BLOB NOT NULL, said BLOB NOT NULL, PRIMARY KEY (type, id, name)
) WITHOUT ROWID;
CREATE INDEX reminders_due ON reminders (due_ms);
CREATE TABLE locks (
    store TEXT, resource TEXT, owner TEXT NOT NULL, until_ms INTEGER NOT NULL, PRIMARY KEY (store, resource)
) WITHOUT ROWID;
CREATE TABLE subscriptions (
    app TEXT, pubsub TEXT, topic TEXT, PRIMARY KEY (pubsub, topic, app)
) WITHOUT ROWID;
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, app TEXT NOT NULL, pubsub TEXT NOT NULL, topic TEXT NOT NULL,
    due_ms INTEGER NOT NULL, attempts INTEGER NOT NULL, until_ms INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX events_due ON events (app, due_ms)
"""


class Item(NamedTuple):
    """A value under a key."""

    value: bytes
    """JSON, as it was given."""
    etag: str
    until_ms: int


class Change(NamedTuple):
    """Of one key."""

    key: str
    value: bytes | None
    """None deletes it."""
    etag: str | None = None
    """It must have this one."""
    create_only: bool = False
    ttl_s: int | None = None


class Reminder(NamedTuple):
    """One that waits, or is being fired."""

    type: str
    id: str
    name: str
    number: int
    """Of this registration: another under the same name has another."""
    attempts: int
    schedule: Schedule
    said: Mapping[str, Any]
    """What the application gave: dueTime, period, data, failurePolicy."""


class Event(NamedTuple):
    """On its way to one application."""

    number: int
    pubsub: str
    topic: str
    attempts: int
    until_ms: int
    body: bytes


class EtagMismatch(DaprError):
    def __init__(self, key: str) -> None:
        super().__init__(409, "ERR_STATE_SAVE", f"possible etag mismatch: {key!r} was changed by somebody else")


class Storage:
    """See the module. `clock` gives seconds since 1970."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        make_directory(directory)
        self._clock = clock
        self._file = File(directory / FILE, _SCHEMA)

    async def open(self) -> None:
        """Comes first. Raises Unavailable, and Refused for the file of a later Penstock."""
        await self._file.open()

    async def close(self) -> None:
        await self._file.close()

    # State.

    def get(self, store: str, app: str, key: str) -> Item | None:
        for value, etag, until_ms in self._file.read(
            "SELECT value, etag, until_ms FROM items WHERE store = ? AND app = ? AND key = ? AND until_ms > ?",
            *(store, app, key, self.now_ms()),
        ):
            return Item(value, str(etag), until_ms)
        return None

    async def change(self, store: str, app: str, changes: Sequence[Change]) -> None:
        """All of them or none. Raises DaprError."""
        now_ms = self.now_ms()

        def work(transaction: Transaction) -> DaprError | None:
            # Looked at before any is made, so that nothing has to be taken back from a group with others in it.
            for change in changes:
                if error := _objection(transaction, store, app, change, now_ms):
                    return error
            for change in changes:
                _apply(transaction, store, app, change, now_ms)
            return None

        error = await self._file.write(work)
        if error is not None:
            raise error

    # Actors.

    async def activate(self, type: str, id: str) -> int:
        """The number of a new activation, which ends what came under those before."""

        def work(transaction: Transaction) -> int:
            number = _next(transaction)
            transaction.execute(
                "INSERT INTO activations VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET number = excluded.number",
                *(type, id, number),
            )
            return number

        return await self._file.write(work)

    def actor_get(self, type: str, id: str, key: str) -> Item | None:
        for value, until_ms in self._file.read(
            "SELECT value, until_ms FROM actor_items WHERE type = ? AND id = ? AND key = ? AND until_ms > ?",
            *(type, id, key, self.now_ms()),
        ):
            return Item(value, "", until_ms)
        return None

    async def actor_change(self, type: str, id: str, activation: int, changes: Sequence[Change]) -> bool:
        """False when there was a later activation: nothing was changed."""
        now_ms = self.now_ms()

        def work(transaction: Transaction) -> bool:
            found = transaction.one("SELECT number FROM activations WHERE type = ? AND id = ?", type, id)
            if found != (activation,):
                return False
            for change in changes:
                if change.value is None:
                    transaction.execute(
                        "DELETE FROM actor_items WHERE type = ? AND id = ? AND key = ?", type, id, change.key
                    )
                else:
                    transaction.execute(
                        "INSERT INTO actor_items VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                        "value = excluded.value, until_ms = excluded.until_ms",
                        *(type, id, change.key, change.value, _until_ms(change, now_ms)),
                    )
            return True

        return await self._file.write(work)

    # Reminders.

    async def remind(
        self, type: str, id: str, name: str, schedule: Schedule, said: Mapping[str, Any], *, overwrite: bool
    ) -> bool:
        """False when there is one of that name, and it is to stay."""

        def work(transaction: Transaction) -> bool:
            if not overwrite and _reminder_number(transaction, type, id, name) is not None:
                return False
            transaction.execute(
                "INSERT OR REPLACE INTO reminders VALUES (?, ?, ?, ?, ?, 0, ?, ?)",
                *(type, id, name, _next(transaction), schedule.due_ms, _encode(schedule), _encode(said)),
            )
            return True

        return await self._file.write(work)

    def reminder(self, type: str, id: str, name: str) -> Reminder | None:
        found = self._reminders("type = ? AND id = ? AND name = ?", type, id, name)
        return found[0] if found else None

    async def forget_reminder(self, type: str, id: str, name: str) -> None:
        await self._file.write(
            lambda transaction: transaction.execute(
                "DELETE FROM reminders WHERE type = ? AND id = ? AND name = ?", type, id, name
            )
        )

    def due_reminders(self, types: Collection[str], limit: int) -> list[Reminder]:
        marks = ", ".join("?" * len(types))
        return self._reminders(
            f"due_ms <= ? AND type IN ({marks}) ORDER BY due_ms LIMIT ?", self.now_ms(), *types, limit
        )

    def next_reminder_ms(self, types: Collection[str]) -> int | None:
        """When the first is due."""
        marks = ", ".join("?" * len(types))
        ((found,),) = self._file.read(f"SELECT min(due_ms) FROM reminders WHERE type IN ({marks})", *types)
        return None if found is None else int(found)

    async def claim_reminder(self, reminder: Reminder, until_ms: int) -> bool:
        """Whether it is ours to fire: until then nobody else does."""
        return await self._file.write(
            lambda transaction: (
                transaction.execute(
                    "UPDATE reminders SET due_ms = ? WHERE type = ? AND id = ? AND name = ? AND number = ? "
                    "AND due_ms <= ?",
                    *(until_ms, *reminder[:4], self.now_ms()),
                )
                == 1
            )
        )

    async def after_firing(self, reminder: Reminder, following: Schedule | None) -> None:
        """It was fired. If it was registered anew meanwhile, that stands."""
        statement, values = "DELETE FROM reminders WHERE", list[object]()
        if following is not None:
            statement = "UPDATE reminders SET due_ms = ?, attempts = 0, schedule = ? WHERE"
            values = [following.due_ms, _encode(following)]
        await self._file.write(
            lambda transaction: transaction.execute(
                f"{statement} type = ? AND id = ? AND name = ? AND number = ?", *values, *reminder[:4]
            )
        )

    async def after_failing(self, reminder: Reminder, again_ms: int) -> None:
        await self._file.write(
            lambda transaction: transaction.execute(
                "UPDATE reminders SET due_ms = ?, attempts = attempts + 1 WHERE type = ? AND id = ? AND name = ? "
                "AND number = ?",
                *(again_ms, *reminder[:4]),
            )
        )

    def _reminders(self, condition: str, *values: object) -> list[Reminder]:
        rows = self._file.read(
            f"SELECT type, id, name, number, attempts, schedule, said FROM reminders WHERE {condition}", *values
        )
        return [
            Reminder(type, id, name, number, attempts, _read_schedule(schedule), msgspec.msgpack.decode(said))
            for type, id, name, number, attempts, schedule, said in rows
        ]

    # Locks.

    async def lock(self, store: str, resource: str, owner: str, lease_ms: int) -> bool:
        """Whether it is the owner's now. An owner who has it already does not get it twice."""
        now_ms = self.now_ms()
        return await self._file.write(
            lambda transaction: (
                transaction.execute(
                    "INSERT INTO locks VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET owner = excluded.owner, "
                    "until_ms = excluded.until_ms WHERE until_ms <= ?",
                    *(store, resource, owner, now_ms + lease_ms, now_ms),
                )
                == 1
            )
        )

    async def unlock(self, store: str, resource: str, owner: str) -> str | None:
        """Give it back if it is the owner's. Returns whose it was; None when nobody's."""
        now_ms = self.now_ms()

        def work(transaction: Transaction) -> str | None:
            found = transaction.one(
                "SELECT owner FROM locks WHERE store = ? AND resource = ? AND until_ms > ?", store, resource, now_ms
            )
            if found == (owner,):
                transaction.execute("DELETE FROM locks WHERE store = ? AND resource = ?", store, resource)
            return found[0] if found else None

        return await self._file.write(work)

    # Events.

    async def subscribe(self, app: str, topics: Collection[tuple[str, str]]) -> None:
        """From now on these (pubsub, topic), and no others, are for `app`. What waits for it stays."""

        def work(transaction: Transaction) -> None:
            transaction.execute("DELETE FROM subscriptions WHERE app = ?", app)
            for pubsub, topic in topics:
                transaction.execute("INSERT OR IGNORE INTO subscriptions VALUES (?, ?, ?)", app, pubsub, topic)

        await self._file.write(work)

    async def publish(self, pubsub: str, topic: str, bodies: Sequence[bytes], until_ms: int = NEVER_MS) -> None:
        """One event for every application that is subscribed."""

        def work(transaction: Transaction) -> None:
            apps = transaction.all("SELECT app FROM subscriptions WHERE pubsub = ? AND topic = ?", pubsub, topic)
            for body in bodies:
                for (app,) in apps:
                    transaction.execute(
                        "INSERT INTO events (app, pubsub, topic, due_ms, attempts, until_ms, body) "
                        "VALUES (?, ?, ?, 0, 0, ?, ?)",
                        *(app, pubsub, topic, until_ms, body),
                    )

        await self._file.write(work)

    async def claim_events(self, app: str, limit: int, until_ms: int) -> list[Event]:
        """The oldest that are due. Until then no other sidecar of the application gets them."""
        now_ms = self.now_ms()

        def work(transaction: Transaction) -> list[Event]:
            rows = transaction.all(
                "SELECT number, pubsub, topic, attempts, until_ms, body FROM events WHERE app = ? AND due_ms <= ? "
                "ORDER BY number LIMIT ?",
                *(app, now_ms, limit),
            )
            for row in rows:
                transaction.execute("UPDATE events SET due_ms = ? WHERE number = ?", until_ms, row[0])
            return [Event(*row) for row in rows]

        if not self._file.read("SELECT 1 FROM events WHERE app = ? AND due_ms <= ? LIMIT 1", app, now_ms):
            return []
        return await self._file.write(work)

    async def event_done(self, event: Event) -> None:
        await self._file.write(
            lambda transaction: transaction.execute("DELETE FROM events WHERE number = ?", event.number)
        )

    async def event_failed(self, event: Event, again_ms: int) -> None:
        await self._file.write(
            lambda transaction: transaction.execute(
                "UPDATE events SET due_ms = ?, attempts = attempts + 1 WHERE number = ?", again_ms, event.number
            )
        )

    # Upkeep.

    async def purge(self) -> None:
        """Remove what has expired."""
        now_ms = self.now_ms()

        def work(transaction: Transaction) -> None:
            for table in ("items", "actor_items", "locks"):
                transaction.execute(f"DELETE FROM {table} WHERE until_ms <= ?", now_ms)

        await self._file.write(work)

    def now_ms(self) -> int:
        return int(self._clock() * 1000)


_encode: Final = msgspec.msgpack.Encoder().encode
_read_schedule: Final = msgspec.msgpack.Decoder(Schedule).decode


def _objection(transaction: Transaction, store: str, app: str, change: Change, now_ms: int) -> DaprError | None:
    if change.etag is None and not change.create_only:
        return None
    if change.etag is not None and not change.etag.isdecimal():
        return DaprError(400, "ERR_STATE_SAVE", f"invalid etag value {change.etag!r} for {change.key!r}")
    found = transaction.one(
        "SELECT etag FROM items WHERE store = ? AND app = ? AND key = ? AND until_ms > ?",
        *(store, app, change.key, now_ms),
    )
    wanted = None if change.etag is None else (int(change.etag),)
    return None if found == wanted else EtagMismatch(change.key)


def _apply(transaction: Transaction, store: str, app: str, change: Change, now_ms: int) -> None:
    if change.value is None:
        transaction.execute("DELETE FROM items WHERE store = ? AND app = ? AND key = ?", store, app, change.key)
        return
    transaction.execute(
        "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value, "
        "etag = excluded.etag, until_ms = excluded.until_ms",
        *(store, app, change.key, change.value, _next(transaction), _until_ms(change, now_ms)),
    )


def _until_ms(change: Change, now_ms: int) -> int:
    return NEVER_MS if change.ttl_s is None or change.ttl_s < 0 else now_ms + change.ttl_s * 1000


def _next(transaction: Transaction) -> int:
    transaction.execute("UPDATE counter SET last = last + 1")
    (number,) = transaction.one("SELECT last FROM counter")
    return int(number)


def _reminder_number(transaction: Transaction, type: str, id: str, name: str) -> int | None:
    found = transaction.one("SELECT number FROM reminders WHERE type = ? AND id = ? AND name = ?", type, id, name)
    return None if found is None else int(found[0])
