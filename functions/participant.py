"""What a saga calls: a function whose work can be tried, and then confirmed or cancelled, behind a fence.

What always holds: user code runs when the fence says so and never otherwise; the row of the fence changes in the same
invocation as what the code changes. Forward work is known to the fence before it begins, and what confirms or cancels
it afterwards: so work that awaits, and fails half-way, is undone, and an undoing that fails half-way is done again.

A participant is a `Function` like any other: it also takes ordinary messages. When which command is sent is for
`penstock.functions.saga`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from datetime import timedelta
from functools import cached_property, partial, reduce
from hashlib import sha256
from operator import or_
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, NoReturn, TypeVar, get_args, overload

import msgspec

from penstock.durations import format_duration
from penstock.errors import ConfigurationError, InvalidInput
from penstock.functions import relay
from penstock.functions.answers import encode_answer
from penstock.functions.commands import Command, Hop, Ruled, Sweep, Verdict, Watch
from penstock.functions.context import Context
from penstock.functions.fence import Asked, Fence, FencedState, FenceRow, Phase, Ruling, rule
from penstock.functions.function import Function, FunctionOptions, HandlerTypes
from penstock.functions.relay import Branch
from penstock.functions.saga_record import SagaAlert
from penstock.functions.state import check_state_class
from penstock.functions.types import Codec, codec_for, type_text

S = TypeVar("S", bound=FencedState)
M = TypeVar("M")
R = TypeVar("R")
M_contra = TypeVar("M_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
H = TypeVar("H", bound=Callable[..., Any])

KEPT_MS_MAX: Final = 6 * 86_400_000
"""How long rows of the fence are kept at most: less than what a saga ended with, which is kept for a week. Otherwise a
saga that is begun again under an old id would be answered by the rows of the old one."""


class Declined(msgspec.Struct, frozen=True):
    """What an action returns when it can't be done, having changed nothing: `return Declined("sold out")`."""

    reason: str


class Action(Generic[M_contra, R_co]):
    """Work of a participant that a saga can ask for by a message, and that has an answer.

    Calling it runs the plain handler, for a test.
    """

    def __init__(self, participant: Participant[Any], name: str, forward: _Handler) -> None:
        self.participant = participant
        self.name = name
        self.forward = forward
        self.cancel: _Handler | None = None
        self.confirm: _Handler | None = None

    def compensation(self, handler: H) -> H:
        """What undoes it: `@reserve.compensation`, above a handler that takes the same message.

        It runs after the action was done, once; if it raises, it is tried again until it succeeds.
        """
        self.cancel = self._added(self.cancel, "compensation", handler, sys._getframe(1).f_locals)
        return handler

    def confirmation(self, handler: H) -> H:
        """What makes it final when the whole saga has succeeded: `@reserve.confirmation`. The action is the try of
        TCC then, and its compensation the cancel."""
        self.confirm = self._added(self.confirm, "confirmation", handler, sys._getframe(1).f_locals)
        return handler

    def begin(
        self,
        ctx: Context[Any],
        id: str,
        message: M_contra,
        *,
        saga: str,
        watch: str | float | timedelta = "1h",
        alert: Function[SagaAlert, Any] | None = None,
    ) -> None:
        """Begin a saga that its participants hand on, each to the next, by `branch.hand_on(...)`.

        It is named `saga`, which must name no other. The one that does not hand it on is the last, and everything is
        confirmed; when one declines, those before it are compensated, the last one first. Nobody is told how it ended,
        unless an action, a confirmation or a compensation tells. Each `watch` after which it has not ended, that is
        logged, and `alert` is sent a SagaAlert, under the saga's name.

        Raises as `ctx.send` does.
        """
        relay.begin(ctx, self, id, message, saga=saga, watch=watch, alert=alert)

    @property
    def typename(self) -> str:
        return self.participant.typename

    @property
    def message_codec(self) -> Codec[Any]:
        return self.forward.message_codec

    @property
    def answer_codec(self) -> Codec[Any]:
        return self.forward.reply_codec

    @property
    def handlers(self) -> list[_Handler]:
        return [each for each in (self.forward, self.confirm, self.cancel) if each is not None]

    def __call__(self, context: Any, message: M_contra, *branch: Branch) -> Any:
        return self.forward.plain(context, message, *branch)

    def __repr__(self) -> str:
        return f"<Action {self.typename} {self.name} {self.forward.location}>"

    def _added(self, known: _Handler | None, what: str, handler: Callable[..., Any], names: Mapping[str, Any]) -> Any:
        if known is not None:
            _refuse_double(self.typename, f"a {what} of {self.name}", known, _Handler.of(self.typename, handler, names))
        return self.participant.checked(_Handler.of(self.typename, handler, names))


