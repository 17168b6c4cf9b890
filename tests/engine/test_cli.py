"""The command line, as people and scripts use it. Most verbs run here; starting and stopping in a real process."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import penstock
from penstock.engine import cli_run
from penstock.engine.cli import VERBS, Verbs, cli, exit_code
from penstock.engine.progress import show_progress
from penstock.errors import (
    ConfigurationError,
    CorruptSnapshot,
    Fenced,
    FunctionError,
    InvalidInput,
    PenstockError,
    ProtocolError,
    Refused,
    Unavailable,
)
from penstock.logs import logger
from penstock.output import aligned

Run = Callable[..., Result]
PENSTOCK = [sys.executable, "-c", "from penstock.engine.cli import main; main()"]

SHOP = """
from penstock import App, Context, MemoryIngress, State

app = App("shop")
numbers = MemoryIngress(type=int)
numbers.feed(1, 2, 3, 13)
numbers.finish()


class Total(State):
    total: int = 0


@app.function("shop/total", attempts=1)
def total(ctx: Context[Total], number: int) -> int:
    if number == 13:
        raise ValueError("unlucky")
    ctx.state.total += number
    return ctx.state.total


app.ingress(numbers, to=total, key=lambda number: "odd" if number % 2 else "even", name="numbers")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in. What loading and running an application leaves in the process is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Two versions of a file in one second would share it.
    handlers, propagate = logger.handlers[:], logger.propagate
    yield tmp_path
    logger.handlers[:], logger.propagate = handlers, propagate
    forget_modules(tmp_path)


def forget_modules(folder: Path) -> None:
    """Let the next look at a module in `folder` read it anew."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def run(folder: Path) -> Run:
    """Runs a verb in the folder."""

    def invoke(*arguments: str, exit_code: int = 0, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(cli, arguments, prog_name="penstock", input=stdin)
        assert result.exit_code == exit_code, f"{result.output}\n{result.exception!r}"
        forget_modules(folder)
        return result

    return invoke


@pytest.fixture
def shop(folder: Path, run: Run) -> Path:
    """An application that has run to its end: three numbers counted, one dead letter."""
    (folder / "app.py").write_text(SHOP)
    run("run", "--until-done", "--port", "none")
    return folder


# The program.


def test_help_lists_every_verb_and_says_what_the_verb_says(run: Run) -> None:
    listed = run("--help").stdout

    assert isinstance(cli, Verbs)
    with click.Context(cli) as context:
        for name, verb in VERBS.items():
            command = cli.get_command(context, name)
            assert command is not None
            assert command.help is not None
            assert command.help.splitlines()[0] == verb.about
            assert re.search(rf"^  {name} +{re.escape(verb.about)}$", listed, re.MULTILINE)


def test_help_is_quick() -> None:
    """CPU time, because other tests run beside this one; the best of five, because the first may read from the disk."""
    times_s = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*PENSTOCK, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    assert min(times_s) < 0.1


def test_help_imports_only_what_it_needs() -> None:
    script = (
        "import sys; from penstock.engine.cli import cli; cli(['--help'], standalone_mode=False); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()

    assert not {"asyncio", "aiohttp", "msgspec", "rich", "rocksdict", "penstock.functions"} & set(loaded)


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"penstock {penstock.__version__}\n"


def test_a_slip_of_the_pen_is_a_usage_error(run: Run) -> None:
    assert "There is no verb 'statsu'. Did you mean status?" in run("statsu", exit_code=2).stderr


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ConfigurationError, 2),
        (InvalidInput, 2),
        (Unavailable, 3),
        (Refused, 4),
        (Fenced, 4),
        (FunctionError, 1),
        (CorruptSnapshot, 1),
        (ProtocolError, 1),
    ],
)
def test_every_kind_of_error_has_its_exit_code(kind: type[PenstockError], code: int) -> None:
    assert exit_code(kind("PEN0000", "x")) == code


def test_a_traceback_is_shown_only_on_request(run: Run, folder: Path) -> None:
    assert run("functions", exit_code=2).stderr == (
        f"PEN0154 No application is named, and there is no app.py in {folder}. Give --app MODULE:APP or a file, set "
        "app in [tool.penstock] of pyproject.toml, or begin one: penstock init.\n"
    )
    assert "Traceback" in run("functions", "--debug", exit_code=2).stderr


def test_tables_are_aligned() -> None:
    assert aligned(["NAME", "COUNT"], [["a", "1,000"], ["long name", "7"]]) == [
        "NAME       COUNT",
        "a          1,000",
        "long name      7",
    ]


# Beginning.


@pytest.mark.parametrize("template", ["counter", "orders"])
def test_a_new_application_has_tests_that_pass(run: Run, folder: Path, template: str) -> None:
    written = run("init", "new", "--template", template).stdout

    assert "Run it: cd new && penstock run" in written
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        check=False,
        cwd=folder / "new",
        capture_output=True,
        text=True,
    )
    assert tested.returncode == 0, tested.stdout


def test_a_new_application_runs_at_once(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("init", "--template", "orders")
    run("run", "--until-done", "--port", "none")

    (part,) = (folder / "invoices").glob("part-*")
    assert [json.loads(line)["order"] for line in part.read_text().splitlines()] == ["1001", "1002", "1003", "1005"]
    assert run("state", "get", "orders/customer", "edsger").stdout == '{\n  "orders": 1,\n  "refused": 1\n}\n'


def test_a_template_overwrites_nothing(run: Run, folder: Path) -> None:
    (folder / "app.py").write_text("mine")

    assert run("init", exit_code=4).stderr == (
        "PEN0157 . has app.py already. Nothing was written: choose an empty folder.\n"
    )
    assert [path.name for path in folder.iterdir()] == ["app.py"]


# Finding the application.


@pytest.mark.parametrize(
    ("source", "target", "refusal"),
    [
        ("", "app.py", "PEN0156 app.py should hold one App, and holds none."),
        (
            "from penstock import App\na, b = App('a'), App('b')",
            "app.py",
            "PEN0156 app.py should hold one App, and holds several: a, b. Choose one: --app app.py:NAME.",
        ),
        ("x = 1", "app:x", "PEN0156 x of app is a int, not an App. Name the variable that holds one."),
        (
            "import nothing_like_it",
            "app.py",
            "PEN0155 app can't be imported: ModuleNotFoundError: No module named 'nothing_like_it' (app.py:1). --debug",
        ),
        ("def f(:", "app", "PEN0155 app can't be imported: SyntaxError: invalid syntax (app.py:1). --debug shows"),
        ("", "other.py", "PEN0154 "),
        ("", "other", "PEN0154 There is no module 'other' in "),
        ("from penstock import App\nApp('No')", "app.py", "PEN0100 App('No'): a name is 1 to 64 lower-case letters"),
    ],
)
def test_an_application_that_cannot_be_loaded(run: Run, folder: Path, source: str, target: str, refusal: str) -> None:
    (folder / "app.py").write_text(source)

    assert run("functions", "--app", target, exit_code=2).stderr.startswith(refusal)


@pytest.mark.parametrize("target", ["app.py", "app", "app:app", "app.py:app", ""])
def test_an_application_may_be_named_in_several_ways(run: Run, folder: Path, target: str) -> None:
    (folder / "app.py").write_text(SHOP)
    named = ("--app", target) if target else ()

    assert json.loads(run("functions", "--json", *named).stdout)[0]["function"] == "shop/total"


# Running, in this process.


def test_a_bounded_input_is_run_to_its_end(run: Run, folder: Path) -> None:
    (folder / "app.py").write_text(SHOP)

    said = run("run", "--until-done", "--port", "none").stderr

    lines = said.splitlines()
    assert lines[0] == f"penstock {penstock.__version__}  shop (app.py:app)  1 function  1 ingress  0 egresses"
    assert lines[1:3] == ["  state      .penstock  checkpoint every 200ms", "  interface  none"]
    assert lines[-2].endswith("stopped with checkpoint 1 after 4 messages") or "after 4 messages" in lines[-2]
    assert lines[-1].endswith("1 messages became dead letters: penstock dead list")


def test_a_second_run_restores_and_says_so(run: Run, shop: Path) -> None:
    said = run("run", "--until-done", "--port", "none").stderr

    assert re.search(r"^  restored   checkpoint \d+ and \d+ deltas in \d\.\d\d s$", said, re.MULTILINE)


def test_an_ephemeral_run_leaves_nothing(run: Run, folder: Path) -> None:
    (folder / "app.py").write_text(SHOP)
    run("run", "--until-done", "--port", "none", "--ephemeral")

    assert [path.name for path in folder.iterdir()] == ["app.py"]
    assert "--ephemeral and --dir exclude" in run("run", "--ephemeral", "--dir", "x", exit_code=2).stderr


def test_logs_may_be_json(run: Run, folder: Path) -> None:
    (folder / "app.py").write_text(SHOP)

    said = run("run", "--until-done", "--port", "none", "--log-json").stderr

    assert {json.loads(line)["logger"] for line in said.splitlines()} == {"penstock"}


READING = """
from penstock import App, Context, FileIngress

