"""The catalogue of error codes: what each means, what causes it, and what to do.

It is a file of the package, `codes.toml`. What always holds, and is tested: every code in the source has an entry,
every entry a code in the source, and the modules it names are those that use it.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from textwrap import fill

from penstock.errors import InvalidInput

WIDTH = 100


@dataclass(frozen=True, slots=True)
class CodeEntry:
    """One code."""

    code: str
    title: str
    meaning: str
    cause: str
    remedy: str
    example: str
    modules: tuple[str, ...]
    """Where it is used."""

    def as_dict(self) -> dict[str, object]:
        """What people and programs may want to know; where it is used is for developers."""
        return {name: value for name, value in asdict(self).items() if name != "modules"}


@cache
def catalogue() -> dict[str, CodeEntry]:
    """Every entry by its code, in order."""
    data = tomllib.loads((files("penstock.engine") / "codes.toml").read_text(encoding="utf-8"))
    return {
        code: CodeEntry(code=code, modules=tuple(fields.pop("in")), **fields) for code, fields in sorted(data.items())
    }


def entry_of(code: str) -> CodeEntry:
    """The entry of a code, however it is written. Raises InvalidInput for one that does not exist."""
    wanted = code.upper().removeprefix("PEN").zfill(4)
    entry = catalogue().get(f"PEN{wanted}")
    if entry is None:
        raise InvalidInput(
            "PEN0627", f"There is no error code {code!r}. A code is the word in front of an error: PEN0201."
        )
    return entry


def page_of(entry: CodeEntry) -> str:
    """The entry as text for a terminal."""
    parts = [f"{entry.code}  {entry.title}", fill(entry.meaning, WIDTH)]
    for name, text in (("Cause", entry.cause), ("What to do", entry.remedy), ("Example", entry.example)):
        parts.append(f"{name}:\n" + fill(text, WIDTH, initial_indent="  ", subsequent_indent="  "))
    return "\n\n".join(parts)


def reference() -> str:
    """All entries as the page `docs/reference/errors.md`."""
    lines = [
        "# Error codes",
        "",
        "Every error of Penstock begins with a code. `penstock explain CODE` prints what stands here.",
    ]
    for entry in catalogue().values():
        lines += [
            "",
            f"## {entry.code}",
            "",
            f"**{entry.title}.** {entry.meaning}",
            "",
            f"- Cause: {entry.cause}",
            f"- What to do: {entry.remedy}",
            f"- Example: `{entry.example}`",
        ]
    return "\n".join(lines) + "\n"
