"""What `@app.function("ns/name")` makes of a handler: a `Function`, typed by what it takes and what it
answers.

What always holds: a function that was declared without an error can be run; its annotations were understood,
its types can be written, its state has defaults. Annotations may name classes that are defined later, so they
are read when they are first needed, at the latest when the application starts (`resolve`). Runs nothing: that
is for the engine.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    NoReturn,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from penstock.durations import parse_duration
from penstock.errors import ConfigurationError
from penstock.functions.codecs import MsgspecCodec
from penstock.functions.shapes import Shape
from penstock.functions.state import check_state_class, collections_of, state_incompatibilities, state_shape
from penstock.functions.storage import Value, check_storage, storage_incompatibilities
from penstock.functions.types import Codec, codec_for, derives_from, type_text
from penstock.ids import Address, check_typename

if TYPE_CHECKING:
    from penstock.functions.trial import Trial

M_contra = TypeVar("M_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

OnFailure = Literal["dead-letter", "halt"]

ATTEMPTS_MAX: Final = 1_000
"""More tries than this is meant to be "forever", which would hold an address, and its queue, forever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionOptions:
    """What happens when a handler raises, and which named values it stores besides its state."""

    attempts: int = 3
    """How often one message is tried in all. The address waits meanwhile; others go on."""
    backoff: str | float | timedelta = "100ms"
    """The wait before the second try. It doubles with each further one."""
    backoff_max: str | float | timedelta = "30s"
    on_failure: OnFailure = "dead-letter"
    """After the last try: put the message aside and go on, or stop the application."""
    storage: Mapping[str, Value[Any]] = field(default_factory=dict)
    reads_only: bool = False
    """It changes, sends and emits nothing, so it needs to wait for nobody who does."""
    state_of: Function[Any, Any] | None = None
    """Whose state it reads: that of the same id."""
    reentrant: bool = False
    """A call that comes back to an address which waits for it runs there at once, between two segments."""

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or not 1 <= self.attempts <= ATTEMPTS_MAX:
            raise ConfigurationError(
                "PEN0116",
                f"attempts = {self.attempts!r} is no number of tries. Give 1 (no retry) to {ATTEMPTS_MAX:,}.",
            )
        if self.on_failure not in get_args(OnFailure):
            raise ConfigurationError(
                "PEN0116", f"on_failure = {self.on_failure!r} is not known. Use 'dead-letter' or 'halt'."
            )
        if parse_duration(self.backoff_max) < parse_duration(self.backoff):
            raise ConfigurationError(
                "PEN0116",
                f"backoff_max = {self.backoff_max!r} is below backoff = {self.backoff!r}. Make it at least as long.",
            )
        check_storage(self.storage)
        if self.state_of is not None and not (self.reads_only and isinstance(self.state_of, Function)):
            raise ConfigurationError(
                "PEN0128",
                f"state_of = {self.state_of!r} is for functions with reads_only=True, and names a function: a state is "
                "changed by one function alone.",
            )

    def backoff_ms(self, attempt: int) -> int:
        """The wait after try number `attempt` (the first is 1) failed."""
        assert attempt >= 1, "tries are counted from 1"
        return min(parse_duration(self.backoff) << (attempt - 1), parse_duration(self.backoff_max))


DEFAULT_OPTIONS: Final = FunctionOptions()


class HandlerTypes(NamedTuple):
    """What the annotations of a handler say."""

    state: Any
    """The state class, or None for a function without typed state."""
    state_codec: Codec[Any] | None
    message_codec: Codec[Any]
    reply_codec: Codec[Any]


