"""`penstock compare` with the streams on a broker that is started for it: `python -m tests.kafka.comparing --quick`.

What is given goes to `penstock compare`, which is told of the broker and of its process, so that it can be stopped.
"""

from __future__ import annotations

import subprocess
import sys

from tests.kafka.broker import FAST, temporary_cluster


def main() -> int:
    """Returns the exit code of the comparison."""
    with temporary_cluster(java=FAST) as cluster:
        (node,) = cluster.nodes
        kafka = ["--kafka", cluster.bootstrap, "--kafka-pid", str(node.pid)]
        command = "from penstock.engine.cli import main; main()"
        try:
            return subprocess.run(
                [sys.executable, "-c", command, "compare", *sys.argv[1:], *kafka], check=False
            ).returncode
        except KeyboardInterrupt:
            return 130  # The comparison has it as well, and has told what it leaves.


if __name__ == "__main__":
    sys.exit(main())
