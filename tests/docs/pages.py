"""Reads the pages of the documentation: their fenced blocks, and what each block asks of whoever runs it.

A block is named by the words behind its fence:

    python                      run, in one namespace for the page
    python title="app.py"       written to that file, for the commands that follow
    output                      what the python block before it printed
    console                     commands after `$`, each with its output; `...` stands for any text, or any lines
    console background          a command that goes on running beside the blocks that follow, until its output is there
    console stop                Ctrl-C to that command, and what it says then
    toml, json, yaml, sql       parsed; `title` writes a file; SQL is run by the server of the page
    text                        a drawing or a fragment: nothing is done with it

A block after `<!-- not run: REASON -->` is left alone. What always holds: a word that is not above is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
KINDS = ("python", "output", "console", "toml", "json", "jsonl", "yaml", "csv", "sql", "text")

_FENCE = re.compile(r"```(?P<info>[^`]*)")
_NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+) -->")
_TITLE = re.compile(r'title="([^"]+)"')


class Block(NamedTuple):
    """One fenced block."""

    kind: str
    words: tuple[str, ...]
    """What else stands behind the fence, besides the title."""
    title: str
    text: str
    line: int
    """Of its first line of text, counted from one."""
    not_run: str
    """Why it is left alone; empty when it is run."""


class Command(NamedTuple):
    """One command of a console block, and what it is to say."""

    command: str
    output: str


def all_pages() -> list[Path]:
    """README and every page below docs/."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks_of(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number, not_run = 0, ""
    while number < len(lines):
        line = lines[number]
        fence = _FENCE.fullmatch(line)
        if fence is None:
            if line.strip():
                reason = _NOT_RUN.fullmatch(line.strip())
                not_run = reason["reason"] if reason else ""
            number += 1
            continue
        end = lines.index("```", number + 1)
        yield _block(fence["info"], lines[number + 1 : end], number + 2, not_run)
        number, not_run = end + 1, ""


def _block(info: str, lines: list[str], line: int, not_run: str) -> Block:
    title = _TITLE.search(info)
    kind, *words = _TITLE.sub("", info).split() or [""]
    assert kind in KINDS, f"line {line - 1}: a block of kind {kind!r}"
    return Block(kind, tuple(words), title[1] if title else "", "\n".join(lines) + "\n", line, not_run)


def commands_of(text: str) -> list[Command]:
    """The commands of a console block. A line that begins with `> ` continues the command."""
    found: list[tuple[list[str], list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif line.startswith("> ") and found and not found[-1][1]:
            found[-1][0].append(line[2:])
        else:
            assert found, f"output before the first command: {line!r}"
            found[-1][1].append(line)
    return [Command("\n".join(command), "\n".join(output)) for command, output in found]


def matches(expected: str, got: str) -> bool:
    """Whether `got` is what a page shows: the same lines, with anything where the page has `...`."""
    return _pattern(expected).fullmatch(_trimmed(got)) is not None


def _pattern(expected: str) -> re.Pattern[str]:
    parts = []
    for line in _trimmed(expected).splitlines():
        if line.strip() == "...":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(".*?".join(map(re.escape, line.split("..."))) + r"\n")
    return re.compile("".join(parts))


def _trimmed(text: str) -> str:
    """Without spaces at the ends of lines and empty lines at both ends."""
    lines = "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")
    return f"{lines}\n" if lines else ""
