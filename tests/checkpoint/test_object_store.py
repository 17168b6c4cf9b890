"""Buckets as stores: the contract in memory, in files and at a server that speaks S3; then what goes wrong there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from uuid import uuid4

import obstore
import pytest
from obstore.store import LocalStore, MemoryStore

from penstock.checkpoint.blobs import Blobs, BucketOptions
from penstock.checkpoint.object_store import CHUNK_BYTES, ObjectBlobs, open_bucket
from penstock.checkpoint.store import BaseStore
from penstock.checkpoint.stores import open_store
from penstock.errors import ConfigurationError, CorruptSnapshot, Unavailable
from tests.checkpoint.store_contract import CHECKPOINT, StoreContract, contents, directory
from tests.object_storage import Moto, answering, running_moto, silent, unused_endpoint

BUCKET = "checkpoints"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-tests")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    with running_moto() as moto:
        moto.create_bucket(BUCKET)
        yield moto


def options(endpoint: str) -> BucketOptions:
    return BucketOptions(endpoint=endpoint, region="us-east-1", allow_http=True, timeout_s=0.5, retry_s=0.5)


def at(endpoint: str) -> BaseStore:
    return open_store(f"s3://{BUCKET}/app", options(endpoint))


class TestMemoryBucket(StoreContract):
    @pytest.fixture(autouse=True)
    def place(self) -> None:
        self.bucket = MemoryStore()

    def reach(self) -> Blobs:
        return ObjectBlobs(self.bucket, "memory://", transfers_max=4)

    def damage(self, key: str, content: bytes | None) -> None:
        if content is None:
            obstore.delete(self.bucket, key)
        else:
            obstore.put(self.bucket, key, content)


class TestLocalBucket(StoreContract):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "bucket"

    def reach(self) -> Blobs:
        return ObjectBlobs(LocalStore(self.directory, mkdir=True), "local://", transfers_max=4)

    def damage(self, key: str, content: bytes | None) -> None:
        (self.directory / key).unlink()
        if content is not None:
            (self.directory / key).write_bytes(content)


class TestS3(StoreContract):
    @pytest.fixture(autouse=True)
    def place(self, moto: Moto) -> None:
        self.moto = moto
        self.prefix = uuid4().hex

    def reach(self) -> Blobs:
        endpoint = BucketOptions(endpoint=self.moto.endpoint, region="us-east-1", allow_http=True)
        return open_bucket(f"s3://{BUCKET}/{self.prefix}", endpoint)

    def damage(self, key: str, content: bytes | None) -> None:
        blobs = self.reach()
        if content is None:
            blobs.delete([key])
        else:
            blobs.put_bytes(key, content)

    def test_files_of_many_requests_come_back_whole(self, tmp_path: Path) -> None:
        content = bytes(range(251)) * (2 * CHUNK_BYTES // 251 + 99)
        store = BaseStore(self.reach())

        store.put("base-1", directory(tmp_path / "made", {"000001.sst": content}))
        store.fetch("base-1", tmp_path / "fetched")

        assert contents(tmp_path / "fetched") == {"000001.sst": content}

    def test_a_second_base_costs_a_request_for_each_new_file(self, tmp_path: Path) -> None:
        store = BaseStore(self.reach())
        store.put("base-1", directory(tmp_path / "one", CHECKPOINT))
        before = len(self.moto.requests())

        store.put("base-2", directory(tmp_path / "two", CHECKPOINT | {"000002.sst": b"new"}))

        asked = [method for method, path in self.moto.requests()[before:] if self.prefix in path]
        assert asked.count("PUT") == 2, "the new file and the list"
        assert asked.count("GET") <= 5
        assert "POST" not in asked

    def test_a_changed_object_is_refused_when_it_is_fetched(self, tmp_path: Path) -> None:
        store = BaseStore(self.reach())
        store.put("base-1", directory(tmp_path / "made", {"000001.sst": b"contents"}))
        self.damage(store.files("base-1")[0].key, b"continue")

        with pytest.raises(
            CorruptSnapshot, match=r"PEN0404 .*s3://.* has hash .*\. Use a checkpoint with another base"
        ):
            store.fetch("base-1", tmp_path / "fetched")

        assert not (tmp_path / "fetched").exists()


# What goes wrong.


def test_a_service_that_is_not_there_is_given_up_in_time(tmp_path: Path) -> None:
    store, begun = at(unused_endpoint()), monotonic()

    with pytest.raises(Unavailable, match=r"PEN0414 The checkpoint store does not answer while .* Check the endpoint"):
        store.put("base-1", directory(tmp_path / "made", CHECKPOINT))

    assert monotonic() - begun < 10


def test_a_service_that_says_nothing_is_given_up_in_time_and_blocks_nobody(tmp_path: Path) -> None:
    with silent() as (endpoint, listening), ThreadPoolExecutor(1) as pool:
        begun = monotonic()
        putting = pool.submit(at(endpoint).put, "base-1", directory(tmp_path / "made", CHECKPOINT))
        listening.accept()[0].close()
        assert not putting.done(), "this thread has the interpreter while the other waits for an answer"

        with pytest.raises(Unavailable, match="PEN0414"):
            putting.result()
        assert monotonic() - begun < 10


@pytest.mark.parametrize("status", [401, 403])
def test_missing_permission_says_what_is_needed(tmp_path: Path, status: int) -> None:
    with answering(status, "AccessDenied", "User bob is not authorised") as endpoint:
        store = at(endpoint)

        with pytest.raises(Unavailable) as refused:
            store.put("base-1", directory(tmp_path / "made", CHECKPOINT))
        with pytest.raises(ConfigurationError, match="PEN0415"):
            store.check()

    said = str(refused.value)
    assert re.match(r"PEN0415 The checkpoint store refuses listing s3://checkpoints/app/", said)
    assert "AccessDenied: User bob is not authorised. Give this process credentials that may list" in said
    assert "\n" not in said
    assert "secret-of-tests" not in said


def test_a_failing_service_is_asked_again_and_then_given_up(tmp_path: Path) -> None:
    source = directory(tmp_path / "made", CHECKPOINT)

    with (
        answering(503, "SlowDown", "Please reduce your request rate") as endpoint,
        pytest.raises(Unavailable, match=r"PEN0414 .* SlowDown: Please reduce"),
    ):
        at(endpoint).put("base-1", source)


def test_a_bucket_that_does_not_exist_is_named(moto: Moto, tmp_path: Path) -> None:
    store = open_store(
        "s3://no-such-bucket/app", BucketOptions(endpoint=moto.endpoint, region="us-east-1", allow_http=True)
    )

    with pytest.raises(ConfigurationError, match=r"PEN0416 The bucket .* s3://no-such-bucket/app/.* Create it"):
        store.check()
    with pytest.raises(Unavailable, match="PEN0416"):
        store.put("base-1", directory(tmp_path / "made", CHECKPOINT))
    with pytest.raises(Unavailable, match="PEN0416"):  # And not: no checkpoint has its base any more.
        store.fetch("base-1", tmp_path / "fetched")


def test_a_service_that_cannot_be_reached_is_no_damage(tmp_path: Path) -> None:
    """Or a start would pass over every checkpoint there is."""
    with pytest.raises(Unavailable, match="PEN0414"):
        at(unused_endpoint()).fetch("base-1", tmp_path / "fetched")


# Which store a location means.


@pytest.mark.parametrize("location", ["{}/store", "file://{}/store", "file://localhost{}/store"])
def test_a_path_is_a_directory(tmp_path: Path, location: str) -> None:
    store = open_store(location.format(tmp_path), cache=tmp_path / "cache")

    store.put("base-1", directory(tmp_path / "made", CHECKPOINT))

    assert (tmp_path / "store" / "bases" / "base-1").exists()
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/some/prefix/", "gs://bucket/prefix", "az://container/p"])
def test_buckets_of_three_services_can_be_named(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")

    open_store(url)
    open_store(url, BucketOptions(endpoint="https://storage.example", path_style=False))


@pytest.mark.parametrize(
    ("location", "settings", "why"),
    [
        ("ftp://host/x", None, "ftp:// is no kind of store"),
        ("s3:///prefix", None, "it names no bucket"),
        ("file://host/x", None, "three slashes"),
        ("/path", BucketOptions(), "mean nothing to a directory"),
        ("s3://bucket", BucketOptions(endpoint="http://minio:9000"), "has no TLS. Use https://, or allow_http"),
        ("az://container", None, "Account must be specified. Correct the URL"),
    ],
)
def test_what_is_no_store_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, location: str, settings: BucketOptions | None, why: str
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)

    with pytest.raises(ConfigurationError, match=re.escape(why)) as refused:
        open_store(location, settings)

    assert refused.value.code == "PEN0417"


def test_the_package_for_buckets_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "penstock.checkpoint.object_store", None)

    with pytest.raises(ConfigurationError, match=r"pip install 'penstock\[objectstore\]'"):
        open_store("s3://bucket")
