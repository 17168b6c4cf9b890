"""Asks a schema registry, over the REST interface of Confluent's.

What always holds: an answer is believed only if it is one of a registry, so a proxy's "404" never makes a schema
unknown; a schema that was read under an id never changes, and is kept; every question ends after `timeout_s`; nothing
is repeated here, because only the caller knows what waits for it. Understands no schema: see `penstock.router.avro`
and its neighbours.
"""

from __future__ import annotations

import os
import ssl
from base64 import b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from penstock.errors import ConfigurationError, DecodeError, Unavailable
from penstock.functions.formats import SchemaRegistry
from penstock.router.secrets import resolved

if TYPE_CHECKING:
    import aiohttp

A = TypeVar("A")

_SCHEMAS_MAX = 1_000
"""Kept of one registry. A topic has a handful."""
_ANSWER_BYTES_MAX = 16 << 20

_CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
_NOT_FOUND = (40401, 40402, 40403)
"""What a registry says besides 404: no such subject, version, schema."""


class Reference(msgspec.Struct, frozen=True):
    """A schema that another one builds on."""

    name: str
    """How the other names it: a type for Avro, a file for protobuf, a URI for JSON."""
    subject: str
    version: int


class Schema(NamedTuple):
    """A schema as the registry has it."""

    kind: str
    """AVRO, PROTOBUF or JSON."""
    text: str
    references: tuple[Reference, ...] = ()


class Registered(NamedTuple):
    """A schema under its id."""

    id: int
    schema: Schema
    referred: tuple[tuple[str, Schema], ...] = ()
    """The schemas it builds on by the names it has for them, each behind those it builds on itself."""


class _SchemaAnswer(msgspec.Struct):
    schema: str
    schemaType: str = "AVRO"  # noqa: N815  # A registry leaves out what was once its only type.
    references: tuple[Reference, ...] | None = None

    def as_schema(self) -> Schema:
        return Schema(self.schemaType, self.schema, self.references or ())


class _IdAnswer(msgspec.Struct):
    id: int


class _VersionAnswer(_SchemaAnswer, kw_only=True):
    id: int
    version: int


class _ErrorAnswer(msgspec.Struct):
    error_code: int = 0
    message: str = ""


class _Missing(Exception):
    """The registry says that it has no such thing."""


class _Rejected(Exception):
    """The registry does not accept the schema it was given."""


