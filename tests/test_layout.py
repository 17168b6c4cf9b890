"""The packages that are built, the links that tools follow and the folders of the tree are the same set."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import penstock

ROOT = Path(__file__).resolve().parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
LINKS = {
    f"penstock.{link.name}": link
    for link in (ROOT / "src" / "penstock").iterdir()
    if link.is_symlink() and link.name != "__pycache__"
}


def packages_in_the_tree() -> set[str]:
    """Every folder of modules under `src/penstock`, entered through the links as an import would."""
    top = ROOT / "src" / "penstock"
    nested = (init.parent for link in LINKS.values() for init in link.resolve().rglob("__init__.py"))
    below = {f"penstock.{'.'.join(folder.relative_to(ROOT).parts)}" for folder in nested}
    real = {
        ".".join(init.parent.relative_to(ROOT / "src").parts)
        for init in top.rglob("__init__.py")
        if not any(part.is_symlink() for part in init.parents)
    }
    return below | real


def test_every_package_of_the_tree_is_built() -> None:
    assert set(SETUPTOOLS["packages"]) == packages_in_the_tree()


def test_every_package_is_built_from_the_folder_its_link_points_to() -> None:
    mapped = {name: ROOT / folder for name, folder in SETUPTOOLS["package-dir"].items()}

    assert mapped.pop("penstock") == ROOT / "src" / "penstock"
    assert mapped == {name: link.resolve() for name, link in LINKS.items()}


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())
def test_links_are_relative_so_that_a_checkout_can_be_moved(link: Path) -> None:
    assert link.readlink() == Path("..", "..", link.name)
    assert (link / "__init__.py").is_file()


def test_no_module_is_importable_twice() -> None:
    """A folder of modules beside the mapped ones would be a package of its own, outside `penstock`."""
    not_shipped = {"benchmarks", "docs", "examples", "tests"}
    folders = {init.parent.name for init in ROOT.glob("*/__init__.py")} - not_shipped

    assert {f"penstock.{folder}" for folder in folders} == set(LINKS)


def test_the_package_under_test_is_the_one_of_this_tree() -> None:
    assert penstock.__file__ is not None
    assert Path(penstock.__file__).resolve() == ROOT / "src" / "penstock" / "__init__.py"
