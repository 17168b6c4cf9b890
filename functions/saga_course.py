"""One run of a saga: carries out the steps its code asks for, and sees to it that the end is all, or nothing.

    run the code -> each step: note it -> send its command -> note the answer
        returned ------------------------------------> confirm what was done ----> Completed
        failed before the pivot -> cancel what was started, the last one first --> Compensated
        failed after it ---------> run the code again; what was done is answered from the record

What always holds: the record (`penstock.functions.saga_record`) says what is about to be asked before it is asked, so
whoever runs the code again, from a journal or from the record alone, comes to the same end; what has to be done is
tried until it succeeds; a step without an answer is never taken for one that was not done.

Asking twice, too late or in another order is harmless by the fence of the participants (`penstock.functions.fence`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, NoReturn, TypeVar, overload

import msgspec

from penstock.durations import format_duration, parse_duration
from penstock.errors import InvalidInput, PenstockError, StepFailed
from penstock.functions.answers import read_answer
from penstock.functions.commands import Command, Ruled, Verdict
from penstock.functions.durable import Deadline, Durable, Retry
from penstock.functions.fence import Asked
from penstock.functions.saga_record import (
    MOVES,
    Compensated,
    Completed,
    Ended,
    Phase,
    SagaAlert,
    SagaRecord,
    StepPhase,
    StepRecord,
)
from penstock.functions.saga_tally import Tally

if TYPE_CHECKING:
    from datetime import timedelta

    from penstock.functions.context import Context
    from penstock.functions.function import Function
    from penstock.functions.participant import Action

M = TypeVar("M")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
R1 = TypeVar("R1")
R2 = TypeVar("R2")
R3 = TypeVar("R3")
R4 = TypeVar("R4")

WATCH: Final = "1m"
"""Where no journal brings a handler back after a crash, the saga is begun again so long after it began."""
_WATCH_TOKEN: Final = "penstock-saga-watch"
_STEP_NAME: Final = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


class Stage(Enum):
    """Where a step has its place."""

    COMPENSABLE = "steps"
    PIVOT = "pivot"
    RETRIABLE = "then"


class Plan(NamedTuple):
    """What is declared of a saga."""

    stages: dict[Action[Any, Any], Stage]
    goes_forward: bool
    """Nothing is ever undone: everything is tried until it succeeds."""
    deadline_ms: int | None
    retry: Retry
    """How long it waits between the tries of what has to succeed. How many there are is not limited."""
    alert_after: int
    alert: Function[Any, Any] | None
    tally: Tally

    def stage_of(self, record: StepRecord) -> Stage:
        """Of what the code does not have any more there is nothing to say but that it can be taken back."""
        action = self.action_of(record)
        return Stage.COMPENSABLE if action is None else self.stages[action]

    def action_of(self, record: StepRecord) -> Action[Any, Any] | None:
        named = (record.typename, record.action)
        return next((each for each in self.stages if (each.typename, each.name) == named), None)


class Step(Generic[R_co]):
    """A step of a saga: it begins when it is awaited, or given to `saga.all`."""

    __slots__ = ("action", "course", "id", "message", "name", "stage", "timeout")

    def __init__(
        self,
        course: Course,
        stage: Stage,
        action: Action[Any, R_co],
        name: str,
        id: str,
        message: bytes,
        timeout: str | float | timedelta | None,
    ) -> None:
        self.course = course
        self.stage = stage
        self.action = action
        self.name = name
        self.id = id
        self.message = message
        self.timeout = timeout

    def __await__(self) -> Generator[Any, Any, R_co]:
        return self.course.carry_out(self).__await__()


class Saga:
    """What the handler of a saga is given: what it can ask of others, and take back."""

    def __init__(self, course: Course) -> None:
        self._course = course

    @property
    def ctx(self) -> Context[Any]:
        """The context of the saga's address, to look at the time, wait for a promise, or ask somebody. What is sent or
        called through it is not undone."""
        return self._course.ctx

    @property
    def id(self) -> str:
        """The id of the saga, which names it for ever."""
        return self.ctx.id

    def step(
        self,
        action: Action[M, R],
        id: str,
        message: M,
        *,
        name: str = "",
        timeout: str | float | timedelta | None = None,
    ) -> Step[R]:
        """Ask for `action` of the participant `id`: `held = await saga.step(reserve, "tea", Reserve(3))`.

        Awaiting it raises StepFailed when it was declined, failed, or did not answer within `timeout`; unless the
        handler catches that, the saga is taken back. After the pivot it does not fail: it is tried until it succeeds.
        `name` tells steps apart that ask for the same action; it is the action's name if left out.

        Raises InvalidInput for an action the saga does not declare, or a name that was used.
        """
        return self._course.declare(action, id, message, name or action.name, timeout)

    @overload
    async def all(self, first: Step[R1], /) -> tuple[R1]: ...
    @overload
    async def all(self, first: Step[R1], second: Step[R2], /) -> tuple[R1, R2]: ...
    @overload
    async def all(self, first: Step[R1], second: Step[R2], third: Step[R3], /) -> tuple[R1, R2, R3]: ...
    @overload
    async def all(
        self, first: Step[R1], second: Step[R2], third: Step[R3], fourth: Step[R4], /
    ) -> tuple[R1, R2, R3, R4]: ...
    @overload
    async def all(self, /, *steps: Step[R]) -> tuple[R, ...]: ...
    async def all(self, /, *steps: Step[Any]) -> tuple[Any, ...]:
        """Several steps at once: `stock, seat = await saga.all(saga.step(...), saga.step(...))`.

        When one fails, those that go on are asked to end, and StepFailed is raised without waiting for them. What they
        may have done is undone with everything else.
        """
        return await self._course.carry_out_all(steps)

    def abort(self, reason: str) -> NoReturn:
        """End the saga, undoing what it did, by raising StepFailed."""
        raise StepFailed("PEN0896", reason, address=str(self.ctx.address))


class Course:
    """See the module."""

    def __init__(self, ctx: Context[SagaRecord], plan: Plan, body: Callable[[Saga, Any], Coroutine[Any, Any, Any]]):
        self.ctx = ctx
        self._plan = plan
        self._body = body
        self._keeper = ctx._keep("call")
        self._limit = AsyncExitStack()
        self._deadline: Deadline | None = None
        self._asked: set[str] = set()
        """Names of the steps that this pass through the code has asked for."""
        self._fresh: set[str] = set()
        """Names of the steps that this run was the first to ask for."""
        self._failures = 0
        """Passes through the code that have failed although it has to succeed."""

    async def run(self, message: Any) -> Any:
        """To its end, from wherever the record says that it is. Returns `Completed` or `Compensated`, or what was kept
        of it."""
        record = self.ctx.state
        if record.ended is not None:
            return record.ended.outcome
        with self._plan.tally.watch(self.ctx):
            return await self._carry_on(message)

    async def _carry_on(self, message: Any) -> Completed[Any] | Compensated:
        record = self.ctx.state
        if record.phase is Phase.NEW:
            record.began_ms = self.ctx.now_ms
            self._enter(Phase.FORWARD if self._plan.goes_forward else Phase.RUNNING)
        if not self._keeper.is_journaled:
            self.ctx.send_after(WATCH, self.ctx.address.typename, self.ctx.id, message, token=_WATCH_TOKEN)
        while self.ctx.state.phase is not Phase.BACKWARD:
            try:
                value = await self._pass(message)
            except asyncio.CancelledError:
                if not self._keeper.is_journaled:
                    raise  # The process ends. In another one, the saga goes on from its record.
                await self._failed(Compensated("it was cancelled"), "it was cancelled")
            except Exception as error:  # noqa: BLE001  # Whatever the code of a saga raises takes it back.
                await self._failed(self._reason_of(error), str(error))
            else:
                await self._confirm()
                return self._end(Completed(value))
        await self._compensate()
        assert self.ctx.state.failure is not None, "a saga goes back for a reason"
        return self._end(self.ctx.state.failure)

    # What the code asks for.

    def declare(
        self, action: Action[M, R], id: str, message: M, name: str, timeout: str | float | timedelta | None
    ) -> Step[R]:
        stage = self._plan.stages.get(action)
        if stage is None:
            known = ", ".join(f"{each.typename} {each.name}" for each in self._plan.stages)
            raise self._misuse(
                f"asks for {action.typename} {action.name}, which it does not declare. Declared: {known}."
            )
        if not _STEP_NAME.fullmatch(name):
            raise self._misuse(f"names a step {name!r}. Use up to 100 letters, digits, and '_', '-', '.', ':'.")
        if name in self._asked:
            raise self._misuse(f"asks for {name!r} twice. Give each its own name: saga.step(..., name=...).")
        self._asked.add(name)
        return Step(self, stage, action, name, id, action.message_codec.encode(message), timeout)

    async def carry_out(self, step: Step[R]) -> R:
        record = self._noted(step)
        await self._keeper.commit()
        if not record.is_done:
            if self.ctx.state.phase is Phase.FORWARD:
                await self._insist(record, Asked.TRY)
            elif step.stage is Stage.PIVOT:
                await self._carry_out_pivot(step, record)
            else:
                await self._race([(record, self._begin(record, step.timeout))])
        return _value_of(step, record)

    async def carry_out_all(self, steps: Sequence[Step[Any]]) -> tuple[Any, ...]:
        if any(step.stage is Stage.PIVOT for step in steps):
            raise self._misuse(
                "asks for its pivot beside other steps. Await it alone: it decides what becomes of them."
            )
        records = [self._noted(step) for step in steps]
        await self._keeper.commit()
        begun = [(step, record) for step, record in zip(steps, records, strict=True) if not record.is_done]
        if self.ctx.state.phase is Phase.FORWARD:
            await asyncio.gather(*(self._insist(record, Asked.TRY) for _, record in begun))
        else:
            await self._race([(record, self._begin(record, step.timeout)) for step, record in begun])
        return tuple(_value_of(step, record) for step, record in zip(steps, records, strict=True))

    def _noted(self, step: Step[Any]) -> StepRecord:
        """The record of a step, which is about to be sent unless it was before. Raises StepFailed for one that failed
        when the code was run before, so that it does the same again."""
        if step.stage is Stage.RETRIABLE and self.ctx.state.phase is Phase.RUNNING:
            raise self._misuse(f"asks for {step.name!r} before its pivot, and nothing could undo that. Await it later.")
        steps = self.ctx.state.steps
        known = next((each for each in steps if each.name == step.name), None)
        if known is None:
            known = StepRecord(step.name, step.action.typename, step.id, step.action.name, step.message)
            steps.append(known)
            self._fresh.add(step.name)
        elif (known.typename, known.id, known.action) != (step.action.typename, step.id, step.action.name):
            raise self._misuse(
                f"asks for {step.action.typename}/{step.id} {step.action.name} as {step.name!r}, which was "
                f"{known.typename}/{known.id} {known.action} before. Give different steps different names."
            )
        elif known.phase in (StepPhase.FAILED, StepPhase.CANCELLED):
            raise self._step_failed(known)
        return known

    def _begin(self, record: StepRecord, timeout: str | float | timedelta | None) -> Durable[Any]:
        """Send the command of a step, for the first time or again."""
        try:
            return self._ask(record, Asked.TRY, timeout=timeout)
        except PenstockError:
            if record.name in self._fresh:
                self.ctx.state.steps.remove(record)  # It can't be sent, and never was: nor could what undoes it.
            raise

    async def _race(self, calls: list[tuple[StepRecord, Durable[Any]]]) -> None:
        """Wait for all, or until one fails. The others are asked to end then, and may have been done all the same."""
        begun = {call: record for record, call in calls}
        try:
            while begun:
                if len(begun) == 1:
                    with suppress(PenstockError, TimeoutError):
                        await next(iter(begun))
                elif not any(call.done() for call in begun):
                    waiting: Iterable[Any] = list(begun)  # Not futures by their type, but by what they can.
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for call in [each for each in begun if each.done()]:
                    self._conclude(begun.pop(call), call)
        finally:
            for call in begun:
                self.ctx.cancel_call(call)

    def _conclude(self, record: StepRecord, call: Durable[Any]) -> None:
        """Note what a step was answered. Raises StepFailed unless it is done."""
        try:
            verdict = msgspec.convert(call.result(), Verdict)
        except (PenstockError, TimeoutError) as error:
            record.phase, record.reason = StepPhase.FAILED, str(error)
            raise self._step_failed(record) from None
        if verdict.ruled is not Ruled.DONE:
            record.phase, record.reason = StepPhase.FAILED, verdict.reason
            raise self._step_failed(record)
        record.phase, record.answer = StepPhase.DONE, verdict.answer

    async def _carry_out_pivot(self, step: Step[Any], record: StepRecord) -> None:
        """From here on the deadline does not count: the answer decides."""
        own_s = None if step.timeout is None else parse_duration(step.timeout) / 1000
        limits_s = [each for each in (self._left_s(), own_s) if each is not None]
        await self._limit.aclose()
        call = self._begin(record, min(limits_s, default=None))
        try:
            await self._race([(record, call)])
        except StepFailed:
            await self._settle(record)
            if record.phase is StepPhase.CANCELLED:
                raise
        if not record.is_done:
            await self._insist(record, Asked.TRY)
        await self._decide()

    async def _settle(self, pivot: StepRecord) -> None:
        """Find out whether a pivot without an answer is done, or make sure that it never will be."""
        verdict = await self._insist(pivot, Asked.CANCEL, (Ruled.DONE, Ruled.STANDS, Ruled.UNFINISHED))
        if verdict.ruled is Ruled.DONE:
            pivot.phase = StepPhase.CANCELLED
            return
        if verdict.ruled is Ruled.STANDS:
            pivot.phase, pivot.answer = StepPhase.DONE, verdict.answer
        else:
            pivot.phase = StepPhase.STARTED  # It can't be undone, so it has to be finished.
        await self._decide()

    async def _decide(self) -> None:
        """From here on nothing is undone."""
        if self.ctx.state.phase is Phase.RUNNING:
            self._enter(Phase.FORWARD)
        await self._keeper.commit()

    # Through the code, and out of it.

    async def _pass(self, message: Any) -> Any:
        """Run the code once. When it returns, all is decided."""
        self._asked.clear()
        self._deadline = None
        async with AsyncExitStack() as self._limit:
            if self.ctx.state.phase is Phase.RUNNING and (left_s := self._left_s()) is not None:
                if left_s == 0:
                    raise StepFailed("PEN0896", self._overdue, address=str(self.ctx.address))
                self._deadline = await self._limit.enter_async_context(self.ctx.timeout(left_s))
            value = await self._body(Saga(self), message)
            self._check_begun()
        await self._decide()
        return value

    def _check_begun(self) -> None:
        never = self._asked - {record.name for record in self.ctx.state.steps}
        if never:
            raise self._misuse(
                f"has asked for {', '.join(sorted(never))} and never awaited it. Write await saga.step(...)."
            )

    async def _failed(self, failure: Compensated, reason: str) -> None:
        """The code has failed: go back, or if that can't be, wait and run it again."""
        if self.ctx.state.phase is Phase.RUNNING:
            await self._turn_back(failure)
        if self.ctx.state.phase is Phase.FORWARD:
            self._failures += 1
            await self._again("", Asked.TRY, self._failures, reason)

    async def _turn_back(self, failure: Compensated) -> None:
        """Go back, unless the pivot turns out to be done."""
        for record in self.ctx.state.steps:
            if record.phase is StepPhase.STARTED and self._plan.stage_of(record) is Stage.PIVOT:
                await self._settle(record)
        if self.ctx.state.phase is Phase.RUNNING:
            self.ctx.state.failure = failure
            self._enter(Phase.BACKWARD)
            await self._keeper.commit()

    def _reason_of(self, error: Exception) -> Compensated:
        if isinstance(error, StepFailed):
            return Compensated(error.message, error.step)
        if self._deadline is not None and self._deadline.passed:
            return Compensated(self._overdue)
        if not self._keeper.replaying:
            self.ctx.log.error("The code of a saga has failed, and what it did is undone.", exc_info=error)
        return Compensated(f"{type(error).__name__}: {error}")

    async def _compensate(self) -> None:
        """Undo whatever was started, the last one first."""
        for record in reversed(self.ctx.state.steps):
            if record.phase is not StepPhase.CANCELLED:
                await self._insist(record, Asked.CANCEL)
                record.phase = StepPhase.CANCELLED
                await self._keeper.commit()

    async def _confirm(self) -> None:
        """Make final what was done. What failed, and was not missed, is undone; what was not waited for is finished."""
        for record in self.ctx.state.steps:
            if record.phase in (StepPhase.FAILED, StepPhase.STARTED):
                if self._plan.stage_of(record) is Stage.COMPENSABLE:
                    await self._insist(record, Asked.CANCEL)
                    record.phase = StepPhase.CANCELLED
                else:
                    await self._insist(record, Asked.TRY)
            if record.phase is StepPhase.DONE:
                action = self._plan.action_of(record)
                if action is not None and action.confirm is not None:
                    await self._insist(record, Asked.CONFIRM)
                else:  # Nobody waits for what only lets the fence forget its row.
                    self.ctx.send(record.typename, record.id, self._command(record, Asked.CONFIRM))
                record.phase = StepPhase.CONFIRMED

    def _end(self, outcome: Completed[Any] | Compensated) -> Completed[Any] | Compensated:
        record = self.ctx.state
        self._enter(Phase.NEW)
        record.ended = Ended(outcome, {step.name: step.phase for step in record.steps})
        record.steps, record.failure, record.trouble, record.began_ms = [], None, None, 0
        if not self._keeper.replaying:
            self._plan.tally.ended[type(outcome).__name__.lower()] += 1
        if not self._keeper.is_journaled:
            self.ctx.cancel(_WATCH_TOKEN)
        return outcome

    # Asking.

    def _command(self, record: StepRecord, asked: Asked) -> Command:
        return Command(asked, record.action, str(self.ctx.address), record.name, record.message)

    def _ask(
        self,
        record: StepRecord,
        asked: Asked,
        *,
        timeout: str | float | timedelta | None = None,
        detached: bool = False,
    ) -> Durable[Any]:
        return self.ctx.call(
            record.typename, record.id, self._command(record, asked), timeout=timeout, detached=detached
        )

    async def _insist(self, record: StepRecord, asked: Asked, final: Iterable[Ruled] = (Ruled.DONE,)) -> Verdict:
        """Ask until the answer is one of `final`, whoever gives up waiting for the saga meanwhile."""
        tries = 0
        while True:
            try:
                verdict = msgspec.convert(await self._ask(record, asked, detached=True), Verdict)
                if verdict.ruled in final:
                    self._untroubled(record.name)
                    if asked is Asked.TRY:
                        record.phase, record.answer = StepPhase.DONE, verdict.answer
                    return verdict
                reason = verdict.reason or f"it is {verdict.ruled}"
            except (PenstockError, TimeoutError) as error:
                reason = str(error)
            except asyncio.CancelledError:
                if not self._keeper.is_journaled:
                    raise
                continue  # Somebody wants the saga to end, and this is on the way there.
            tries += 1
            await self._again(record.name, asked, tries, reason)

    async def _again(self, step: str, asked: Asked, tries: int, reason: str) -> None:
        """Say that something has failed, if that is due, and wait before it is tried again."""
        if not self._keeper.replaying:
            self._plan.tally.retries += 1
        if tries % self._plan.alert_after == 0:
            self._alert(SagaAlert(str(self.ctx.address), step, asked, tries, reason))
            await self._keeper.commit()
        try:
            await self.ctx.sleep(self._plan.retry.wait_ms(tries) / 1000)
        except asyncio.CancelledError:
            if not self._keeper.is_journaled:
                raise

    def _alert(self, alert: SagaAlert) -> None:
        self.ctx.state.trouble = alert
        if not self._keeper.replaying:
            what = f"{alert.asked} of step {alert.step}" if alert.step else "What it does after its pivot"
            text = "PEN0897 %s has failed %d times: %s It is tried again."
            self.ctx.log.error(text, what, alert.tries, alert.reason)
        if self._plan.alert is not None:
            self.ctx.send(self._plan.alert, self.ctx.id, alert)

    def _untroubled(self, step: str) -> None:
        trouble = self.ctx.state.trouble
        if trouble is not None and trouble.step == step:
            self.ctx.state.trouble = None

    # What it is and how far.

    def _enter(self, phase: Phase) -> None:
        record = self.ctx.state
        assert phase in MOVES[record.phase], f"{self.ctx.address} can't go from {record.phase} to {phase}"
        record.phase = phase

    def _left_s(self) -> float | None:
        """Until the deadline; 0 when it has passed."""
        if self._plan.deadline_ms is None:
            return None
        passed_ms = self.ctx.now_ms - self.ctx.state.began_ms
        return max(0, self._plan.deadline_ms - passed_ms) / 1000

    @property
    def _overdue(self) -> str:
        return f"it was not done within {format_duration(self._plan.deadline_ms or 0)}"

    def _step_failed(self, record: StepRecord) -> StepFailed:
        return StepFailed("PEN0896", record.reason, address=str(self.ctx.address), step=record.name)

    def _misuse(self, what: str) -> InvalidInput:
        return InvalidInput("PEN0895", f"{self.ctx.address} {what}")


def _value_of(step: Step[R], record: StepRecord) -> R:
    value: R = read_answer(step.action.answer_codec, f"{record.typename}/{record.id}", record.answer)
    return value