class RegistryClient:
    """One registry. Lives in one event loop; `close` it there."""

    def __init__(self, spec: SchemaRegistry, environment: Mapping[str, str]) -> None:
        self._spec = spec
        owner = f"SchemaRegistry({spec.url!r})"
        self._url = resolved(spec.url, environment, what=f"The url of {owner}").rstrip("/")
        self._headers = {"Accept": f"{_CONTENT_TYPE}, application/json", "Content-Type": _CONTENT_TYPE}
        if spec.token:
            token = resolved(spec.token, environment, what=f"The token of {owner}")
            self._headers["Authorization"] = f"Bearer {token}"
        elif spec.username:
            username = resolved(spec.username, environment, what=f"The username of {owner}")
            password = resolved(spec.password, environment, what=f"The password of {owner}")
            self._headers["Authorization"] = "Basic " + b64encode(f"{username}:{password}".encode()).decode()
        self._tls = _tls_of(spec) if spec.ca_file or spec.certificate_file else True
        self._session: aiohttp.ClientSession | None = None
        self._schemas: dict[int, Registered] = {}

    async def fetch(self, schema_id: int) -> Registered:
        """The schema with this id. Raises DecodeError if the registry has none, Unavailable if it does not answer."""
        if (known := self._schemas.get(schema_id)) is not None:
            return known
        try:
            answer = await self._ask(_SchemaAnswer, "GET", f"/schemas/ids/{schema_id}")
        except _Missing:
            raise DecodeError(
                "PEN0241",
                f"$ expected a record whose schema {self._url} knows, got schema id {schema_id}. Give the ingress the "
                "registry that its producer uses, or register the schema there again.",
                expected=f"a schema of {self._url}",
                got=f"schema id {schema_id}",
            ) from None
        return self._keep(await self._with_referred(schema_id, answer.as_schema()))

    async def latest(self, subject: str) -> Registered:
        """The newest schema of `subject`. Raises ConfigurationError if there is none."""
        try:
            answer = await self._ask(_VersionAnswer, "GET", f"{_path(subject)}/versions/latest")
        except _Missing:
            raise ConfigurationError(
                "PEN0161",
                f"{self._url} has no schema under the subject {subject}. Register one, or give the format a schema and "
                "auto_register=True.",
            ) from None
        return self._keep(await self._with_referred(answer.id, answer.as_schema()))

    async def look_up(self, subject: str, schema: Schema) -> Registered:
        """`schema` under the id it has in `subject`. Raises ConfigurationError if it is not registered there."""
        try:
            answer = await self._ask(_IdAnswer, "POST", _path(subject), _question(schema))
        except _Missing:
            raise ConfigurationError(
                "PEN0161",
                f"{self._url} has not this schema under the subject {subject}. Register it, set auto_register=True, or "
                "leave schema out to write with the newest that is registered.",
            ) from None
        except _Rejected as error:
            raise self._not_accepted(subject, error) from None
        return await self._with_referred(answer.id, schema)

    async def register(self, subject: str, schema: Schema) -> Registered:
        """Register `schema` under `subject`, or find it there. Raises ConfigurationError if it is not accepted."""
        try:
            answer = await self._ask(_IdAnswer, "POST", f"{_path(subject)}/versions", _question(schema))
        except (_Rejected, _Missing) as error:
            raise self._not_accepted(subject, error) from None
        return await self._with_referred(answer.id, schema)

    async def version_of(self, subject: str, schema: Schema) -> int:
        """The version that `schema`, which is registered, has in `subject`."""
        try:
            answer = await self._ask(_VersionAnswer, "POST", _path(subject), _question(schema))
        except (_Rejected, _Missing) as error:
            raise self._not_accepted(subject, error) from None
        return answer.version

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # Schemas that build on others.

    async def _with_referred(self, schema_id: int, schema: Schema) -> Registered:
        referred: dict[str, Schema] = {}
        await self._collect(schema, referred, set())
        return Registered(schema_id, schema, tuple(referred.items()))

    async def _collect(self, schema: Schema, referred: dict[str, Schema], begun: set[Reference]) -> None:
        for reference in schema.references:
            if reference in begun:
                continue
            begun.add(reference)
            path = f"{_path(reference.subject)}/versions/{reference.version}"
            try:
                inner = (await self._ask(_VersionAnswer, "GET", path)).as_schema()
            except _Missing:
                raise Unavailable(
                    "PEN0560",
                    f"{self._url} has a schema that builds on {reference.name}, version {reference.version} of "
                    f"{reference.subject}, but not that. Restore it there; what needs the schema waits.",
                ) from None
            await self._collect(inner, referred, begun)
            referred[reference.name] = inner

    def _keep(self, registered: Registered) -> Registered:
        if len(self._schemas) >= _SCHEMAS_MAX:
            del self._schemas[next(iter(self._schemas))]  # The oldest; it can be asked for again.
        self._schemas[registered.id] = registered
        return registered

    # The wire.

    async def _ask(self, answer_type: type[A], method: str, path: str, question: Any = None) -> A:
        """The answer to one question. Raises _Missing, _Rejected or Unavailable."""
        import aiohttp  # A third of what starting a worker takes, most of which talk to no registry.

        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._spec.timeout_s))
        body = None if question is None else msgspec.json.encode(question)
        try:
            async with self._session.request(
                method,
                self._url + path,
                data=body,
                headers=self._headers,
                ssl=self._tls,
                allow_redirects=False,  # The credentials are for this server.
            ) as response:
                status, data = response.status, await _limited(response)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise self._unavailable(f"does not answer: {type(error).__name__} {error}".rstrip()) from error
        if status != 200:
            raise self._failure(status, data)
        try:
            return msgspec.json.decode(data, type=answer_type)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._unavailable(f"gives an answer that is none of a registry: {error}") from error

    def _failure(self, status: int, data: bytes) -> Exception:
        try:
            answer = msgspec.json.decode(data, type=_ErrorAnswer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            answer = _ErrorAnswer(message=" ".join(data[:200].decode(errors="replace").split()))
        if status in (401, 403):
            return Unavailable(
                "PEN0561",
                f"The schema registry {self._url} refuses these credentials (answer {status}: {answer.message}). "
                "Correct username and password, or the token; what needs the schema waits.",
            )
        if status == 404 and answer.error_code in _NOT_FOUND:
            return _Missing(answer.message)
        if status in (409, 422):
            return _Rejected(answer.message)
        return self._unavailable(f"gives the answer {status} {answer.message}".rstrip())

    def _unavailable(self, problem: str) -> Unavailable:
        return Unavailable(
            "PEN0560",
            f"The schema registry {self._url} {problem.rstrip('.')}. Start or repair it, or correct its url; what "
            "needs the schema waits.",
        )

    def _not_accepted(self, subject: str, error: Exception) -> ConfigurationError:
        return ConfigurationError(
            "PEN0161",
            f"{self._url} does not accept the schema under the subject {subject}: {str(error).rstrip('.')}. Change the "
            "schema so that it is compatible, or use another subject.",
        )


class Registries:
    """The clients of one process: one for each registry, whoever uses it. `environment` is what `${NAME}` refers to."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment
        self._clients: dict[SchemaRegistry, RegistryClient] = {}

    def client(self, spec: SchemaRegistry) -> RegistryClient:
        """The client of `spec`. Raises ConfigurationError if a secret or certificate is not there."""
        if spec not in self._clients:
            self._clients[spec] = RegistryClient(spec, self._environment)
        return self._clients[spec]

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.close()


def _tls_of(spec: SchemaRegistry) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=spec.ca_file or None)
        if spec.certificate_file:
            context.load_cert_chain(spec.certificate_file, spec.key_file or None)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError.
        raise ConfigurationError(
            "PEN0160",
            f"SchemaRegistry({spec.url!r}) has certificates that can't be used: {error}. Correct ca_file, "
            "certificate_file and key_file.",
        ) from error
    return context


async def _limited(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for part in response.content.iter_any():
        data += part
        if len(data) > _ANSWER_BYTES_MAX:
            raise ValueError(f"an answer of more than {_ANSWER_BYTES_MAX:,} bytes")
    return bytes(data)


def _path(subject: str) -> str:
    return f"/subjects/{quote(subject, safe='')}"


def _question(schema: Schema) -> dict[str, Any]:
    question: dict[str, Any] = {"schema": schema.text}
    if schema.kind != "AVRO":
        question["schemaType"] = schema.kind
    if schema.references:
        question["references"] = schema.references
    return question