class Participant(Function[Any, Any], Generic[S]):
    """A function that takes part in sagas, declared by `app.participant("shop/shelf", Shelf)`.

    Its handlers are added by decorators: `@shelf.action` for what sagas can ask, `@shelf.message` for what anybody can
    send.
    """

    def __init__(
        self, typename: str, state: type[S], options: FunctionOptions, *, fence_kept_ms: int, location: str
    ) -> None:
        """Use `App.participant`, which says what can be given."""
        super().__init__(typename, self._handle, options)
        self.location = location
        self.fence_kept_ms = fence_kept_ms
        self._state = state
        self._actions: dict[str, Action[Any, Any]] = {}
        self._messages: list[_Handler] = []
        self._check_state(state)
        if not 60_000 <= fence_kept_ms <= KEPT_MS_MAX:
            raise ConfigurationError(
                "PEN0893",
                f"{typename} ({location}) keeps rows of the fence for {format_duration(fence_kept_ms)}. Keep them for "
                "longer than a message may be under way after its saga has ended, and for 1m to 6d.",
            )

    @overload
    def action(self, handler: Callable[[Context[S], M], Awaitable[R | Declined]], /) -> Action[M, R]: ...
    @overload
    def action(self, handler: Callable[[Context[S], M, Branch], Awaitable[R | Declined]], /) -> Action[M, R]: ...
    @overload
    def action(self, handler: Callable[[Context[S], M], R | Declined], /) -> Action[M, R]: ...
    @overload
    def action(self, handler: Callable[[Context[S], M, Branch], R | Declined], /) -> Action[M, R]: ...
    def action(self, handler: Callable[..., Any], /) -> Action[Any, Any]:
        """Declare the decorated handler as an action, under its own name: sagas that are open find it by that.

        It returns its answer, or `Declined(reason)` when it can't be done. A third parameter `branch` is given which
        step of which saga it is. One that raises is tried again, and then counts as failed.

        Raises ConfigurationError when there is one of that name, or the handler can't be one.
        """
        forward = self.checked(_Handler.of(self.typename, handler, sys._getframe(1).f_locals))
        name = handler.__name__
        if name in self._actions:
            _refuse_double(self.typename, f"an action {name}", self._actions[name].forward, forward)
        self._actions[name] = Action(self, name, forward)
        return self._actions[name]

    def message(self, handler: H) -> H:
        """Declare the decorated handler as what runs for ordinary messages, those of the type it takes.

        Raises ConfigurationError when the handler can't be one.
        """
        self._messages.append(self.checked(_Handler.of(self.typename, handler, sys._getframe(1).f_locals)))
        return handler

    # As the runtime sees it.

    @cached_property
    def types(self) -> HandlerTypes:
        for handler in self._handlers:
            handler.resolve()
            self.checked(handler)
        taken = _union((Command, Sweep, Watch, *(each.message_annotation for each in self._messages)))
        return HandlerTypes(
            state=self._state,
            state_codec=codec_for(self._state),
            message_codec=self._codec("what its handlers take", taken),
            reply_codec=codec_for(Any),  # A verdict, or what a handler of messages returns.
        )

    @cached_property
    def is_async(self) -> bool:
        return any(handler.is_async for handler in self._handlers)

    @cached_property
    def fingerprint(self) -> str:
        content = msgspec.json.encode([handler.fingerprint for handler in self._handlers])
        return sha256(content).hexdigest()[:16]

    @property
    def _handlers(self) -> list[_Handler]:
        return [*self._messages, *(handler for action in self._actions.values() for handler in action.handlers)]

    @cached_property
    def _by_type(self) -> dict[type, _Handler]:
        found: dict[type, _Handler] = {}
        for handler in self._messages:
            for kind in handler.message_codec.types:
                if kind in found:
                    _refuse_double(self.typename, f"a handler of {kind.__name__}", found[kind], handler)
                found[kind] = handler
        return found

    def checked(self, handler: _Handler) -> _Handler:
        """The handler itself. Raises ConfigurationError when its context is that of another state."""
        state = handler.state_if_known
        if state is not None and not issubclass(self._state, state):
            raise ConfigurationError(
                "PEN0890",
                f"{self.typename} ({handler.location}) takes Context[{type_text(state)}], and the state of the "
                f"participant is {type_text(self._state)}. Write Context[{type_text(self._state)}].",
            )
        return handler

    def resolve(self) -> None:
        super().resolve()
        assert self._by_type is not None

    def _check_state(self, state: Any) -> None:
        if not (isinstance(state, type) and issubclass(state, FencedState)):
            raise ConfigurationError(
                "PEN0890",
                f"{self.typename} ({self.location}) has {type_text(state)} as its state, which has no place for the "
                f"fence. Write class {type_text(state)}(FencedState): what a saga asked for is remembered beside what "
                "it changed.",
            )
        check_state_class(state)

    def _handle(self, ctx: Context[S], message: Any) -> Any:
        work = self._work(ctx, message)
        return _awaiting(work) if self.is_async else _at_once(work)

    def _work(self, ctx: Context[S], message: Any) -> Generator[Any, Any, Any]:
        """What a message leads to. Yields what user code has returned, to be sent its value."""
        match message:
            case Command(asked):
                action = self._actions.get(message.action)
                if action is None:
                    raise self._unknown(ctx, message)
                branch = self._branch(ctx, message, action)
                row = Fence(ctx.state).find(branch.key)
                ruling = rule(asked, None if row is None else row.phase).ruling
                steps = {Asked.TRY: _try, Asked.CONFIRM: _confirm, Asked.CANCEL: _cancel}
                verdict = yield from steps[asked](ctx, _Case(self, action, branch, message.message, row, ruling))
                if message.trail is not None:
                    relay.pass_on(ctx, message, branch, verdict, ran=row is None or row.answer is None)
                return verdict
            case Sweep():
                self._sweep(ctx)
                return None
            case Watch():
                relay.look(ctx, message, Fence(ctx.state).find(Branch(message.saga, message.step).key))
                return None
            case _:
                return (yield self._by_type[type(message)].plain(ctx, message))

    def _branch(self, ctx: Context[S], command: Command, action: Action[Any, Any]) -> Branch:
        if command.trail is None:
            return Branch(command.saga, command.step)
        own = Hop(self.typename, ctx.id, action.name, command.step, command.message)
        trail = relay.Trail(command.trail, own, can_go_back=action.cancel is not None)
        return Branch(command.saga, command.step, trail)

    def decide(self, ctx: Context[S], branch: Branch, phase: Phase) -> None:
        """A branch has come to its end: note it, and that it is to be forgotten."""
        if Fence(ctx.state).decide(branch.key, phase, ctx.now_ms):
            ctx.send_after(self.fence_kept_ms / 1000, self, ctx.id, Sweep())

    def _sweep(self, ctx: Context[S]) -> None:
        following_ms = Fence(ctx.state).sweep(ctx.now_ms - self.fence_kept_ms)
        if following_ms is not None:
            due_ms = max(0, following_ms + self.fence_kept_ms - ctx.now_ms)
            ctx.send_after(due_ms / 1000, self, ctx.id, Sweep())

    def _unknown(self, ctx: Context[S], command: Command) -> InvalidInput:
        known = ", ".join(self._actions) or "none"
        return InvalidInput(
            "PEN0898",
            f"{ctx.address} is asked by {command.saga} for {command.action}, which is no action of it. Known: {known}. "
            "Keep an action, under its name, until the sagas that have asked for it have ended.",
        )


