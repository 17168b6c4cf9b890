"""Says in words why data does not fit a type: where, what was expected, and the value that was found there.

The decoders say it briefly (``Expected `int`, got `str` - at `$.total` ``); the value itself is looked up
here, in the data read without types. That costs time, so it is done only for the record that failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from penstock.errors import DecodeError

VALUE_CHARACTERS_MAX = 60
"""A message stays one line of a log, also when the offending value is a page."""

_ERROR = re.compile(r"(?P<problem>.*?)(?: - at (?P<key>`key` in )?`(?P<path>\$.*)`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected (?P<expected>.+?)(?:, got (?P<got>.+))?")
_MISSING = re.compile(r"Object missing required field `(?P<field>.+)`")
_STEP = re.compile(r"\.(?P<field>[^.\[\]]+)|\[(?P<index>\d+|\.\.\.)\]")
_INVALID_CHOICE = re.compile(r"Invalid (?:enum )?value .+")

_ABSENT = object()


def explain_mismatch(error: Exception, data: object, *, type_name: str) -> DecodeError:
    """The coded form of what a decoder raised about `data`, which is bytes or Python builtins."""
    if isinstance(error, DecodeError):
        return error
    if not isinstance(error, msgspec.ValidationError):
        return _unreadable(error, type_name)
    parts = _ERROR.fullmatch(str(error))
    assert parts is not None, "every part of the pattern is optional"
    path, problem = parts["path"] or "$", parts["problem"]
    if missing := _MISSING.fullmatch(problem):
        return mismatch(f"{path}.{missing['field']}", "a value", "nothing")
    claimed, expected = None, None
    if wording := _EXPECTED.fullmatch(problem):
        expected = wording["expected"].replace("`", "").replace("null", "None")
        claimed = (wording["got"] or "").replace("`", "") or None
    elif _INVALID_CHOICE.fullmatch(problem):
        expected = f"one of the choices in {type_name}"
    found = _find(_untyped(data), path, claimed, among_keys=parts["key"] is not None)
    got = describe(found) if found is not _ABSENT else claimed or "another value"
    if claimed is not None and claimed.isdigit():
        got = f"length {claimed}"
    if parts["key"]:
        path = f"{path} (a key)"
    if expected is None:
        return mismatch(path, f"a valid value ({problem.rstrip('.')})", got)
    return mismatch(path, expected, got)


def mismatch(path: str, expected: str, got: str) -> DecodeError:
    """The error itself, for codecs that know the three parts."""
    return DecodeError("PEN0201", f"{path} expected {expected}, got {got}.", path=path, expected=expected, got=got)


def at_place(place: str, error: DecodeError) -> DecodeError:
    """The same error, beginning with what was being decoded."""
    if not place:
        return error
    message = f"{place}: {error.message}"
    return DecodeError(error.code, message, path=error.path, expected=error.expected, got=error.got)


def describe(value: object) -> str:
    """The kind of a value and its beginning: `str "late"`."""
    if value is None:
        return "None"
    if isinstance(value, bytes):
        return f"bytes of length {len(value)}"
    try:
        text = msgspec.json.encode(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        # Keys that JSON lacks, or a value of the user's own class.
        text = repr(value)
    if len(text) > VALUE_CHARACTERS_MAX:
        text = text[: VALUE_CHARACTERS_MAX - 3] + "..."
    return f"{_kind(value)} {text}"


def _unreadable(error: Exception, type_name: str) -> DecodeError:
    if isinstance(error, RecursionError):
        reason = "nested too deeply"
    elif isinstance(error, UnicodeDecodeError):
        reason = f"a text that is not UTF-8 ({error.reason})"
    else:
        reason = str(error).rstrip(".") or type(error).__name__
    return mismatch("$", type_name, f"data that cannot be read: {reason}")


def _untyped(data: object) -> Any:
    """`data` read without a type, or _ABSENT. Bytes are msgpack or JSON: never both, but for one digit."""
    if not isinstance(data, bytes):
        return data
    if len(data) == 1 and data.isdigit():
        return _ABSENT  # The digit 5 in JSON is the number 53 in msgpack: better no value than a wrong one.
    for decode in (msgspec.msgpack.decode, msgspec.json.decode):
        try:
            return decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
    return _ABSENT


def _find(root: Any, path: str, claimed: str | None, *, among_keys: bool) -> Any:
    """The value the decoder stumbled over. `[...]` in its path stands for any value of a dict, or item of a
    set.

    Decoding stops at the first misfit, so among several it is the first of the kind the decoder named.
    """
    steps = list(_STEP.finditer(path))
    if root is _ABSENT or "".join(step[0] for step in steps) != path[1:]:
        return _ABSENT  # A field whose name has a dot or a bracket: the path can't be taken apart.
    candidates = list(_values_at(root, steps))
    if among_keys:
        candidates = [key for holder in candidates if isinstance(holder, dict) for key in holder]
    of_kind = [value for value in candidates if claimed is None or _kind(value) == claimed]
    if of_kind:
        return of_kind[0]
    return candidates[0] if len(candidates) == 1 else _ABSENT


def _values_at(value: Any, steps: list[re.Match[str]]) -> Iterator[Any]:
    if not steps:
        yield value
        return
    step, rest = steps[0], steps[1:]
    if step["field"] is not None:
        if isinstance(value, dict) and step["field"] in value:
            yield from _values_at(value[step["field"]], rest)
    elif step["index"] == "...":
        for item in value.values() if isinstance(value, dict) else ():
            yield from _values_at(item, rest)
    elif isinstance(value, list | tuple) and int(step["index"]) < len(value):
        yield from _values_at(value[int(step["index"])], rest)


def _kind(value: object) -> str:
    """The word msgspec has for the type of a value."""
    match value:
        case None:
            return "None"
        case dict():
            return "object"
        case list() | tuple() | set() | frozenset():
            return "array"
        case _:
            return type(value).__name__
