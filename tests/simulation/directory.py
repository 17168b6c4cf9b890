"""The data directory of a world of one process: the real one, on a simulated log, index and store.

What stands in: the lock, the files, and the stores of tasks, which are in memory. What is real is all that decides:
which checkpoint a start continues, what it compares, what it passes over, and the attempt that it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from penstock.checkpoint.control import Manifest, Part
from penstock.checkpoint.retention import Retained, Retention
from penstock.engine import data as data_module
from penstock.engine import forgetting as forgetting_module
from penstock.engine import journal as journal_module
from penstock.engine.data import DataDirectory
from penstock.engine.feeds import RequestFeed
from penstock.engine.forgetting import Forgetting
from penstock.engine.journal import Journal
from penstock.engine.restore import Restored, restore_task
from penstock.engine.unit import TaskUnit
from penstock.errors import CorruptSnapshot
from penstock.files import checked, unchecked
from penstock.functions.app import App
from penstock.ids import Offset
from penstock.logs import logger
from penstock.router.log import check_offset
from tests.simulation.log import SimulatedLog
from tests.simulation.store import SimulatedStore

INDEX = Path("simulated", "index")
UNREFERENCED_MS = 900
"""Age at which a base that no manifest names is deleted: more than a checkpoint that names it can be under way."""
KEPT_LITTLE = Retention(all_ms=60, spacing_ms=60, spaced_ms=300, bytes_max=8_000)

Files = dict[Path, bytes]
"""All that stands in files of its own: the index of the journal."""


@dataclass(frozen=True)
class SimulatedConfig:
    """The part of a configuration that is asked for here. The number of tasks need not be a power of two."""

    parallelism: int
    from_checkpoint: int | None = None
    fresh: bool = False
    directory: Path = INDEX.parent
    store_bytes: int = 0
    cache_bytes: int = 8 << 20
    retention: Retention = KEPT_LITTLE


class SimulatedDirectory(DataDirectory):
    """See the module. `passed_over` learns of each checkpoint that is damaged."""

    def __init__(
        self,
        log: SimulatedLog,
        store: SimulatedStore,
        tasks: int,
        *,
        replay: int | None,
        passed_over: Callable[[Retained, CorruptSnapshot], None],
    ) -> None:
        config: Any = SimulatedConfig(parallelism=tasks, from_checkpoint=replay)
        simulated: Any = log
        self._config = config
        self.path = INDEX.parent
        self.log = simulated
        self.journal = Journal(simulated, INDEX)
        self.history = self.journal.read_history()
        bases: Any = store
        self.store = bases
        self.notes = [*self.journal.notes]
        trusted: Any = SimpleNamespace(exists=lambda: False, unlink=lambda missing_ok: None)
        self._distrusted = trusted
        self._verified = {}
        self._passed_over = False
        self.storage_error = ""
        self.pinned = set()
        self.replay = replay
        self.refused: Manifest | None = None
        """A checkpoint that has another number of tasks than was asked for."""
        self._told = passed_over

    def close(self) -> None:
        pass

    def restore_part(self, part: Part) -> Restored:
        memory: Any = None
        return self._restore_part(part, memory, lambda progress: None)

    def forget(self, units: list[TaskUnit], clock_ms: float) -> None:
        """As a worker does behind a new base, with little patience."""
        coroutine = Forgetting(self._config, units, self, clock=lambda: clock_ms / 1000).run()
        try:
            coroutine.send(None)
        except StopIteration:
            return
        raise AssertionError("nothing here waits")

    def _check(self, manifest: Manifest, app: App) -> None:
        if manifest.parallelism != self._config.parallelism:  # All else is the same for all, and slow.
            self.refused = manifest
            super()._check(manifest, app)

    def _pass_over(self, damaged: Retained, error: CorruptSnapshot) -> None:
        super()._pass_over(damaged, error)
        self._told(damaged, error)

    def _restore_part(self, part: Part, memory: Any, progress: Callable[[Any], None]) -> Restored:
        return restore_task(
            part,
            self.journal,
            lambda base: self._open_base(base, self.path, memory),
            cache_bytes_max=1 << 20,
            progress=lambda done, total: None,
        )


def refuse_forgotten(log: SimulatedLog, restored: list[Restored]) -> None:
    """As the feeds of a worker do before its attempt begins: raise ProtocolError when they can't go on."""
    for task, each in enumerate(restored):
        requests: Any = each.meta.ingress_positions.get(RequestFeed.SOURCE, 0)
        for partition, position in ((f"inbox-{task}", each.meta.inbox_position), (f"requests-{task}", requests)):
            check_offset(partition, Offset(position), start=log.start(partition), end=log.end(partition))


async def _here(work: Callable[..., Any], *arguments: Any) -> Any:
    """Stands in for `penstock.engine.background.in_thread`."""
    return work(*arguments)


@contextmanager
def simulated_files(files: Files) -> Iterator[None]:
    """Let directories be made of what worlds have."""

    def read(path: Path) -> bytes:
        if path not in files:
            raise FileNotFoundError(path)
        return unchecked(files[path], str(path))

    def write(path: Path, data: bytes) -> None:
        files[path] = checked(data)

    replaced: list[tuple[Any, str, Any]] = [
        (journal_module, "write_checked", write),
        (journal_module, "read_bytes_checked", read),
        (data_module, "open_base", lambda store, name, path, memory: store.open(name)),
        (data_module, "RocksMemory", lambda bytes_max: None),
        (logger, "disabled", True),
        (forgetting_module, "in_thread", _here),
        (forgetting_module, "UNREFERENCED_S", UNREFERENCED_MS / 1000),
    ]
    with ExitStack() as stack:
        for owner, name, replacement in replaced:
            stack.enter_context(patch.object(owner, name, replacement))
        yield
