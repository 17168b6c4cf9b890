"""What an HTTP interface of Penstock has to do with requests, whichever runtime is behind it.

What always holds: nothing is accepted before its bytes were checked against the type its function takes; an error is
one JSON object {code, message, path}, with the code that `penstock explain` knows; a web page of another origin can
reach nothing, with or without a token. What becomes of a message is for others to decide.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import msgspec
from aiohttp import web

from penstock.addresses import need_address
from penstock.durations import parse_duration_text
from penstock.errors import ConfigurationError, InvalidInput, PenstockError, Refused, Unavailable
from penstock.functions.codecs import BytesCodec
from penstock.functions.function import Function
from penstock.ids import Address
from penstock.logs import logger
from penstock.loopback import LOOPBACK

CALL_TIMEOUT_MS: Final = 60_000
"""How long a call waits when it does not say. Proxies and clients commonly give up at about that time."""
BODY_S: Final = 30.0
"""A body that takes longer to arrive is given up, so that slow senders can't hold connections for ever."""
HEADER_BYTES_MAX: Final = 8_190
"""Of one header, and of the request line, whose path holds the id: what common servers and proxies allow."""
HEADERS_KEPT_BYTES_MAX: Final = 16_384
"""Of the headers that become part of a message: they are stored with it."""
IDEMPOTENCY_KEY_MAX: Final = 255
CLOSE_S: Final = 2.0
"""Answers under way may take so long to be written when the server closes."""
HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "content-length",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that are about one connection (RFC 9110 §7.6.1), which whoever passes a message on leaves out."""

ENCODED: Final = frozenset({"application/msgpack", "application/x-msgpack", "application/x-protobuf"})
"""Types of a body that is the encoded message itself. Any other body is JSON, also what curl calls a form."""

_STATUS: Final[Mapping[str, int]] = {
    "PEN0105": 404,
    "PEN0204": 413,
    "PEN0268": 409,
    "PEN0269": 409,
    "PEN0270": 409,
    "PEN0303": 409,
    "PEN0312": 404,
    "PEN0603": 503,
    "PEN0605": 413,
    "PEN0606": 429,
    "PEN0607": 401,
    "PEN0608": 504,
    "PEN0609": 403,
    "PEN0611": 404,
}
_ANSWER_STATUS: Final[Mapping[str, int]] = {"PEN0210": 500}
"""Of what a call was answered with. The request was right: the table above would blame the caller for what the handler
sends, and to whom."""
_RETRY_AFTER_S = "1"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard:
    """What applies to every request: who may ask, and how failures are told. Only `open_paths` need no token."""

    def __init__(
        self, *, host: str, token: str | None, body_bytes_max: int, open_paths: Collection[str], served: str
    ) -> None:
        self._host = host
        self._token = token
        self._body_bytes_max = body_bytes_max
        self._open_paths = open_paths
        self._served = served
        """What there is, for who asks for something else."""

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let in who may, and make every failure the JSON of a coded error."""
        try:
            self._check_origin(request)
            if request.path not in self._open_paths:
                self._check_token(request)
            return await handler(request)
        except PenstockError as error:
            return error_response(error)
        except web.HTTPRequestEntityTooLarge:
            return error_response(self._too_large())
        except web.HTTPException as error:
            return _no_such_path(request, error, self._served)

    def _check_origin(self, request: web.Request) -> None:
        """A page in the operator's browser may send to this machine's loopback address: refuse what pages send, and
        names that somebody else's DNS points here (`Host` is then not ours)."""
        origin = request.headers.get("Origin")
        foreign = origin is not None and urlsplit(origin).netloc != request.host
        if not self._token and self._host in LOOPBACK:
            foreign = foreign or urlsplit(f"//{request.host}").hostname not in LOOPBACK
        if foreign:
            raise Refused(
                "PEN0609",
                f"Refused a request of origin {origin!r} to host {request.host!r}: it comes from a web page of another "
                "site. Call this interface from a program, or from a server of your own that holds the token.",
            )

    def _check_token(self, request: web.Request) -> None:
        if self._token is None:
            return
        given = request.headers.get("Authorization", "")
        wanted = f"Bearer {self._token}"
        if not hmac.compare_digest(given.encode(errors="replace"), wanted.encode()):
            raise Refused(
                "PEN0607",
                f"{'The token is wrong' if given else 'A token is required'}. Send the header "
                "'Authorization: Bearer ...' with the token of this application (PENSTOCK_TOKEN for the command line).",
            )

    def _too_large(self) -> InvalidInput:
        return InvalidInput(
            "PEN0605",
            f"The body is larger than body_bytes_max = {self._body_bytes_max:,} bytes. "
            "Send less, or raise body_bytes_max.",
        )


