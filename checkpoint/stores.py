"""Which store a location means: a directory, or a bucket, for which an optional package is needed."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from penstock.checkpoint.blobs import BucketOptions
from penstock.checkpoint.cache import FileCache
from penstock.checkpoint.store import BaseStore, DirectoryStore
from penstock.errors import ConfigurationError

BUCKETS = ("s3", "gs", "az")


def open_store(location: str, options: BucketOptions | None = None, *, cache: Path | None = None) -> BaseStore:
    """The store at `location`: a path, `file:///path`, `s3://bucket/prefix`, `gs://bucket/prefix` or
    `az://container/prefix`.

    `options` are for buckets. `cache` is a directory of this process for what is fetched: worth its space for whatever
    is not on the same disk. Asks nothing of the store yet, `check` does. Raises ConfigurationError.
    """
    files = None if cache is None else FileCache(cache)
    scheme, separator, rest = location.partition("://")
    if separator and scheme in BUCKETS:
        if not rest.partition("/")[0]:
            raise _unusable(location, "it names no bucket")
        return _bucket_store(location, options or BucketOptions(), files)
    if options is not None:
        raise _unusable(location, "options of buckets, such as the endpoint, mean nothing to a directory")
    if not separator:
        return DirectoryStore(Path(location), cache=files)
    url = urlsplit(location)
    if scheme != "file":
        raise _unusable(location, f"{scheme}:// is no kind of store")
    if url.netloc not in ("", "localhost") or not url.path.startswith("/"):
        raise _unusable(location, "file:// takes an absolute path, so three slashes")
    return DirectoryStore(Path(unquote(url.path)), cache=files)


def _bucket_store(url: str, options: BucketOptions, cache: FileCache | None) -> BaseStore:
    try:
        from penstock.checkpoint.object_store import open_bucket
    except ImportError as error:
        raise ConfigurationError(
            "PEN0417",
            f"The checkpoint store {url} is a bucket, for which obstore is missing. Install it: "
            "pip install 'penstock[objectstore]'.",
        ) from error
    return BaseStore(open_bucket(url, options), cache=cache)


def _unusable(location: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        "PEN0417",
        f"The checkpoint store {location!r} can't be used: {why}. Name a directory, s3://bucket/prefix, "
        "gs://bucket/prefix or az://container/prefix.",
    )