class Function(Generic[M_contra, R_co]):
    """A handler with its address space. `M_contra` is what it can be sent, `R_co` what a call of it is
    answered.

    Calling it runs the plain handler, with a context and a message that the caller provides: nothing is sent.
    """

    typename: str
    handler: Callable[..., Any]
    options: FunctionOptions
    location: str
    """Where it is written, for people: `app.py:14`."""
    told_of_raw_await: bool
    """Whether people were told, in this process, that its handler awaits what is not journaled."""

    def __init__(
        self,
        typename: str,
        handler: Callable[..., Any],
        options: FunctionOptions = DEFAULT_OPTIONS,
        *,
        names: Mapping[str, Any] | None = None,
    ) -> None:
        """Use `Function.from_handler`, which checks the handler."""
        self.typename = typename
        self.handler = handler
        self.options = options
        self.location = location_of(handler)
        self.__doc__ = handler.__doc__
        self.__wrapped__ = handler
        self.told_of_raw_await = False
        self._names = names

    @classmethod
    def from_handler(
        cls,
        typename: str,
        handler: Callable[..., Any],
        options: FunctionOptions = DEFAULT_OPTIONS,
        *,
        names: Mapping[str, Any] | None = None,
    ) -> Function[Any, Any]:
        """The function that runs `handler`. `names` are those its annotations can use besides its module's
        own.

        Raises ConfigurationError for what can never run. An annotation whose name is not defined yet may
        become so: `resolve` decides.
        """
        check_typename(typename)
        function: Function[Any, Any] = cls(typename, handler, options, names=names)
        function._check_parameters()
        with suppress(_UndefinedName):
            function.resolve()  # Now, if possible: the traceback still shows the declaration.
        return function

    def resolve(self) -> None:
        """Raise ConfigurationError unless all annotations are understood. To be called when the application
        starts.
        """
        assert self.types is not None
        if self.options.reads_only:
            self._check_reading()
        if self.options.reentrant and (self.options.reads_only or not self.is_async):
            self._refuse(
                "PEN0129",
                "is declared with reentrant=True, and never waits with a state that a call could come back to. Leave "
                "reentrant out, or declare an async def without reads_only.",
            )

    @cached_property
    def types(self) -> HandlerTypes:
        """What the annotations say, as codecs."""
        hints = self._hints()
        context_name, message_name = list(inspect.signature(self.handler).parameters)[:2]
        state = self._state_class(context_name, hints.get(context_name, Any))
        reply = _awaited(hints.get("return", Any))
        return HandlerTypes(
            state=state,
            state_codec=None if state is None else self._state_codec(state),
            message_codec=self._codec(f"parameter {message_name}", hints.get(message_name, Any)),
            reply_codec=self._answer_codec(reply),
        )

    @cached_property
    def is_async(self) -> bool:
        """Whether what the handler returns is to be awaited."""
        return inspect.iscoroutinefunction(_plain_function(self.handler)) or _is_awaitable(self._hints().get("return"))

    @property
    def message_codec(self) -> Codec[Any]:
        return self.types.message_codec

    @property
    def reply_codec(self) -> Codec[Any]:
        """The codec of answers: of the returned value, or of anything when the handler is annotated to return
        None.
        """
        return self.types.reply_codec

    @property
    def state(self) -> Any:
        """The class of `ctx.state`, or None."""
        return self.types.state

    @property
    def state_codec(self) -> Codec[Any] | None:
        return self.types.state_codec

    @property
    def storage(self) -> Mapping[str, Value[Any]]:
        """The named values of `ctx.storage`, for functions that use that form."""
        owner = self.options.state_of
        return self.options.storage if owner is None else owner.storage

    @property
    def state_typename(self) -> str:
        """The function under whose name the state is stored: this one, unless it reads that of another."""
        owner = self.options.state_of
        return self.typename if owner is None else owner.state_typename

    @cached_property
    def fingerprint(self) -> str:
        """A short text that changes with the code of the handler or the shape of its types.

        Comments, formatting and docstrings do not count. Code that the handler calls is not looked at.
        """
        shapes = [self.message_codec.fingerprint(), self.reply_codec.fingerprint(), self.state_shape()]
        content = msgspec.json.encode([code_text(self.handler), shapes], order="deterministic")
        return sha256(content).hexdigest()[:16]

    def state_shape(self) -> Shape:
        """What is stored for an address of this function, as plain data to be kept with a checkpoint."""
        return {
            "state": None if self._stored_class is None else state_shape(self._stored_class),
            "storage": {name: spec.codec.shape() for name, spec in self.options.storage.items()},
        }

    def state_incompatibilities(self, old: Shape) -> list[str]:
        """Why what was stored under `old`, an earlier `state_shape`, can't be read now: one sentence each."""
        found = storage_incompatibilities(old["storage"], self.options.storage)
        if old["state"] is None:
            return found
        if self.state is None:
            return [*found, "there was a state, and the handler's Context has none now"]
        if self._stored_class is None:
            return [*found, f"there was a state of its own, and it reads that of {self.state_typename} now"]
        return found + state_incompatibilities(old["state"], self._stored_class)

    @property
    def _stored_class(self) -> Any:
        """The class of the state that is stored for this function; None without, or when it reads that of another."""
        return self.state if self.options.state_of is None else None

    def state_changes(self, old: Shape) -> list[str]:
        """What of the state is not as in `old`, an earlier `state_shape`: `+field` is new, `-field` gone, `~field` of
        another type or default. Empty where only something inside the types of fields has changed."""
        before, now = _parts_of(old), _parts_of(self.state_shape())
        return [
            *(f"+{name}" for name in now if name not in before),
            *(f"-{name}" for name in before if name not in now),
            *(f"~{name}" for name in now if name in before and now[name] != before[name]),
        ]

    def __call__(self, context: Any, message: M_contra) -> Any:
        return self.handler(context, message)

    def test(
        self,
        message: M_contra,
        /,
        *,
        id: str,
        state: Any = None,
        storage: Mapping[str, Any] | None = None,
        caller: Address | None = None,
        now: datetime | None = None,
        headers: Mapping[str, str] | None = None,
        attempt: int = 1,
    ) -> Trial:
        """Run the handler once, for a test, and return what it did: `airport.test(Departure("AA"), id="JFK").sent`.

        Without `state` (or `storage`, its dynamic form) the address has none yet. What the handler raises is
        raised. Nothing runs besides it: for functions together, use `penstock.testing.Harness`.
        """
        from penstock.functions.trial import START, run_trial

        return run_trial(
            self,
            message,
            id=id,
            state=state,
            storage=storage,
            caller=caller,
            now=now or START,
            headers=headers,
            attempt=attempt,
        )

    def __repr__(self) -> str:
        return f"<Function {self.typename} {self.location}>"

    def _check_parameters(self) -> None:
        plain = _plain_function(self.handler)
        if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
            self._refuse(
                "PEN0114", "is a generator, and a handler returns its answer. Use ctx.send or ctx.emit, not yield."
            )
        try:
            inspect.signature(self.handler).bind("context", "message")
        except TypeError:
            self._refuse(
                "PEN0114",
                f"takes {inspect.signature(self.handler)}, and a handler is called with a context and a message. "
                f"Write def {getattr(plain, '__name__', 'handler')}(ctx: Context[MyState], message: MyMessage).",
            )
        if len(inspect.signature(self.handler).parameters) < 2:
            self._refuse("PEN0114", "takes its arguments as *args. Name them: (ctx, message).")

    def _check_reading(self) -> None:
        owner = self.options.state_of
        if owner is not None:
            owner.resolve()
            if self.options.storage or owner.state is not self.state:
                self._refuse(
                    "PEN0128",
                    f"reads the state of {owner.typename}, which is {_state_text(owner)}, and declares "
                    f"{_state_text(self)}. Declare the same, and storage= there alone.",
                )
        if self.is_async and collections_of(self.state):
            self._refuse(
                "PEN0128",
                "is async and reads tables or logs, which may be others when it is run again. Read them in a function "
                "that is a plain def with reads_only=True, and await a call of that.",
            )

    def _hints(self) -> dict[str, Any]:
        plain = _plain_function(self.handler)
        # The values of a closure are names its annotations can use; so are those the caller knows of.
        try:
            return get_type_hints(plain, localns={**(self._names or {}), **_enclosed(plain)}, include_extras=True)
        except NameError as error:
            raise self._undefined(error) from None

    def _state_class(self, parameter: str, annotation: Any) -> Any:
        if annotation is Any:
            return None
        context = get_origin(annotation) or annotation
        if not derives_from(context, "penstock.functions.context", "Context"):
            self._refuse(
                "PEN0115",
                f"has {type_text(annotation)} as its first parameter {parameter}, which is a Context. "
                f"Write {parameter}: Context[MyState], or Context[None] without state.",
            )
        state = (*get_args(annotation), None)[0]
        if state is Any:
            self._refuse(
                "PEN0115",
                f"has Context[Any] as its first parameter {parameter}, which does not say how state is stored. "
                f"Write {parameter}: Context[MyState], or Context[None] without state.",
            )
        if state is None or state is types.NoneType or isinstance(state, TypeVar):
            return None
        try:
            check_state_class(state)
        except ConfigurationError as error:
            raise self._located(error, "the state") from None
        except NameError as error:
            raise self._undefined(error) from None
        return state

    def _state_codec(self, state: Any) -> Codec[Any]:
        # Bytes as they are could be EMPTY_STATE, which is stored as nothing. In msgpack they never are.
        return MsgspecCodec(bytes, "bytes") if state is bytes else self._codec("the state", state)

    def _answer_codec(self, annotation: Any) -> Codec[Any]:
        # A handler that returns nothing can still answer, with ctx.reply: then with anything.
        return self._codec("the return value", Any if annotation is types.NoneType else annotation)

    def _codec(self, what: str, annotation: Any) -> Codec[Any]:
        try:
            return codec_for(annotation)
        except ConfigurationError as error:
            raise self._located(error, what) from None
        except NameError as error:
            raise self._undefined(error) from None

    def _located(self, error: ConfigurationError, what: str) -> ConfigurationError:
        return ConfigurationError(error.code, f"{self.typename} ({self.location}), {what}: {error.message}")

    def _undefined(self, error: NameError) -> _UndefinedName:
        return _UndefinedName(
            "PEN0115",
            f"{self.typename} ({self.location}) has an annotation that can't be understood: {error}. "
            f"Define or import it in the module, not under TYPE_CHECKING or inside a function.",
        )

    def _refuse(self, code: str, what: str) -> NoReturn:
        raise ConfigurationError(code, f"{self.typename} ({self.location}) {what}")


