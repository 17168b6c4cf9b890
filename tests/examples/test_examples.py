"""Every example runs as a user runs it, ends by itself, and shows what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"

SHOWN = {
    "greeter.py": """\
"Hello Ada, seen 1 times."
"Hello Grace, seen 1 times."
"Hello Ada, seen 2 times."
"Hello Ada, seen 3 times."
""",
    "cart.py": """\
"Thank you, Ada, for buying tea, milk."
"Grace, you left rum in your cart."
""",
    "account.py": """\
{"account":"ada","balances":{"EUR":40,"USD":20},"latest":[50,20,-10]}
{"account":"ada","balances":{"EUR":47,"GBP":5,"USD":0},"latest":[5,-20,7]}
""",
    "dead_letter.py": """\
"Ada owes 3."
"Ada owes 15."
2 orders were put aside.
""",
}


def test_every_example_is_tried() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_shows_what_it_says_and_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / name)]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(SHOWN[name].splitlines())
    assert not done.stderr
    assert list(tmp_path.iterdir()) == []
