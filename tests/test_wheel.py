"""What a user installs is complete: the wheel, and the wheel made from the source distribution.

They are installed into an environment of its own, outside the tree, where no link and no editable install can
stand in for a file that was not packaged.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "data", "dist")

IMPORT_EVERY_PACKAGE = """
import importlib, pathlib, sys
for name in sys.argv[1:]:
    file = pathlib.Path(importlib.import_module(name).__file__)
    assert file.is_relative_to(sys.prefix), f"{name} comes from {file}, not from the installed wheel"
"""

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, links as links: a build leaves files beside its sources, and reuses those."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("checkout") / "penstock", symlinks=True, ignore=NOT_SOURCE)


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel built from the tree, and the one built from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "tree", checkout, cwd=folder)
    # Asked for neither, `build` makes the source distribution, and the wheel from that, not from the tree.
    run(sys.executable, "-m", "build", "--outdir", folder / "sdist", checkout, cwd=folder)
    return {origin: next((folder / origin).glob("*.whl")) for origin in ("tree", "sdist")}


def files_to_ship(checkout: Path) -> set[str]:
    """Every file in a folder of the package, under the name it has in a wheel."""
    return {
        Path(*package.split("."), file.relative_to(checkout / folder)).as_posix()
        for package, folder in SETUPTOOLS["package-dir"].items()
        for file in (checkout / folder).rglob("*")
        if file.is_file()
    }


def runnable_examples() -> list[Path]:
    """The examples of one file that run to their end by themselves."""
    return sorted(path for path in ROOT.glob("examples/*.py") if "__main__" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("origin", ["tree", "sdist"])
def test_a_wheel_holds_every_file_of_the_package_and_nothing_else(
    built: dict[str, Path], checkout: Path, origin: str
) -> None:
    with zipfile.ZipFile(built[origin]) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert packed == files_to_ship(checkout)


def test_the_installed_wheel_imports_and_runs_an_example(built: dict[str, Path], tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    lock = ROOT / "requirements-dev.lock"

    run(python, "-m", "pip", "install", "--constraint", lock, built["sdist"], cwd=tmp_path)

    run(python, "-c", IMPORT_EVERY_PACKAGE, *SETUPTOOLS["packages"], cwd=tmp_path)
    for example in runnable_examples()[:1]:
        copy = tmp_path / example.name
        copy.write_bytes(example.read_bytes())
        assert run(python, copy, cwd=tmp_path)
