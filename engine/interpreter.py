"""What a worker wants of the interpreter while it runs, which is a matter of the whole process."""

from __future__ import annotations

import gc
import sys

SWITCH_INTERVAL_S = 0.0005
"""Under load a thread that has synced a file would wait 5 ms (the default) for each return into the interpreter."""
COLLECT_AT = (10_000, 10, 50)
"""When to look for cycles. Rows and messages live until their checkpoint is complete: with Python's own numbers the
collector goes through all of them again for every 70,000 that are made, which took a fifth of the time."""
COLLECT_AT_REST = gc.get_threshold()


def prepare_interpreter() -> None:
    """To be called when a worker has started: what imports and start have made stays, and looking through it for
    garbage would take 20 ms, again and again."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.freeze()
    gc.set_threshold(*COLLECT_AT)


def release_interpreter() -> None:
    """To be called when a worker ends: all is as before, for a process that goes on."""
    gc.unfreeze()
    gc.set_threshold(*COLLECT_AT_REST)