def runner_of(application: web.Application, *, cancelling: bool = False) -> web.AppRunner:
    """What serves `application`, within the limits of any interface. `cancelling`: who hangs up cancels its handler."""
    return web.AppRunner(
        application,
        handler_cancellation=cancelling,
        access_log=None,
        shutdown_timeout=CLOSE_S,
        max_line_size=HEADER_BYTES_MAX,
        max_field_size=HEADER_BYTES_MAX,
    )


async def bind(runner: web.AppRunner, host: str, port: int, *, without: str = "--port none") -> str:
    """Listen, and return the URL. Port 0 chooses a free one; `without` is how the command is told to have none.
    Raises ConfigurationError."""
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise ConfigurationError(
            "PEN0612",
            f"Can't listen on {host} port {port}: {error.strerror or error}. "
            f"Choose another port with --port N, a free one with --port 0, or none with {without}.",
        ) from error
    port = runner.addresses[0][1]
    host = "127.0.0.1" if host in ("0.0.0.0", "::", "localhost") else host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# Messages.


class WebMessage(msgspec.Struct, frozen=True):
    address: Address
    payload: bytes
    idempotency_key: str
    headers: dict[str, str]
    origin: str


async def read_message(
    request: web.Request, functions: Mapping[str, Function[Any, Any]], message_bytes_max: int
) -> WebMessage:
    """The message a request carries, checked in every respect. Raises InvalidInput."""
    address = parse_address(raw_tail(request), functions)
    idempotency_key = request.headers.get("Idempotency-Key", "")
    if len(idempotency_key) > IDEMPOTENCY_KEY_MAX or not _is_text(idempotency_key):
        raise InvalidInput(
            "PEN0610",
            f"The Idempotency-Key has {len(idempotency_key):,} characters, or is no UTF-8. Send at most "
            f"{IDEMPOTENCY_KEY_MAX}, for example a UUID.",
        )
    body = await read_body(request)
    function = functions[address.typename]
    # Clients call every body they know nothing of an octet-stream: it is one if the function takes bytes.
    raw = request.content_type == "application/octet-stream" and isinstance(function.message_codec, BytesCodec)
    encoded = bool(body) and (raw or request.content_type in ENCODED)
    payload = encode_message(function, address.id, body, encoded=encoded)
    check_size(f"message for {address}", payload, message_bytes_max)
    origin = f"{request.method} {request.path}"
    return WebMessage(address, payload, idempotency_key, kept_headers(request.headers), origin)


async def read_json(request: web.Request, what: str, message_bytes_max: int) -> bytes:
    """The JSON value in the body, as msgpack; `what` says what it is. Raises InvalidInput."""
    body = await read_body(request)
    try:
        value = msgspec.msgpack.encode(msgspec.json.decode(body or b"null"))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput("PEN0610", f"The {what} is no JSON: {error}.") from error
    check_size(what, value, message_bytes_max)
    return value


def check_size(what: str, payload: bytes, bytes_max: int) -> None:
    """Raise InvalidInput for what is too large."""
    if len(payload) > bytes_max:
        raise InvalidInput(
            "PEN0204",
            f"The {what} has {len(payload):,} bytes, more than message_bytes_max = {bytes_max:,}. "
            "Send less, or raise message_bytes_max.",
        )


