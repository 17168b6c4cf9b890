"""The command line: `penstock VERB ...`.

What always holds: a verb's module is imported when that verb is used, so that `penstock --help` answers at once; a
refusal is one line with a code, and a traceback only with --debug; what a verb answers can be had as --json; what
destroys something shows what it would do, and does it with --yes.

    exit code   0 done   1 failed   2 wrong use   3 not reachable   4 refused, nothing changed   5 differences found
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, NamedTuple

import click

import penstock
from penstock.errors import ConfigurationError, Fenced, InvalidInput, PenstockError, Refused, Unavailable
from penstock.output import DEBUG


class _Verb(NamedTuple):
    module: str
    """Where it is defined: here beside, or a full name."""
    about: str
    """The first line of the verb's own help; a test compares them."""


VERBS: Final = {
    "init": _Verb("cli_init", "Begin a new application from a template."),
    "run": _Verb("cli_run", "Run an application until it is told to stop."),
    "check": _Verb("cli_check", "Say whether an application loads and fits its last checkpoint."),
    "replay": _Verb("cli_run", "Run a stopped application again from an earlier checkpoint."),
    "status": _Verb("cli_status", "Say how a running application is doing."),
    "functions": _Verb("cli_state", "List the functions of an application."),
    "send": _Verb("cli_send", "Send a message to an address."),
    "call": _Verb("cli_send", "Send a message to an address and print the answer."),
    "state": _Verb("cli_state", "Look at the state of addresses, and set it."),
    "dead": _Verb("cli_dead", "Look at messages that were given up, and send them again."),
    "calls": _Verb("cli_calls", "Look at what waits, and end it or let it go on."),
    "cancel": _Verb("cli_calls", "End what an address is busy with."),
    "saga": _Verb("cli_saga", "Look at sagas that are under way."),
    "schedule": _Verb("cli_schedule", "Look at schedules, pause them, and run them besides."),
    "checkpoint": _Verb("cli_checkpoint", "Look at checkpoints, and take one."),
    "savepoint": _Verb("cli_savepoint", "Copy an application's state to another place, to restore it there."),
    "rescale": _Verb("cli_rescale", "Give a stopped application another parallelism."),
    "doctor": _Verb("cli_doctor", "Say whether an application can run in a Kafka cluster."),
    "destroy": _Verb("cli_destroy", "Remove the topics of an application from a Kafka cluster."),
    "mesh": _Verb("penstock.mesh.cli", "Run an application as a mesh of requests."),
    "sidecar": _Verb("penstock.mesh.cli_sidecar", "Stand beside an application of any language."),
    "compare": _Verb("penstock.compare.cli", "Measure what failures do to the two runtimes."),
    "config": _Verb("cli_config", "Show the settings in force."),
    "explain": _Verb("cli_explain", "Explain an error code."),
}


class Verbs(click.Group):
    """The group whose commands are found in `VERBS`. Turns errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = VERBS[cmd_name].module
        module = module if "." in module else f"penstock.engine.{module}"
        command: click.Command = getattr(import_module(module), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], VERBS, n=1)
            ctx.fail(f"There is no verb {args[0]!r}.{f' Did you mean {near[0]}?' if near else ''}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.about) for name, verb in VERBS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PenstockError as error:
            if ctx.meta.get(DEBUG):
                import traceback

                click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
            else:
                click.echo(str(error), err=True)
            ctx.exit(exit_code(error))
        except BrokenPipeError:
            ctx.exit(1)  # Whoever read our output has had enough.


def exit_code(error: PenstockError) -> int:
    """See the module."""
    match error:
        case ConfigurationError() | InvalidInput():
            return 2
        case Unavailable():
            return 3
        case Refused() | Fenced():
            return 4
        case _:
            return 1


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(penstock.__version__, prog_name="penstock", message="%(prog)s %(version)s")
def cli() -> None:
    """Stateful functions that survive a crash with nothing lost and nothing doubled.

    Begin with `penstock init counter`, then `penstock run` in that folder. An error code such as PEN0201 is explained
    by `penstock explain PEN0201`.
    """


def main() -> None:
    """The console script."""
    cli(prog_name="penstock")
