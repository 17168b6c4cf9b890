"""What people may see of the functions and their state, as plain data that JSON can hold.

A `View` looks at the tasks of one application, whether they run in this process or were restored only to be read. It
decodes what is stored with the types the application declares; what those can't read is shown as it lies, and says so.
Changes nothing: `encode_state` makes the bytes that an operation then stores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from heapq import nsmallest
from itertools import islice
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgspec

from penstock.checkpoint.control import Manifest
from penstock.checkpoint.retention import Retained
from penstock.durations import timestamp
from penstock.engine.effects import DeadLetter
from penstock.engine.entry import Entry, collection_ids
from penstock.engine.letters import DeadLetters
from penstock.engine.pending import Held, held_by_rows
from penstock.engine.schedules import rows_of, show_schedule
from penstock.errors import InvalidInput
from penstock.functions.app import App
from penstock.functions.storage import Storage
from penstock.ids import KEY_GROUPS_MAX, Address, key_group
from penstock.state.memory import MemoryBackend
from penstock.state.overlay import ABSENT, Overlay
from penstock.state.showing import builtins_of, decoded_state, plain, show_state
from penstock.state.stateful import EMPTY_STATE
from penstock.state.values import encode_expiring

LETTERS_COUNTED_MAX: Final = 10_000
SENT_BYTES_MAX: Final = 1 << 30
"""Nothing is sent while reading, so nothing needs a bound."""


class TaskView(NamedTuple):
    """What is needed of one task to read it."""

    overlay: Overlay
    entries: Mapping[str, Entry]
    letters: DeadLetters
    held: Callable[[], Mapping[str, Held]]
    """The held addresses of each function."""


class View:
    """See the module: of all tasks, in their order, or of one. `clock_ms` decides which values have expired."""

    def __init__(self, tasks: Sequence[TaskView], clock_ms: int) -> None:
        self.tasks = tasks
        self.clock_ms = clock_ms

    # State.

    def ids(self, typename: str, *, prefix: str = "", after: str = "", limit: int = 100) -> list[str]:
        """The first ids behind `after`, in order, that have a value under the function, or rows of a table or log.
        Raises InvalidInput for an unknown function."""
        self.check_function(typename)
        found: set[str] = set()
        for task in self.tasks:
            stored_as = task.entries[typename].function.state_typename
            found.update(id for id in task.overlay.ids(stored_as) if id > after and id.startswith(prefix))
            if task.entries[typename].collections:
                ids = collection_ids(task.overlay, stored_as)
                found.update(id for id in ids if id > after and id.startswith(prefix))
        return nsmallest(limit, found)

    def state(self, address: Address) -> dict[str, Any]:
        """The state of an address, its tables and logs. `exists` is false when it has only defaults."""
        entry = self._entry(address)
        return show_state(entry, address, entry.raw(address.id), self.task_of(address.id).overlay, self.clock_ms)

    def holds(self, address: Address, data: bytes) -> bool:
        """Whether the state is what the JSON text `data` says; `null` stands for none."""
        entry = self._entry(address)
        wanted = decoded_state(entry, self.encode_state(address, data), self.clock_ms)
        try:
            return bool(decoded_state(entry, entry.raw(address.id), self.clock_ms) == wanted)
        except Exception:  # noqa: BLE001  # As in `state`: what can't be decoded is nothing that anybody expects.
            return False

    def encode_state(self, address: Address, data: bytes) -> bytes:
        """The bytes to store for the JSON text `data`; `null` removes the state. Raises InvalidInput."""
        entry = self._entry(address)
        place = f"State for {address.typename} {address.id!r}"
        if entry.function.options.state_of is not None:
            raise InvalidInput(
                "PEN0307",
                f"{address.typename} has no state of its own, but reads that of {entry.function.state_typename}: set "
                "that.",
            )
        if data.strip() == b"null":
            return ABSENT
        if entry.storage:
            return self._encode_storage(entry, data, place)
        codec = entry.state_codec
        if codec is None:
            raise InvalidInput("PEN0307", f"{address.typename} has no state: there is nothing to set.")
        try:
            value = codec.decode_json(data)
        except Exception as error:
            raise codec.explain(error, data, place=place) from error
        encoded = codec.encode(value)
        if encoded == EMPTY_STATE:
            return ABSENT
        if not entry.expirations:
            return encoded
        fresh = entry.new_state()
        deadlines = {
            field: self.clock_ms + expire.ttl_ms
            for field, expire in entry.expirations.items()
            if getattr(value, field) != getattr(fresh, field)
        }
        return encode_expiring(encoded, deadlines)

    def _encode_storage(self, entry: Entry, data: bytes, place: str) -> bytes:
        try:
            values = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidInput("PEN0307", f"{place} is no JSON object of named values: {error}.") from error
        storage = Storage(entry.storage)
        for name, text in values.items():
            spec = entry.storage.get(name)
            if spec is None:
                known = ", ".join(sorted(entry.storage))
                raise InvalidInput("PEN0307", f"{place} has no value {name!r}. Declared: {known}.")
            try:
                value = spec.codec.decode_json(bytes(text))
            except Exception as error:
                raise spec.codec.explain(error, bytes(text), place=f"{place}, value {name}") from error
            setattr(storage, name, value)
        return storage.encode(self.clock_ms)[0]

    # Dead letters.

    def letters(
        self, *, typename: str | None = None, code: str | None = None, after: int = 0, limit: int | None = 100
    ) -> list[DeadLetter]:
        """Dead letters by number, those above `after`, of one function or error code if these are given."""
        found = (
            letter
            for task in self.tasks
            for letter in task.letters.all()
            if letter.number > after and typename in (None, letter.typename) and code in (None, letter.code)
        )
        return sorted(found, key=_number) if limit is None else nsmallest(limit, found, key=_number)

    def letter(self, number: int) -> DeadLetter:
        """One dead letter. Raises InvalidInput when there is none of that number."""
        for task in self.tasks:
            letter = task.letters.get(number)
            if letter is not None:
                return letter
        raise InvalidInput(
            "PEN0308",
            f"There is no dead letter {number}: it was redriven or dropped, or never existed. List them: "
            "penstock dead list.",
        )

    def count_letters(self) -> int:
        """How many there are, counted up to 10,000."""
        return sum(1 for task in self.tasks for _ in islice(task.letters.all(), LETTERS_COUNTED_MAX))

    def letter_counts(self) -> Counter[tuple[str, str]]:
        """How many there are by function and error code."""
        return Counter((letter.typename, letter.code) for letter in self.letters(limit=None))

    def show_letter(self, letter: DeadLetter) -> dict[str, Any]:
        """Everything known of a letter: message and state decoded."""
        entry = self.tasks[0].entries.get(letter.typename)
        state: Any = None
        if letter.state:
            try:
                state = (
                    builtins_of(letter.state) if entry is None else decoded_state(entry, letter.state, self.clock_ms)
                )
            except Exception:  # noqa: BLE001  # As in `state`.
                state = builtins_of(letter.state)
        return summarize_letter(letter) | {
            "message": builtins_of(letter.payload, entry.codec if entry is not None else None),
            "state": state,
            "caller": None if letter.caller is None else "/".join(letter.caller),
            "headers": letter.headers,
            "traceback": letter.traceback,
        }

    # Schedules.

    def schedules(self, *, after: str = "", limit: int | None = None) -> list[dict[str, Any]]:
        """What is known of schedules, by name, those behind `after`."""
        found = (
            (name, row)
            for task in self.tasks
            for name, row in rows_of(task.overlay, range(KEY_GROUPS_MAX))
            if name > after
        )
        return [show_schedule(name, row) for name, row in islice(sorted(found, key=itemgetter(0)), limit)]

    # What every question names.

    def check_function(self, typename: str) -> None:
        functions = self.tasks[0].entries
        if typename not in functions:
            known = ", ".join(sorted(functions)) or "none"
            raise InvalidInput("PEN0105", f"{typename} is no function of this application. Known: {known}.")

    def check_address(self, address: Address) -> None:
        self.check_function(address.typename)
        if not address.id:
            raise InvalidInput("PEN0203", f"An empty id names no instance of {address.typename}. Give it some text.")

    def task_of(self, id: str) -> TaskView:
        """The task that owns an id."""
        return self.tasks[key_group(id) % len(self.tasks)]

    def _entry(self, address: Address) -> Entry:
        self.check_address(address)
        return self.task_of(address.id).entries[address.typename]


def view_of_nothing(app: App) -> View:
    """Of an application without any state: it knows what could be there."""
    return View([task_view(app, Overlay(MemoryBackend()))], 0)


def task_view(app: App, overlay: Overlay, *, task: int = 0, tasks: int = 1) -> TaskView:
    """Of a task that only its stored rows are known of."""
    entries = {name: Entry(function, overlay, bytes_max=SENT_BYTES_MAX) for name, function in app.functions.items()}
    held = cache(partial(held_by_rows, overlay))  # Nobody runs it, so it is read once, when it is asked for.
    return TaskView(overlay, entries, DeadLetters(overlay, task=task, tasks=tasks), held)


def summarize_letter(letter: DeadLetter) -> dict[str, Any]:
    """A letter in one row."""
    return {
        "number": letter.number,
        "at": timestamp(letter.clock_ms),
        "function": letter.typename,
        "id": letter.id,
        "code": letter.code,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "origin": letter.origin,
    }


def count_letters(counts: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    """One row for each function and error code, most letters first."""
    rows = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
    return [{"function": typename, "code": code, "letters": count} for (typename, code), count in rows]


def summarize_checkpoint(retained: Retained) -> dict[str, Any]:
    """A retained checkpoint in one row."""
    return {
        "checkpoint": retained.checkpoint,
        "at": timestamp(retained.created_ms),
        "attempt": retained.attempt,
        "reason": retained.reason,
        "delta_bytes": retained.delta_bytes,
        "bases": list(retained.bases),
        "pins_from": retained.first if retained.first >= 0 else retained.offset,
    }


def show_checkpoint(retained: Retained, manifest: Manifest) -> dict[str, Any]:
    """Everything a manifest says."""
    return summarize_checkpoint(retained) | {
        "application": manifest.application,
        "format": manifest.format,
        "parallelism": manifest.parallelism,
        "replay": manifest.lineage.replay_of(manifest.lineage.attempt),
        "functions": {name: known.get("code", "") for name, known in manifest.fingerprints.items()},
        "tasks": [
            {
                "task": part.task,
                "base": part.base,
                "base_checkpoint": part.base_checkpoint,
                "head": part.head,
                "first": part.first,
                "ingress_positions": plain(part.ingress_positions),
            }
            for part in manifest.parts
        ],
    }


def not_retained(number: int, known: Sequence[int]) -> InvalidInput:
    """The error for a checkpoint that is not, or no longer, there."""
    kept = f"{min(known)} to {max(known)}" if known else "none"
    return InvalidInput(
        "PEN0309", f"There is no checkpoint {number}. Retained: {kept}. List them: penstock checkpoint list."
    )


def _number(letter: DeadLetter) -> int:
    return letter.number
