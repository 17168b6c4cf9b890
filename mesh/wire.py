"""What processes of the mesh say to one another: a request for one address, its answer, and how both read in HTTP.

    POST /invoke/NAMESPACE/NAME/ID      the body is the message, as the codec of its function writes it
    idempotency-key, traceparent        as everybody knows them
    penstock-kind                       call, deliver, send, resolve or cancel: see `Kind`
    penstock-timeout-ms                 what is left of the deadline when the request is sent
    penstock-attempt                    1 at the first try
    penstock-caller, penstock-chain     the address that asks, and all that wait for it, the outermost first
    penstock-behalf                     the identity for which a process of the mesh asks: see `Request.behalf`

    200 the answer    400 bad input    403 denied    404 unknown    409 changed by others again and again
    413 too large     422 the handler failed for good    429 too many    503 not now    504 the deadline has passed

What always holds: what `write` makes of a request, `read` understands as the same; an answer other than 200 is the JSON
of a coded error; `penstock-refused` says of an answer that nothing was begun, so that any request may be tried
elsewhere. Deadlines are on the clock of each process and travel as what is left, so clocks need not agree.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from penstock.errors import (
    CallTimeout,
    CallUnavailable,
    Fenced,
    FunctionError,
    InvalidInput,
    PenstockError,
    Refused,
    Unavailable,
)
from penstock.ids import Address, is_utf8

PATH: Final = "/invoke/"

KEY: Final = "idempotency-key"
KIND: Final = "penstock-kind"
TIMEOUT_MS: Final = "penstock-timeout-ms"
ATTEMPT: Final = "penstock-attempt"
CALLER: Final = "penstock-caller"
CHAIN: Final = "penstock-chain"
PROMISE: Final = "penstock-promise"
SHADOW: Final = "penstock-shadow"
BEHALF: Final = "penstock-behalf"
REFUSED: Final = "penstock-refused"
RETRY_AFTER: Final = "retry-after"

_OURS: Final = frozenset({KIND, TIMEOUT_MS, ATTEMPT, CALLER, CHAIN, PROMISE, SHADOW, BEHALF})
TRACING: Final = ("traceparent", "tracestate")
"""Headers that go on to whoever is called."""

FOR_OTHERS: Final = "PEN0811"
"""The code of the answer to who may not speak for others."""

NOTHING: Final = b"\xc0"
"""The answer of who has nothing to say."""
YES: Final = b"\xc3"
NO: Final = b"\xc2"


class Kind(Enum):
    """What is to be done with a message."""

    CALL = "call"
    """Run it now; whoever asks waits for the answer."""
    DELIVER = "deliver"
    """Run it now; what the handler returns is of no interest."""
    SEND = "send"
    """Keep it, and deliver it later: the answer says that it can't be lost any more."""
    RESOLVE = "resolve"
    """It is the value of a promise of this address."""
    CANCEL = "cancel"
    """End the call that was asked under this key, if it is being carried out here; without a key, whatever runs at the
    address. The answer says whether there was such a thing: `YES` or `NO`."""


class Request(NamedTuple):
    """One request for one address."""

    address: Address
    payload: bytes
    kind: Kind = Kind.CALL
    key: str = ""
    """Its idempotency key: whatever is sent under one key has its effect once."""
    deadline_s: float | None = None
    """On the monotonic clock of this process. From then on nobody waits, and nothing is begun."""
    attempt: int = 1
    caller: Address | None = None
    chain: tuple[Address, ...] = ()
    """All who wait for the answer, the outermost first."""
    headers: Mapping[str, str] = {}
    """Those a handler may look at, in lower case. They may come from outside: see `for_handlers`."""
    promise: str = ""
    shadow: bool = False
    """A copy that is run to see what happens, and leaves nothing behind."""
    identity: str = ""
    """Who asks, as proven by a certificate. Never taken from a header."""
    behalf: str = ""
    """The identity that was proven to whoever passes this on, such as that of a client whose message is delivered. A
    claim: a host believes it of processes that have its own identity."""


class Reply(NamedTuple):
    """What comes back."""

    status: int
    body: bytes
    refused: bool = False
    """Nothing was begun."""
    retry_after_s: float | None = None


def new_key() -> str:
    """An idempotency key for a request that has none."""
    return secrets.token_hex(16)


# Requests.


def write(request: Request, now_s: float) -> tuple[str, dict[str, str]]:
    """Path and headers of a request."""
    headers = {name: text for name, text in request.headers.items() if name not in _OURS}
    headers[KIND] = request.kind.value
    headers[ATTEMPT] = str(request.attempt)
    if request.key:
        headers[KEY] = quote(request.key)
    if request.deadline_s is not None:
        headers[TIMEOUT_MS] = str(max(0, int((request.deadline_s - now_s) * 1000)))
    if request.caller is not None:
        headers[CALLER] = _write_address(request.caller)
    if request.chain:
        headers[CHAIN] = ",".join(map(_write_address, request.chain))
    if request.promise:
        headers[PROMISE] = quote(request.promise, safe="")
    if request.shadow:
        headers[SHADOW] = "1"
    if request.behalf:
        headers[BEHALF] = quote(request.behalf, safe=":/")
    return PATH + _write_address(request.address), headers


