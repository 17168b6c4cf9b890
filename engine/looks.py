"""What people ask of tasks to see them: questions that each task answers for itself, and how answers are put together.

    question -> task -> View of that task -> answer;   state of an address: one task;   lists: every task, merged

What always holds: a question names no worker, so it can be carried to whichever has the task; a long answer comes in
pages, each small enough to travel like a message. How a question reaches its task is left to whoever makes a `Looks`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Any, Final, TypeAlias

import msgspec

from penstock.engine.calls import list_calls, show_call, show_request
from penstock.engine.views import View, count_letters, summarize_letter
from penstock.errors import InvalidInput, PenstockError
from penstock.ids import Address, key_group

ROW_BYTES: Final = 4
"""Around each row of a page: quotes, a comma."""


class StateOf(msgspec.Struct, frozen=True, array_like=True, tag="state"):
    """The state of an address, with its tables and logs."""

    typename: str
    id: str


class IdsOf(msgspec.Struct, frozen=True, array_like=True, tag="ids"):
    """A page of the ids that have state."""

    typename: str
    prefix: str
    after: str
    limit: int


class LettersOf(msgspec.Struct, frozen=True, array_like=True, tag="letters"):
    """A page of the dead letters, of one function or error code if these are given."""

    typename: str | None
    code: str | None
    after: int
    limit: int


class LetterOf(msgspec.Struct, frozen=True, array_like=True, tag="letter"):
    """One dead letter."""

    number: int


class LetterCounts(msgspec.Struct, frozen=True, array_like=True, tag="counts"):
    """How many dead letters there are, by function and error code."""


class CallsOf(msgspec.Struct, frozen=True, array_like=True, tag="calls"):
    """A page of the addresses that are held, of one function or only parked ones if that is asked for."""

    typename: str | None
    parked: bool
    after: tuple[str, str]
    limit: int


class CallOf(msgspec.Struct, frozen=True, array_like=True, tag="call"):
    """What one address is busy with."""

    typename: str
    id: str


class RequestOf(msgspec.Struct, frozen=True, array_like=True, tag="request"):
    """What became of the request to an address that has this Idempotency-Key."""

    typename: str
    id: str
    key: str


class SchedulesOf(msgspec.Struct, frozen=True, array_like=True, tag="schedules"):
    """A page of the schedules."""

    after: str
    limit: int


class Nothing(msgspec.Struct, frozen=True, array_like=True, tag="nothing"):
    """The answer alone tells: what was asked of the task before is done."""


Question: TypeAlias = (
    StateOf | IdsOf | LettersOf | LetterOf | LetterCounts | CallsOf | CallOf | RequestOf | SchedulesOf | Nothing
)


def answer(question: Question, view: View, *, bytes_max: int | None = None) -> Any:
    """What `view`, of one task, says. A page holds as many rows as fit into `bytes_max`, and says whether more follow.

    Raises InvalidInput, also for what can't be shown: an answer is no reason for a task to end.
    """
    try:
        return _answer(question, view, bytes_max)
    except PenstockError:
        raise
    except Exception as error:
        raise InvalidInput(
            "PEN0310",
            f"What is stored can't be shown: {type(error).__name__}: {error}. Look at it with the code that wrote it.",
        ) from error


def _answer(question: Question, view: View, bytes_max: int | None) -> Any:
    match question:
        case StateOf(typename, id):
            return _whole(view.state(Address(typename, id)), bytes_max)
        case IdsOf(typename, prefix, after, limit):
            return _page(view.ids(typename, prefix=prefix, after=after, limit=limit), limit, bytes_max)
        case LettersOf(typename, code, after, limit):
            letters = view.letters(typename=typename, code=code, after=after, limit=limit)
            return _page([summarize_letter(letter) for letter in letters], limit, bytes_max)
        case LetterOf(number):
            return _whole(view.show_letter(view.letter(number)), bytes_max)
        case LetterCounts():
            return [[typename, code, count] for (typename, code), count in view.letter_counts().items()]
        case CallsOf(typename, parked, after, limit):
            rows = list_calls(view, typename=typename, parked=parked, after=after, limit=limit)
            return _page(rows, limit, bytes_max)
        case CallOf(typename, id):
            return _whole(show_call(view, Address(typename, id)), bytes_max)
        case RequestOf(typename, id, key):
            return _whole(show_request(view, Address(typename, id), key), bytes_max)
        case SchedulesOf(after, limit):
            return _page(view.schedules(after=after, limit=limit), limit, bytes_max)
        case Nothing():
            return None


def _whole(shown: dict[str, Any], bytes_max: int | None) -> dict[str, Any]:
    if bytes_max is not None and (size := len(msgspec.json.encode(shown))) > bytes_max:
        raise InvalidInput(
            "PEN0311",
            f"What is stored takes {size:,} bytes to show, more than the {bytes_max:,} that may travel from one worker "
            "to another. Let the function itself answer with the part that is wanted, or raise message_bytes_max.",
        )
    return shown


def _page(rows: list[Any], limit: int, bytes_max: int | None) -> dict[str, Any]:
    """The rows that fit, at least one, and whether asking again behind the last of them may give others."""
    if bytes_max is None:
        return {"rows": rows, "more": False}
    size, count = 0, 0
    for row in rows:
        size += len(msgspec.json.encode(row)) + ROW_BYTES
        if size > bytes_max and count:
            break
        count += 1
    return {"rows": rows[:count], "more": count < len(rows)}


Ask = Callable[[int, Question], Awaitable[Any]]
"""Put a question to a task, and wait for its answer. Raises InvalidInput, or Unavailable when none comes."""


class Looks:
    """All tasks of an application, wherever they are: see the module."""

    def __init__(self, tasks: int, ask: Ask) -> None:
        self._tasks = tasks
        self._ask = ask

    async def state(self, address: Address) -> Any:
        """As `View.state`."""
        return await self._ask(key_group(address.id) % self._tasks, StateOf(*address))

    async def ids(self, typename: str, *, prefix: str, limit: int) -> list[str]:
        """As `View.ids`."""

        def following(last: str | None, count: int) -> Question:
            return IdsOf(typename, prefix, last or "", count)

        return await self._pages(following, limit)

    async def letters(self, *, typename: str | None, code: str | None, limit: int) -> list[dict[str, Any]]:
        """Dead letters in one row each, by number."""

        def following(last: dict[str, Any] | None, count: int) -> Question:
            return LettersOf(typename, code, 0 if last is None else last["number"], count)

        return await self._pages(following, limit, key=itemgetter("number"))

    async def letter(self, number: int) -> Any:
        """Everything known of a dead letter. The number says at which task it lies."""
        return await self._ask(number % self._tasks, LetterOf(number))

    async def letter_counts(self) -> list[dict[str, Any]]:
        """How many dead letters there are by function and error code, most first."""
        counts: Counter[tuple[str, str]] = Counter()
        for each in await self._of_all(lambda task: self._ask(task, LetterCounts())):
            counts.update({(typename, code): count for typename, code, count in each})
        return count_letters(counts)

    async def calls(self, *, typename: str | None, parked: bool, limit: int) -> list[dict[str, Any]]:
        """As `penstock.engine.calls.list_calls`."""

        def following(last: dict[str, Any] | None, count: int) -> Question:
            return CallsOf(typename, parked, ("", "") if last is None else _function_and_id(last), count)

        return await self._pages(following, limit, key=_function_and_id)

    async def call(self, address: Address) -> Any:
        """As `penstock.engine.calls.show_call`."""
        return await self._ask(key_group(address.id) % self._tasks, CallOf(*address))

    async def schedules(self, *, limit: int) -> list[dict[str, Any]]:
        """What is known of schedules, by name."""

        def following(last: dict[str, Any] | None, count: int) -> Question:
            return SchedulesOf("" if last is None else last["schedule"], count)

        return await self._pages(following, limit, key=itemgetter("schedule"))

    async def settle(self) -> None:
        """Return when everything that was asked of any task before is done."""
        await self._of_all(lambda task: self._ask(task, Nothing()))

    async def _pages(
        self, following: Callable[[Any, int], Question], limit: int, *, key: Callable[[Any], Any] | None = None
    ) -> list[Any]:
        """Rows of all tasks in their order, up to a number. `following` asks a task for so many behind a row, or from
        the first if that is None."""

        async def of_task(task: int) -> list[Any]:
            found: list[Any] = []
            more = True
            while more and len(found) < limit:
                page = await self._ask(task, following(found[-1] if found else None, limit - len(found)))
                found += page["rows"]
                more = page["more"]
            return found

        return list(islice(merge(*await self._of_all(of_task), key=key), limit))

    async def _of_all(self, ask: Callable[[int], Awaitable[Any]]) -> Iterable[Any]:
        return await asyncio.gather(*(ask(task) for task in range(self._tasks)))


def id_of_task(task: int, tasks: int) -> str:
    """Some id that the task owns: how an operation is addressed to a task and not to an instance."""
    return next(id for number in range(1 << 16) if key_group(id := f"task-{number}") % tasks == task)


def _function_and_id(row: dict[str, Any]) -> tuple[str, str]:
    return row["function"], row["id"]
