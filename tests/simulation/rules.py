"""The rules of the protocol, and for each the mutants that show that worlds need it, or why there is none.

`docs/explanation/simulation.md` shows the table; test_rules.py keeps both, and the mutants, together.
"""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    """One rule. Its mutants are named as in `mutants` and `cluster_mutants`."""

    number: int
    says: str
    mutants: tuple[str, ...] = ()
    exempt: str = ""
    """Why no world can need it, or which other test shows it, where there is no mutant."""


RULES = (
    Rule(1, "Each address belongs to one task, by the key group of its id", ("each address has one task",)),
    Rule(2, "Whoever reads an input computes whose it is", ("each address has one task",)),
    Rule(
        3,
        "What comes from outside is an input like any other, and rewinds",
        ("positions in the snapshot", "an attempt from nothing reads from the start"),
    ),
    Rule(
        4,
        "Frames that are open at a cut are sent with its flush, in the epoch before",
        ("frames are sealed before the flush", "frames are of the epoch they leave in"),
    ),
    Rule(
        5,
        "Frames are numbered densely; what came before is dropped",
        ("duplicate frames", "adopted tasks number on", "what was refused goes first"),
    ),
    Rule(
        6,
        "Every message has a cause that is the same in every run",
        exempt=(
            "Nothing in a world reads a cause: keys for other systems are made of it. tests/engine/test_task.py and "
            "tests/router/test_http.py compare it between runs."
        ),
    ),
    Rule(
        7,
        "What is admitted and unfinished at a cut is in the snapshot",
        ("pending rows in the snapshot", "queues in the snapshot"),
    ),
    Rule(
        8,
        "A cut comes between two batches, and what leaves is of the epoch it leaves in",
        ("frames are of the epoch they leave in",),
    ),
    Rule(
        9,
        "Rule F: cut before a frame of a newer epoch; acknowledge what is durable",
        ("Rule F", "flush before acknowledge", "a flush waits for all"),
    ),
    Rule(
        10,
        "A delta extends the last one written; what failed goes into the next",
        ("previous delta", "failed delta in the next", "deltas have a checksum"),
    ),
    Rule(
        11,
        "A restore follows the chain from the head to the base, and takes nothing else",
        ("deltas by what they extend", "chains end at the base"),
    ),
    Rule(
        12,
        "Only what is complete goes into the store",
        exempt=(
            "Every rollback reloads the base and the deltas, so what a store got too early is never read again. The "
            "rule is for survivors that roll back in place, which Overlay.rollback asserts."
        ),
    ),
    Rule(
        13,
        "A base holds all that is folded, rows that are not visible yet included; its files are named by their content",
        ("restored rows are folded", "files of bases have a hash", "files of shared bases have a hash"),
    ),
    Rule(
        14,
        "Decisions are transactions; an acknowledgement counts for its own round",
        (
            "fenced control log",
            "the log knows only one leader",
            "decisions count when they are durable",
            "what is decided is known before a recovery",
            "acknowledgements of this checkpoint",
            "acknowledgements of this round",
            "repeat what is durable only",
            "index behind what is durable",
        ),
    ),
    Rule(15, "Whoever waits for a checkpoint gets one", ("a checkpoint given up is made up for",)),
    Rule(
        16,
        "A recovery goes to the newest checkpoint of its attempt, else to the base of that, else to an older one, "
        "loudly; ids are never used again",
        (
            "recover the attempt's own base",
            "ids above the highest reserved",
            "ids that no leader used",
            "lineage: attempt",
            "lineage: epoch",
            "lineage: all ancestors",
            "lineage: what inboxes may still give",
            "frames count wherever they stand",
            "a fault is said again",
            "a damaged checkpoint is passed over",
            "nobody starts from nothing unasked",
            "ids are passed over where records are lost",
            "the index has a checksum",
        ),
    ),
    Rule(
        17,
        "With several workers the leader may be a process of its own",
        exempt=(
            "It says where the leader runs, and not what it does: worlds let leaders and workers die separately and "
            "together. tests/kafka/test_leading.py shows both places."
        ),
    ),
    Rule(
        18,
        "A task that changes hands stands still at a cut, and goes on when that is complete; another number of tasks "
        "begins with all that was under way, and no row",
        (
            "a released task stands still",
            "it does so until an assignment",
            "one that knows of it",
            "what is decided is not released again",
            "what is given away takes no turn",
            "who goes on joins the round",
            "the manifest of the release",
            "COMPLETE before ASSIGN",
            "ASSIGN after what is given up",
            "ASSIGN of a new leader",
            "what is under way goes with its target",
            "what was admitted does not",
            "what was rolled back does not",
            "delayed messages are numbered anew",
            "inputs go on where they stood",
        ),
    ),
    Rule(
        19,
        "What a retained checkpoint reads is kept",
        ("inputs of every retained attempt", "an attempt from nothing reads from the start"),
    ),
    Rule(
        20,
        "Fence, then read the marker, then commit rows and marker in one step",
        ("marker check", "fence before the marker is read"),
    ),
    Rule(
        21,
        "A row is committed for the checkpoint that decides it",
        ("marker of the deciding checkpoint", "commit after COMPLETE", "attempts of rows on their way"),
    ),
    Rule(22, "A caller is told when the checkpoint is complete", ("tell after COMPLETE",)),
    Rule(
        23,
        "A part of a file is cut to what its marker says",
        exempt=(
            "Worlds have a database of their own. tests/router/test_file_egress.py cuts parts at every byte, and "
            "tests/test_kill.py compares files byte for byte."
        ),
    ),
    Rule(
        24,
        "Delayed messages are rows, deleted as they fire, never early",
        ("timer rows in the snapshot", "a timer that fired is gone", "timers are not early"),
    ),
    Rule(
        25,
        "A send never blocks; a full task reads less",
        exempt=(
            "It bounds memory and changes no result: a world that ignores it is right all the same. "
            "tests/engine/test_worker.py fills tasks to their bound."
        ),
    ),
    Rule(26, "The clock of handlers never goes back", ("the clock of handlers never goes back",)),
    Rule(
        27,
        "A topic that was made anew is noticed",
        exempt=(
            "It is noticed before anything runs. tests/kafka makes topics anew on a real broker; the topics of a world "
            "last as long as it does."
        ),
    ),
)


def table() -> str:
    """The rules as people read them."""
    lines = ["| rule | says | what is taken away, or why nothing is |", "|---|---|---|"]
    for rule in RULES:
        shown = "; ".join(rule.mutants) if rule.mutants else f"*Exempt.* {rule.exempt}"
        lines.append(f"| {rule.number} | {rule.says} | {shown} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")  # noqa: T201  # To be put into the page.
