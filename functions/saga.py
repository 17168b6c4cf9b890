"""What `@app.saga("shop/checkout", steps=[...])` makes of a handler: a function that is done as a whole, or undone.

What always holds: a saga that was declared without an error can be taken back wherever that may be needed: each step
before the pivot has a compensation, and all of its participants are functions of the application.

    steps     before the pivot, each with a compensation      \\
    pivot     decides: once it is done, nothing is undone      > each an action of a participant
    then      after it, tried until they succeed              /

Runs nothing: `penstock.functions.saga_course` does.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import Any, Literal, Protocol, TypeVar, get_args

from penstock.durations import parse_duration
from penstock.functions.durable import Retry
from penstock.functions.function import Function
from penstock.functions.participant import Action
from penstock.functions.saga_course import Course, Plan, Saga, Stage
from penstock.functions.saga_record import Compensated, Completed, SagaAlert, SagaRecord
from penstock.functions.saga_tally import Tally
from penstock.functions.types import Codec, type_text

M = TypeVar("M")
R = TypeVar("R")

Recovery = Literal["backward", "forward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaOptions:
    """What is said of a saga besides its code. See `App.saga`."""

    steps: Sequence[Action[Any, Any]]
    pivot: Action[Any, Any] | None
    then: Sequence[Action[Any, Any]]
    recovery: Recovery
    deadline: str | float | timedelta | None
    backoff: str | float
    backoff_max: str | float
    alert_after: int
    alert: Function[Any, Any] | None


class SagaDecorator(Protocol):
    """Makes a function of the code of a saga."""

    def __call__(self, handler: Callable[[Saga, M], Awaitable[R]], /) -> Function[M, Completed[R] | Compensated]: ...


class SagaFunction(Function[Any, Any]):
    """The function that a saga is: one saga for each id."""

    def declare(self, options: SagaOptions, functions: Mapping[str, Function[Any, Any]]) -> None:
        """Take in what is said of the saga. Raises ConfigurationError when it could not be taken back."""
        if not inspect.iscoroutinefunction(self.handler):
            self._refuse("PEN0894", "is the code of a saga, which awaits its steps. Declare it with async def.")
        self.alert = options.alert
        self.tally = Tally()
        plan = self._plan(options)
        for action, stage in plan.stages.items():
            self._check_action(action, stage, functions)
        self.handler = _runner(plan, self.handler)

    def check(self, functions: Mapping[str, Function[Any, Any]]) -> None:
        """Raise ConfigurationError when alerts can't be sent. To be called when the application starts."""
        if self.alert is None:
            return
        if functions.get(self.alert.typename) is not self.alert:
            self._refuse("PEN0891", f"has alert={self.alert!r}, which is no function of this application.")
        types = self.alert.message_codec.types
        if types and SagaAlert not in types:
            self._refuse(
                "PEN0893",
                f"has alert={self.alert!r}, which takes {self.alert.message_codec.name}. Let it take a SagaAlert.",
            )

    def _plan(self, options: SagaOptions) -> Plan:
        forward = options.recovery == "forward"
        if options.recovery not in get_args(Recovery):
            self._refuse("PEN0893", f"has recovery={options.recovery!r}. Use 'backward' or 'forward'.")
        if forward and (options.pivot is not None or options.then):
            self._refuse(
                "PEN0893",
                "has a pivot, or steps behind it, and recovery='forward', by which nothing is undone anyway. Give all "
                "as steps=, or leave recovery out.",
            )
        if forward and options.deadline is not None:
            self._refuse(
                "PEN0893",
                "has a deadline and recovery='forward': it can't be given up when the time is over. Leave one out.",
            )
        if options.then and options.pivot is None:
            self._refuse("PEN0893", "has steps in then=, and no pivot before them. Name it: pivot=...")
        if type(options.alert_after) is not int or options.alert_after < 1:
            self._refuse("PEN0893", f"has alert_after={options.alert_after!r}. Give a number of tries from 1 up.")
        staged = [(each, Stage.RETRIABLE if forward else Stage.COMPENSABLE) for each in options.steps]
        staged += [(options.pivot, Stage.PIVOT)] if options.pivot is not None else []
        staged += [(each, Stage.RETRIABLE) for each in options.then]
        retry = Retry(backoff=options.backoff, backoff_max=options.backoff_max)
        retry.wait_ms(1)
        return Plan(
            self._staged_once(staged),
            forward,
            None if options.deadline is None else parse_duration(options.deadline),
            retry,
            options.alert_after,
            options.alert,
            self.tally,
        )

    def _staged_once(self, staged: Sequence[tuple[Action[Any, Any], Stage]]) -> dict[Action[Any, Any], Stage]:
        if not staged:
            self._refuse("PEN0893", "has no steps. Name what it can ask for: @app.saga(..., steps=[...]).")
        stages: dict[Action[Any, Any], Stage] = {}
        for action, stage in staged:
            if not isinstance(action, Action):
                self._refuse(
                    "PEN0891",
                    f"has {action!r} as a step, which is no action of a participant. Declare it with "
                    "@participant.action.",
                )
            if action in stages:
                self._refuse(
                    "PEN0893", f"names {action!r} twice. An action has one place: before, at or after the pivot."
                )
            stages[action] = stage
        return stages

    def _check_action(
        self, action: Action[Any, Any], stage: Stage, functions: Mapping[str, Function[Any, Any]]
    ) -> None:
        if functions.get(action.typename) is not action.participant:
            self._refuse(
                "PEN0891",
                f"asks for {action!r}, whose participant is not of this application. Declare it with app.participant.",
            )
        if stage is Stage.COMPENSABLE and action.cancel is None:
            self._refuse(
                "PEN0892",
                f"asks for {action!r} before its pivot, and nothing undoes that. Declare @{action.name}.compensation "
                "above the saga, or make the action the pivot, or one of then=.",
            )

    def _state_class(self, parameter: str, annotation: Any) -> Any:
        if annotation not in (Saga, Any):
            self._refuse(
                "PEN0894",
                f"has {type_text(annotation)} as its first parameter {parameter}, which is a Saga. Write "
                f"{parameter}: Saga.",
            )
        return SagaRecord

    def _answer_codec(self, annotation: Any) -> Codec[Any]:
        return self._codec("the return value", Completed[annotation] | Compensated)


def _runner(plan: Plan, body: Callable[..., Any]) -> Callable[..., Any]:
    """What the runtime calls for the code of a saga."""

    @wraps(body)
    async def run(ctx: Any, message: Any) -> Any:
        return await Course(ctx, plan, body).run(message)

    return run
