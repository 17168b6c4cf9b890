"""Finds the application a person means: `module:app`, `module`, `app.py`, `app.py:app`, or what there is.

What always holds: the folder of the application is on `sys.path`, so it imports its neighbours as it does under Python
itself; what its own code raises while it is imported is told with file and line. Imports; starts nothing.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from penstock.errors import ConfigurationError, PenstockError
from penstock.functions.app import App

DEFAULT_FILE = "app.py"


class Loaded(NamedTuple):
    """An application, and how it was found, for people: `app.py:app`."""

    app: App
    name: str


def load_app(target: str, folder: Path, *, name: str = "") -> Loaded:
    """The application `target` in `folder`; empty means its `app.py`. With `name` it is called that instead. Raises
    ConfigurationError."""
    loaded = _load(target, folder)
    if name:
        loaded.app.name = App(name).name  # Which refuses what can't be one.
    return loaded


def _load(target: str, folder: Path) -> Loaded:
    if not target:
        if not (folder / DEFAULT_FILE).exists():
            raise ConfigurationError(
                "PEN0154",
                f"No application is named, and there is no {DEFAULT_FILE} in {folder}. Give --app MODULE:APP or a "
                "file, set app in [tool.penstock] of pyproject.toml, or begin one: penstock init.",
            )
        target = DEFAULT_FILE
    place, _, name = target.partition(":")
    module = _import(place, folder)
    return _choose(module, place, name)


def _import(place: str, folder: Path) -> ModuleType:
    path = folder / place
    if place.endswith(".py"):
        if not path.exists():
            raise ConfigurationError("PEN0154", f"{path} does not exist. Give --app MODULE:APP or a file.")
        folder, place = path.resolve().parent, path.stem
    if str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))
    try:
        return importlib.import_module(place)
    except PenstockError:
        raise
    except ModuleNotFoundError as error:
        if error.name == place.partition(".")[0]:
            raise ConfigurationError(
                "PEN0154", f"There is no module {place!r} in {folder} or among the installed. Give --app MODULE:APP."
            ) from None
        raise _broken(place, error) from error
    except Exception as error:
        raise _broken(place, error) from error


def _choose(module: ModuleType, place: str, name: str) -> Loaded:
    if name:
        found = getattr(module, name, None)
        if not isinstance(found, App):
            got = "is not there" if found is None else f"is a {type(found).__name__}"
            raise ConfigurationError(
                "PEN0156", f"{name} of {place} {got}, not an App. Name the variable that holds one."
            )
        return Loaded(found, f"{place}:{name}")
    apps = {key: value for key, value in vars(module).items() if isinstance(value, App)}
    if "app" in apps:
        return Loaded(apps["app"], f"{place}:app")
    if len({id(app) for app in apps.values()}) != 1:
        known = f"several: {', '.join(sorted(apps))}. Choose one: --app {place}:NAME" if apps else "none"
        raise ConfigurationError("PEN0156", f"{place} should hold one App, and holds {known}.")
    key, app = next(iter(apps.items()))
    return Loaded(app, f"{place}:{key}")


def _broken(place: str, error: Exception) -> ConfigurationError:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        where = f" ({Path(error.filename or place).name}:{error.lineno})"
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    return ConfigurationError(
        "PEN0155", f"{place} can't be imported: {type(error).__name__}: {text}{where}. --debug shows the traceback."
    )


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen") or filename in (__file__, importlib.__file__)