class _Case(NamedTuple):
    """A command, and how the fence rules."""

    participant: Participant[Any]
    action: Action[Any, Any]
    branch: Branch
    message: bytes
    row: FenceRow | None
    ruling: Ruling

    def run(self, handler: _Handler, ctx: Context[Any]) -> Any:
        """Run what the user wrote for it. Returns what that returns."""
        given = self.action.message_codec.decode(self.message)
        return handler.plain(ctx, given, self.branch) if handler.takes_branch else handler.plain(ctx, given)

    def wrong(self, asked: str) -> Verdict:
        phase = "not known" if self.row is None else self.row.phase
        return Verdict(Ruled.WRONG, reason=f"{self.branch.key} is to be {asked}, and it is {phase}")


Work = Generator[Any, Any, Verdict]


def _try(ctx: Context[Any], case: _Case) -> Work:
    key, row = case.branch.key, case.row
    if case.ruling is Ruling.LATE:
        return Verdict(Ruled.LATE, reason="it was cancelled before it came")
    if case.ruling is Ruling.REPEAT and row is not None and row.answer is not None:
        return Verdict(Ruled.DONE, row.answer)
    Fence(ctx.state).begin(key)
    if case.action.forward.is_async:  # What it awaits may outlive its failure, so that it must be known to have begun.
        yield ctx._keep("run").commit()
    result = yield case.run(case.action.forward, ctx)
    if isinstance(result, Declined):
        # An earlier run of it may have died half-way, where no journal makes this one the same: that is undone.
        if row is None or case.action.cancel is None:
            Fence(ctx.state).refuse(key)
        return Verdict(Ruled.DECLINED, reason=result.reason)
    answer = encode_answer(ctx.address, result)
    Fence(ctx.state).keep(key, answer)
    return Verdict(Ruled.DONE, answer)