class TokenBucket:
    """Allows `rate` requests a second on average, and as many at once."""

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._capacity = max(1.0, rate)
        self._clock = clock
        self._tokens = self._capacity
        self._filled_at = clock()

    def take(self) -> float:
        """Zero if the request may pass; otherwise the seconds until one may."""
        now = self._clock()
        self._tokens = min(self._capacity, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0


def parse_address(path: str, typenames: Collection[str]) -> Address:
    """The address that `path`, still percent-encoded, names.

    Slashes separate before anything is decoded: an encoded one (`%2F`) is part of the id. Raises InvalidInput when the
    path names no function or no id.
    """
    decoded = _decoded_segments(path)
    return need_address(decoded, typenames, what="path")


def parse_name(path: str, typenames: Collection[str], *, what: str) -> tuple[Address, str]:
    """The address that `path` names, and what stands behind the last slash: a name of something of that address, which
    `what` says."""
    *segments, name = _decoded_segments(path)
    address = need_address(segments, typenames, what="path")
    if not name:
        raise InvalidInput("PEN0610", f"The path names {address} and no {what}. Append /{what.upper()} to the path.")
    return address, name


def _decoded_segments(path: str) -> list[str]:
    try:
        decoded = [unquote(segment, errors="strict") for segment in path.split("/")]
        "".join(decoded).encode()
    except UnicodeError:
        raise InvalidInput(
            "PEN0610", f"The path {path!r} is no percent-encoded UTF-8. Encode the id, as urllib.parse.quote does."
        ) from None
    return decoded


def encode_message(function: Function[Any, Any], id: str, body: bytes, *, encoded: bool) -> bytes:
    """The bytes of the message in `body`: JSON (nothing at all is `null`), or `encoded` as the function reads it.

    Raises DecodeError.
    """
    codec = function.message_codec
    try:
        if encoded:
            codec.decode(body)
            return body
        return codec.encode(codec.decode_json(body or b"null"))
    except Exception as error:
        raise codec.explain(error, body, place=f"Message for {function.typename} {id!r}") from error


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers a handler may look at (`ctx.message.headers`): those of tracing, `penstock-...` and `x-...`."""
    kept: dict[str, str] = {}
    for written, value in headers.items():
        name = written.lower()
        if name in ("traceparent", "tracestate") or name.startswith(("penstock-", "x-")):
            kept[name] = f"{kept[name]}, {value}" if name in kept else value
    size = sum(len(name) + len(value) for name, value in kept.items())
    if size > HEADERS_KEPT_BYTES_MAX or not all(map(_is_text, kept.values())):
        raise InvalidInput(
            "PEN0610",
            f"The headers that travel with the message have {size:,} characters, or one is no UTF-8. Send at most "
            f"{HEADERS_KEPT_BYTES_MAX:,} in penstock-..., x-... and tracing headers.",
        )
    return kept


def answer_response(request: web.Request, answer: bytes) -> web.Response:
    """The answer of a handler, in JSON or as it is, whichever the caller accepts."""
    if "msgpack" in request.headers.get("Accept", ""):
        return web.Response(body=answer, content_type="application/msgpack")
    return json_response(msgspec.msgpack.decode(answer))


def json_response(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def error_response(
    error: PenstockError, *, status: int | None = None, log: Callable[[str], object] = logger.warning
) -> web.Response:
    """The JSON of a coded error. `path` is where in the value it lies, or null when it is not about a value. What is no
    fault of who asked is told to `log`."""
    status = status or _STATUS.get(error.code) or _status_of(error)
    body = {"code": error.code, "message": error.message, "path": getattr(error, "path", None)}
    response = json_response(body, status=status)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503):
        response.headers["Retry-After"] = _RETRY_AFTER_S
    if status >= 500 and status != 504:
        log(str(error))
    return response


def failed_response(error: PenstockError) -> web.Response:
    """The JSON of why a handler could not answer."""
    return error_response(error, status=_ANSWER_STATUS.get(error.code, 422))


def _status_of(error: PenstockError) -> int:
    match error:
        case InvalidInput():
            return 400
        case Refused():
            return 409
        case Unavailable():
            return 503
        case _:
            return 500


def _no_such_path(request: web.Request, error: web.HTTPException, served: str) -> web.Response:
    """aiohttp's own refusals: an unknown path, or a method it does not have."""
    if "\n" in request.path:  # No route takes one, so that the path would be said not to be there.
        text = f"The path {request.path!r} has a newline, which no id that comes by HTTP may have. Encode it otherwise."
        return error_response(InvalidInput("PEN0610", text))
    text = f"{request.method} {request.path} is not served here. See {served}."
    response = error_response(InvalidInput("PEN0611", text), status=error.status)
    if allow := error.headers.get("Allow"):
        response.headers["Allow"] = allow
    return response


def timeout_ms(request: web.Request) -> int:
    given = request.query.get("timeout")
    return CALL_TIMEOUT_MS if given is None else parse_duration_text(given, error=InvalidInput)


async def read_body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except TimeoutError:
        raise InvalidInput(
            "PEN0610", f"The body did not arrive within {BODY_S:g} s. Send it in one go, or make it smaller."
        ) from None


def raw_tail(request: web.Request) -> str:
    """What follows the first segment of the path, as it was sent."""
    return request.rel_url.raw_path.split("/", 2)[2]


def _is_text(value: str) -> bool:
    """False when a header was not UTF-8: aiohttp keeps such bytes as lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