app = App("reading")


@app.function("reading/row")
def row(ctx: Context[None], value: dict[str, str]) -> None:
    if value["n"] == "500":
        ctx.log.warning("seen %s", value["n"])


app.ingress(FileIngress("rows.csv", type=dict[str, str], rate=RATE), to=row, key="n", name="rows")
"""


def write_reading(folder: Path, *, rows: int, rate: int | None = None) -> None:
    (folder / "app.py").write_text(READING.replace("RATE", repr(rate)))
    (folder / "rows.csv").write_text("n\n" + "".join(f"{number}\n" for number in range(rows)))


@pytest.mark.parametrize(("arguments", "shown"), [((), True), (("--quiet",), False), (("--log-json",), False)])
def test_how_far_a_file_is_read_is_logged(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], shown: bool
) -> None:
    write_reading(folder, rows=5_000)
    monkeypatch.setattr(cli_run, "show_progress", partial(show_progress, sleep=lambda seconds: asyncio.sleep(0)))

    said = run("run", "--until-done", "--port", "none", *arguments).stderr

    assert bool(re.search(r"INFO +rows: \d+% read, [\d,]+ records$", said, re.MULTILINE)) == shown
    assert ("% read" in said) == shown


@pytest.mark.parametrize(
    ("arguments", "code", "refusal"),
    [
        (("--parallelism", "3"), 2, "PEN0130 parallelism = 3: give a power of two from 1 to 128, so key groups split"),
        (
            ("--memory", "some"),
            2,
            "PEN0152 memory = 'some' (from --memory) is not acceptable. Give a size such as 64MB",
        ),
        (("--from", "7777"), 4, "PEN0403 Checkpoint 7777 can't be replayed: it is not retained. Retained: 1 to "),
        (("--parallelism", "2"), 4, "PEN0305 .penstock was made with parallelism 1, and 2 was asked for. Start with"),
        (("--host", "0.0.0.0", "--port", "0"), 2, "PEN0602 Refused to listen on 0.0.0.0 without a token"),
    ],
)
def test_a_run_that_is_refused(run: Run, shop: Path, arguments: tuple[str, ...], code: int, refusal: str) -> None:
    port = () if "--port" in arguments else ("--port", "none")

    assert refusal in run("run", "--until-done", *port, *arguments, exit_code=code).stderr


def test_what_from_takes(run: Run, shop: Path) -> None:
    assert "'x' is neither the number of a checkpoint nor 'none'." in run("run", "--from", "x", exit_code=2).stderr
    run("run", "--until-done", "--port", "none", "--from", "none")
    assert json.loads(run("state", "get", "shop/total", "odd").stdout) == {"total": 4}


# A stopped application.


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, by a hash of what it holds and when it was changed."""
    return {
        str(path.relative_to(folder)): f"{path.stat().st_mtime_ns} {sha256(path.read_bytes()).hexdigest()}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_looking_at_a_stopped_application_changes_nothing(run: Run, shop: Path) -> None:
    before = contents(shop)

    run("state", "list", "shop/total")
    run("state", "get", "shop/total", "odd")
    run("dead", "list")
    run("checkpoint", "list")
    run("checkpoint", "verify")
    run("check", "--against", "last")
    run("replay", "--from", newest(run))

    assert contents(shop) == before


def newest(run: Run) -> str:
    return str(json.loads(run("checkpoint", "list", "--json").stdout)[-1]["checkpoint"])


def test_state_of_a_stopped_application(run: Run, shop: Path) -> None:
    assert run("state", "list", "shop/total").stdout == "even\nodd\n"
    assert run("state", "list", "shop/total", "--prefix", "e").stdout == "even\n"
    assert json.loads(run("state", "get", "shop/total", "odd", "--json").stdout) == {
        "function": "shop/total",
        "id": "odd",
        "exists": True,
        "state": {"total": 4},
    }
    fresh = run("state", "get", "shop/total", "nobody")
    assert json.loads(fresh.stdout) == {"total": 0}
    assert fresh.stderr == "shop/total nobody has no state yet; these are its defaults.\n"
    assert run("state", "get", "shop/none", "x", exit_code=2).stderr == (
        "PEN0105 shop/none is no function of this application. Known: shop/total.\n"
    )


def test_state_at_an_earlier_checkpoint(run: Run, shop: Path) -> None:
    number = newest(run)
    (shop / "app.py").write_text(SHOP.replace("feed(1, 2, 3, 13)", "feed(1, 2, 3, 13, 100)"))
    run("run", "--until-done", "--port", "none")

    assert json.loads(run("state", "get", "shop/total", "even").stdout) == {"total": 102}
    assert json.loads(run("state", "get", "shop/total", "even", "--at", number).stdout) == {"total": 2}


def test_dead_letters_of_a_stopped_application(run: Run, shop: Path) -> None:
    (letter,) = json.loads(run("dead", "list", "--json").stdout)
    assert run("dead", "count").stdout == "LETTERS  FUNCTION    CODE\n      1  shop/total  PEN0210\n"
    assert (letter["number"], letter["code"], letter["reason"]) == (1, "PEN0210", "Handler raised ValueError: unlucky")
    shown = run("dead", "show", "1")
    assert "app.py" in shown.stdout
    assert shown.stderr == "\nAfter a fix: penstock dead redrive 1 --yes\n"
    assert run("dead", "list", "--code", "PEN0201").stdout == "There are no dead letters.\n"
    assert run("dead", "show", "9", exit_code=2).stderr == (
        "PEN0308 There is no dead letter 9: it was redriven or dropped, or never existed. List them: "
        "penstock dead list.\n"
    )


def test_schedules_of_a_stopped_application(run: Run, shop: Path) -> None:
    assert run("schedule", "list").stdout == "There are no schedules.\n"
    scheduled = 'app.schedule("@yearly", total, message=1, id="even", name="year")\n'
    (shop / "app.py").write_text(SHOP + scheduled)
    assert "  1 schedule\n" in run("run", "--until-done", "--port", "none").stderr

    (row,) = json.loads(run("schedule", "list", "--json").stdout)
    assert (row["schedule"], row["cron"], row["function"], row["id"]) == ("year", "@yearly", "shop/total", "even")
    assert (row["next_due"][4:], row["runs"], row["paused"]) == ("-01-01T00:00:00+00:00", 0, False)
    assert run("schedule", "list").stdout.splitlines()[1].startswith("year      @yearly  UTC  ")


def test_checkpoints_of_a_stopped_application(run: Run, shop: Path) -> None:
    number = newest(run)
    assert json.loads(run("checkpoint", "show", number, "--json").stdout)["application"] == "shop"
    assert "checkpoints are sound." in run("checkpoint", "verify").stdout
    assert run("checkpoint", "show", "7777", exit_code=2).stderr.startswith("PEN0309 There is no checkpoint 7777.")


def test_a_flipped_bit_is_found(run: Run, shop: Path) -> None:
    last = max((shop / ".penstock" / "log" / "journal").iterdir())
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)

    said = run("checkpoint", "verify", exit_code=1).stdout

    assert f"The index {Path('.penstock') / 'index'} continues at offset " in said
    assert said.splitlines()[-1] == "0 of 0 checkpoints are sound."


