"""Blobs in a bucket of S3, Google Cloud Storage or Azure, and of what speaks as they do; the only place of obstore.

What always holds: an object that can be listed is whole and durable, as these services promise; every request ends, for
good or with Unavailable, within the time for an attempt and the time for repeating it; what a service says reaches a
person without the query of its URL, where signatures are. Requests run outside the interpreter, which others have
meanwhile.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import ObjectStore, from_url

from penstock.checkpoint.blobs import Blob, BlobMissing, BlobsRefused, BucketOptions
from penstock.errors import ConfigurationError, Unavailable
from penstock.files import storage_errors

CHUNK_BYTES: Final = 8 << 20
"""Of one request, so that each ends within its time also on a slow line (400 KB/s), and memory holds few of them."""
CHUNKS_AT_ONCE: Final = 4
"""Of one file that is stored. With 4 files at once, 128 MB of memory."""
BACKOFF_MAX_S: Final = 5

_NO_BUCKET: Final = re.compile("NoSuchBucket|ContainerNotFound|bucket does not exist")
_REFUSED: Final = re.compile("status code: 40[13]|AccessDenied")
_SAYS: Final = re.compile("<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", re.DOTALL)

_ENDPOINT_NAMES: Final = {"s3": "endpoint", "gs": "base_url", "az": "endpoint"}


def open_bucket(url: str, options: BucketOptions) -> ObjectBlobs:
    """The blobs below `scheme://bucket/prefix`. Asks nothing of it yet. Raises ConfigurationError."""
    if (options.endpoint or "").startswith("http://") and not options.allow_http:
        raise ConfigurationError(
            "PEN0417",
            f"The endpoint {options.endpoint} of the checkpoint store {url} has no TLS. Use https://, or allow_http "
            "where nobody else listens.",
        )
    scheme = url.partition(":")[0]
    settings: dict[str, Any] = {}
    if options.endpoint is not None:
        settings[_ENDPOINT_NAMES[scheme]] = options.endpoint
    if scheme == "s3":
        settings["virtual_hosted_style_request"] = not options.path_style
        if options.region is not None:
            settings["region"] = options.region
    try:
        bucket = from_url(
            url,
            client_options={
                "allow_http": options.allow_http,
                "connect_timeout": timedelta(seconds=min(5.0, options.timeout_s)),
                "timeout": timedelta(seconds=options.timeout_s),
            },
            retry_config={
                "retry_timeout": timedelta(seconds=options.retry_s),
                "backoff": {"max_backoff": timedelta(seconds=BACKOFF_MAX_S)},
                # The time ends it, not the number.
                "max_retries": 1_000,
            },
            **settings,
        )
    except (BaseError, ValueError) as error:
        raise ConfigurationError(
            "PEN0417",
            f"The checkpoint store {url} can't be opened: {_text(error)}. Correct the URL, which is "
            "s3://bucket/prefix, gs://bucket/prefix or az://container/prefix, or what the environment says of it.",
        ) from error
    return ObjectBlobs(bucket, url, transfers_max=options.transfers_max)


class ObjectBlobs:
    """Blobs as the objects of one bucket. Made by `open_bucket`."""

    def __init__(self, bucket: ObjectStore, url: str, *, transfers_max: int) -> None:
        self.transfers_max = transfers_max
        self._bucket = bucket
        self._url = url.rstrip("/")

    def place(self, key: str) -> str:
        return f"{self._url}/{key}"

    def put_file(self, key: str, source: Path) -> str:
        with self._errors(key, "storing"):
            obstore.put(self._bucket, key, source, chunk_size=CHUNK_BYTES, max_concurrency=CHUNKS_AT_ONCE)
        return ""

    def put_bytes(self, key: str, data: bytes) -> None:
        with self._errors(key, "storing"):
            obstore.put(self._bucket, key, data)

    def sync(self) -> None:
        """An object is durable with its name."""

    def get_file(self, key: str, target: Path) -> str:
        hash = hashlib.sha256()
        with storage_errors(target, "fetching it"), target.open("wb") as file:
            for chunk in self._chunks(key):
                hash.update(chunk)
                file.write(chunk)
        return hash.hexdigest()

    def get_bytes(self, key: str) -> bytes:
        return b"".join(self._chunks(key))

    def hash(self, key: str) -> str:
        hash = hashlib.sha256()
        for chunk in self._chunks(key):
            hash.update(chunk)
        return hash.hexdigest()

    def list(self, folder: str) -> list[Blob]:
        with self._errors(folder, "listing"):
            return [
                Blob(each["path"], each["size"], each["last_modified"].timestamp())
                for page in obstore.list(self._bucket, f"{folder}/")
                for each in page
            ]

    def folders(self) -> Sequence[str]:
        with self._errors("", "listing"):
            found = obstore.list_with_delimiter(self._bucket)["common_prefixes"]
        return sorted(each.strip("/") for each in found)

    def delete(self, keys: Iterable[str]) -> None:
        found = list(keys)
        if found:
            # Some services say so when one is gone already; the next call deletes what was left.
            with suppress(BlobMissing), self._errors(found[0], "deleting"):
                obstore.delete(self._bucket, found)

    def tidy(self) -> None:
        """Folders are only in the names of objects."""

    def _chunks(self, key: str) -> Iterator[memoryview]:
        """The content of an object, by one short request after the other. Its size does not change meanwhile."""
        size = self._size(key)
        for start in range(0, size, CHUNK_BYTES):
            with self._errors(key, "reading"):
                end = min(start + CHUNK_BYTES, size)
                chunk = memoryview(obstore.get_range(self._bucket, key, start=start, end=end))
            yield chunk

    def _size(self, key: str) -> int:
        try:
            with self._errors(key, "reading"):
                return obstore.head(self._bucket, key)["size"]
        except BlobMissing:
            # That answer has no body, which would say whether it is the object or the bucket.
            with self._errors(key, "reading"):
                obstore.get(self._bucket, key)
            raise

    @contextmanager
    def _errors(self, key: str, doing: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if not _NO_BUCKET.search(str(error)):
                raise BlobMissing(key) from error
            raise self._unavailable(error, key, doing) from error
        except BaseError as error:
            raise self._unavailable(error, key, doing) from error

    def _unavailable(self, error: Exception, key: str, doing: str) -> Unavailable:
        text = str(error)
        what = f"{doing} {self.place(key)}: {_text(error)}"
        if _NO_BUCKET.search(text):
            return BlobsRefused(
                "PEN0416",
                f"The bucket of the checkpoint store does not exist, which was noticed while {what}. Create it, or "
                "correct the URL of the store.",
            )
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or _REFUSED.search(text):
            return BlobsRefused(
                "PEN0415",
                f"The checkpoint store refuses {what}. Give this process credentials that may list the bucket, and "
                "read, write and delete objects below the prefix.",
            )
        return Unavailable(
            "PEN0414",
            f"The checkpoint store does not answer while {what}. What was stored is unchanged, and it is tried again. "
            "Check the endpoint and the network.",
        )


def _text(error: Exception) -> str:
    """What went wrong, in a line: without the query of a URL, the XML of an answer, and how obstore came to it."""
    text = str(error).partition("Debug source")[0]
    said = _SAYS.search(text)
    text = text.partition("<?xml")[0]
    if said is not None:
        text += f" {said[1]}: {said[2]}"
    return re.sub(r"\?\S*", "", " ".join(text.split()))[:500].rstrip(".: ")