class _UndefinedName(ConfigurationError):
    """A name in an annotation has no meaning yet."""


def _state_text(function: Function[Any, Any]) -> str:
    if function.options.storage:
        return "storage=" + ", ".join(function.options.storage)
    return "no state" if function.state is None else type_text(function.state)


def location_of(handler: Callable[..., Any]) -> str:
    """Where a handler is written: `app.py:14`."""
    code = getattr(_plain_function(handler), "__code__", None)
    if code is None:
        return type(handler).__qualname__
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"


def code_text(handler: Callable[..., Any]) -> str:
    """The code of a handler in a form that comments, formatting, docstrings and decorators leave alone."""
    plain = _plain_function(handler)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(plain)))
    except (OSError, SyntaxError, TypeError):
        # No source (a prompt, a frozen program), or a lambda in the midst of an expression.
        return _bytecode_text(getattr(plain, "__code__", None))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            node.decorator_list = []
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _bytecode_text(code: types.CodeType | None) -> str:
    if code is None:
        return ""
    constants = [_bytecode_text(each) if isinstance(each, types.CodeType) else repr(each) for each in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _plain_function(handler: Callable[..., Any]) -> Any:
    """The function whose annotations and code are meant: below partials, decorators and callable objects."""
    while isinstance(handler, partial):
        handler = handler.func
    handler = inspect.unwrap(handler)
    if inspect.isfunction(handler) or inspect.ismethod(handler) or isinstance(handler, type):
        return handler
    return inspect.unwrap(type(handler).__call__)


def _enclosed(plain: Any) -> dict[str, Any]:
    """The variables of the surrounding function that the handler uses, as far as they have a value yet."""
    code, cells = getattr(plain, "__code__", None), getattr(plain, "__closure__", None)
    enclosed = {}
    for name, cell in zip(code.co_freevars if code is not None else (), cells or (), strict=True):
        with suppress(ValueError):
            enclosed[name] = cell.cell_contents
    return enclosed


def _awaited(annotation: Any) -> Any:
    """What is left after awaiting: a plain `def` may be annotated to return an awaitable."""
    return get_args(annotation)[-1] if _is_awaitable(annotation) else annotation


def _is_awaitable(annotation: Any) -> bool:
    return get_origin(annotation) in (Awaitable, Coroutine)


def _parts_of(shape: Shape) -> dict[str, Any]:
    """The fields, collections and stored values of a `state_shape` by their names."""
    parts = dict(shape["storage"])
    state = shape["state"]
    if state is not None:
        fields = state["fields"]
        match fields["type"]:
            case {"ref": name}:
                parts |= fields["definitions"][name]["fields"]
            case _:
                parts["state"] = fields
        parts |= state["collections"]
    return parts