def test_a_damaged_index_is_found(run: Run, shop: Path) -> None:
    index = shop / ".penstock" / "index"
    index.write_bytes(index.read_bytes()[:-1] + b"x")

    said = run("checkpoint", "verify", exit_code=1).stdout

    assert said.startswith("PEN0404 ")
    assert "The whole journal is read instead." in said
    assert not said.splitlines()[-1].startswith("0 of ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("state", "set", "shop/total", "odd", "{}"),
        ("dead", "redrive", "1"),
        ("calls", "cancel", "shop/total/odd", "--yes"),
        ("cancel", "shop/total/odd"),
        ("calls", "resume", "shop/total/odd"),
        ("calls", "resolve", "shop/total/odd", "approved"),
        ("schedule", "pause", "nightly"),
        ("schedule", "resume", "nightly"),
        ("schedule", "run", "nightly"),
        ("schedule", "backfill", "nightly", "--from", "2026-01-01"),
        ("checkpoint", "now"),
        ("send", "shop/total", "odd", "1"),
        ("status",),
    ],
)
def test_what_needs_a_running_application(run: Run, shop: Path, arguments: tuple[str, ...]) -> None:
    said = run(*arguments, exit_code=3).stderr

    assert re.fullmatch(
        r"PEN0623 No application runs in \.penstock, and [\w ]+ needs a running one\. Start it: penstock run\.\n", said
    )


