"""Keeps the policies in force those of their file, while requests go on.

A new text is acknowledged and in force within two seconds, or it is refused with its mistakes and the last good one
goes on. What always holds: an application does not start with a file that is refused; a file that is being written is
not read until two looks have found it the same; parsing never holds up requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from penstock.errors import ConfigurationError
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.settings import PolicySet
from penstock.mesh.policy_checks import unknown_functions

log = logging.getLogger("penstock")

POLL_S: Final = 0.5
"""Two looks must find the file the same, so a change is in force after two of these and the time to parse it."""


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """What is in force, and what became of the last text that was seen."""

    version: int = 0
    """Of what is in force: how many texts were acknowledged."""
    digest: str = ""
    """Of its text: the first 12 digits of its SHA-256, as `sha256sum` prints them."""
    refused: str = ""
    """Why the text that the file has now is not in force; empty if it is."""


class _Stamp(NamedTuple):
    """What shows that a file may have changed, without reading it."""

    inode: int
    size: int
    modified_ns: int


def read_policy_file(path: Path, *, replicas: int = 0) -> tuple[PolicySet, str]:
    """The policies of a file, and the digest of its text. Raises ConfigurationError."""
    try:
        from penstock.mesh.policy_file import read_policies
    except ImportError as error:
        raise ConfigurationError(
            "PEN0850",
            f"{path} is YAML, and its library is missing ({error}). Install it: pip install 'penstock[policies]'.",
        ) from error
    try:
        raw = path.read_bytes()
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError("PEN0840", f"{path} can't be read: {error}. Name a file of policies.") from error
    return read_policies(text, path.name, replicas=replicas), sha256(raw).hexdigest()[:12]


class PolicyWatch:
    """Of one file. `start` it before the first request, and `run` it beside them."""

    def __init__(
        self,
        path: Path,
        policies: Policies,
        *,
        functions: Collection[str] = (),
        replicas: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """With `functions`, those of the application, names that are none of them are warned of."""
        self.status = PolicyStatus()
        self._path = path
        self._policies = policies
        self._functions = functions
        self._replicas = replicas
        self._clock = clock
        self._seen: _Stamp | None = None
        """Of the last look."""
        self._judged: _Stamp | None = None
        """Of the text that was acknowledged or refused last."""

    def start(self) -> None:
        """Have the file in force. Raises ConfigurationError."""
        self._seen = self._judged = self._stamp()
        self._acknowledge(*read_policy_file(self._path, replicas=self._replicas))

    async def run(self) -> None:
        """Look at the file until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.look()

    async def look(self) -> None:
        """One look. Applies a changed text, or notes why not."""
        stamp = await asyncio.to_thread(self._stamp)
        is_settled, self._seen = stamp == self._seen, stamp
        if not is_settled or stamp == self._judged:
            return
        self._judged = stamp
        try:
            policy_set, digest = await asyncio.to_thread(read_policy_file, self._path, replicas=self._replicas)
        except ConfigurationError as error:
            self.status = PolicyStatus(self.status.version, self.status.digest, str(error))
            log.error("policies refused, version %d goes on: %s", self.status.version, error)
            return
        self._acknowledge(policy_set, digest)

    def _acknowledge(self, policy_set: PolicySet, digest: str) -> None:
        if self.status.version and policy_set.tls != self._policies.policy_set.tls:
            log.warning("%s tls: a process reads it when it starts; start this one again", self._path.name)
        self._policies.apply(policy_set, self._clock())
        self.status = PolicyStatus(self.status.version + 1, digest)
        log.info("policies acknowledged: version %d, %s of %s", self.status.version, digest, self._path)
        unknown = unknown_functions(policy_set, self._functions) if self._functions else ()
        for warning in (*policy_set.warnings, *unknown):
            log.warning("%s %s", self._path.name, warning)

    def _stamp(self) -> _Stamp | None:
        """None if there is no file."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return _Stamp(found.st_ino, found.st_size, found.st_mtime_ns)
