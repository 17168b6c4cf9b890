"""The application: which functions there are, what comes in, and what goes out.

An `App` is a description. Declaring checks what can be checked at once; `check` does the rest when the application
starts, when every annotation can be resolved. It opens nothing and runs nothing: `penstock run`, the test harness and
the tools read it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast, overload

from penstock.durations import parse_duration
from penstock.errors import ConfigurationError
from penstock.functions.cron import Cron
from penstock.functions.decorator import FunctionDecorator, ScheduleDecorator
from penstock.functions.fence import FencedState
from penstock.functions.function import DEFAULT_OPTIONS, Function, FunctionOptions, OnFailure
from penstock.functions.io import EgressSpec, IngressSpec
from penstock.functions.participant import Action, Participant, location_of_caller
from penstock.functions.saga import Recovery, SagaDecorator, SagaFunction, SagaOptions
from penstock.functions.saga_record import SagaAlert
from penstock.functions.schedule import Missed, Schedule, Scheduled
from penstock.functions.state import expirations_of
from penstock.functions.storage import Value
from penstock.ids import check_typename

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
Migration = Callable[[dict[str, Any]], Any]
M = TypeVar("M", bound=Migration)
T = TypeVar("T")
P = TypeVar("P", bound=FencedState)


@dataclass(frozen=True, slots=True, eq=False)
class Ingress:
    """A declared entry: what is read, and to which addresses its records go."""

    name: str
    spec: IngressSpec
    to: Function[Any, Any] | str | None
    key: str | Callable[[Any], Any] | None
    router: Callable[[Any], Iterable[Any]] | None


@dataclass(frozen=True, slots=True, eq=False)
class Egress:
    """A declared exit, as `ctx.emit` takes it."""

    name: str
    spec: EgressSpec


class App:
    """An application named `name`, which also names its data directory and its topics.

    Raises ConfigurationError for a name that is not 1 to 64 lower-case letters, digits, `-` and `_`.
    """

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                "PEN0100",
                f"App({name!r}): a name is 1 to 64 lower-case letters, digits, '-' and '_', because directories and "
                "topics are named after it.",
            )
        self.name = name
        self.functions: dict[str, Function[Any, Any]] = {}
        self.ingresses: dict[str, Ingress] = {}
        self.egresses: dict[str, Egress] = {}
        self.migrations: dict[str, Migration] = {}
        self.schedules: dict[str, Schedule] = {}

    def function(
        self,
        typename: str,
        *,
        attempts: int = DEFAULT_OPTIONS.attempts,
        backoff: str | float | timedelta = DEFAULT_OPTIONS.backoff,
        backoff_max: str | float | timedelta = DEFAULT_OPTIONS.backoff_max,
        on_failure: OnFailure = DEFAULT_OPTIONS.on_failure,
        storage: Mapping[str, Value[Any]] | None = None,
        reads_only: bool = False,
        state_of: Function[Any, Any] | None = None,
        reentrant: bool = False,
    ) -> FunctionDecorator:
        """Declare the decorated handler as the function `typename` (`namespace/name`).

        A message whose handler raises is tried `attempts` times in all, with a wait that grows from `backoff` to
        `backoff_max`; then it becomes a dead letter, or the application stops (`on_failure="halt"`). `storage`
        declares named values for `ctx.storage`, the dynamic form of state.

        With `reads_only` the handler answers from what is stored, and changes, sends and emits nothing. With
        `state_of`, too, it reads the state that another function has under the same id, also while a handler that
        waits holds it: as that has left it at its last await.

        With `reentrant`, a call that comes back to an address through those it waits for, which is a cycle and refused
        otherwise, runs there between two segments of the handler that waits, and must end without waiting itself.

        Raises ConfigurationError when the name is taken, or the handler can't be one.
        """
        options = FunctionOptions(
            attempts=attempts,
            backoff=backoff,
            backoff_max=backoff_max,
            on_failure=on_failure,
            storage=dict(storage or {}),
            reads_only=reads_only,
            state_of=state_of,
            reentrant=reentrant,
        )
        names = sys._getframe(1).f_locals

        def declare(handler: Callable[..., Any]) -> Function[Any, Any]:
            function = Function.from_handler(typename, handler, options, names=names)
            self._add(function)
            return function

        return cast("FunctionDecorator", declare)

    def participant(
        self,
        typename: str,
        state: type[P],
        *,
        attempts: int = DEFAULT_OPTIONS.attempts,
        backoff: str | float | timedelta = DEFAULT_OPTIONS.backoff,
        backoff_max: str | float | timedelta = DEFAULT_OPTIONS.backoff_max,
        on_failure: OnFailure = DEFAULT_OPTIONS.on_failure,
        fence_kept: str | float | timedelta = "1d",
    ) -> Participant[P]:
        """Declare a function that takes part in sagas: `shelf = app.participant("shop/shelf", Shelf)`.

        Its handlers are added by `@shelf.action` and `@shelf.message`. What happens when one raises is as for
        `App.function`. What the fence remembers of a step is forgotten `fence_kept` after its saga was decided: that
        must be longer than a message may be under way.

        Raises ConfigurationError when the name is taken, or `state` is not derived from FencedState.
        """
        options = FunctionOptions(attempts=attempts, backoff=backoff, backoff_max=backoff_max, on_failure=on_failure)
        check_typename(typename)
        participant = Participant(
            typename, state, options, fence_kept_ms=parse_duration(fence_kept), location=location_of_caller(1)
        )
        self._add(participant)
        return participant

    def saga(
        self,
        typename: str,
        *,
        steps: Sequence[Action[Any, Any]] = (),
        pivot: Action[Any, Any] | None = None,
        then: Sequence[Action[Any, Any]] = (),
        recovery: Recovery = "backward",
        deadline: str | float | timedelta | None = None,
        backoff: str | float = "1s",
        backoff_max: str | float = "5m",
        alert_after: int = 5,
        alert: Function[SagaAlert, Any] | None = None,
    ) -> SagaDecorator:
        """Declare the decorated code as the saga `typename`, one for each id. All it can ask for is named here.

        `steps` come before the pivot and have a compensation each; when something fails, or the `deadline` passes, what
        was started is undone, the last one first. Once the `pivot` is done, or the code has returned, nothing is undone
        any more: the actions of `then` are tried until they succeed. With `recovery="forward"` all are, from the start.

        What has to succeed is tried again after `backoff`, which doubles up to `backoff_max`, for as long as it takes.
        After every `alert_after` tries that is logged, and sent to the function `alert` as a SagaAlert.

        Raises ConfigurationError when the name is taken, a step before the pivot has no compensation, an action is none
        of this application, or the options contradict one another.
        """
        options = SagaOptions(
            steps=steps,
            pivot=pivot,
            then=then,
            recovery=recovery,
            deadline=deadline,
            backoff=backoff,
            backoff_max=backoff_max,
            alert_after=alert_after,
            alert=alert,
        )
        names = sys._getframe(1).f_locals

        def declare(handler: Callable[..., Any]) -> Function[Any, Any]:
            function = SagaFunction.from_handler(typename, handler, names=names)
            assert isinstance(function, SagaFunction)
            function.declare(options, self.functions)
            self._add(function)
            return function

        return cast("SagaDecorator", declare)

    def _add(self, function: Function[Any, Any]) -> None:
        known = self.functions.get(function.typename)
        if known is not None:
            raise ConfigurationError(
                "PEN0103",
                f"{function.typename} is declared twice: {known.location} and {function.location}. One typename names "
                "one function. Rename one, or remove the import of the other.",
            )
        self.functions[function.typename] = function

    def ingress(
        self,
        spec: IngressSpec,
        *,
        to: Function[Any, Any] | str | None = None,
        key: str | Callable[[Any], Any] | None = None,
        router: Callable[[Any], Iterable[Any]] | None = None,
        name: str | None = None,
    ) -> Ingress:
        """Read records from `spec`.

        Either all go to the function `to`, under the id that `key` gives (the name of a field, or a function of the
        record); or `router` gives for each record any number of `(function, id, message)`. The name is what positions
        are stored under: it defaults to `ingress-1`, `ingress-2`, ... in the order of declaration.

        Raises ConfigurationError when the name is taken.
        """
        name = name or f"ingress-{len(self.ingresses) + 1}"
        if name in self.ingresses:
            raise ConfigurationError(
                "PEN0120", f"Ingress {name!r} is declared twice. Positions are stored by name: give each its own."
            )
        self.ingresses[name] = Ingress(name, spec, to, key, router)
        return self.ingresses[name]

    def egress(self, name: str, spec: EgressSpec) -> Egress:
        """Declare the exit `name` (`namespace/name`). Returns what `ctx.emit` takes.

        Raises ConfigurationError when the name is taken or is no typename.
        """
        check_typename(name)
        if name in self.egresses:
            raise ConfigurationError("PEN0121", f"Egress {name!r} is declared twice. Use the one object for both.")
        self.egresses[name] = Egress(name, spec)
        return self.egresses[name]

    @overload
    def schedule(
        self,
        cron: str,
        function: Function[Scheduled, Any],
        /,
        *,
        tz: str = ...,
        id: str = ...,
        name: str = ...,
        missed: Missed = ...,
    ) -> Schedule: ...
    @overload
    def schedule(
        self,
        cron: str,
        function: Function[T, Any],
        /,
        *,
        message: T,
        tz: str = ...,
        id: str = ...,
        name: str = ...,
        missed: Missed = ...,
    ) -> Schedule: ...
    @overload
    def schedule(
        self,
        cron: str,
        /,
        *,
        message: Any = ...,
        tz: str = ...,
        id: str = ...,
        name: str = ...,
        missed: Missed = ...,
    ) -> ScheduleDecorator: ...
    def schedule(
        self,
        cron: str,
        function: Function[Any, Any] | None = None,
        /,
        *,
        message: Any = None,
        tz: str = "UTC",
        id: str = "schedule",
        name: str = "",
        missed: Missed = "run-once",
    ) -> Schedule | ScheduleDecorator:
        """Let a function run whenever `cron` is due by the clocks of `tz`: `app.schedule("0 2 * * *", report)`.

        Each time, the address of `function` and `id` is sent `message`, or else a `Scheduled` that says which time it
        is for; the header `penstock-due` says so, too. Every time that is due is sent once, whatever crashes.
        `missed` decides about those that are found to be over, because nothing ran: the last of them is made up for
        ("run-once"), or each ("all"), or none that is more than a minute late ("skip").

        What is known of a schedule, when it is due next and whether it is paused, is kept under its `name`, which is
        that of the address if none is given: changing the expression goes on from the present, another name is another
        schedule. Without `function` it is a decorator, written above `@app.function`.

        Raises ConfigurationError when the expression or the time zone is none, or the name is taken.
        """
        if function is not None:
            return self._add_schedule(cron, function, message, tz, id, name, missed)

        def declare(function: Function[Any, Any]) -> Function[Any, Any]:
            if not isinstance(function, Function):
                raise ConfigurationError(
                    "PEN0127",
                    f"@app.schedule({cron!r}) decorates {function!r}, which is no function of the application yet. "
                    "Write it above @app.function, not below.",
                )
            self._add_schedule(cron, function, message, tz, id, name, missed)
            return function

        return cast("ScheduleDecorator", declare)

    def _add_schedule(
        self, cron: str, function: Function[Any, Any], message: Any, tz: str, id: str, name: str, missed: Missed
    ) -> Schedule:
        name = name or f"{function.typename}/{id}"
        schedule = Schedule(name, Cron(cron, tz, place=f"Schedule {name}"), function.typename, id, message, missed)
        if name in self.schedules:
            raise ConfigurationError(
                "PEN0124",
                f"Schedule {name!r} is declared twice. What is due next is stored by name: give each its own name=.",
            )
        self.schedules[name] = schedule
        return schedule

    def migrate(self, typename: str) -> Callable[[M], M]:
        """Declare how the stored state of `typename` becomes what its handler takes now.

        The decorated function gets one state as a dictionary, as it was stored, and returns a dictionary or an instance
        of the new class. It runs once for every address, when the application starts on a checkpoint whose shape
        differs; until the next checkpoint is complete, nothing has changed.
        """

        def declare(migration: M) -> M:
            self.migrations[typename] = migration
            return migration

        return declare

    def check(self) -> None:
        """Raise ConfigurationError unless everything declared can be run."""
        for function in self.functions.values():
            function.resolve()
            if isinstance(function, SagaFunction):
                function.check(self.functions)
        for typename in self.migrations:
            if typename not in self.functions:
                raise ConfigurationError(
                    "PEN0122", f"A migration is declared for {typename}, which is no function of this application."
                )
        for schedule in self.schedules.values():
            schedule.check(self.functions.get(schedule.typename))

    def fingerprints(self) -> dict[str, dict[str, object]]:
        """Function -> code fingerprint, shape of its state, and whether fields of it expire: what checkpoints
        record."""
        return {
            typename: {
                "code": function.fingerprint,
                "state": function.state_shape(),
                "expires": bool(expirations_of(function.state)),
            }
            for typename, function in self.functions.items()
        }