def test_a_folder_without_an_application(run: Run, folder: Path) -> None:
    assert run("checkpoint", "list", exit_code=2).stderr == (
        "PEN0622 .penstock is no directory of an application. Give one with --dir, or start it: penstock run.\n"
    )


# Checking and replaying.


def test_unchanged_code_fits(run: Run, shop: Path) -> None:
    said = run("check", "--against", "last").stdout

    assert said.endswith(f"shop can continue from checkpoint {newest(run)}.\n")


def test_changed_code_fits_and_differs(run: Run, shop: Path) -> None:
    (shop / "app.py").write_text(SHOP.replace("+= number", "+= 2 * number"))

    run("check")
    rows = json.loads(run("check", "--against", "last", "--json", exit_code=5).stdout)["functions"]

    assert rows == [
        {
            "function": "shop/total",
            "code": "changed",
            "state": "same",
            "fields": [],
            "migration": False,
            "problems": "",
            "waiting": 0,
        }
    ]


def test_a_check_says_what_of_the_state_is_not_as_it_was(run: Run, shop: Path) -> None:
    (shop / "app.py").write_text(SHOP.replace("total: int = 0", "total: int = 0\n    more: str = ''"))

    found = json.loads(run("check", "--against", "last", "--json", exit_code=5).stdout)

    assert (found["differs"], found["refused"]) == (True, False)
    assert [(row["state"], row["fields"]) for row in found["functions"]] == [("fits", ["+more"])]


def test_a_check_says_whether_a_migration_is_there(run: Run, shop: Path) -> None:
    changed = SHOP.replace("total: int = 0", "total: list[int] = []")
    (shop / "app.py").write_text(changed)
    refused = json.loads(run("check", "--against", "last", "--json", exit_code=4).stdout)
    (shop / "app.py").write_text(changed + "\n\n@app.migrate('shop/total')\ndef listed(old):\n    return {}\n")
    migrated = json.loads(run("check", "--against", "last", "--json", exit_code=5).stdout)

    assert [(each["refused"], each["functions"][0]["state"]) for each in (refused, migrated)] == [
        (True, "refused"),
        (False, "migrated"),
    ]
    assert [each["functions"][0]["migration"] for each in (refused, migrated)] == [False, True]
    assert refused["functions"][0]["fields"] == ["~total"]


def test_a_check_finds_an_ingress_that_would_begin_anew(run: Run, shop: Path) -> None:
    assert json.loads(run("check", "--against", "last", "--json").stdout)["ingresses"] == [
        {"ingress": "numbers", "position": "known"}
    ]
    (shop / "app.py").write_text(SHOP.replace('name="numbers"', 'name="renamed"'))

    found = json.loads(run("check", "--against", "last", "--json", exit_code=5).stdout)

    assert found["ingresses"] == [
        {"ingress": "renamed", "position": "none"},
        {"ingress": "numbers", "position": "gone"},
    ]


def test_a_check_needs_no_directory_when_there_is_a_savepoint(run: Run, shop: Path) -> None:
    run("savepoint", "create", "--to", "saved")

    assert "shop can continue from checkpoint" in run("check", "--dir", "none", "--against", "saved").stdout
    (shop / "app.py").write_text(SHOP.replace("+= number", "+= 2 * number"))
    run("check", "--dir", "none", "--against", "saved", exit_code=5)
    assert run("check", "--against", "nowhere", exit_code=2).stderr.startswith("PEN0432 There is no savepoint at")


def test_a_check_against_nothing_fails(run: Run, folder: Path) -> None:
    (folder / "app.py").write_text(SHOP)
    run("check")
    assert run("check", "--against", "last", exit_code=2).stderr.startswith("PEN0622 ")


def test_state_that_no_longer_fits_is_refused(run: Run, shop: Path) -> None:
    (shop / "app.py").write_text(SHOP.replace("total: int = 0", "total: list[int] = []"))

    said = run("check", exit_code=4).stderr

    assert said.startswith(
        f"PEN0302 Refused to start: the state of shop/total in checkpoint {newest(run)} does not fit "
    )


def test_an_ingress_that_leads_nowhere_is_found(run: Run, folder: Path) -> None:
    (folder / "app.py").write_text(SHOP.replace("to=total", "to='shop/sum'"))

    assert run("check", exit_code=2).stderr == (
        "PEN0105 shop/sum is no function of this application. Known: shop/total.\n"
    )


def test_a_replay_is_shown_first(run: Run, shop: Path) -> None:
    first = json.loads(run("checkpoint", "list", "--json").stdout)[0]["checkpoint"]
    said = run("replay", "--from", str(first)).stdout

    assert said.startswith(f"shop would continue from checkpoint {first} (")
    assert said.endswith("Add --yes to do it.\n")


def test_a_replay_runs_with_the_present_code(run: Run, shop: Path) -> None:
    (shop / "app.py").write_text(SHOP.replace("feed(1, 2, 3, 13)", "feed(1, 2, 3, 13, 100)"))
    number = newest(run)
    run("run", "--until-done", "--port", "none")
    (shop / "app.py").write_text(
        SHOP.replace("feed(1, 2, 3, 13)", "feed(1, 2, 3, 13, 100)").replace("+= number", "+= 2 * number")
    )

    run("replay", "--from", number, "--until-done", "--port", "none", "--yes")

    assert json.loads(run("state", "get", "shop/total", "even").stdout) == {"total": 202}


