"""The HTTP interface of a running application: messages in, answers out, probes, metrics, and what tools ask.

    POST /send/NAMESPACE/NAME/ID    202 once the message is durable
    POST /call/NAMESPACE/NAME/ID    200 with the answer, once nothing can roll it back any more
    GET  /calls/NAMESPACE/NAME/ID/KEY       what became of the request with this Idempotency-Key
    POST /promise/NAMESPACE/NAME/ID/PROMISE 200 once a handler that awaits the promise has its value
    GET  /livez  /readyz  /startupz  for supervisors; they need no token
    GET  /metrics                   for Prometheus
    /admin/...                      for the command line (`penstock.engine.http_admin`)

What always holds: nothing is accepted before its bytes were checked against the type its function takes; an error is
one JSON object {code, message, path}, with the code that `penstock explain` knows; a web page of another origin can
reach nothing, with or without a token. Decides nothing about messages: the worker does.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import msgspec
from aiohttp import web

from penstock.addresses import need_address
from penstock.durations import format_duration, parse_duration_text
from penstock.engine.config import LOOPBACK, Config
from penstock.engine.http_admin import admin_routes, ask_in_order, change_in_time
from penstock.engine.looks import RequestOf
from penstock.engine.metrics import CONTENT_TYPE, Metrics
from penstock.engine.operations import Attach, Resolve
from penstock.engine.serving import Served
from penstock.engine.settings import Setting
from penstock.errors import ConfigurationError, InvalidInput, PenstockError, Refused, Unavailable
from penstock.functions.codecs import BytesCodec
from penstock.functions.function import Function
from penstock.ids import Address
from penstock.logs import logger

CALL_TIMEOUT_MS: Final = 60_000
"""How long a call waits when it does not say. Proxies and clients commonly give up at about that time."""
BODY_S: Final = 30.0
"""A body that takes longer to arrive is given up, so that slow senders can't hold connections for ever."""
HEADER_BYTES_MAX: Final = 8_190
"""Of one header, and of the request line, whose path holds the id: what common servers and proxies allow."""
HEADERS_KEPT_BYTES_MAX: Final = 16_384
"""Of the headers that become part of a message: they are stored with it."""
IDEMPOTENCY_KEY_MAX: Final = 255
CHECKPOINT_OVERDUE_MS: Final = 30_000
"""PROTOCOL 25: checkpoints that fail for so long mean that the application is not ready."""
CLOSE_S: Final = 2.0
"""Answers under way may take so long to be written when the server closes."""

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
_OPEN = frozenset({"/livez", "/readyz", "/startupz"})
_RETRY_AFTER_S = "1"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpServer:
    """Serves one worker. `start` binds, `close` ends it; in between it runs on the worker's event loop."""

    def __init__(
        self,
        worker: Served,
        *,
        settings: Collection[Setting] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        config = worker.config
        self._token = config.token
        self._started = False
        """Whether the worker was seen ready."""
        self._metrics = Metrics(worker)
        self._bucket = TokenBucket(config.requests_per_s_max, clock) if config.requests_per_s_max else None
        self._application = web.Application(client_max_size=config.body_bytes_max, middlewares=[self._guard])
        self._application.add_routes(
            [
                web.post("/send/{address:.*}", self._send),
                web.post("/call/{address:.*}", self._call),
                web.get("/calls/{request:.*}", self._show_request),
                web.post("/promise/{promise:.*}", self._resolve),
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/startupz", self._startupz),
                web.get("/metrics", self._show_metrics),
                *admin_routes(worker, settings),
            ]
        )
        # A caller who hangs up cancels the waiting for the answer; the message itself is in the log already.
        self._runner = web.AppRunner(
            self._application,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=CLOSE_S,
            max_line_size=HEADER_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
        )

    async def start(self) -> str:
        """Bind, and return the URL under which this process can be reached. Raises ConfigurationError."""
        return await bind(self._runner, self._worker.config)

    async def close(self) -> None:
        """Stop listening; answers under way are finished. Harmless when it never started."""
        await self._runner.cleanup()

    # What applies to every request.

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let in who may, and make every failure the JSON of a coded error."""
        try:
            self._check_origin(request)
            if request.path not in _OPEN:
                self._check_token(request)
            return await handler(request)
        except PenstockError as error:
            return error_response(error)
        except web.HTTPRequestEntityTooLarge:
            return error_response(self._too_large())
        except web.HTTPException as error:
            return _no_such_path(request, error)

    def _check_origin(self, request: web.Request) -> None:
        """A page in the operator's browser may send to this machine's loopback address: refuse what pages send, and
        names that somebody else's DNS points here (`Host` is then not ours)."""
        origin = request.headers.get("Origin")
        foreign = origin is not None and urlsplit(origin).netloc != request.host
        if not self._token and self._worker.config.host in LOOPBACK:
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
            f"The body is larger than body_bytes_max = {self._worker.config.body_bytes_max:,} bytes. "
            "Send less, or raise body_bytes_max.",
        )

    # Messages.

    async def _send(self, request: web.Request) -> web.Response:
        message = await self._read_message(request)
        await self._worker.requests.send(
            message.address,
            message.payload,
            idempotency_key=message.idempotency_key,
            headers=message.headers,
            origin=message.origin,
        )
        return json_response({"accepted": True, "address": str(message.address)}, status=202)

    async def _call(self, request: web.Request) -> web.Response:
        timeout_ms = _timeout_ms(request)
        message = await self._read_message(request)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                reply = await self._worker.requests.call(
                    message.address,
                    message.payload,
                    idempotency_key=message.idempotency_key,
                    headers=message.headers,
                    origin=message.origin,
                )
        except TimeoutError:
            raise Unavailable(
                "PEN0608",
                f"{message.address} has not answered within {format_duration(timeout_ms)}. The message was accepted "
                "and is still being processed: ask again with the same Idempotency-Key to get its answer, or allow "
                "more with ?timeout=.",
            ) from None
        if reply.error:
            code, _, text = reply.error.partition(" ")
            return error_response(PenstockError(code, text), status=_ANSWER_STATUS.get(code, 422))
        if "msgpack" in request.headers.get("Accept", ""):
            return web.Response(body=reply.value, content_type="application/msgpack")
        return json_response(msgspec.msgpack.decode(reply.value))

    async def _read_message(self, request: web.Request) -> _Message:
        """The message a request carries, checked in every respect."""
        self._take_turn()
        address = parse_address(_raw_tail(request), self._worker.app.functions)
        idempotency_key = request.headers.get("Idempotency-Key", "")
        if len(idempotency_key) > IDEMPOTENCY_KEY_MAX or not _is_text(idempotency_key):
            raise InvalidInput(
                "PEN0610",
                f"The Idempotency-Key has {len(idempotency_key):,} characters, or is no UTF-8. Send at most "
                f"{IDEMPOTENCY_KEY_MAX}, for example a UUID.",
            )
        body = await _read_body(request)
        function = self._worker.app.functions[address.typename]
        # Clients call every body they know nothing of an octet-stream: it is one if the function takes bytes.
        raw = request.content_type == "application/octet-stream" and isinstance(function.message_codec, BytesCodec)
        encoded = bool(body) and (raw or request.content_type in ENCODED)
        payload = encode_message(function, address.id, body, encoded=encoded)
        self._check_size(f"message for {address}", payload)
        origin = f"{request.method} {request.path}"
        return _Message(address, payload, idempotency_key, kept_headers(request.headers), origin)

    def _take_turn(self) -> None:
        if self._bucket is not None and (wait_s := self._bucket.take()) > 0:
            raise Unavailable(
                "PEN0606",
                f"More than requests_per_s_max = {self._worker.config.requests_per_s_max:g} requests a second. "
                f"Try again in {wait_s:.3f} s.",
            )

    def _check_size(self, what: str, payload: bytes) -> None:
        bytes_max = self._worker.config.message_bytes_max
        if len(payload) > bytes_max:
            raise InvalidInput(
                "PEN0204",
                f"The {what} has {len(payload):,} bytes, more than message_bytes_max = {bytes_max:,}. "
                "Send less, or raise message_bytes_max.",
            )

    # What awaits.

    async def _show_request(self, request: web.Request) -> web.Response:
        """At once, or with `wait` when it has ended, whichever comes first."""
        self._take_turn()
        address, key = parse_name(_raw_tail(request), self._worker.app.functions, what="key")
        wait = request.query.get("wait")
        if wait is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(parse_duration_text(wait, error=InvalidInput) / 1000):
                    return json_response(await self._worker.requests.operate(address, Attach(key)))
        return json_response(await ask_in_order(self._worker, address, RequestOf(*address, key)))

    async def _resolve(self, request: web.Request) -> web.Response:
        self._take_turn()
        address, name = parse_name(_raw_tail(request), self._worker.app.functions, what="promise")
        body = await _read_body(request)
        try:
            value = msgspec.msgpack.encode(msgspec.json.decode(body or b"null"))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidInput("PEN0610", f"The value of promise {name!r} is no JSON: {error}.") from error
        self._check_size(f"value of promise {name!r} of {address}", value)
        await change_in_time(self._worker, address, Resolve(name, value))
        return json_response({"resolved": True, "address": str(address), "promise": name})

    # Probes and metrics.

    async def _livez(self, request: web.Request) -> web.Response:
        return json_response({"alive": True})

    async def _readyz(self, request: web.Request) -> web.Response:
        reason = why_not_ready(self._worker, time.time() * 1000)
        return json_response({"ready": not reason, "reason": reason}, status=503 if reason else 200)

    async def _startupz(self, request: web.Request) -> web.Response:
        """Whether it has been ready once. Until then a supervisor must give it time, however much it restores."""
        self._started = self._started or self._worker.ready
        restoring = {str(task): percent for task, percent in self._worker.restoring.items()}
        answer = {"started": self._started, "restoring": restoring}
        return json_response(answer, status=200 if self._started else 503)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})