def _confirm(ctx: Context[Any], case: _Case) -> Work:
    if case.ruling is Ruling.WRONG:
        return case.wrong("confirmed")
    if case.ruling is Ruling.RUN:
        if case.action.confirm is not None:
            yield case.run(case.action.confirm, ctx)
        case.participant.decide(ctx, case.branch, Phase.CONFIRMED)
    return Verdict(Ruled.DONE)


def _cancel(ctx: Context[Any], case: _Case) -> Work:
    if case.ruling is Ruling.WRONG:
        return case.wrong("cancelled")
    if case.row is None:
        case.participant.decide(ctx, case.branch, Phase.SUSPENDED)
    elif case.ruling is Ruling.RUN:
        if case.action.cancel is None:
            answer = case.row.answer
            return Verdict(Ruled.UNFINISHED) if answer is None else Verdict(Ruled.STANDS, answer)
        yield case.run(case.action.cancel, ctx)
        case.participant.decide(ctx, case.branch, Phase.CANCELLED)
    return Verdict(Ruled.DONE)


def _at_once(work: Generator[Any, Any, Any]) -> Any:
    try:
        returned = next(work)
        while True:
            returned = work.send(returned)
    except StopIteration as ended:
        return ended.value


async def _awaiting(work: Generator[Any, Any, Any]) -> Any:
    try:
        returned = next(work)
        while True:
            returned = work.send(await returned if inspect.isawaitable(returned) else returned)
    except StopIteration as ended:
        return ended.value


class _Handler(Function[Any, Any]):
    """What the user wrote for one purpose, understood as the handler of a function is."""

    plain: Callable[..., Any]
    takes_branch: bool

    @classmethod
    def of(cls, typename: str, handler: Callable[..., Any], names: Mapping[str, Any]) -> _Handler:
        takes_branch = "branch" in inspect.signature(handler).parameters
        # What remains is called like any handler, and checked as such.
        callable_ = partial(handler, branch=None) if takes_branch else handler
        made = cls.from_handler(typename, callable_, names=names)
        assert isinstance(made, _Handler)
        made.plain, made.takes_branch = handler, takes_branch
        return made

    @property
    def message_annotation(self) -> Any:
        return self._hints().get(list(inspect.signature(self.handler).parameters)[1], Any)

    @property
    def state_if_known(self) -> Any:
        """The class of its context's state; None when it names none, or can't be understood yet."""
        return self.types.state if "types" in self.__dict__ else None

    def _answer_codec(self, annotation: Any) -> Codec[Any]:
        if Declined in get_args(annotation):
            annotation = _union(each for each in get_args(annotation) if each is not Declined)
        return super()._answer_codec(None if annotation is Declined else annotation)


def _union(alternatives: Iterable[Any]) -> Any:
    """One of these types."""
    return reduce(or_, alternatives)


def location_of_caller(depth: int) -> str:
    """Where a declaration stands, for people: `app.py:14`."""
    frame = sys._getframe(depth + 1)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _refuse_double(typename: str, what: str, known: _Handler, added: _Handler) -> NoReturn:
    raise ConfigurationError(
        "PEN0899",
        f"{typename} has {what} twice: {known.location} and {added.location}. Remove one, or give it another name.",
    )
