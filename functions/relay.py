"""A saga that its participants hand on, each to the next: choreography. Nobody owns it, and nobody waits for it.

    begin --> first --- try --> second --- try --> third         the last one confirms, one that declines cancels;
                 ^-- confirm, cancel --^-- confirm, cancel --    each passes that on to the one before it

What always holds: a command carries the steps before it, so whoever fails knows whom to tell; the way back is the way
there in reverse; what happens in one participant, and what that sends, is one invocation. The fence makes repeats, and
what comes too late, harmless, as in any saga.

What is not here, because nobody owns the whole: an answer, a deadline, steps at once. A step that raises for good is a
dead letter, and the saga stands still until it is sent again: the first participant watches for that, and says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from penstock.durations import parse_duration
from penstock.errors import InvalidInput
from penstock.functions.commands import Command, Hop, Ruled, Verdict, Watch
from penstock.functions.context import Context
from penstock.functions.fence import Asked, Fence, FenceRow, Phase
from penstock.functions.saga_record import SagaAlert

if TYPE_CHECKING:
    from datetime import timedelta

    from penstock.functions.codecs import Codec
    from penstock.functions.function import Function

M = TypeVar("M")
M_contra = TypeVar("M_contra", contravariant=True)


class Next(Protocol[M_contra]):
    """An action of a participant, as far as a saga is handed on to it."""

    @property
    def typename(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def message_codec(self) -> Codec[Any]: ...
    def __call__(self, context: Any, message: M_contra, /) -> Any: ...


class Trail:
    """The way that a saga has come, in one run of an action."""

    def __init__(self, before: list[Hop], own: Hop, *, can_go_back: bool) -> None:
        self.hops = [*before, own]
        self.can_go_back = can_go_back
        self.is_handed_on = False


class Branch(NamedTuple):
    """One step of one saga, as an action is told that has a parameter `branch`."""

    saga: str
    """The address of the saga: `shop/checkout/42`; or the name that a saga was given which its participants hand on."""
    step: str
    trail: Trail | None = None

    @property
    def key(self) -> str:
        """The same at every try of this step, and of no other: what to give a service as idempotency key."""
        return f"{self.saga}/{self.step}"

    def hand_on(self, ctx: Context[Any], action: Next[M], id: str, message: M, *, name: str = "") -> None:
        """Let `action` of the participant `id` be the next step. For an action of a saga begun by `Action.begin`; one
        that does not hand it on is the last.

        Raises InvalidInput in any other saga, for a second next step, for a step that was there (give it a `name`), and
        when nothing undoes the action that hands on, as one behind it may decline.
        """
        trail, step = self.trail, name or action.name
        if trail is None:
            raise self._misuse(
                ctx, "is asked by somebody who says what comes next. Only a saga begun by Action.begin is"
            )
        if trail.is_handed_on:
            raise self._misuse(ctx, "was handed on before: one step comes next, so it can't be")
        if not trail.can_go_back:
            raise self._misuse(ctx, "has no compensation, so it must be the last and can't be")
        if any(hop.step == step for hop in trail.hops):
            raise self._misuse(ctx, f"comes after a step {step!r}: give the next one another name= before it is")
        trail.is_handed_on = True
        payload = action.message_codec.encode(message)
        ctx.send(action.typename, id, Command(Asked.TRY, action.name, self.saga, step, payload, trail.hops))

    def _misuse(self, ctx: Context[Any], what: str) -> InvalidInput:
        return InvalidInput("PEN0895", f"Step {self.key} at {ctx.address} {what} handed on.")


def begin(
    ctx: Context[Any],
    action: Next[M],
    id: str,
    message: M,
    *,
    saga: str,
    watch: str | float | timedelta,
    alert: Function[SagaAlert, Any] | None,
) -> None:
    """See `Action.begin`."""
    payload = action.message_codec.encode(message)
    ctx.send(action.typename, id, Command(Asked.TRY, action.name, saga, action.name, payload, []))
    every_ms = parse_duration(watch)
    seen = Watch(saga, action.name, every_ms, "" if alert is None else alert.typename)
    ctx.send_after(every_ms / 1000, action.typename, id, seen)


def pass_on(ctx: Context[Any], command: Command, branch: Branch, verdict: Verdict, *, ran: bool) -> None:
    """Tell others what has become of a step. `ran`: whether its action did, and did not only answer once more."""
    assert command.trail is not None, "somebody else owns all other sagas"
    assert branch.trail is not None
    if command.asked is not Asked.TRY:
        if verdict.ruled is Ruled.DONE:
            _ask_back(ctx, command.asked, command.saga, command.trail)
    elif verdict.ruled is Ruled.DECLINED:
        has_begun = Fence(ctx.state).find(branch.key) is not None  # In an earlier run, which may have died half-way.
        _ask_back(ctx, Asked.CANCEL, command.saga, branch.trail.hops if has_begun else command.trail)
    elif verdict.ruled is Ruled.DONE and ran and not branch.trail.is_handed_on:
        _ask_back(ctx, Asked.CONFIRM, command.saga, branch.trail.hops)


def look(ctx: Context[Any], watch: Watch, row: FenceRow | None) -> None:
    """Say so when a saga has not come to its end since it was looked for last."""
    if row is None or row.phase is not Phase.TRIED:
        return
    reason = "it has not come to its end: a later step waits, or is a dead letter."
    ctx.log.error("PEN0897 Saga %s was begun by step %s, and %s", watch.saga, watch.step, reason)
    if watch.alert:
        ctx.send(watch.alert, watch.saga, SagaAlert(watch.saga, watch.step, Asked.CONFIRM, watch.times, reason))
    again = Watch(watch.saga, watch.step, watch.every_ms, watch.alert, watch.times + 1)
    ctx.send_after(watch.every_ms / 1000, ctx.address.typename, ctx.id, again)


def _ask_back(ctx: Context[Any], asked: Asked, saga: str, trail: list[Hop]) -> None:
    """Ask the last of these steps, which passes it on to the one before it."""
    if trail:
        *before, last = trail
        ctx.send(last.typename, last.id, Command(asked, last.action, saga, last.step, last.message, before))
