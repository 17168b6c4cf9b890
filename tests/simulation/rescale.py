"""Another parallelism in the middle of a world: the real savepoint, its restore and its regrouping, in memory.

What stands in: the start that writes out rows, which the world plays; directories, which are rows by their path; and
the place of the savepoint. What is real is all that decides: what a savepoint holds, what a new task takes over, which
attempt and which checkpoint it continues as.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from penstock.checkpoint import savepoint as savepoint_module
from penstock.checkpoint.store import Progress
from penstock.engine import rescaling as rescaling_module
from penstock.engine import savepoints as savepoints_module
from penstock.engine.offline import Directory
from penstock.engine.rescaling import Rescaled
from penstock.functions.app import App
from penstock.state.memory import MemoryBackend
from tests.simulation.directory import INDEX, SimulatedConfig, SimulatedDirectory
from tests.simulation.store import Rows, SimulatedBlobs, SimulatedStore


class Directories:
    """What lies below paths: the rows of a base, or of a store."""

    def __init__(self) -> None:
        self.rows: dict[Path, Rows] = {}

    def copy(self, source: Path, target: Path) -> None:
        self.rows[target] = self.rows[source]

    def remove(self, path: Path, ignore_errors: bool = False) -> None:
        self.rows.pop(path, None)

    def open(self, path: Path, memory: object) -> LaidBackend:
        return LaidBackend(self, self.rows.get(path, []))


class LaidBackend(MemoryBackend):
    """A store whose checkpoints are put into `Directories`."""

    def __init__(self, directories: Directories, rows: Rows) -> None:
        super().__init__()
        self._directories = directories
        self.write(rows)

    def checkpoint(self, path: Path) -> None:
        self._directories.rows[path] = list(self.scan(b"", b"\xff"))


class CarryingStore(SimulatedStore):
    """A store whose bases are carried to and from `Directories`."""

    def __init__(self, blobs: SimulatedBlobs, directories: Directories) -> None:
        super().__init__(blobs)
        self._directories = directories

    def put(self, name: str, source: Path, **_: object) -> int:
        self.put_rows(name, self._directories.rows[source])
        return self.size(name)

    def fetch(self, name: str, target: Path, *, progress: Progress | None = None, compared: bool = False) -> None:
        self.verify(name)
        self._directories.rows[target] = self.rows(name)


class StoppedDirectory(Directory):
    """The real one, of what an opened one has."""

    def __init__(self, data: SimulatedDirectory, store: CarryingStore) -> None:
        self.path = data.path
        self.place = str(data.path)
        self.store = store
        self._log: Any = data.log
        self.journal = data.journal
        self.history = data.history
        self.damage = data.notes


def rescale(
    app: App,
    before: int,
    after: int,
    *,
    clock_ms: int,
    write_rows: Callable[[], None],
    open_directory: Callable[[int], SimulatedDirectory],
) -> Rescaled:
    """`penstock rescale` of a stopped application with so many tasks `before`, and so many `after`."""
    config: Any = SimulatedConfig(parallelism=after)
    directories = Directories()
    place = SimulatedBlobs("savepoint", lambda: clock_ms)

    def carrying(blobs: SimulatedBlobs) -> CarryingStore:
        return CarryingStore(blobs, directories)

    def open_data(config: SimulatedConfig, **_: object) -> SimulatedDirectory:
        data = open_directory(config.parallelism)
        bases: Any = data.store
        data.store = carrying(bases.blobs)  # type: ignore[assignment]
        return data

    def open_stopped(path: Path) -> StoppedDirectory:
        data = open_directory(before)
        bases: Any = data.store
        return StoppedDirectory(data, carrying(bases.blobs))

    replaced: list[tuple[Any, str, Any]] = [
        (rescaling_module, "write_rows", lambda app, config: write_rows()),
        (rescaling_module, "open_place_of", lambda place_name, config: place),
        (rescaling_module, "Directory", open_stopped),
        (savepoint_module, "BaseStore", carrying),
        (savepoints_module, "DataDirectory", open_data),
        (savepoints_module, "scratch_directory", _scratch),
        (savepoints_module, "RocksMemory", lambda bytes_max: None),
        (savepoints_module, "RocksBackend", directories),
        (savepoints_module, "restore_base", directories.copy),
        (savepoints_module, "shutil", SimpleNamespace(rmtree=directories.remove)),
    ]
    with ExitStack() as stack:
        for owner, name, replacement in replaced:
            stack.enter_context(patch.object(owner, name, replacement))
        found = rescaling_module.tasks_of(open_stopped(INDEX.parent))
        assert found == before
        return rescaling_module.rescale(app, config, before, now_ms=clock_ms, progress=lambda done, total: None)


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    yield directory / "scratch"
