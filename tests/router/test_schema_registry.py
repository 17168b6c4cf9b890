"""The client of a schema registry: what it asks, what it believes, and what it says when there is no answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from penstock.errors import ConfigurationError, DecodeError, Unavailable
from penstock.functions.formats import SchemaRegistry
from penstock.router.schema_registry import Reference, Registries, RegistryClient, Schema
from tests.router.registry_stub import RegistryStub, serving
from tests.router.sink_contract import synchronous

TEXT = '{"type":"string"}'


@asynccontextmanager
async def connected(**options: Any) -> AsyncIterator[tuple[RegistryStub, RegistryClient]]:
    async with serving(RegistryStub()) as stub:
        client = RegistryClient(SchemaRegistry(stub.url, **options), {"TOKEN": "t0ken", "PASSWORD": "pass:word"})
        try:
            yield stub, client
        finally:
            await client.close()


@synchronous
async def test_a_schema_is_fetched_once() -> None:
    async with connected() as (stub, client):
        schema_id = stub.add("words-value", TEXT)

        first = await client.fetch(schema_id)
        second = await client.fetch(schema_id)

    assert first.schema == Schema("AVRO", TEXT)
    assert second is first
    assert stub.asked == ["GET /schemas/ids/1"]


@synchronous
async def test_an_unknown_id_is_the_fault_of_the_record() -> None:
    async with connected() as (_, client):
        with pytest.raises(DecodeError, match="got schema id 7") as caught:
            await client.fetch(7)

    assert caught.value.code == "PEN0241"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((404, "404 page not found"), "404 404 page not found"),  # Of a proxy: no registry said so.
        ((404, '{"error_code": 404, "message": "HTTP 404 Not Found"}'), "404 HTTP 404 Not Found"),
        ((503, "<html>Service Unavailable</html>"), "503 <html>Service Unavailable</html>"),
        ((500, '{"error_code": 50001, "message": "Error in the backend store"}'), "500 Error in the backend store"),
        ((302, ""), "gives the answer 302"),
        ((200, "<html>Welcome</html>"), "none of a registry"),
        ((200, '{"id": 1}'), "none of a registry"),
    ],
)
@synchronous
async def test_an_answer_of_something_else_makes_no_schema_unknown(answer: tuple[int, str], says: str) -> None:
    async with connected() as (stub, client):
        schema_id = stub.add("words-value", TEXT)
        stub.answers.append(web.Response(status=answer[0], text=answer[1]))
        with pytest.raises(Unavailable) as caught:
            await client.fetch(schema_id)
        assert (await client.fetch(schema_id)).schema.text == TEXT

    assert caught.value.code == "PEN0560"
    assert says in caught.value.message


@synchronous
async def test_a_registry_that_is_down_is_unavailable() -> None:
    async with connected() as (stub, client):
        stub.down = True
        with pytest.raises(Unavailable, match="does not answer") as caught:
            await client.fetch(1)

    assert caught.value.code == "PEN0560"


@synchronous
async def test_an_answer_that_does_not_come_in_time_is_unavailable() -> None:
    async with connected(timeout_s=0.05) as (stub, client):
        stub.silent = asyncio.Event()
        with pytest.raises(Unavailable, match="TimeoutError"):
            await client.fetch(1)
        stub.silent.set()


@pytest.mark.parametrize(
    ("options", "authorization"),
    [
        ({}, None),
        ({"token": "${TOKEN}"}, "Bearer t0ken"),
        ({"username": "ada", "password": "${PASSWORD}"}, "Basic YWRhOnBhc3M6d29yZA=="),
    ],
)
@synchronous
async def test_credentials_come_from_the_environment(options: dict[str, str], authorization: str | None) -> None:
    async with connected(**options) as (stub, client):
        await client.fetch(stub.add("words-value", TEXT))

    assert stub.authorizations == [authorization]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    spec = SchemaRegistry("http://registry:8081", username="ada", password=f"file:{tmp_path / 'password'}")

    with pytest.raises(ConfigurationError, match=r"The password of .* can't be read") as caught:
        RegistryClient(spec, {})

    assert caught.value.code == "PEN0160"


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(ConfigurationError, match="in the variable NOWHERE, which is not set"):
        RegistryClient(SchemaRegistry("http://registry:8081", token="${NOWHERE}"), {})


def test_certificates_that_are_not_there_are_named(tmp_path: Path) -> None:
    spec = SchemaRegistry("https://registry:8081", ca_file=str(tmp_path / "ca.pem"))

    with pytest.raises(ConfigurationError, match="certificates that can't be used") as caught:
        RegistryClient(spec, {})

    assert caught.value.code == "PEN0160"


@synchronous
async def test_refused_credentials_are_waited_for() -> None:
    async with connected() as (stub, client):
        stub.answers.append(web.json_response({"error_code": 401, "message": "Unauthorized"}, status=401))
        with pytest.raises(Unavailable, match="answer 401: Unauthorized") as caught:
            await client.fetch(1)

    assert caught.value.code == "PEN0561"


@synchronous
async def test_schemas_it_builds_on_come_first() -> None:
    async with connected() as (stub, client):
        stub.add("a", '"a"')
        stub.add("b", '"b"', references=[{"name": "A", "subject": "a", "version": 1}])
        schema_id = stub.add(
            "c/d",
            '"c"',
            references=[{"name": "B", "subject": "b", "version": 1}, {"name": "A", "subject": "a", "version": 1}],
        )
        registered = await client.fetch(schema_id)

    assert [(name, schema.text) for name, schema in registered.referred] == [("A", '"a"'), ("B", '"b"')]


@synchronous
async def test_a_schema_is_looked_up_registered_and_versioned() -> None:
    schema = Schema("JSON", TEXT, (Reference("other", "other", 1),))
    async with connected() as (stub, client):
        stub.add("other", "{}", "JSON")
        with pytest.raises(ConfigurationError, match="has not this schema under the subject a/b") as caught:
            await client.look_up("a/b", schema)
        registered = await client.register("a/b", schema)
        assert (await client.look_up("a/b", schema)).id == registered.id == 2
        assert await client.version_of("a/b", schema) == 1
        assert (await client.latest("a/b")).schema == schema

    assert caught.value.code == "PEN0161"


@synchronous
async def test_a_schema_that_is_not_accepted_says_why() -> None:
    async with connected() as (stub, client):
        stub.incompatible = True
        with pytest.raises(ConfigurationError, match="is incompatible with an earlier schema") as caught:
            await client.register("words-value", Schema("AVRO", TEXT))
        with pytest.raises(ConfigurationError, match="no schema under the subject words-value"):
            await client.latest("words-value")

    assert caught.value.code == "PEN0161"


@synchronous
async def test_one_client_serves_all_who_name_the_same_registry() -> None:
    registries = Registries({})
    one = registries.client(SchemaRegistry("http://registry:8081"))

    assert registries.client(SchemaRegistry("http://registry:8081")) is one
    assert registries.client(SchemaRegistry("http://registry:8082")) is not one
    await registries.close()
