"""Makes stored state fit changed code, or refuses to start.

A checkpoint records the shape of every function's state. What the present code can read is used as it is; what it
can't needs `@app.migrate`, which rewrites every address of that function before the first message. It rewrites fields
alone: changed rows of tables and logs, and changed stored values, are refused. Until the next checkpoint is complete
nothing has changed on disk, so a wrong migration costs nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.checkpoint.control import Manifest
from penstock.engine.task import TaskCore
from penstock.errors import FunctionError, Refused
from penstock.functions.app import App
from penstock.functions.function import Function
from penstock.functions.state import state_incompatibilities, state_shape
from penstock.functions.storage import storage_incompatibilities
from penstock.ids import Address
from penstock.state.overlay import ABSENT, Overlay
from penstock.state.stateful import EMPTY_STATE
from penstock.state.values import decode_expiring, encode_expiring


def check_shapes(app: App, manifest: Manifest) -> None:
    """Raise Refused when state of the checkpoint can't be read by `app`, and no migration is declared for it."""
    for typename, function in app.functions.items():
        problems = _problems(function, manifest)
        beyond = beyond_migration(function, manifest)
        if problems and (beyond or typename not in app.migrations):
            remedy = (
                f"{beyond} can't be migrated: give what is new another name, start fresh with --from none"
                if beyond
                else f"Give a migration (@app.migrate({typename!r})), start fresh with --from none"
            )
            raise Refused(
                "PEN0302",
                f"Refused to start: the state of {typename} in checkpoint {manifest.checkpoint} does not fit "
                f"{function.location}: {'; '.join(problems)}. {remedy}, or keep the old type. Nothing was changed.",
            )


def migrate_task(app: App, manifest: Manifest | None, core: TaskCore, overlay: Overlay) -> None:
    """Rewrite the values of one task whose shape has changed. Called once, before the first batch."""
    if manifest is None:
        return
    for typename, function in app.functions.items():
        migration = app.migrations.get(typename)
        wrapped_before = _wrapped(manifest.fingerprints.get(typename))
        wrapped_now = bool(core.entries[typename].expirations)
        if not (migration and _problems(function, manifest)) and wrapped_before in (None, wrapped_now):
            continue
        cells = overlay.cells(typename)
        for id in list(overlay.ids(typename)):
            raw = overlay.load(cells, id)
            data, deadlines = decode_expiring(raw) if wrapped_before else (raw, {})
            if migration and _problems(function, manifest):
                data = _migrate(function, migration, Address(typename, id), data)
            if not data:
                overlay.put_value(cells, id, ABSENT)
            else:
                overlay.put_value(cells, id, encode_expiring(data, deadlines) if wrapped_now else data)


def _migrate(function: Function[Any, Any], migration: Any, address: Address, data: bytes) -> bytes:
    codec = function.state_codec
    assert codec is not None, "check_shapes has refused every other change"
    try:
        new = migration(msgspec.msgpack.decode(data))
        encoded = codec.encode(codec.convert(new) if isinstance(new, dict) else new)
        codec.decode(encoded)
    except Exception as error:
        raise FunctionError(
            "PEN0306",
            f"The migration of {address} failed: {error}. Nothing was changed: correct the migration and start again.",
            address=str(address),
        ) from error
    return ABSENT if encoded == EMPTY_STATE else encoded


def _problems(function: Function[Any, Any], manifest: Manifest) -> list[str]:
    known = manifest.fingerprints.get(function.typename)
    return [] if known is None else function.state_incompatibilities(known["state"])  # type: ignore[arg-type]


def beyond_migration(function: Function[Any, Any], manifest: Manifest) -> str:
    """What has changed that a migration, which is given the fields of a state and returns them, can't rewrite."""
    known: Any = manifest.fingerprints.get(function.typename)
    old = known and known["state"]
    if not old:
        return ""
    if function.storage or storage_incompatibilities(old["storage"], function.storage):
        return "Stored values"
    if old["state"] is None:
        return ""
    if function.state is None:
        return "State of a function that has none now"
    collections = {"fields": state_shape(function.state)["fields"], "collections": old["state"]["collections"]}
    return "Tables and logs" if state_incompatibilities(collections, function.state) else ""


def _wrapped(fingerprint: dict[str, object] | None) -> bool | None:
    """Whether stored values had deadlines around them; None when nothing was stored."""
    return None if fingerprint is None else bool(fingerprint.get("expires"))
