"""Which store a location means: a directory, or a bucket, for which an optional package is needed."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from penstock.checkpoint.blobs import Blobs, BucketOptions, DirectoryBlobs
from penstock.checkpoint.cache import FileCache
from penstock.checkpoint.store import BaseStore
from penstock.errors import ConfigurationError

BUCKETS = ("s3", "gs", "az")


def open_store(location: str, options: BucketOptions | None = None, *, cache: Path | None = None) -> BaseStore:
    """The store at `location`, as `open_blobs` takes it.

    `cache` is a directory of this process for what is fetched: worth its space for whatever is not on the same disk.
    Asks nothing of the store yet, `check` does. Raises ConfigurationError.
    """
    return BaseStore(open_blobs(location, options), cache=None if cache is None else FileCache(cache))


def open_place(location: str, options: BucketOptions, *, linking: bool = False) -> Blobs:
    """As `open_blobs`, with `options` that are there for the case that it is a bucket."""
    bucket = location.partition("://")[0] in BUCKETS
    return open_blobs(location, options if bucket else None, linking=linking)


def open_blobs(location: str, options: BucketOptions | None = None, *, linking: bool = True) -> Blobs:
    """Where files are kept at `location`: a path, `file:///path`, `s3://bucket/prefix`, `gs://bucket/prefix` or
    `az://container/prefix`.

    `options` are for buckets, `linking` is for directories. Makes and asks nothing yet. Raises ConfigurationError.
    """
    scheme, separator, rest = location.partition("://")
    if separator and scheme in BUCKETS:
        if not rest.partition("/")[0]:
            raise _unusable(location, "it names no bucket")
        return _bucket(location, options or BucketOptions())
    if options is not None:
        raise _unusable(location, "options of buckets, such as the endpoint, mean nothing to a directory")
    if not separator:
        return DirectoryBlobs(Path(location), linking=linking)
    url = urlsplit(location)
    if scheme != "file":
        raise _unusable(location, f"{scheme}:// is no kind of store")
    if url.netloc not in ("", "localhost") or not url.path.startswith("/"):
        raise _unusable(location, "file:// takes an absolute path, so three slashes")
    return DirectoryBlobs(Path(unquote(url.path)), linking=linking)


def _bucket(url: str, options: BucketOptions) -> Blobs:
    try:
        from penstock.checkpoint.object_store import open_bucket
    except ImportError as error:
        raise ConfigurationError(
            "PEN0417",
            f"The checkpoint store {url} is a bucket, for which obstore is missing. Install it: "
            "pip install 'penstock[objectstore]'.",
        ) from error
    return open_bucket(url, options)


def _unusable(location: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        "PEN0417",
        f"The checkpoint store {location!r} can't be used: {why}. Name a directory, s3://bucket/prefix, "
        "gs://bucket/prefix or az://container/prefix.",
    )