# Settings and codes.


def test_settings_are_shown_with_their_origin(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_TOKEN", "s3cret")
    monkeypatch.setenv("PENSTOCK_NONSENSE", "1")
    shown = run("config", "show")

    rows = {line.split()[0]: line.split()[1:] for line in shown.stdout.splitlines()}
    assert rows["token"] == ["***", "PENSTOCK_TOKEN"]
    assert rows["memory"] == ["1GB", "default"]
    assert shown.stderr == "PENSTOCK_NONSENSE is no setting, and is ignored.\n"
    assert json.loads(run("config", "schema").stdout)["properties"]["memory"]["default"] == "1GB"


def test_a_code_is_explained(run: Run) -> None:
    assert run("explain", "PEN0203").stdout.startswith("PEN0203  An empty id\n\n")
    assert json.loads(run("explain", "203", "--json").stdout)["title"] == "An empty id"
    assert run("explain", "PEN9999", exit_code=2).stderr == (
        "PEN0627 There is no error code 'PEN9999'. A code is the word in front of an error: PEN0201.\n"
    )


# A real process.


class Process:
    """`penstock run` in a folder, from its banner on."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        self.process = subprocess.Popen(
            [*PENSTOCK, "run", "--port", "0", *arguments],
            cwd=folder,
            env=environment | {"PYTHONDONTWRITEBYTECODE": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.said: list[str] = []
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith("  interface"):
                return
        self.process.communicate()
        raise AssertionError("".join(self.said))

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal, and return the exit code and what was said since the banner."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said


STUBBORN = """
import asyncio, time
from penstock import App, Context

app = App("stubborn")


@app.function("stubborn/task")
async def task(ctx: Context[None], message: None) -> None:
    while True:
        try:
            await asyncio.sleep(60)
        except BaseException:
            continue


@app.function("stubborn/thread")
async def thread(ctx: Context[None], message: None) -> None:
    await asyncio.to_thread(time.sleep, 60)
"""


@pytest.mark.parametrize("function", ["stubborn/task", "stubborn/thread"])
def test_a_handler_that_does_not_end_does_not_keep_the_process(run: Run, folder: Path, function: str) -> None:
    (folder / "app.py").write_text(STUBBORN)
    (folder / "penstock.toml").write_text('stop_timeout = "300ms"\n')
    process = Process(folder)
    assert run("send", function, "a").exit_code == 0

    code, said = process.end(signal.SIGTERM)

    assert code == 1
    assert "PEN0628 A handler did not end within stop_timeout = 0.3 s" in said


CLERKS = """
from penstock import App, Context
from penstock.functions.schedule import Scheduled

app = App("clerks")


@app.function("clerks/clerk")
async def clerk(ctx: Context[None], amount: int) -> str:
    return await ctx.promise("approved", str)


@app.schedule("0 2 * * *", name="nightly")
@app.schedule("0 3 * * *", name="later")
@app.function("clerks/report")
def report(ctx: Context[None], run: Scheduled) -> None: ...
"""


def test_a_check_speaks_of_handlers_that_wait_in_changed_code_and_of_schedules(run: Run, folder: Path) -> None:
    (folder / "app.py").write_text(CLERKS)
    process = Process(folder)
    for number in range(3):
        run("send", "clerks/clerk", f"c{number}", "1")
    process.end(signal.SIGTERM)
    assert process.process.stderr is not None
    process.process.stderr.close()
    assert json.loads(run("check", "--against", "last", "--json").stdout)["schedules"] == [
        {"schedule": "later", "kept": "same"},
        {"schedule": "nightly", "kept": "same"},
    ]
    changed = CLERKS.replace("return await", 'await ctx.sleep("1s")\n    return await').replace('"0 2 *', '"0 4 *')
    (folder / "app.py").write_text(changed.replace('@app.schedule("0 3 * * *", name="later")\n', ""))

    said = run("check", "--against", "last", exit_code=5).stdout
    found = json.loads(run("check", "--against", "last", "--json", exit_code=5).stdout)

    assert "3 addresses of clerks/clerk wait in the middle of its handler, which is changed." in said
    assert [(row["function"], row["waiting"]) for row in found["functions"]] == [
        ("clerks/clerk", 3),
        ("clerks/report", 0),
    ]
    assert found["schedules"] == [{"schedule": "nightly", "kept": "changed"}, {"schedule": "later", "kept": "gone"}]


@pytest.fixture
def running(folder: Path) -> Iterator[Process]:
    (folder / "app.py").write_text(SHOP)
    process = Process(folder)
    yield process
    if process.process.poll() is None:
        process.end(signal.SIGKILL)
    assert process.process.stderr is not None
    process.process.stderr.close()


def test_a_running_application_is_asked_and_changed(run: Run, running: Process) -> None:
    assert run("call", "shop/total", "odd", "1").stdout == "5\n"
    assert run("send", "shop/total", "odd", "-", stdin="1").stdout == "accepted by shop/total odd\n"
    assert run("call", "shop/total", "odd", "1", "--key", "k", "--json").stdout == "7\n"
    assert run("call", "shop/total", "odd", "1", "--key", "k").stdout == "7\n"

    assert run("state", "list", "shop/total").stdout == "even\nodd\n"
    assert run("state", "set", "shop/total", "odd", '{"total": 1}').stdout == (
        'before  {"total": 7}\nafter   {"total": 1}\nWould set the state of shop/total odd; add --yes.\n'
    )
    assert run("state", "set", "shop/total", "odd", '{"total": 1}', "--expect", '{"total": 7}', "--yes").stdout == (
        'shop/total odd is now {"total": 1}\n'
    )
    assert run(
        "state", "set", "shop/total", "odd", '{"total": 1}', "--expect", '{"total": 7}', "--yes", exit_code=4
    ).stderr == (
        "PEN0303 State of shop/total/odd is not what was expected, so it was not set. Read it again, and decide anew.\n"
    )

    taken = run("checkpoint", "now").stdout
    assert re.fullmatch(r"checkpoint \d+ is complete\n", taken)
    assert taken.split()[1] == newest(run)
    status = run("status").stdout
    assert status.startswith("shop  ready  up ")
    assert "letters     1 dead   <- penstock dead list" in status
    assert json.loads(run("dead", "count", "--json").stdout) == [
        {"function": "shop/total", "code": "PEN0210", "letters": 1}
    ]
    assert re.search(r"^shop/total +\d+ +1 +0$", status, re.MULTILINE)
    assert json.loads(run("status", "--json").stdout)["dead_letters"] == 1


def test_dead_letters_are_redriven_after_a_preview(run: Run, running: Process) -> None:
    run("checkpoint", "now")
    assert run("dead", "redrive", "--all").stdout == (
        "      1  shop/total  PEN0210\nWould redrive 1 dead letter; add --yes.\n"
    )
    assert run("dead", "redrive", "1", "--yes").stdout == "1 dead letter redriven\n"
    run("checkpoint", "now")
    assert [letter["number"] for letter in json.loads(run("dead", "list", "--json").stdout)] == [2]  # It fails again.
    assert run("dead", "drop", "--function", "shop/total", "--yes").stdout == "1 dead letter dropped\n"
    assert run("dead", "list").stdout == "There are no dead letters.\n"
    assert "Give numbers, or --all" in run("dead", "drop", exit_code=2).stderr


LOANS = """
from penstock import App, Context

app = App("loans")


@app.function("loans/loan")
async def loan(ctx: Context[None], amount: int) -> str:
    return await ctx.call(clerk, "eve", amount)


@app.function("loans/clerk")
async def clerk(ctx: Context[None], amount: int) -> str:
    return await ctx.promise("approved", str)
"""


def test_what_waits_is_shown_resolved_and_cancelled(run: Run, folder: Path) -> None:
    (folder / "app.py").write_text(LOANS)
    process = Process(folder)
    try:
        assert run("calls", "list").stdout == "Nothing waits.\n"
        run("send", "loans/loan", "7", "5")
        run("send", "loans/loan", "8", "6")
        run("checkpoint", "now")
        assert "\nhandlers    3 waiting\n" in run("status").stdout
        listed = run("calls", "list").stdout.splitlines()
        assert re.match(r"FUNCTION +ID +STATE +SINCE +WAITS FOR +CALLED BY +BEHIND$", listed[0])
        assert re.match(r"loans/clerk +eve +waiting +\S+Z +promise approved +loans/loan/7 +1$", listed[1])
        assert [line.split()[1] for line in listed[1:]] == ["eve", "7", "8"]
        assert "(the first 1; more with --limit)" in run("calls", "list", "--limit", "1").stderr
        shown = run("calls", "show", "loans/clerk/eve").stdout
        assert re.search(r"^chain +loans/loan/7$", shown, re.MULTILINE)
        assert re.search(r"\nNUMBER +KIND +NAME +SINCE +ARRIVED +RESULT +ERROR\n +1 +promise +approved ", shown)
        assert shown.endswith("\nIn line, and waited for: loans/loan/8\n")
        assert run("calls", "show", "loans/clerk", exit_code=2).stderr.startswith("PEN0203 The address names ")

        assert run("calls", "resolve", "loans/clerk/eve", "approved", '"yes"').stdout == (
            "promise approved of loans/clerk/eve is resolved\n"
        )
        assert run("cancel", "loans/loan/8").stdout.endswith("\nWould cancel loans/loan/8; add --yes.\n")
        assert run("cancel", "loans/loan/8", "--yes").stdout == "loans/loan/8 is told to end\n"
        assert run("calls", "resume", "loans/clerk/eve", exit_code=4).stderr.startswith("PEN0269 ")
        assert [row["called_by"] for row in json.loads(run("calls", "list", "--json").stdout)] == ["loans/loan/8"]
    finally:
        process.end(signal.SIGTERM)

    (row,) = json.loads(run("calls", "list", "--json").stdout)
    assert (row["function"], row["id"], row["state"]) == ("loans/clerk", "eve", "waiting")
    assert json.loads(run("calls", "show", "loans/clerk/eve", "--json").stdout)["message"] == 6
    assert run("calls", "show", "loans/loan/8", exit_code=2).stderr.startswith("PEN0312 loans/loan/8 is not busy")


def test_errors_of_a_running_application(run: Run, running: Process) -> None:
    assert run("call", "shop/total", "odd", "13", exit_code=1).stderr.startswith(
        "PEN0210 Handler raised ValueError: unlucky"
    )
    assert run("send", "shop/total", "odd", '"1"', exit_code=2).stderr == (
        "PEN0201 Message for shop/total 'odd': $ expected int, got str \"1\".\n"
    )
    assert run("send", "shop/sum", "odd", "1", exit_code=2).stderr == (
        "PEN0105 shop/sum/odd names no function of this application. Known: shop/total.\n"
    )
    assert run("send", "shop/total", "odd", "{1}", exit_code=2).stderr.startswith(
        "PEN0625 The message '{1}' is no JSON: "
    )
    said = run("replay", "--from", "1", exit_code=4).stderr
    assert said == (f"PEN0626 shop runs as process {running.process.pid} (penstock run). Stop it before a replay.\n")
    assert re.fullmatch(
        rf"PEN0601 \.penstock is in use by process {running.process.pid} \(penstock run, started \d\d:\d\d\)\. Stop "
        r"it, or choose another directory with --dir\.\n",
        run("run", "--port", "0", exit_code=4).stderr,
    )


def test_sigterm_stops_in_order_and_the_next_run_continues(run: Run, folder: Path, running: Process) -> None:
    run("send", "shop/total", "odd", "1")

    code, said = running.end(signal.SIGTERM)

    assert code == 0
    assert said.splitlines()[0] == "Stopping after a last checkpoint; once more ends at once."
    assert json.loads(run("state", "get", "shop/total", "odd").stdout) == {"total": 5}


def run_on_terminal(folder: Path, *arguments: str) -> str:
    """What a person sees of `penstock run`, control sequences included."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            [*PENSTOCK, "run", "--until-done", "--port", "none", *arguments],
            cwd=folder,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
            stderr=theirs,
        )
        os.close(theirs)
        seen = b""
        with suppress(OSError):  # How Linux says that nobody has the terminal open any more.
            while piece := screen.read(65_536):
                seen += piece
        assert process.wait(timeout=30) == 0
    return seen.decode()


