"""The jars of a Kafka broker: fetched by Maven once for each version, and kept in a cache outside the tree.

A directory of jars exists only when it is complete. Any number of processes may ask for it at once: one fetches, the
others wait for it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path

NEWEST = "4.1.0"
OLDEST = "3.9.1"
"""The newest and the oldest version of Kafka that Penstock is tested with."""

_POM = Path(__file__).with_name("pom.xml")
_FETCH_S = 900


def missing_programs() -> str:
    """What has to be installed before a broker can run here; empty if nothing."""
    packages = {"java": "default-jre-headless", "mvn": "maven"}
    lacking = [program for program in packages if shutil.which(program) is None]
    if not lacking:
        return ""
    install = " ".join(packages[program] for program in lacking)
    return f"no Kafka broker: {' and '.join(lacking)} not found (apt-get install {install}, or set KAFKA_BOOTSTRAP)"


def jars_of(version: str = NEWEST) -> Path:
    """The directory of the jars of Kafka `version`, which are fetched if this machine has not got them yet."""
    # The name changes with the pom, so that nobody runs on jars that an older one asked for.
    directory = _cache() / f"penstock-kafka-{version}-{zlib.crc32(_POM.read_bytes()):08x}"
    if not directory.is_dir():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with directory.with_name(f"{directory.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not directory.is_dir():
                _fetch(version, directory)
    return directory


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _fetch(version: str, directory: Path) -> None:
    unfinished = Path(tempfile.mkdtemp(prefix=f"{directory.name}.", dir=directory.parent))
    try:
        command = ["mvn", "--batch-mode", "--quiet", "--file", str(_POM), f"-Dkafka.version={version}"]
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={unfinished}"]
        done = subprocess.run([*command, *goal], capture_output=True, text=True, timeout=_FETCH_S, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"Maven could not fetch the jars of Kafka {version}:\n{done.stdout}{done.stderr}")
        unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