def read(path: str, headers: Mapping[str, str], body: bytes, now_s: float, *, identity: str = "") -> Request:
    """The request that came with this path, still percent-encoded, and these headers. Raises InvalidInput."""
    try:
        _check_text("".join((path, *headers.values())))
        timeout_ms = headers.get(TIMEOUT_MS)
        return Request(
            _read_address(path.removeprefix(PATH)),
            body,
            Kind(headers.get(KIND, Kind.CALL.value)),
            unquote(headers.get(KEY, ""), errors="strict"),
            None if timeout_ms is None else now_s + int(timeout_ms) / 1000,
            int(headers.get(ATTEMPT, "1")),
            _read_address(headers[CALLER]) if CALLER in headers else None,
            tuple(_read_address(each) for each in headers[CHAIN].split(",")) if CHAIN in headers else (),
            for_handlers(headers),
            unquote(headers.get(PROMISE, ""), errors="strict"),
            SHADOW in headers,
            identity,
            unquote(headers.get(BEHALF, ""), errors="strict"),
        )
    except ValueError as error:
        raise InvalidInput(
            "PEN0800",
            f"A request for {path} is none of the mesh: {error}. Only hosts, gateways and sidecars of the same release "
            "send to this port; programs use the gateway.",
        ) from None


def _check_text(text: str) -> None:
    """Raise ValueError for what came as bytes that are no UTF-8: neither stores nor connections take it."""
    if not text.isascii() and not is_utf8(text):
        raise ValueError("its path or one of its headers is no UTF-8")


def for_handlers(headers: Mapping[str, str]) -> dict[str, str]:
    """Those of `headers` that a handler may look at. What hosts say to one another is none of them: nobody outside may
    say who calls, or that a request leaves nothing behind."""
    kept: dict[str, str] = {}
    for written, value in headers.items():
        name = written.lower()
        if (name.startswith(("x-", "penstock-")) or name in TRACING) and name not in _OURS:
            kept[name] = value
    return kept


def _write_address(address: Address) -> str:
    return f"{quote(address.typename)}/{quote(address.id, safe='')}"


def _read_address(text: str) -> Address:
    typename, _, id = text.rpartition("/")
    if not typename or not id:
        raise ValueError(f"{text!r} is no address")
    return Address(unquote(typename, errors="strict"), unquote(id, errors="strict"))


# Answers.

_STATUS: Final[Mapping[str, int]] = {
    "PEN0105": 404,
    "PEN0204": 413,
    "PEN0605": 413,
    "PEN0802": 504,
    "PEN0822": 409,
}


class _Told(msgspec.Struct):
    code: str
    message: str
    path: str | None = None


def failure(
    status: int, code: str, message: str, *, refused: bool = False, retry_after_s: float | None = None
) -> Reply:
    """The answer that tells a coded error."""
    return Reply(status, msgspec.json.encode(_Told(code, message)), refused, retry_after_s)


def reply_of(error: PenstockError, *, refused: bool = False) -> Reply:
    """The answer to a request that ended with `error`."""
    told = _Told(error.code, error.message, getattr(error, "path", None))
    status = _STATUS.get(error.code) or _status_of(error)
    return Reply(status, msgspec.json.encode(told), refused, getattr(error, "retry_after_s", None))


def _status_of(error: PenstockError) -> int:
    match error:
        case Unavailable() | Fenced():  # Before FunctionError: a call that could not be carried out now is both.
            return 503
        case FunctionError():
            return 422
        case InvalidInput():
            return 400
        case Refused():
            return 409
        case _:
            return 500


def error_of(reply: Reply, whom: str) -> PenstockError:
    """The error an answer tells, as the class that says what to do about it."""
    try:
        told = msgspec.json.decode(reply.body, type=_Told)
    except msgspec.DecodeError:
        return Unavailable("PEN0806", f"{whom} answered with status {reply.status} and no coded error. Ask again.")
    match reply.status:
        case 504:
            return CallTimeout(told.code, told.message, address=whom)
        case 429 | 503:
            return Unavailable(told.code, told.message)
        case 403 | 409:
            return Refused(told.code, told.message)
        case 422 | 500:
            return FunctionError(told.code, told.message, address=whom)
        case _:
            return InvalidInput(told.code, told.message)


def error_in_handler(reply: Reply, whom: str) -> FunctionError:
    """The same for a handler that has called: whatever it was, FunctionError is what it may catch."""
    error = error_of(reply, whom)
    match error:
        case FunctionError():
            return error
        case Unavailable():
            return CallUnavailable(error.code, error.message, address=whom)
        case _:
            return FunctionError(error.code, error.message, address=whom)


def value_of(reply: Reply, whom: str) -> Any:
    """The value of an answer in builtin types. Raises the error it tells."""
    if reply.status != 200:
        raise error_of(reply, whom)
    return msgspec.msgpack.decode(reply.body)