def test_on_a_terminal_a_bar_is_shown_and_goes_away(folder: Path) -> None:
    write_reading(folder, rows=600, rate=1_000)

    seen = run_on_terminal(folder)

    assert re.search(r"rows .*%.* \d+ records", seen)
    # A line that is logged meanwhile has a line of its own, above the bar.
    assert re.search(r"\x1b\[2K\d\d:\d\d:\d\d WARNING seen 500 \[reading/row/500\]\r\n", seen)
    assert "records" not in seen.rpartition("\x1b[2K")[2]
    assert "\x1b[?25h" in seen  # The cursor is back.
    assert "\x1b" not in run_on_terminal(folder, "--from", "none", "--quiet")


WAITING = """
from penstock import App, Context, HttpEgress

app = App("waiting")
out = app.egress("waiting/out", HttpEgress("http://127.0.0.1:1/nobody"))


@app.function("waiting/pass")
def pass_on(ctx: Context[None], number: int) -> None:
    ctx.emit(out, number)
"""


def test_a_second_signal_ends_at_once(run: Run, folder: Path) -> None:
    (folder / "app.py").write_text(WAITING)
    process = Process(folder)
    run("send", "waiting/pass", "a", "1")
    process.process.send_signal(signal.SIGTERM)
    assert process.process.stderr is not None
    while not process.process.stderr.readline().startswith("Stopping after a last checkpoint"):
        pass

    code, said = process.end(signal.SIGINT)

    assert code == 1
    assert said.splitlines()[-1] == "Ended at once. Nothing is lost: the next start restores the last checkpoint."


