"""What a handler's annotations make of it, and what is said about handlers that can't run."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from penstock.errors import ConfigurationError
from penstock.functions.context import Context
from penstock.functions.function import Function, FunctionOptions, code_text
from penstock.functions.state import Message, State
from penstock.functions.storage import Value


class Delay(Message):
    minutes: float


class Ask(Message):
    pass


class Carrier(State):
    total: float = 0.0


def carrier(ctx: Context[Carrier], message: Delay | Ask) -> float:
    """Adds delays up."""
    return ctx.state.total


async def async_carrier(ctx: Context[Carrier], message: Ask) -> float | None:
    return None


def untyped(ctx, message):  # type: ignore[no-untyped-def]
    return None


def half_typed(ctx: Context[Carrier], message):  # type: ignore[no-untyped-def]
    return None


def stateless(ctx: Context[None], message: int) -> None:
    pass


def later(ctx: Context[Carrier], message: DefinedLater) -> None:
    pass


class DefinedLater(Message):
    pass


def function(handler: Callable[..., Any], **options: Any) -> Function[Any, Any]:
    return Function.from_handler("flights/carrier", handler, FunctionOptions(**options))


def refusal(handler: Callable[..., Any]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        function(handler).resolve()
    return str(caught.value)


def test_annotations_say_what_is_decoded() -> None:
    carrier_function = function(carrier)

    assert carrier_function.message_codec.name == "Delay | Ask"
    assert carrier_function.reply_codec.name == "float"
    assert carrier_function.state is Carrier
    assert carrier_function.state_codec is not None
    assert carrier_function.state_codec.name == "Carrier"
    assert not carrier_function.is_async
    assert carrier_function.__doc__ == "Adds delays up."


def test_an_async_handler_answers_what_is_awaited() -> None:
    def returns_awaitable(ctx: Context[Carrier], message: Ask) -> Awaitable[float]:
        raise NotImplementedError

    assert (function(async_carrier).is_async, function(async_carrier).reply_codec.name) == (True, "float | None")
    assert (function(returns_awaitable).is_async, function(returns_awaitable).reply_codec.name) == (True, "float")


@pytest.mark.parametrize(
    ("handler", "message", "state"),
    [(untyped, "Any", None), (half_typed, "Any", Carrier), (stateless, "int", None)],
)
def test_missing_annotations_leave_things_open(handler: Callable[..., Any], message: str, state: Any) -> None:
    assert function(handler).message_codec.name == message
    assert function(handler).state is state
    assert function(handler).reply_codec.name == "Any"


def test_a_handler_can_name_classes_of_the_function_around_it() -> None:
    class Local(Message):
        pass

    def handler(ctx: Context[None], message: Local) -> None:
        pass

    local = Function.from_handler("a/b", handler, names=locals())

    assert local.message_codec.types == (Local,)


def test_a_class_may_be_defined_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(globals(), "DefinedLater")
    early = Function.from_handler("a/b", later)
    assert refusal(later) == (
        f"PEN0115 flights/carrier ({early.location}) has an annotation that can't be understood: name 'DefinedLater' "
        "is not defined. Define or import it in the module, not under TYPE_CHECKING or inside a function."
    )
    monkeypatch.undo()

    early.resolve()

    assert early.message_codec.types == (DefinedLater,)


def test_partials_methods_and_callable_objects_are_handlers() -> None:
    def with_prefix(prefix: str, ctx: Context[Carrier], message: Delay) -> None:
        pass

    class Handler:
        def __call__(self, ctx: Context[Carrier], message: Delay) -> None:
            pass

        async def method(self, ctx: Context[Carrier], message: Delay) -> None:
            pass

    for handler in (functools.partial(with_prefix, "x"), Handler(), Handler().method):
        assert function(handler).message_codec.types == (Delay,)
        assert function(handler).state is Carrier
        assert function(handler).location.startswith("test_function.py:")
    assert function(Handler().method).is_async


def test_a_function_runs_its_handler_when_called() -> None:
    assert function(lambda ctx, message: (ctx, message))("ctx", "message") == ("ctx", "message")


def test_a_function_tells_where_it_is_written() -> None:
    line = carrier.__code__.co_firstlineno

    assert repr(function(carrier)) == f"<Function flights/carrier test_function.py:{line}>"


def no_message(ctx: Context[Carrier]) -> None:
    pass


def too_many(ctx: Context[Carrier], message: Delay, database: object) -> None:
    pass


def generator(ctx: Context[Carrier], message: Delay) -> Iterator[int]:
    yield 1


def swallows(*args: Any) -> None:
    pass


def swapped(message: Delay, ctx: Context[Carrier]) -> None:
    pass


class Opaque:
    pass


class NoDefault(State):
    total: float


def opaque_message(ctx: Context[Carrier], message: Opaque) -> None:
    pass


def opaque_reply(ctx: Context[Carrier], message: Delay) -> Opaque:
    return Opaque()


def no_default(ctx: Context[NoDefault], message: Delay) -> None:
    pass


def any_state(ctx: Context[Any], message: Delay) -> None:
    ctx.state = 5


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (
            no_message,
            (
                "PEN0114 flights/carrier ({at}) takes (ctx: 'Context[Carrier]') -> 'None', and a handler is called "
                "with a context and a message. Write def no_message(ctx: Context[MyState], message: MyMessage)."
            ),
        ),
        (
            too_many,
            (
                "PEN0114 flights/carrier ({at}) takes (ctx: 'Context[Carrier]', message: 'Delay', database: 'object') "
                "-> 'None', and a handler is called with a context and a message. "
                "Write def too_many(ctx: Context[MyState], message: MyMessage)."
            ),
        ),
        (
            generator,
            (
                "PEN0114 flights/carrier ({at}) is a generator, and a handler returns its answer. "
                "Use ctx.send or ctx.emit, not yield."
            ),
        ),
        (swallows, "PEN0114 flights/carrier ({at}) takes its arguments as *args. Name them: (ctx, message)."),
        (
            swapped,
            (
                "PEN0115 flights/carrier ({at}) has Delay as its first parameter message, which is a Context. "
                "Write message: Context[MyState], or Context[None] without state."
            ),
        ),
        (
            opaque_message,
            (
                "PEN0102 flights/carrier ({at}), parameter message: Opaque can't be the type of a message or of state: "
                "There is no way to write it. Use a class derived from Message or State, a dataclass, TypedDict, "
                "NamedTuple, pydantic model, protobuf message, bytes or built-in types; the alternatives of a union "
                "derive from Message."
            ),
        ),
        (
            opaque_reply,
            (
                "PEN0102 flights/carrier ({at}), the return value: Opaque can't be the type of a message or of state: "
                "There is no way to write it. Use a class derived from Message or State, a dataclass, TypedDict, "
                "NamedTuple, pydantic model, protobuf message, bytes or built-in types; the alternatives of a union "
                "derive from Message."
            ),
        ),
        (
            any_state,
            (
                "PEN0115 flights/carrier ({at}) has Context[Any] as its first parameter ctx, which does not say how "
                "state is stored. Write ctx: Context[MyState], or Context[None] without state."
            ),
        ),
        (
            no_default,
            (
                "PEN0104 flights/carrier ({at}), the state: State NoDefault has no default for total. Before its first "
                "message an address has none: give every field a default, for example total: ... = ..."
            ),
        ),
    ],
)
def test_a_handler_that_cannot_run_is_refused(handler: Callable[..., Any], message: str) -> None:
    assert refusal(handler) == message.format(at=f"test_function.py:{handler.__code__.co_firstlineno}")


def test_a_typename_has_two_parts() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Function.from_handler("carrier", carrier)

    assert caught.value.code == "PEN0101"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attempts": 0}, "PEN0116 attempts = 0 is no number of tries. Give 1 (no retry) to 1,000."),
        ({"attempts": True}, "PEN0116 attempts = True is no number of tries. Give 1 (no retry) to 1,000."),
        ({"on_failure": "skip"}, "PEN0116 on_failure = 'skip' is not known. Use 'dead-letter' or 'halt'."),
        (
            {"backoff": "1m", "backoff_max": "1s"},
            "PEN0116 backoff_max = '1s' is below backoff = '1m'. Make it at least as long.",
        ),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        FunctionOptions(**options)

    assert str(caught.value) == message


def test_the_wait_between_tries_doubles_up_to_its_limit() -> None:
    options = FunctionOptions(backoff="100ms", backoff_max="1s")

    assert [options.backoff_ms(attempt) for attempt in range(1, 7)] == [100, 200, 400, 800, 1_000, 1_000]
    assert FunctionOptions(attempts=1_000).backoff_ms(1_000) == 30_000


def same(ctx: Context[Carrier], message: Delay | Ask) -> float:
    # Another comment.

    return (ctx
            .state.total)  # fmt: skip


def test_the_fingerprint_follows_the_code_and_not_its_looks() -> None:
    assert code_text(same) == code_text(carrier).replace("def carrier", "def same")
    assert function(carrier).fingerprint == function(carrier).fingerprint
    assert function(carrier).fingerprint != function(stateless).fingerprint
    assert function(carrier).fingerprint != function(carrier, storage={"seen": Value(int)}).fingerprint


def test_code_without_source_has_a_fingerprint_too() -> None:
    def compiled(text: str) -> str:
        names: dict[str, Any] = {}
        exec(text, names)
        return function(names["f"]).fingerprint

    assert compiled("def f(ctx, message): return 1") == compiled("def f(ctx, message): return 1")
    assert compiled("def f(ctx, message): return 1") != compiled("def f(ctx, message): return 2")


class CarrierNow(State):
    total: int = 0


def test_a_change_of_what_is_stored_is_found() -> None:
    def now(ctx: Context[CarrierNow], message: Delay) -> None:
        pass

    old = function(carrier, storage={"seen": Value(int)}).state_shape()

    assert function(carrier, storage={"seen": Value(int)}).state_incompatibilities(old) == []
    assert function(now).state_incompatibilities(old) == [
        "seen is gone now",
        "total was float and is int now",
    ]
    assert function(stateless).state_incompatibilities(old) == [
        "seen is gone now",
        "there was a state, and the handler's Context has none now",
    ]