async def bind(runner: web.AppRunner, config: Config) -> str:
    """Listen where the configuration says, and return the URL. Raises ConfigurationError."""
    assert config.port is not None, "no port means no HTTP interface"
    await runner.setup()
    site = web.TCPSite(runner, config.host, config.port)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise ConfigurationError(
            "PEN0612",
            f"Can't listen on {config.host} port {config.port}: {error.strerror or error}. "
            "Choose another port with --port N, a free one with --port 0, or none with --port none.",
        ) from error
    port = runner.addresses[0][1]
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::", "localhost") else config.host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Message(msgspec.Struct, frozen=True):
    address: Address
    payload: bytes
    idempotency_key: str
    headers: dict[str, str]
    origin: str


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


def why_not_ready(worker: Served, now_ms: float) -> str:
    """Why the application should get no traffic now; empty when it should."""
    if worker.stopping:
        return "stopping"
    if worker.problem:
        return worker.problem
    if not worker.ready:
        return "starting"
    since_ms = worker.checkpoint_statistics().trying_since_ms
    if since_ms is not None and now_ms - since_ms > CHECKPOINT_OVERDUE_MS:
        return f"no checkpoint has completed for {format_duration(int(now_ms - since_ms))}"
    return ""


def json_response(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def error_response(error: PenstockError, *, status: int | None = None) -> web.Response:
    """The JSON of a coded error. `path` is where in the value it lies, or null when it is not about a value."""
    status = status or _STATUS.get(error.code) or _status_of(error)
    body = {"code": error.code, "message": error.message, "path": getattr(error, "path", None)}
    response = json_response(body, status=status)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503):
        response.headers["Retry-After"] = _RETRY_AFTER_S
    if status >= 500 and status != 504:
        logger.warning("%s", error)
    return response


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


def _no_such_path(request: web.Request, error: web.HTTPException) -> web.Response:
    """aiohttp's own refusals: an unknown path, or a method it does not have."""
    text = f"{request.method} {request.path} is not served here. See POST /send, POST /call, /readyz, /metrics."
    response = error_response(InvalidInput("PEN0611", text), status=error.status)
    if allow := error.headers.get("Allow"):
        response.headers["Allow"] = allow
    return response


def _timeout_ms(request: web.Request) -> int:
    given = request.query.get("timeout")
    return CALL_TIMEOUT_MS if given is None else parse_duration_text(given, error=InvalidInput)


async def _read_body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except TimeoutError:
        raise InvalidInput(
            "PEN0610", f"The body did not arrive within {BODY_S:g} s. Send it in one go, or make it smaller."
        ) from None


def _raw_tail(request: web.Request) -> str:
    """What follows the first segment of the path, as it was sent."""
    return request.rel_url.raw_path.split("/", 2)[2]


def _is_text(value: str) -> bool:
    """False when a header was not UTF-8: aiohttp keeps such bytes as lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