def test_a_failure_while_running_is_one_line_and_exit_code_1(run: Run, folder: Path) -> None:
    (folder / "app.py").write_text(SHOP.replace("attempts=1", "attempts=1, on_failure='halt'"))

    said = run("run", "--until-done", "--port", "none", exit_code=1).stderr

    assert said.splitlines()[-1] == (
        "PEN0211 shop/total/odd failed after 1 attempts, and on_failure is 'halt', so the application stops. PEN0210 "
        "Handler raised ValueError: unlucky. Correct the handler and start again: the message is processed once more."
    )


def test_after_a_kill_nothing_accepted_is_lost(run: Run, folder: Path, running: Process) -> None:
    for _ in range(3):
        run("send", "shop/total", "odd", "1")

    code, _ = running.end(signal.SIGKILL)

    assert code == -signal.SIGKILL
    run("run", "--until-done", "--port", "none")
    assert json.loads(run("state", "get", "shop/total", "odd").stdout) == {"total": 7}


def test_an_application_elsewhere_is_reached_by_its_url(
    run: Run, folder: Path, running: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = running.said[-1].split()[1]
    monkeypatch.chdir(folder.parent)

    assert run("call", "shop/total", "odd", "0", "--url", url).stdout == "4\n"
    settings: list[dict[str, Any]] = json.loads(run("config", "show", "--json", "--url", url).stdout)
    assert {"name": "port", "value": "0", "origin": "--port"} in settings


def test_a_url_may_stand_in_the_environment_unless_a_directory_is_named(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_URL", "http://127.0.0.1:1")

    assert run("status", exit_code=3).stderr.startswith("PEN0620 http://127.0.0.1:1 does not answer: ")
    assert run("status", "--dir", "nowhere", exit_code=3).stderr.startswith("PEN0623 No application runs in nowhere")


def test_the_directory_of_a_worker_on_kafka_is_told_apart(run: Run, folder: Path) -> None:
    (folder / ".penstock" / "tasks").mkdir(parents=True)

    assert run("checkpoint", "list", exit_code=2).stderr == (
        "PEN0622 .penstock is of an application on Kafka, and no settings name its brokers. Set PENSTOCK_KAFKA, or "
        "kafka in penstock.toml, or give the --url of one of its workers.\n"
    )


def test_nobody_at_a_url(run: Run) -> None:
    said = run("status", "--url", "http://127.0.0.1:1", exit_code=3).stderr

    assert said.startswith("PEN0620 http://127.0.0.1:1 does not answer: ")
    assert said.endswith("Start the application (penstock run), or give the right --url.\n")


# Savepoints.


def test_a_savepoint_is_taken_looked_at_and_removed(run: Run, shop: Path) -> None:
    taken = json.loads(run("savepoint", "create", "--json").stdout)
    name = Path(taken["savepoint"]).name
    assert (taken["application"], taken["parallelism"]) == ("shop", 1)
    assert Path(taken["savepoint"]).parent == shop / ".penstock" / "savepoints"

    run("savepoint", "create", "--to", "elsewhere")
    assert [each["savepoint"] for each in json.loads(run("savepoint", "list", "--json").stdout)] == [
        str(Path(".penstock") / "savepoints" / name)
    ]
    assert json.loads(run("savepoint", "show", name, "--json").stdout)["functions"].keys() == {"shop/total"}
    assert "attempt" in run("savepoint", "show", "elsewhere").stdout
    assert run("savepoint", "verify", name).stdout.endswith(f"{taken['bytes']:,} bytes.\n")
    assert run("savepoint", "create", "--to", "elsewhere", exit_code=4).stderr.startswith("PEN0431 ")

    assert run("savepoint", "delete", name).stdout.endswith("; add --yes.\n")
    run("savepoint", "delete", name, "--yes")
    assert run("savepoint", "list").stdout == "There are no savepoints yet.\n"
    assert run("savepoint", "delete", name, "--yes", exit_code=2).stderr.startswith("PEN0432 ")


def test_a_damaged_savepoint_is_found_and_not_restored(run: Run, shop: Path) -> None:
    run("savepoint", "create", "--to", "places/one")
    run("savepoint", "create", "--to", "places/two")
    for path in (shop / "places" / "one" / "deltas", shop / "places" / "two"):
        file = next(each for each in sorted(path.iterdir()) if each.is_file())
        file.write_bytes(file.read_bytes()[:-1])

    assert "one/deltas/0-0" in run("savepoint", "verify", "places/one", exit_code=1).stderr
    assert "places/two/savepoint is damaged" in run("savepoint", "list", "places").stdout
    run("run", "--from-savepoint", "places/one", "--dir", "new", "--until-done", "--port", "none", exit_code=1)
    assert "There are no checkpoints yet." in run("checkpoint", "list", "--dir", "new").stdout


def test_a_savepoint_is_continued_elsewhere(run: Run, shop: Path) -> None:
    run("savepoint", "create", "--to", "saved")
    begin = ("run", "--until-done", "--port", "none", "--from-savepoint", "saved", "--dir", "new")

    run(*begin, "--parallelism", "4")

    assert json.loads(run("state", "get", "shop/total", "odd", "--dir", "new").stdout) == {"total": 4}
    assert json.loads(run("dead", "list", "--json", "--dir", "new").stdout)[0]["number"] == 1
    assert run(*begin, "--parallelism", "4", exit_code=4).stderr.startswith("PEN0433 ")
    run(*begin, "--parallelism", "2", "--replace")
    assert json.loads(run("state", "get", "shop/total", "odd", "--dir", "new").stdout) == {"total": 4}
    run(*begin, "--ephemeral", exit_code=2)
    run("run", "--replace", exit_code=2)


def test_parallelism_is_changed(run: Run, shop: Path) -> None:
    assert run("rescale", "--parallelism", "4").stdout == "Would give shop 4 tasks instead of 1; add --yes.\n"
    assert json.loads(run("rescale", "--parallelism", "4", "--json").stdout) == {
        "before": 1,
        "after": 4,
        "done": False,
    }
    said = run("rescale", "--parallelism", "4", "--yes").stdout
    assert "shop has 4 tasks from checkpoint" in said

    assert json.loads(run("state", "get", "shop/total", "even").stdout) == {"total": 2}
    assert run("run", "--until-done", "--port", "none", exit_code=4).stderr.startswith("PEN0305 ")
    (shop / "app.py").write_text(SHOP.replace("feed(1, 2, 3, 13)", "feed(1, 2, 3, 13, 100)"))
    run("run", "--until-done", "--port", "none", "--parallelism", "4")
    assert json.loads(run("state", "get", "shop/total", "even").stdout) == {"total": 102}
    assert run("rescale", "--parallelism", "4", "--yes", exit_code=4).stderr.startswith("PEN0441 ")
    assert run("rescale", "--parallelism", "3", "--yes", exit_code=2).stderr.startswith("PEN0130 ")
    assert run("rescale", "--parallelism", "2", "--dir", "none", exit_code=2).stderr.startswith("PEN0622 ")


def test_two_checkpoints_are_compared(run: Run, shop: Path) -> None:
    before = newest(run)
    (shop / "app.py").write_text(SHOP.replace("feed(1, 2, 3, 13)", "feed(1, 2, 3, 13, 100)"))
    run("run", "--until-done", "--port", "none")
    after = newest(run)

    found = json.loads(run("checkpoint", "diff", before, after, "--json", exit_code=5).stdout)
    assert found["differences"] == [{"change": "changed", "function": "shop/total", "id": "even"}]
    assert found["counts"] == {"added": 0, "removed": 0, "changed": 1}
    shown = run("checkpoint", "diff", before, after, exit_code=5)
    assert shown.stdout == "CHANGE   FUNCTION    ID\nchanged  shop/total  even\n"
    assert run("checkpoint", "diff", before, before).stdout == "Nothing differs.\n"
    assert run("checkpoint", "diff", before, "7777", exit_code=2).stderr.startswith("PEN0309 ")


def test_a_running_application_is_saved(run: Run, running: Process) -> None:
    assert run("call", "shop/total", "odd", "1").stdout == "5\n"
    taken = json.loads(run("savepoint", "create", "--json").stdout)
    assert run("rescale", "--parallelism", "2", "--yes", exit_code=4).stderr.startswith("PEN0626 ")
    assert run("savepoint", "create", "--to", taken["savepoint"], exit_code=4).stderr.startswith("PEN0431 ")
    assert run("call", "shop/total", "odd", "1").stdout == "6\n"

    run(
        *("run", "--until-done", "--port", "none", "--dir", "new", "--parallelism", "4"),
        *("--from-savepoint", taken["savepoint"]),
    )

    assert json.loads(run("state", "get", "shop/total", "odd", "--dir", "new").stdout) == {"total": 5}
