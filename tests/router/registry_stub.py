"""A schema registry on this machine: the paths and answers of Confluent's, with schemas in a dictionary.

It can be told to be down, to be something else, or to find a schema incompatible; it keeps what it was asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from penstock.functions.formats import SchemaRegistry


class RegistryStub:
    """Ids count from 1; the same schema has the same id under every subject."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []
        self.authorizations: list[str | None] = []
        self.answers: list[web.Response] = []
        """Given once each, instead of what would be true."""
        self.down = False
        self.silent: asyncio.Event | None = None
        """If there is one, answers wait for it."""
        self.incompatible = False
        self._ids: list[dict[str, Any]] = []
        self._subjects: dict[str, list[int]] = {}

    @property
    def spec(self) -> SchemaRegistry:
        return SchemaRegistry(self.url)

    def add(self, subject: str, schema: str, kind: str = "AVRO", references: list[dict[str, Any]] | None = None) -> int:
        """Register without a request. The id."""
        entry: dict[str, Any] = {"schema": schema}
        if kind != "AVRO":
            entry["schemaType"] = kind
        if references:
            entry["references"] = references
        if entry not in self._ids:
            self._ids.append(entry)
        schema_id = self._ids.index(entry) + 1
        versions = self._subjects.setdefault(subject, [])
        if schema_id not in versions:
            versions.append(schema_id)
        return schema_id

    def subjects(self) -> dict[str, list[int]]:
        return self._subjects

    def text_of(self, schema_id: int) -> str:
        return str(self._ids[schema_id - 1]["schema"])

    # Requests.

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        self.authorizations.append(request.headers.get("Authorization"))
        if self.down:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if self.silent is not None:
            await self.silent.wait()
        if self.answers:
            return self.answers.pop(0)
        # Split before it is decoded: subjects may have slashes.
        match [request.method, *map(unquote, request.rel_url.raw_path.strip("/").split("/"))]:
            case ["GET", "schemas", "ids", schema_id]:
                number = int(schema_id)
                if not 0 < number <= len(self._ids):
                    return _error(404, 40403, f"Schema {number} not found")
                return _json(self._ids[number - 1])
            case ["GET", "subjects", subject, "versions", version]:
                return self._version(subject, version)
            case ["POST", "subjects", subject]:
                return self._look_up(subject, await request.json())
            case ["POST", "subjects", subject, "versions"]:
                return self._register(subject, await request.json())
            case _:
                return web.Response(status=404, text="no such path")

    def _version(self, subject: str, version: str) -> web.Response:
        ids = self._subjects.get(subject)
        if ids is None:
            return _error(404, 40401, f"Subject '{subject}' not found.")
        number = len(ids) if version == "latest" else int(version)
        if not 0 < number <= len(ids):
            return _error(404, 40402, f"Version {version} not found.")
        return _json({"subject": subject, "version": number, "id": ids[number - 1], **self._ids[ids[number - 1] - 1]})

    def _look_up(self, subject: str, question: dict[str, Any]) -> web.Response:
        if subject not in self._subjects:
            return _error(404, 40401, f"Subject '{subject}' not found.")
        for version, schema_id in enumerate(self._subjects[subject], start=1):
            if self._ids[schema_id - 1] == question:
                return _json({"subject": subject, "version": version, "id": schema_id, **question})
        return _error(404, 40403, "Schema not found")

    def _register(self, subject: str, question: dict[str, Any]) -> web.Response:
        if self.incompatible:
            return _error(409, 409, "Schema being registered is incompatible with an earlier schema")
        schema_id = self.add(
            subject, question["schema"], question.get("schemaType", "AVRO"), question.get("references")
        )
        return _json({"id": schema_id})


def _json(answer: dict[str, Any]) -> web.Response:
    return web.json_response(answer, content_type="application/vnd.schemaregistry.v1+json")


def _error(status: int, code: int, message: str) -> web.Response:
    return web.json_response(
        {"error_code": code, "message": message}, status=status, content_type="application/vnd.schemaregistry.v1+json"
    )


@asynccontextmanager
async def serving(stub: RegistryStub, port: int = 0) -> AsyncIterator[RegistryStub]:
    """Answer requests on the loopback; `stub.url` says where."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", stub.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    stub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield stub
    finally:
        await runner.cleanup()
